"""The shape of a model and its parameter count, from what describes it.

| from | count | shape |
| --- | --- | --- |
| a Hugging Face `config.json` of a family below | exact | exact |
| the header of a safetensors file, or of every shard in a folder | exact | read off the tensors' names |
| a torch module, on the meta device too (`count_module`) | exact | none |
| a size such as "7B" | as said | of the public model nearest in size |

Only the header of a safetensors file is read: a few kilobytes, not the weights. Nothing here imports torch.
Counts are tested against `transformers` on the meta device, field by field of each family.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from heliostat.errors import UsageError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMBT]?)", re.IGNORECASE)
_HEADER_LIMIT = 100_000_000
"""Bytes: what the safetensors format allows its header."""


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on. Counts are parameters, widths are elements.

    `ffn` is the feed-forward width that a token passes through (of all its active experts), `stored_ffn` that of all
    experts. `causal` models keep a KV cache; `has_head`: logits over the vocabulary are computed; `head_params` is 0
    where the head shares the embedding. `exact` is false where the shape was inferred rather than read.
    """

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
    stored_ffn: int | None = None
    gated: bool = True
    causal: bool = True
    has_head: bool = True
    max_context: int | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        if self.block_params < 0:
            raise UsageError(f"{self.name}: {self.params} parameters are fewer than its embeddings have")

    @property
    def block_params(self) -> int:
        """Parameters outside embeddings and head: what quantisation and pipeline stages act on."""
        return self.params - self.embedding_params - self.head_params

    @property
    def attention_width(self) -> int:
        """Of queries, and of attention's output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of keys, and as much again of values."""
        return self.kv_heads * self.head_dim

    @property
    def all_ffn(self) -> int:
        """Feed-forward width of all experts together."""
        return self.ffn if self.stored_ffn is None else self.stored_ffn


def read_shape(path: Path) -> ModelShape:
    """From a folder with config.json and/or safetensors files, or from one such file.

    Where both are there, the header gives the count and the config the shape. Raises UsageError, naming the file.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UsageError(f"{path} is not there", do="give a folder of Hugging Face files, config.json or *.safetensors")
    if path.suffix == ".safetensors":
        return shape_from_header(read_header(path), name=path.parent.name or path.stem)
    return shape_from_config(_read_json(path), name=path.parent.resolve().name, where=str(path))


def _read_folder(folder: Path) -> ModelShape:
    config, shards = folder / "config.json", sorted(folder.glob("*.safetensors"))
    name = folder.resolve().name
    header = merge_headers(read_header(shard) for shard in shards) if shards else None
    if not config.is_file():
        if header is None:
            raise UsageError("no config.json and no *.safetensors", where=str(folder), do="name the model's folder")
        return shape_from_header(header, name=name)
    values = _read_json(config)
    if header is None:
        return shape_from_config(values, name=name, where=str(config))
    try:
        shape = shape_from_config(values, name=name, where=str(config))
    except UsageError:
        return shape_from_header(header, name=name)
    return shape if header.packed else replace(shape, params=header.params, exact=True)


def _read_json(path: Path) -> Mapping[str, Any]:  # Any: JSON, narrowed by _Config
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"not JSON: {error}", where=str(path), do="give a Hugging Face config.json") from error
    if not isinstance(values, dict):
        raise UsageError("not a JSON object", where=str(path), do="give a Hugging Face config.json")
    return values


# --- sizes in words


def parse_params(text: str) -> int:
    """ "7B", "335M", "1.5T" or "6738415616" parameters. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        hint = "write the whole count, such as 46.7B: experts share attention" if "x" in text.lower() else "write 7B"
        raise UsageError(f"{text!r} is not a number of parameters", do=hint)
    count = Decimal(match[1]) * UNITS[match[2].upper()]
    if count != count.to_integral_value() or count < 1:
        raise UsageError(f"{text!r} is not a whole number of parameters", do="write 7B, 335M or the count")
    return int(count)


def format_params(count: int) -> str:
    """Exact, in the largest unit if that needs at most three decimals, else in full: parses back to the same count."""
    for unit, size in sorted(UNITS.items(), key=lambda entry: -entry[1]):
        if count >= size and count * 1000 % size == 0 and (count < 1000 * size or unit == "T"):
            return f"{(Decimal(count) / size).normalize():f}{unit}"
    return str(count)


def human_params(count: int) -> str:
    """For reading: 6_738_415_616 -> "6.74B"."""
    for unit in ("T", "B", "M", "K"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.3g}{unit}"
    return str(count)


def shape_of_size(text: str) -> ModelShape:
    """A decoder of that many parameters, shaped like the public model nearest in size; `exact` is false."""
    count = parse_params(text)
    nearest = min(_typical_shapes(), key=lambda shape: abs(math.log(shape.params / count)))
    embedding = min(nearest.embedding_params, count // 4)
    head = min(nearest.head_params, count // 4)
    return replace(
        nearest,
        name=f"{text.strip()} (shaped like {nearest.name})",
        params=count,
        embedding_params=embedding,
        head_params=head,
        exact=False,
    )


@cache
def _typical_shapes() -> tuple[ModelShape, ...]:
    text = resources.files("heliostat.plan").joinpath("data", "model_shapes.csv").read_text(encoding="utf-8")
    return tuple(_typical_shape(row) for row in csv.DictReader(text.splitlines()))


def _typical_shape(row: Mapping[str, str]) -> ModelShape:
    vocab, hidden, tied = int(row["vocab"]), int(row["hidden"]), row["tied"] == "yes"
    return ModelShape(
        name=row["name"],
        params=int(row["params"]),
        layers=int(row["layers"]),
        hidden=hidden,
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"]),
        ffn=int(row["ffn"]),
        vocab=vocab,
        embedding_params=vocab * hidden,
        head_params=0 if tied else vocab * hidden,
        gated=row["gated"] == "yes",
        max_context=int(row["max_context"]),
    )


# --- a module


class HasParameters(Protocol):
    """What this needs of a torch.nn.Module."""

    def parameters(self) -> Iterable[Any]: ...  # Any: torch.nn.Parameter, which is not imported here


def count_module(module: HasParameters) -> int:
    """Parameters of a torch module; a shared tensor counts once. Build it under `torch.device("meta")`: no memory."""
    return sum(parameter.numel() for parameter in module.parameters())


# --- safetensors


@dataclass(frozen=True)
class Header:
    """The tensors of a checkpoint: name -> (dtype, shape), without their bytes."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def params(self) -> int:
        """Elements of all floating-point tensors. Integer tensors are buffers, or packed weights (`packed`)."""
        return sum(math.prod(shape) for dtype, shape in self.tensors.values() if _is_float(dtype))

    @property
    def packed(self) -> bool:
        """Some weights are packed several to an integer, so that elements are not parameters."""
        return any(
            not _is_float(dtype) and dtype != "BOOL" and len(shape) > 1 and not name.endswith("position_ids")
            for name, (dtype, shape) in self.tensors.items()
        )


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


def read_header(path: Path) -> Header:
    """The header of a safetensors file, and nothing of its tensors. Raises UsageError for another format."""

    def read(start: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return fetch_header(read, where=str(path))


def fetch_header(read: Callable[[int, int], bytes], *, where: str) -> Header:
    """The same through any reader of (start, length), such as ranges of an object in a store."""
    try:
        (length,) = struct.unpack("<Q", read(0, 8))
        if length > _HEADER_LIMIT:
            raise ValueError(f"its header would have {length} bytes")
        text = read(8, length)
        if len(text) < length:
            raise ValueError("it ends within its header")
        return parse_header(text)
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"not safetensors: {error}", where=where, do="give a file that safetensors wrote") from error


def parse_header(text: bytes) -> Header:
    """The JSON between the length and the tensors."""
    entries = json.loads(text)
    return Header(
        {
            str(name): (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    )


def merge_headers(headers: Iterable[Header]) -> Header:
    """The shards of one checkpoint as one."""
    return Header({name: entry for header in headers for name, entry in header.tensors.items()})


_ROLES = {
    "embedding": r"(embed_tokens|word_embeddings|wte|tok_embeddings|embed_in)\.weight$",
    "head": r"(lm_head|embed_out)\.weight$",
    "query": r"(q_proj|query|wq)\.weight$",
    "key": r"(k_proj|key|wk)\.weight$",
    "gate": r"(gate_proj|w1|gate_up_proj)\.weight$",
    "up": r"(up_proj|w3|intermediate\.dense|c_fc|dense_h_to_4h)\.weight$",
    "fused": r"(qkv_proj|c_attn|query_key_value)\.weight$",
}
_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)\.")
_EXPERT = re.compile(r"\bexperts\.(\d+)\.")
_USUAL_HEAD = 64


def shape_from_header(header: Header, *, name: str) -> ModelShape:
    """An exact count, and the shape as far as the tensors' names tell it: heads are taken as 64 wide.

    Raises UsageError where there is no embedding or no numbered layer to go by, or where the weights are packed.
    """
    if header.packed:
        raise UsageError(
            f"{name} holds packed (quantised) weights: its elements are not its parameters",
            do="give the config.json of the model before quantisation, and --dtype int4 or int8",
        )
    found = {role: _first(header, pattern) for role, pattern in _ROLES.items()}
    embedding = found["embedding"]
    layers = {int(match[1]) for tensor in header.tensors if (match := _LAYER.search(tensor))}
    if embedding is None or not layers:
        raise UsageError(
            f"{name} has no token embedding or no numbered layers that are known here",
            do="put its config.json beside it, or give a size such as 7B",
        )
    vocab, hidden = embedding
    query = (found["query"] or (hidden, hidden))[0]
    key = (found["key"] or (query, hidden))[0]
    experts = {int(match[1]) for tensor in header.tensors if (match := _EXPERT.search(tensor))}
    ffn = max((size for role in ("up", "gate") for size in (found[role] or ())[:1]), default=4 * hidden)
    causal = not any("attention.self" in tensor for tensor in header.tensors)
    return ModelShape(
        name=name,
        params=header.params,
        layers=len(layers),
        hidden=hidden,
        heads=max(1, query // _USUAL_HEAD),
        kv_heads=max(1, key // _USUAL_HEAD),
        head_dim=_USUAL_HEAD,
        ffn=ffn * min(2, max(1, len(experts))),
        stored_ffn=ffn * max(1, len(experts)),
        vocab=vocab,
        embedding_params=vocab * hidden,
        head_params=math.prod(found["head"]) if found["head"] else 0,
        gated=found["gate"] is not None,
        causal=causal,
        has_head=causal,
    )


def _first(header: Header, pattern: str) -> tuple[int, ...] | None:
    return next((shape for name, (_, shape) in header.tensors.items() if re.search(pattern, name)), None)


# --- Hugging Face configs


class _Config:
    """A config.json with typed access; a missing or wrong field names itself."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of the fields that is there, as a whole number of 0 or more."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} is {value!r}, not a whole number", where=self.where)
            return value
        if default is None:
            raise UsageError(f"{names[0]} is missing", where=self.where, do="take the model's own config.json")
        return default

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        return default if value is None else bool(value)

    @property
    def architecture(self) -> str:
        names = self.values.get("architectures") or [""]
        return str(names[0])


@dataclass(frozen=True)
class _Decoder:
    """How a family of decoder-only transformers differs from Llama; defaults are those of its transformers config."""

    kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    reads_bias: bool = True
    qk_norm: bool = False
    norms: int = 2
    tied: bool = False
    moe: bool = False
    shared_expert: bool = False
    experts: int = 0
    active: int = 0


_DECODERS = {
    "llama": _Decoder(),
    "mistral": _Decoder(kv_heads=8, reads_bias=False),
    "qwen2": _Decoder(kv_heads=32, qkv_bias=True, reads_bias=False),
    "qwen3": _Decoder(kv_heads=32, head_dim=128, qk_norm=True),
    "gemma": _Decoder(kv_heads=16, head_dim=256, tied=True),
    "gemma2": _Decoder(kv_heads=4, head_dim=256, norms=4, tied=True),
    "gemma3_text": _Decoder(kv_heads=4, head_dim=256, norms=4, qk_norm=True, tied=True),
    "phi3": _Decoder(reads_bias=False),
    "mixtral": _Decoder(kv_heads=8, reads_bias=False, moe=True, experts=8, active=2),
    "qwen2_moe": _Decoder(
        kv_heads=16, qkv_bias=True, reads_bias=False, moe=True, shared_expert=True, experts=60, active=4
    ),
    "qwen3_moe": _Decoder(kv_heads=4, qk_norm=True, moe=True, experts=128, active=8),
}

FAMILIES = (*_DECODERS, "gpt2", "bert")
"""`model_type` values whose counts are exact."""


def shape_from_config(values: Mapping[str, Any], *, name: str = "model", where: str = "config.json") -> ModelShape:
    """From the fields of a config.json. Raises UsageError for an unknown family or a missing field."""
    config = _Config(values, where)
    family = str(values.get("model_type", ""))
    if family in _DECODERS:
        return _decoder_shape(config, _DECODERS[family], name)
    if family == "gpt2":
        return _gpt2_shape(config, name)
    if family == "bert":
        return _bert_shape(config, name)
    raise UsageError(
        f"model_type {family!r} is not among {', '.join(FAMILIES)}",
        where=where,
        do="give its safetensors file, whose header tells the count, or a size such as 7B",
    )


def _decoder_shape(config: _Config, family: _Decoder, name: str) -> ModelShape:
    h, layers, heads = (config.number(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = config.number("num_key_value_heads", default=family.kv_heads or heads)
    head_dim = config.number("head_dim", default=family.head_dim or h // heads)
    vocab = config.number("vocab_size")
    has_head = _has_head(config, "ForCausalLM", default=True)
    tied = config.flag("tie_word_embeddings", default=family.tied)
    head = vocab * h if has_head and not tied else 0
    q, kv = heads * head_dim, kv_heads * head_dim
    attention = 2 * h * q + 2 * h * kv + _attention_biases(config, family, h, q, kv)
    norms = family.norms * h + (2 * head_dim if family.qk_norm else 0)
    feed_forward, ffn, stored = _feed_forward(config, family, h, layers)
    return ModelShape(
        name=name,
        params=vocab * h + layers * (attention + norms) + feed_forward + h + head,
        layers=layers,
        hidden=h,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        stored_ffn=stored,
        vocab=vocab,
        embedding_params=vocab * h,
        head_params=head,
        has_head=has_head,
        max_context=config.number("max_position_embeddings", default=0) or None,
    )


def _attention_biases(config: _Config, family: _Decoder, h: int, q: int, kv: int) -> int:
    if family.qkv_bias:
        return q + 2 * kv
    return q + 2 * kv + h if family.reads_bias and config.flag("attention_bias", default=False) else 0


def _feed_forward(config: _Config, family: _Decoder, h: int, layers: int) -> tuple[int, int, int]:
    """(parameters of all layers, width a token passes through, width of all experts of a layer)."""
    dense = config.number("intermediate_size", default=0 if family.moe else None)
    dense_params = 3 * h * dense
    if config.flag("mlp_bias", default=False) and family == _DECODERS["llama"]:
        dense_params += 2 * dense + h
    if not family.moe:
        return layers * dense_params, dense, dense
    experts = config.number("num_local_experts", "num_experts", default=family.experts)
    active = config.number("num_experts_per_tok", default=family.active)
    width = config.number("moe_intermediate_size", default=dense)
    shared = config.number("shared_expert_intermediate_size") if family.shared_expert else 0
    sparse_params = experts * 3 * h * width + h * experts + 3 * h * shared + (h if family.shared_expert else 0)
    sparse = _sparse_layers(config, layers)
    ffn, stored = active * width + shared, experts * width + shared
    return sparse * sparse_params + (layers - sparse) * dense_params, max(ffn, dense * (sparse < layers)), stored


def _sparse_layers(config: _Config, layers: int) -> int:
    """How many layers have experts (qwen's decoder_sparse_step and mlp_only_layers; all of them by default)."""
    step = config.number("decoder_sparse_step", default=1)
    dense = set(config.values.get("mlp_only_layers") or ())
    return sum(1 for layer in range(layers) if layer not in dense and (layer + 1) % max(1, step) == 0)


def _has_head(config: _Config, suffix: str, *, default: bool) -> bool:
    name = config.architecture
    return default if not name else name.endswith((suffix, "LMHeadModel"))


def _gpt2_shape(config: _Config, name: str) -> ModelShape:
    h, layers, heads = (config.number(*keys) for keys in (("n_embd", "hidden_size"), ("n_layer",), ("n_head",)))
    vocab, positions = config.number("vocab_size"), config.number("n_positions", default=1024)
    ffn = config.number("n_inner", default=4 * h)
    attention = 3 * h * h + 3 * h + h * h + h
    feed_forward = 2 * h * ffn + ffn + h
    tied = config.flag("tie_word_embeddings", default=True)
    has_head = _has_head(config, "ForCausalLM", default=True)
    head = vocab * h if has_head and not tied else 0
    embedding = (vocab + positions) * h
    return ModelShape(
        name=name,
        params=embedding + layers * (attention + feed_forward + 4 * h) + 2 * h + head,
        layers=layers,
        hidden=h,
        heads=heads,
        kv_heads=heads,
        head_dim=h // heads,
        ffn=ffn,
        vocab=vocab,
        embedding_params=embedding,
        head_params=head,
        gated=False,
        has_head=has_head,
        max_context=positions,
    )


def _bert_shape(config: _Config, name: str) -> ModelShape:
    h, layers, heads = (config.number(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    vocab, ffn = config.number("vocab_size"), config.number("intermediate_size")
    positions, types = (
        config.number("max_position_embeddings", default=512),
        config.number("type_vocab_size", default=2),
    )
    embedding = (vocab + positions + types) * h
    layer = 4 * (h * h + h) + 2 * h + 2 * h * ffn + ffn + h + 2 * h
    masked = config.architecture.endswith("ForMaskedLM")
    return ModelShape(
        name=name,
        params=embedding + 2 * h + layers * layer + _bert_top(config, h, vocab),
        layers=layers,
        hidden=h,
        heads=heads,
        kv_heads=heads,
        head_dim=h // heads,
        ffn=ffn,
        vocab=vocab,
        embedding_params=embedding,
        gated=False,
        causal=False,
        has_head=masked,
        max_context=positions,
    )


def _bert_top(config: _Config, h: int, vocab: int) -> int:
    """Pooler, or the head of masked language modelling (its matrix is the embedding), or a classifier."""
    name = config.architecture
    pooler = h * h + h
    if name.endswith("ForMaskedLM"):
        return h * h + h + 2 * h + vocab
    if name.endswith("ForSequenceClassification"):
        labels = len(config.values.get("id2label") or ()) or config.number("num_labels", default=2)
        return pooler + labels * (h + 1)
    if name and not name.endswith("Model"):
        raise UsageError(
            f"architecture {name} of bert is not known here", where=config.where, do="give its safetensors file"
        )
    return pooler
