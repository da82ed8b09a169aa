"""The intents of a voice assistant, served: text in, label and probability out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer

from heliostat.inference.encoder import EncoderConfig, IntentClassifier, PackedEncoder, pack
from heliostat.serve.recipe import TextModel

MAX_TOKENS = 256


@dataclass(frozen=True)
class Intent:
    label: str
    probability: float


class IntentClassifierApp(TextModel[Intent]):
    def __init__(self, model: IntentClassifier, tokenizer: Tokenizer, labels: list[str]) -> None:
        self._model, self._tokenizer, self._labels = model, tokenizer, labels

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> IntentClassifierApp:
        labels = json.loads(files["labels.json"])
        config = EncoderConfig(**json.loads(files["config.json"])["encoder"])
        with torch.device("meta"):  # the weights exist once: those that were read
            model = IntentClassifier(PackedEncoder(config), classes=len(labels))
        model.load_state_dict(safetensors.torch.load(files["model.safetensors"]), assign=True)
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        return cls(model.to(device).eval(), tokenizer, labels)

    def tokenise(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    @torch.inference_mode()
    def vectors(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """[S, C] logits."""
        flat, lengths = pack(batch)
        logits: torch.Tensor = self._model(flat, lengths)
        return logits

    def narrow(self, dtype: torch.dtype) -> None:
        self._model.encoder.to(dtype)  # the head is small and stays as exact as it was

    @torch.inference_mode()
    def forward(self, batch: Sequence[Sequence[int]]) -> list[Intent]:
        best = self.vectors(batch).softmax(-1).max(-1)
        return [
            Intent(self._labels[index], round(probability, 6))
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def present(self, result: Intent) -> dict[str, Any]:
        return {"label": result.label, "probability": result.probability}
