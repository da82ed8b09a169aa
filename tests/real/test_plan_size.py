"""Sizing a model of the registry: its header is fetched from a real store, its weights are not."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from heliostat.cli.plan import registered_shape
from heliostat.errors import UnknownModel, UsageError
from heliostat.inference.encoder import EncoderConfig, PackedEncoder
from heliostat.plan.params import count_module
from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish
from heliostat.store import Store

pytestmark = pytest.mark.real
CONFIG = EncoderConfig(
    vocab_size=500, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
)


def metadata(parameters: int) -> ArtifactMetadata:
    lineage = Lineage(job="j", code_version="c", dataset_digest="d")
    return ArtifactMetadata(framework="torch", lineage=lineage, parameters=parameters, dtype="float32", licence="MIT")


def test_a_registered_model_is_sized_by_alias_and_by_version(store: Store) -> None:
    model = PackedEncoder(CONFIG)
    count = count_module(model)
    files = {"model.safetensors": safetensors.torch.save(model.state_dict())}
    artifact = publish(store, name="encoder", files=files, metadata=metadata(count))
    target = {"to_version": artifact.version, "expected_version": None}
    move_alias(store, name="encoder", alias="production", **target, who="a test", why="to be sized")
    for reference in ("encoder@production", "encoder:v1"):
        shape = registered_shape(store, reference)
        assert (shape.params, shape.layers, shape.hidden, shape.vocab) == (count, 3, 64, 500)
        assert not shape.causal
        assert shape.name == "encoder v1"


def test_what_cannot_be_sized_says_what_to_give(store: Store) -> None:
    publish(store, name="labels", files={"labels.json": b"[]"}, metadata=metadata(1))
    publish(
        store, name="odd", files={"m.safetensors": safetensors.torch.save({"w": torch.zeros(2)})}, metadata=metadata(2)
    )
    with pytest.raises(UsageError, match="no safetensors file"):
        registered_shape(store, "labels:v1")
    with pytest.raises(UsageError, match="no token embedding"):
        registered_shape(store, "odd:v1")
    with pytest.raises(UnknownModel):
        registered_shape(store, "nobody:v1")
