"""Sentence embeddings: a text in, a vector of length 1 out, through OpenAI's /v1/embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from heliostat.inference.encoder import MAX_TOKENS, EncoderConfig, PackedEncoder, pack
from heliostat.serve.recipe import EmbeddingModel


class EmbeddingsApp(EmbeddingModel):
    def __init__(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> EmbeddingsApp:
        config = EncoderConfig.from_json(json.loads(files["config.json"]), where="config.json")
        with torch.device("meta"):  # the weights exist once: those that were read
            encoder = PackedEncoder(config)
        encoder.load_checkpoint(safetensors.torch.load(files["model.safetensors"]))
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        return cls(encoder.to(device).eval(), tokenizer)

    def tokenise(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    @torch.inference_mode()
    def vectors(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """[S, hidden] float32, each of length 1."""
        flat, lengths = pack(batch)
        return functional.normalize(self._encoder(flat, lengths).float(), dim=-1)

    def narrow(self, dtype: torch.dtype) -> None:
        self._encoder.to(dtype)

    def forward(self, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return list(self.vectors(batch).cpu().numpy())
