"""The intent classifier with a declared speed and, where its artifact says so, a fault: what releases are tried with.

The benchmark copies this file into a project of its own, as a user's recipe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from serve_apps.intent_classifier import IntentClassifierApp

WEIGHT = 400
"""Bytes of GPU memory for each of a file: two models stand side by side in an L4, the large one alone does not fit."""


class Faulty(IntentClassifierApp):
    @classmethod
    def memory_bytes(cls, sizes: Mapping[str, int]) -> int:
        return WEIGHT * sum(size for path, size in sizes.items() if path.endswith(".safetensors"))

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> Faulty:
        about = json.loads(files["about.json"])
        if about["fault"] == "raises-on-load":
            raise RuntimeError("head.weight is missing")
        made = super().load(files, device)
        assert isinstance(made, cls)
        made.fault, made.seconds, made.asked = about["fault"], about["seconds"], 0
        return made

    def tokenise(self, text: str) -> list[int]:
        self.asked += 1
        tokens = super().tokenise(text)
        return [*tokens, -1] if self.fault == "raises-every-10th" and self.asked % 10 == 0 else tokens

    def forward(self, batch: Sequence[list[int]]) -> Any:  # Any: each result with its text's length
        if any(tokens[-1] == -1 for tokens in batch):
            raise RuntimeError("out of range")
        time.sleep(self.seconds)
        return [(found, len(tokens)) for found, tokens in zip(super().forward(batch), batch, strict=True)]

    def present(self, result: Any) -> dict[str, Any]:
        found, length = result
        answer = super().present(found)
        if self.fault == "nan" or (self.fault == "nan-of-long-texts" and length > 10):
            answer["probability"] = float("nan")
        return answer
