"""BentoML: one worker. Without batching the handler runs the model; with it, BentoML's adaptive batching."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from model import Classifier

BATCH = int(os.environ.get("BENCH_BATCH", "1"))

if BATCH == 1:

    @bentoml.service(
        workers=1, traffic={"timeout": 120}, metrics={"enabled": False}, logging={"access": {"enabled": False}}
    )
    class Service:
        def __init__(self) -> None:
            self.classifier = Classifier()

        @bentoml.api
        def classify(self, text: str = "", texts: list[str] = []) -> dict[str, Any]:  # noqa: B006  # its own way
            if texts:
                return {"results": [self.classifier.one(each) for each in texts]}
            return self.classifier.one(text)

else:

    @bentoml.service(
        workers=1, traffic={"timeout": 120}, metrics={"enabled": False}, logging={"access": {"enabled": False}}
    )
    class Service:  # type: ignore[no-redef]
        def __init__(self) -> None:
            self.classifier = Classifier()

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
        def classify(self, texts: list[str]) -> list[dict[str, Any]]:
            return self.classifier.many(texts)
