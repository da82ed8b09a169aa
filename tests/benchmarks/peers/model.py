"""The one model that every server of the serving benchmark runs, as its user would write it. No Heliostat server code.

`BENCH_MODEL` names a folder with model.safetensors, config.json, labels.json and tokenizer.json. One text at a time
needs no padding; many are padded to the longest in the order in which they came, as every batching server here does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from heliostat.inference.encoder import EncoderConfig, IntentClassifier, PackedEncoder

MAX_TOKENS = 256


class Classifier:
    """Text in, label and probability out, in float32 on one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = Path(os.environ["BENCH_MODEL"])
        self.labels: list[str] = json.loads((folder / "labels.json").read_text())
        config = EncoderConfig(**json.loads((folder / "config.json").read_text())["encoder"])
        self.model = IntentClassifier(PackedEncoder(config), classes=len(self.labels))
        self.model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        self.model.eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    @torch.inference_mode()
    def one(self, text: str) -> dict[str, Any]:
        """One text alone: nothing to pad."""
        ids = self.tokenizer.encode(text).ids
        return self.present(self.model(torch.tensor(ids), [len(ids)]))[0]

    @torch.inference_mode()
    def many(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Padded to the longest, in the order given."""
        return self.present(self.padded(self.tokenise(texts)))

    @torch.inference_mode()
    def packed(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One flat list of tokens, no padding: what Heliostat's runner does."""
        ids = self.tokenise(texts)
        flat = torch.tensor([token for tokens in ids for token in tokens])
        return self.present(self.model(flat, [len(tokens) for tokens in ids]))

    def padded(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """[S, C] logits by the textbook way: [S, L] ids and a mask."""
        longest = max(map(len, ids))
        tokens = torch.zeros(len(ids), longest, dtype=torch.long)
        real = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = torch.tensor(text)
            real[row, : len(text)] = True
        encoder = self.model.encoder
        parts = encoder.embeddings
        places = torch.arange(longest)
        hidden = parts.LayerNorm(
            parts.word_embeddings(tokens) + parts.position_embeddings(places) + parts.token_type_embeddings.weight[0]
        )
        mask = real[:, None, None, :]
        for layer in encoder.encoder.layer:
            self_attention = layer.attention.self
            heads = [
                part(hidden).unflatten(-1, (self_attention.heads, -1)).transpose(1, 2)
                for part in (self_attention.query, self_attention.key, self_attention.value)
            ]
            attended = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
            mixed = layer.attention.output(attended.transpose(1, 2).flatten(2), hidden)
            hidden = layer.output(functional.gelu(layer.intermediate(mixed)), mixed)
        weights = real.to(hidden.dtype)[..., None]
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        unit = functional.normalize(pooled, dim=-1) * IntentClassifier.SCALE
        logits: torch.Tensor = self.model.head(unit)
        return logits

    def present(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        best = logits.softmax(-1).max(-1)
        return [
            {"label": self.labels[index], "probability": round(probability, 6)}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
