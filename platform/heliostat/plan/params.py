"""The shape of a model and its exact parameter count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    name: str
    params: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    embedding_params: int
    head_params: int = 0
    gated: bool = True
    causal: bool = True
    has_head: bool = True
    experts: int = 1
    active_experts: int = 1
    max_context: int | None = None
    exact: bool = True

    @property
    def block_params(self) -> int:
        """Parameters outside the embeddings and the head: what quantisation and tensor parallelism act on."""
        return self.params - self.embedding_params - self.head_params

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim
