"""A Hugging Face causal model as slots: its own forward pass, over keys and values that lie in fixed places.

Transformers' caches grow by one tensor for a whole batch that starts and ends together. Here each layer keeps
[slots, heads, max_length, width] from the first call on; a step reads and writes the rows of the texts that run. What
a slot held before is never seen: a text attends to its own places alone, and writes each before it reads it.

Shapes: B texts of this step, Q new tokens of each, H heads of keys, D = their width, K = the longest text of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.utils.logging import disable_progress_bar


class SlotModel:
    """See TokenModel in generate.py. One thread at a time."""

    def __init__(self, model: PreTrainedModel, *, slots: int = 8, max_length: int | None = None) -> None:
        """`max_length` None: what the model knows positions for, 1024 at most. Raises ValueError for a model whose
        attention is not full (sliding windows, state spaces): its cache is another.
        """
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(f"layers of {', '.join(sorted(kinds))}; this runner knows full_attention alone")
        known = int(getattr(config, "max_position_embeddings", 0) or 1024)
        self.slots = slots
        self.max_length = min(known, max_length or 1024)
        self.end_ids = _end_ids(model)
        self._model = model.eval()
        self._device = model.device
        self._book = _Book()
        layers = [_SlotLayer(self._book, slots, self.max_length) for _ in range(int(config.num_hidden_layers))]
        self._cache = Cache(layers=layers)

    @property
    def kv_bytes(self) -> int:
        """Memory of all keys and values; 0 before the first call."""
        return sum(layer.kv_bytes for layer in self._cache.layers if isinstance(layer, _SlotLayer))

    @torch.inference_mode()
    def prefill(self, slot: int, prompt: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the token after the prompt."""
        return self._forward([slot], torch.tensor([list(prompt)]), torch.arange(len(prompt))[None])[0]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int], places: Sequence[int]) -> Tensor:
        """[B, vocabulary] logits of the tokens after those given."""
        return self._forward(slots, torch.tensor(tokens)[:, None], torch.tensor(places)[:, None])

    def _forward(self, slots: Sequence[int], tokens: Tensor, places: Tensor) -> Tensor:
        """[B, Q] token ids and [B, Q] places of them -> [B, vocabulary] float32 logits after each last, on the CPU."""
        longest = int(places.max()) + 1
        places = places.to(self._device)
        self._book.slots = torch.tensor(slots, device=self._device)
        self._book.places = places
        self._book.longest = longest
        # [B, 1, Q, K]: a token sees its own text up to itself; what lies beyond belonged to an earlier text.
        mask = torch.arange(longest, device=self._device)[None, None, None] <= places[:, None, :, None]
        out = self._model(
            input_ids=tokens.to(self._device),
            attention_mask=mask,
            position_ids=places,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float().cpu()
        return logits


def load_causal(folder: Path, device: torch.device) -> PreTrainedModel:
    """A model saved with save_pretrained, from safetensors and this machine alone; no code of the model's own runs."""
    disable_progress_bar()  # a replica's log is no terminal
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",  # takes the mask as it is given
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.to(device)


class _Book:
    """Which rows and places this call is about; every layer reads it."""

    slots: Tensor
    """[B]"""
    places: Tensor
    """[B, Q]"""
    longest: int = 0


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers' classes are untyped to mypy
    """The keys and values of one layer."""

    is_sliding = False

    def __init__(self, book: _Book, slots: int, max_length: int) -> None:
        super().__init__()
        self._book, self._slots, self._max_length = book, slots, max_length

    @property
    def kv_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size() if self.is_initialized else 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the sizes of heads from the first keys [B, H, Q, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        _, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(self._slots, heads, self._max_length, width)
        self.values = value_states.new_zeros(self._slots, heads, self._max_length, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[B, H, Q, D] new ones, written to their places -> [B, H, K, D] all of these texts."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, places, longest = self._book.slots, self._book.places, self._book.longest
        # Two index tensors with a slice between them: their [B, Q] comes first, so the heads go behind it.
        self.keys[rows[:, None], :, places] = key_states.transpose(1, 2)
        self.values[rows[:, None], :, places] = value_states.transpose(1, 2)
        return self.keys[rows, :, :longest], self.values[rows, :, :longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._book.longest, 0

    def get_seq_length(self) -> int:
        return self._book.longest

    def get_max_length(self) -> int:
        return self._max_length


def _end_ids(model: PreTrainedModel) -> frozenset[int]:
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
