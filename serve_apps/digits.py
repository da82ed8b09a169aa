"""Handwritten digits, served: an image in, the digit and its probability out. Bright ink on a dark ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from heliostat.serve.recipe import ImageModel
from train_jobs.digits_model import DigitNet


@dataclass(frozen=True)
class Digit:
    digit: int
    probability: float


class DigitsApp(ImageModel[Digit]):
    height, width = 8, 8
    brightest = 16  # scikit-learn's digits count from 0 to 16
    examples = ([[0] * 8] * 8, [[0, 0, 5, 13, 9, 1, 0, 0]] * 8)

    def __init__(self, model: DigitNet, device: torch.device) -> None:
        self._model, self._device = model, device

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> DigitsApp:
        with torch.device("meta"):  # the weights exist once: those that were read
            model = DigitNet()
        model.load_state_dict(safetensors.torch.load(files["model.safetensors"]), assign=True)
        return cls(model.to(device).eval(), device)

    @torch.inference_mode()
    def forward(self, batch: Sequence[torch.Tensor]) -> list[Digit]:
        images = torch.stack(list(batch)).to(self._device)  # [B, 1, 8, 8]
        best = self._model(images).softmax(-1).max(-1)
        return [
            Digit(digit, round(probability, 6))
            for probability, digit in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def present(self, result: Digit) -> dict[str, Any]:
        return {"digit": result.digit, "probability": result.probability}
