from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch

from heliostat.errors import (
    AliasMoved,
    CorruptArtifact,
    HeliostatError,
    UnknownAlias,
    UnknownModel,
    UnknownVersion,
    UnsafeArtifact,
)
from heliostat.registry import (
    ArtifactMetadata,
    Lineage,
    get_alias,
    list_versions,
    load_files,
    move_alias,
    publish,
    resolve,
    rollback_alias,
)
from heliostat.store import Store

pytestmark = pytest.mark.real
META = ArtifactMetadata(
    framework="torch",
    lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
    parameters=4,
    dtype="float32",
    licence="Apache-2.0",
)


def files(value: float) -> dict[str, bytes]:
    return {"model.safetensors": safetensors.torch.save({"w": torch.full((2, 2), value)}), "labels.json": b'["a"]'}


def test_the_same_content_twice_is_one_version(store: Store) -> None:
    first = publish(store, name="m", files=files(1), metadata=META)
    assert publish(store, name="m", files=files(1), metadata=META).version == first.version == 1
    assert publish(store, name="m", files=files(2), metadata=META).version == 2


def test_many_publishers_leave_no_gap_and_no_duplicate(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: publish(store, name="m", files=files(i), metadata=META), range(16)))
    versions = list_versions(store, "m")
    assert [artifact.version for artifact in versions] == list(range(1, 17))
    assert len({artifact.digest for artifact in versions}) == 16


def test_one_promoter_wins_and_the_others_are_told_who(store: Store) -> None:
    for value in range(3):
        publish(store, name="m", files=files(value), metadata=META)
    move_alias(store, name="m", alias="production", to_version=1, expected_version=None, who="first", why="start")

    def promote(number: int) -> str:
        try:
            move_alias(
                store, name="m", alias="production", to_version=2, expected_version=1, who=f"p{number}", why="race"
            )
        except AliasMoved as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(promote, range(16)))
    alias = get_alias(store, "m", "production")
    assert alias is not None
    winner = alias.history[-1].who
    assert outcomes.count("won") == 1
    assert all(outcome == "won" or f"{winner} moved it to v2" in outcome for outcome in outcomes)
    assert alias.generation == 2


def test_a_rollback_goes_to_the_version_before_and_is_in_the_history(store: Store) -> None:
    for value in range(2):
        publish(store, name="m", files=files(value), metadata=META)
    move_alias(store, name="m", alias="production", to_version=1, expected_version=None, who="a", why="1")
    move_alias(store, name="m", alias="production", to_version=2, expected_version=1, who="a", why="2")
    assert rollback_alias(store, name="m", alias="production", who="a", why="worse").version == 1
    assert resolve(store, "m@production").version == 1


@pytest.mark.parametrize(
    "hostile",
    [
        {"model.pkl": b"x"},
        {"model.bin": b"x"},
        {"../escape.json": b"{}"},
        {"/abs.json": b"{}"},
        {"model.safetensors": b"not safetensors"},
        {"model.safetensors": safetensors.torch.save({"w": torch.ones(9)})[:-3]},
        {},
    ],
)
def test_unsafe_files_are_refused_before_anything_is_written(store: Store, hostile: dict[str, bytes]) -> None:
    with pytest.raises((UnsafeArtifact, HeliostatError)):
        publish(store, name="m", files=hostile, metadata=META)
    assert store.list("models/") == []


def test_what_is_not_there_is_told_with_what_is(store: Store) -> None:
    with pytest.raises(UnknownModel):
        resolve(store, "nothing:v1")
    publish(store, name="m", files=files(1), metadata=META)
    with pytest.raises(UnknownVersion, match="one of: v1"):
        resolve(store, "m:v9")
    with pytest.raises(UnknownAlias, match="promote a version first"):
        resolve(store, "m@production")


def test_a_flipped_byte_stops_the_load(store: Store) -> None:
    artifact = publish(store, name="m", files=files(1), metadata=META)
    key = artifact.manifest.key("model.safetensors")
    data = bytearray(store.get(key).data)
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        load_files(store, artifact)
