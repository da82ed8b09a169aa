"""Counts against the real classes on the meta device, where a 70B model takes no memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.plan.params import (
    FAMILIES,
    count_module,
    read_shape,
    shape_from_config,
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
