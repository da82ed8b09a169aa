"""From the store into tensors: whole, verified, by every way there is, and refused where a byte is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from heliostat.registry import (
    Artifact,
    ArtifactMetadata,
    Lineage,
    NodeCache,
    download,
    load_file,
    load_files,
    load_tensors,
    publish,
)
from heliostat.store import Store

pytestmark = pytest.mark.real
META = ArtifactMetadata(
    framework="torch",
    lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
    parameters=1,
    dtype="float32",
    licence="Apache-2.0",
)
WEIGHTS = {
    "large": torch.arange(10_000_000, dtype=torch.float32),  # 40 MB: three parts, and it crosses their borders
    "half": torch.arange(7, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def artifact(store: Store) -> Artifact:
    files = {
        "model.safetensors": safetensors.torch.save(WEIGHTS),
        "config.json": b'{"a": 1}',
        "empty.txt": b"",
    }
    return publish(store, name="m", files=files, metadata=META)


@pytest.fixture(params=["store", "cache", "cached"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, store: Store, artifact: Artifact) -> NodeCache | None:
    """Without a node cache, with an empty one, with one that holds everything."""
    if request.param == "store":
        return None
    made = NodeCache(tmp_path / "cache")
    if request.param == "cached":
        load_files(store, artifact, cache=made)
    return made


def assert_equal(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_tensors_come_back_equal_and_writable(store: Store, artifact: Artifact, cache: NodeCache | None) -> None:
    loaded = load_tensors(store, artifact, cache=cache)
    assert_equal(loaded.tensors)
    loaded.tensors["large"] += 1  # a private page, not the cache's file
    assert_equal(load_tensors(store, artifact, cache=cache).tensors)
    assert loaded.phases.bytes == artifact.manifest.files["model.safetensors"].size


def test_files_come_back_equal(store: Store, artifact: Artifact, cache: NodeCache | None, tmp_path: Path) -> None:
    files = load_files(store, artifact, cache=cache)
    assert files["config.json"] == load_file(store, artifact, "config.json", cache=cache) == b'{"a": 1}'
    assert files["empty.txt"] == b""
    assert set(files) == {"model.safetensors", "config.json", "empty.txt"}
    assert_equal(files.tensors())
    assert_equal(files.tensors("model.safetensors"))
    download(store, artifact, tmp_path / "out", cache=cache)
    for path, content in files.items():
        assert (tmp_path / "out" / path).read_bytes() == content
