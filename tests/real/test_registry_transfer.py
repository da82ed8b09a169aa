"""Folders in, folders out, and the check of every byte, on a real S3 server."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from heliostat import commit
from heliostat.errors import CorruptArtifact, UnsafeArtifact, UsageError
from heliostat.registry import Artifact, download, files_of, load_file, publish, pull, resolve, verify
from heliostat.store import Store
from tests.real.registry_world import META, MODEL, flip, hugging_face_folder, put, weights

pytestmark = pytest.mark.real


def test_a_hugging_face_folder_of_200_files_comes_back_equal_and_its_sharded_index_leads_to_every_tensor(
    store: Store, tmp_path: Path
) -> None:
    folder = hugging_face_folder(tmp_path / "model", files=200)
    left: list[str] = []
    files = files_of(folder, left_out=left.append)
    assert (len(files), left) == (200, [".gitattributes (hidden)"])
    made = publish(store, name=MODEL, files=files, metadata=META)
    assert publish(store, name=MODEL, files=files_of(folder), metadata=META) == made
    assert made.metadata.parameters == 190 * 32
    assert made.metadata.dtype == "bfloat16"

    pulled = pull(store, resolve(store, f"{MODEL}:v1"), tmp_path / "back")
    assert len(pulled) == 200
    same, different, errors = filecmp.cmpfiles(folder, tmp_path / "back", list(files), shallow=False)
    assert (len(same), different, errors) == (200, [], [])
    assert verify(store, made) == []

    index = json.loads(load_file(store, made, "model.safetensors.index.json"))["weight_map"]
    for name, shard in index.items():
        tensors = safetensors.torch.load(load_file(store, made, shard))
        assert torch.equal(tensors[name], safetensors.torch.load_file(folder / shard)[name])


@pytest.fixture
def artifact(store: Store) -> Artifact:
    """Three files, one of several parts."""
    payload = bytes(range(256)) * (2 * commit.PART_BYTES // 256) + b"tail"
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}).encode()
    large = len(header).to_bytes(8, "little") + header + payload
    return put(store, 1, **{"large.safetensors": large, "small.safetensors": weights(1), "README.md": b"# x\n"})


def test_one_flipped_byte_in_each_file_is_found_with_file_and_range(store: Store, artifact: Artifact) -> None:
    for path, entry in artifact.manifest.files.items():
        key = artifact.manifest.key(path)
        for at in sorted({0, entry.size // 2, entry.size - 1}):
            flip(store, key, at)
            (finding,) = verify(store, artifact)
            assert finding.path == path
            assert finding.start <= at < finding.end <= finding.start + commit.PART_BYTES
            with pytest.raises(CorruptArtifact, match=path.replace(".", r"\.")):
                load_file(store, artifact, path)
            flip(store, key, at)
    assert verify(store, artifact) == []


def test_a_file_cut_off_grown_or_gone_is_found(store: Store, artifact: Artifact) -> None:
    key = artifact.manifest.key("README.md")
    for data, told in ((b"# x", "cut off"), (b"# x\nmore", "8 bytes")):
        store.put(key, data)
        (finding,) = verify(store, artifact)
        assert told in str(finding)
    store.delete(key)
    (finding,) = verify(store, artifact)
    assert "gone" in str(finding)


def test_a_pull_of_damaged_bytes_leaves_no_such_file(store: Store, artifact: Artifact, tmp_path: Path) -> None:
    at = commit.PART_BYTES + 5
    flip(store, artifact.manifest.key("large.safetensors"), at)
    with pytest.raises(CorruptArtifact, match=r"large\.safetensors.*bytes 16,777,216 to 33,554,432"):
        pull(store, artifact, tmp_path / "to")
    assert not (tmp_path / "to" / "large.safetensors").exists()
    assert [path.name for path in (tmp_path / "to").glob(".pull-*")] == []
    flip(store, artifact.manifest.key("large.safetensors"), at)
    assert len(pull(store, artifact, tmp_path / "to")) == 4


def test_a_second_pull_asks_for_nothing_that_is_there(store: Store, artifact: Artifact, tmp_path: Path) -> None:
    pull(store, artifact, tmp_path)
    (tmp_path / "README.md").write_text("changed")

    class Counting(Store):
        asked: list[str]

        def get_range(self, key: str, start: int, length: int) -> bytes:
            self.asked.append(key)
            return super().get_range(key, start, length)

    counting = Counting(store.settings, store._client)
    counting.asked = []
    pull(counting, artifact, tmp_path)
    assert counting.asked == [artifact.manifest.key("README.md")]
    assert (tmp_path / "README.md").read_text() == "# x\n"


def test_a_link_in_the_target_leads_nothing_out_of_it(store: Store, tmp_path: Path) -> None:
    made = publish(store, name=MODEL, files={"sub/config.json": b"{}"}, metadata=META)
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeArtifact, match="leads out"):
        pull(store, made, tmp_path / "to")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_with_pickles_is_refused_with_the_way_to_leave_them_out(store: Store, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model", files=12)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsafeArtifact, match=r"pytorch_model\.bin.*--exclude"):
        publish(store, name=MODEL, files=files_of(folder), metadata=META)
    assert store.list("models") == []
    left: list[str] = []
    files = files_of(folder, exclude=["*.bin"], left_out=left.append)
    assert "pytorch_model.bin (excluded)" in left
    assert publish(store, name=MODEL, files=files, metadata=META).version == 1


def test_a_link_out_of_the_folder_is_refused_and_the_hub_cache_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UsageError, match="link out of the folder"):
        files_of(folder)
    with pytest.raises(UsageError, match="is not a folder"):
        files_of(tmp_path / "nothing")
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "1234").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    assert list(files_of(snapshot)) == ["config.json"]


def test_what_safetensors_writes_is_taken_from_a_file_and_comes_back(store: Store, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    publish(store, name=MODEL, files={"w.safetensors": tmp_path / "w.safetensors"}, metadata=META)
    made = resolve(store, f"{MODEL}:v1")
    assert torch.equal(safetensors.torch.load(load_file(store, made, "w.safetensors"))["a"], tensors["a"])
    download(store, made, tmp_path / "back")
    assert (tmp_path / "back" / "w.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
