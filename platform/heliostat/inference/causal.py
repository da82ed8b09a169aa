"""A Hugging Face causal model as slots: its own forward pass, over keys and values that lie in fixed places.

Transformers' caches grow by one tensor for a whole batch that starts and ends together. Here each layer keeps
[slots, heads, max_length, width] from the first call on; a step reads and writes the rows of the texts that run. What
a slot held before is never seen: a text attends to its own places alone, and writes each before it reads it.

On CUDA a step, or the reading of a prompt, is recorded once for each size, in powers of two, and replayed: Python needs
longer to start a layer's kernels than the card to run them.

Shapes: B texts of this step, Q new tokens of each, H heads of keys, D = their width, K = the longest text of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.utils.logging import disable_progress_bar

log = logging.getLogger(__name__)
_LEAST_REACH = 256
"""Shortest K that steps are recorded for."""
_RECORDED_PROMPT = range(16, 513)
"""Tokens of prompts that are recorded, the shortest with room for 16; longer ones keep the card busy by themselves."""


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
        self._records = self._device.type == "cuda"
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}
        self._pool: Any = None  # memory that all recordings use in turn; torch gives its handle no type

    @property
    def kv_bytes(self) -> int:
        """Memory of all keys and values; 0 before the first call."""
        return sum(layer.kv_bytes for layer in self._cache.layers if isinstance(layer, _SlotLayer))

    @torch.inference_mode()
    def prefill(self, slot: int, prompt: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the token after the prompt."""
        tokens, places = torch.tensor([list(prompt)]), torch.arange(len(prompt))[None]
        room = _power_of_two(max(len(prompt), _RECORDED_PROMPT.start))
        if room not in _RECORDED_PROMPT or room > self.max_length:
            return self._run(torch.tensor([slot]), tokens, places, None)[0]
        return self._run(torch.tensor([slot]), tokens, places, (1, room, room))[0]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int], places: Sequence[int]) -> Tensor:
        """[B, vocabulary] logits of the tokens after those given."""
        reach = min(self.max_length, max(_LEAST_REACH, _power_of_two(max(places) + 1)))
        size = _power_of_two(len(slots)), 1, reach
        return self._run(torch.tensor(slots), torch.tensor(tokens)[:, None], torch.tensor(places)[:, None], size)

    def _run(self, slots: Tensor, tokens: Tensor, places: Tensor, size: tuple[int, int, int] | None) -> Tensor:
        """`forward` for tensors on the CPU; by a recording of that size (B, Q, K), where there can be one."""
        if size is not None and self._records:
            recorded = self._recorded.get(size) or self._record(size, slots, tokens, places)
            if recorded is not None:
                return recorded(slots, tokens, places)
        there = self._device
        return self.forward(slots.to(there), tokens.to(there), places.to(there), int(places.max()) + 1)

    def forward(self, slots: Tensor, tokens: Tensor, places: Tensor, longest: int) -> Tensor:
        """[B] slots, [B, Q] token ids and [B, Q] places of them -> [B, vocabulary] float32 logits after each last."""
        self._book.slots, self._book.places, self._book.longest = slots, places, longest
        # [B, 1, Q, K]: a token sees its own text up to itself; what lies beyond belonged to an earlier text.
        mask = torch.arange(longest, device=self._device)[None, None, None] <= places[:, None, :, None]
        out = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=places,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _record(self, size: tuple[int, int, int], *inputs: Tensor) -> _Recorded | None:
        """Made when work of its size first comes; None for a model that cannot be recorded."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            made = self._recorded[size] = _Recorded(self, size, inputs, self._device, self._pool)
        except RuntimeError as problem:  # experts that are picked by looking at values, say
            log.warning("this model runs kernel by kernel, as its work cannot be recorded: %s", problem)
            self._records = False
            return None
        return made


class _Recorded:
    """`SlotModel.forward` for up to B texts, of up to Q new tokens each, that reach up to K places, as a CUDA graph.

    Room that is left over does the last token's work, or the last text's, once more: the same values go to the same
    place.
    """

    def __init__(
        self, model: SlotModel, size: tuple[int, int, int], inputs: Sequence[Tensor], device: torch.device, pool: Any
    ) -> None:
        texts, queries, reach = size
        self._host = torch.zeros(texts * (1 + 2 * queries), dtype=torch.long, pin_memory=True)
        self._there = torch.zeros_like(self._host, device=device)
        self._parts = _cut(self._host, texts, queries)
        slots, tokens, places = _cut(self._there, texts, queries)
        # One run before the recording makes the libraries' workspaces. It is the work itself: what it writes is right.
        self._fill(*inputs)
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            model.forward(slots, tokens, places, reach)
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load the next version onto the device meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = model.forward(slots, tokens, places, reach)

    def __call__(self, slots: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        """[B], [B, Q] and [B, Q] on the CPU -> [B, vocabulary] logits, the caller's own."""
        self._fill(slots, tokens, places)
        self._graph.replay()
        logits = self._logits[: len(slots)].clone()
        torch.cuda.current_stream().synchronize()  # until then what lies in pinned memory may not change
        return logits

    def _fill(self, *inputs: Tensor) -> None:
        for part, given in zip(self._parts, inputs, strict=True):
            if given.dim() == 2:
                part[: len(given), : given.shape[1]] = given
                part[: len(given), given.shape[1] :] = given[:, -1:]
            else:
                part[: len(given)] = given
            part[len(given) :] = part[len(given) - 1]
        self._there.copy_(self._host, non_blocking=True)


def _cut(flat: Tensor, texts: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B * (1 + 2 Q)] -> [B] slots, [B, Q] tokens, [B, Q] places, as views."""
    both = flat[texts:].view(2, texts, queries)
    return flat[:texts], both[0], both[1]


def _power_of_two(count: int) -> int:
    """The least that is not below the count."""
    return 1 << (count - 1).bit_length()


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
