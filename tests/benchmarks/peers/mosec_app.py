"""mosec: one worker process; with a batch size above 1, its dynamic batching with a wait of 10 ms."""

from __future__ import annotations

import os
from typing import Any

from model import Classifier
from mosec import Server, Worker

BATCH = int(os.environ.get("BENCH_BATCH", "1"))


class Model(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def forward(self, data: Any) -> Any:  # a list of requests where mosec batches, one request where not
        if BATCH == 1:
            if "texts" in data:
                return {"results": [self.classifier.one(text) for text in data["texts"]]}
            return self.classifier.one(data["text"])
        texts = [text for sent in data for text in (sent.get("texts") or [sent["text"]])]
        answers = iter(self.classifier.many(texts))
        return [
            {"results": [next(answers) for _ in sent["texts"]]} if "texts" in sent else next(answers) for sent in data
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=BATCH, max_wait_time=10 if BATCH > 1 else 0)
    server.run()
