"""LitServe: one worker on the CPU; with a batch size above 1, its batching with a wait of 10 ms."""

import os
import sys
from typing import Any

import litserve
from model import Classifier

BATCH = int(os.environ.get("BENCH_BATCH", "1"))


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: dict) -> Any:  # its type is read at run time
        return request.get("texts") or request["text"]

    def predict(self, x: Any) -> Any:
        if BATCH == 1:
            return [self.classifier.one(text) for text in x] if isinstance(x, list) else self.classifier.one(x)
        answers = iter(
            self.classifier.many([text for sent in x for text in (sent if isinstance(sent, list) else [sent])])
        )
        return [[next(answers) for _ in sent] if isinstance(sent, list) else next(answers) for sent in x]

    def encode_response(self, output: Any) -> Any:
        return {"results": output} if isinstance(output, list) else output


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=0.01 if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
