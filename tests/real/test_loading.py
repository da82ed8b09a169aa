"""From the store into tensors: whole, verified, by every way there is, and refused where a byte is wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from heliostat.commit import PART_BYTES
from heliostat.errors import CorruptArtifact, RegistryError, StoreUnreachable, UnsafeArtifact
from heliostat.registry import (
    Artifact,
    ArtifactMetadata,
    Lineage,
    NodeCache,
    download,
    get_version,
    load_file,
    load_files,
    load_into,
    load_tensors,
    loading,
    on_meta,
    publish,
)
from heliostat.settings import Settings, save
from heliostat.store import Store, json_bytes

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


def flip(store: Store, artifact: Artifact, path: str, at: int) -> None:
    key = artifact.manifest.key(path)
    data = bytearray(store.get(key).data)
    data[at] ^= 1
    store.put(key, bytes(data))


@pytest.mark.parametrize(
    "at", [3, 200, PART_BYTES - 1, PART_BYTES, -1], ids=["length", "header", "end", "next", "last"]
)
def test_one_flipped_byte_is_refused_with_file_and_range(
    store: Store, artifact: Artifact, tmp_path: Path, at: int
) -> None:
    flip(store, artifact, "model.safetensors", at)
    size = artifact.manifest.files["model.safetensors"].size
    start = at % size // PART_BYTES * PART_BYTES
    message = rf"model\.safetensors .* bytes {start}\.\.{min(start + PART_BYTES, size) - 1} differs"
    cache = NodeCache(tmp_path / "cache")
    for way in (
        lambda: load_tensors(store, artifact),
        lambda: load_tensors(store, artifact, cache=cache),
        lambda: load_files(store, artifact),
        lambda: load_file(store, artifact, "model.safetensors", cache=cache),
        lambda: download(store, artifact, tmp_path / "out", cache=cache),
        lambda: download(store, artifact, tmp_path / "out"),
    ):
        with pytest.raises(CorruptArtifact, match=message):
            way()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (cache.folder / artifact.manifest.files["model.safetensors"].sha256).exists()


def test_a_flipped_byte_in_any_file_of_a_version_stops_its_load(store: Store, artifact: Artifact) -> None:
    for path, entry in artifact.manifest.files.items():
        if entry.size:
            flip(store, artifact, path, entry.size // 2)
            with pytest.raises(CorruptArtifact, match=path.replace(".", r"\.")):
                load_files(store, artifact)
            flip(store, artifact, path, entry.size // 2)
    assert set(load_files(store, artifact)) == set(artifact.manifest.files)


@pytest.mark.parametrize("change", [-1, 1, -PART_BYTES])
def test_an_object_of_another_size_is_refused(store: Store, artifact: Artifact, change: int) -> None:
    key = artifact.manifest.key("model.safetensors")
    data = store.get(key).data
    store.put(key, data[:change] if change < 0 else data + b"x")
    with pytest.raises(CorruptArtifact, match=rf"it has {len(data) + change} bytes, and {len(data)} were published"):
        load_tensors(store, artifact)


def test_an_object_that_is_gone_is_named(store: Store, artifact: Artifact) -> None:
    store.delete(artifact.manifest.key("model.safetensors"))
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors is gone"):
        load_tensors(store, artifact)


def test_a_byte_that_flips_in_the_cache_is_replaced_from_the_store(
    store: Store, artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = NodeCache(tmp_path)
    load_tensors(store, artifact, cache=cache)
    path = tmp_path / artifact.manifest.files["model.safetensors"].sha256
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(PART_BYTES + 5)
        file.write(b"X")
    with caplog.at_level(logging.WARNING):
        assert_equal(load_tensors(store, artifact, cache=cache).tensors)
    assert f"bytes {PART_BYTES}..{2 * PART_BYTES - 1} differs" in caplog.text
    caplog.clear()
    assert_equal(load_tensors(store, artifact, cache=cache).tensors)
    assert not caplog.records


def test_a_version_published_before_there_were_parts_still_loads_and_is_still_verified(
    store: Store, artifact: Artifact, cache: NodeCache | None, tmp_path: Path
) -> None:
    key = "models/m/v1/manifest.json"
    manifest, etag = store.get_json(key)
    del manifest["schema_version"]
    for entry in manifest["files"].values():
        del entry["parts"]
    store.swap(key, json_bytes(manifest), etag)
    old = get_version(store, "m", 1)
    assert_equal(load_tensors(store, old, cache=cache).tensors)
    assert_equal(load_tensors(store, old, cache=cache, device=torch.device("cpu", 0)).tensors)
    flip(store, old, "model.safetensors", 300)
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors is not what was written"):
        load_tensors(store, old)
    download_folder = tmp_path / "out"
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors is not what was written"):
        download(store, old, download_folder)


def test_the_way_to_a_device_gives_equal_tensors(
    store: Store, artifact: Artifact, cache: NodeCache | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through staging buffers into one flat tensor, on whatever device there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setattr(loading, "_lies_on_the_host", lambda place: False)
    loaded = load_tensors(store, artifact, cache=cache, device=device)
    assert_equal({name: tensor.cpu() for name, tensor in loaded.tensors.items()})
    assert loaded.tensors["scalar"].data_ptr() % 64 == 0  # the first in the file, whatever its header
    assert loaded.phases.to_device_s > 0
    flip(store, artifact, "model.safetensors", PART_BYTES)
    with pytest.raises(CorruptArtifact, match=f"bytes {PART_BYTES}"):
        load_tensors(store, artifact, device=device)


class Tied(torch.nn.Module):
    """An output layer that shares its weights with the embedding, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.out = torch.nn.Linear(4, 11, bias=False)
        self.out.weight = self.embedding.weight


def test_a_module_takes_the_tensors_as_they_are_and_keeps_its_ties(store: Store) -> None:
    trained = Tied()
    state = {name: tensor for name, tensor in trained.state_dict().items() if name != "out.weight"}
    files = {"model.safetensors": safetensors.torch.save(state)}
    loaded = load_tensors(store, publish(store, name="tied", files=files, metadata=META))
    module = on_meta(Tied)
    assert all(parameter.is_meta for parameter in module.parameters())
    load_into(module, loaded.tensors)
    assert isinstance(module, Tied)
    assert module.embedding.weight.data_ptr() == loaded.tensors["embedding.weight"].data_ptr()
    assert module.out.weight is module.embedding.weight
    ids = torch.arange(11)
    assert torch.equal(
        module.out(module.norm(module.embedding(ids))), trained.out(trained.norm(trained.embedding(ids)))
    )


def test_weights_that_do_not_fit_the_module_are_named(store: Store) -> None:
    given = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    for wrong, named in (
        ({"weight": given["weight"]}, "bias"),
        ({**given, "extra": given["bias"]}, "extra"),
        ({**given, "weight": torch.zeros(3, 3)}, "weight"),
    ):
        with pytest.raises(CorruptArtifact, match=named):
            load_into(on_meta(lambda: torch.nn.Linear(3, 2)), wrong)

    class Rotary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("angles", torch.ones(2), persistent=False)

    with pytest.raises(CorruptArtifact, match="no file holds angles"):
        load_into(on_meta(Rotary), {})


def sharded(shards: int, *, lost: bool = False) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
    """A Hugging Face style folder: weights in many files, an index over them, and what else lies beside."""
    weights = {f"layers.{n}.{part}": torch.randn(40, 3) for n in range(shards) for part in ("weight", "bias")}
    name = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    owner = {key: name[int(key.split(".")[1])] for key in weights}
    files = {
        file: safetensors.torch.save({key: weights[key] for key in weights if owner[key] == file}) for file in name
    }
    index = {**owner, "lost.weight": name[0]} if lost else owner
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": index}).encode()
    files["config.json"] = b"{}"
    files["README.md"] = b"# A model\n"
    return files, weights


def test_a_sharded_folder_of_200_files_loads_and_compares_equal(store: Store, tmp_path: Path) -> None:
    files, weights = sharded(200)
    artifact = publish(store, name="hf", files=files, metadata=META)
    cache = NodeCache(tmp_path / "cache")
    for way in (None, cache, cache):
        loaded = load_tensors(store, artifact, cache=way).tensors
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert dict(load_files(store, artifact, cache=cache)) == files


def test_an_index_that_promises_more_than_the_files_hold_is_refused(store: Store) -> None:
    files, _ = sharded(2, lost=True)
    artifact = publish(store, name="hf", files=files, metadata=META)
    with pytest.raises(CorruptArtifact, match=r"lacks lost\.weight"):
        load_tensors(store, artifact)


def test_what_is_no_weight_is_not_loaded_as_one(store: Store) -> None:
    artifact = publish(store, name="text", files={"a.json": b"{}"}, metadata=META)
    with pytest.raises(UnsafeArtifact, match="holds no safetensors"):
        load_tensors(store, artifact)
    with pytest.raises(RegistryError, match="no file"):
        load_file(store, artifact, "b.json")


def test_tensors_that_lie_askew_are_copied_to_where_they_can_be_read(store: Store) -> None:
    """Writers need not align: here a byte stands before the floats."""
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    payload = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    content = len(header).to_bytes(8, "little") + header + payload
    artifact = publish(store, name="askew", files={"w.safetensors": content}, metadata=META)
    tensors = load_tensors(store, artifact).tensors
    assert tensors["a"].tolist() == [7]
    assert tensors["b"].tolist() == [1.5, -2.0]
    assert tensors["b"].data_ptr() % 4 == 0


def test_progress_ends_at_the_whole(store: Store, artifact: Artifact) -> None:
    told: list[tuple[int, int]] = []
    load_files(store, artifact, progress=lambda done, total: told.append((done, total)))
    size = sum(entry.size for entry in artifact.manifest.files.values())
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_store_that_does_not_answer_is_told_as_that(store: Store, artifact: Artifact) -> None:
    gone = Store.connect(store.settings.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(StoreUnreachable):
        load_tensors(gone, artifact)


@pytest.fixture
def command(
    store: Store, artifact: Artifact, heliostat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`heliostat model load-test` with a settings file that names the store."""
    path = heliostat_home / "settings.json"
    known = Settings(
        cluster="test",
        dashboard_url="http://127.0.0.1:1",
        gcs_address="127.0.0.1:2",
        serve_url="http://127.0.0.1:3",
        store=store.settings,
        spool=heliostat_home / "spool",
    )
    save(known, path)
    monkeypatch.setenv("HELIOSTAT_SETTINGS", str(path))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "heliostat.cli", "model", "load-test", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_the_load_test_prints_its_phases(
    store: Store, artifact: Artifact, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shown = command("m:v1", "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
    for word in ("connect", "read", "verify", "to device", "wall", "from the store"):
        assert word in shown.stdout
    assert "every digest right" in shown.stderr
    size = artifact.manifest.files["model.safetensors"].size
    for cached in (0, size):
        told = json.loads(command("m:v1", "--device", "cpu", "--cache", "--json").stdout)
        assert told["digest"] == artifact.digest
        assert told["tensors"] == len(WEIGHTS)
        assert (told["phases"]["bytes"], told["phases"]["bytes_from_cache"]) == (size, cached)
        assert told["phases"]["verify_s"] > 0


def test_the_load_test_refuses_damage_and_devices_that_are_not_there(
    store: Store, artifact: Artifact, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    flip(store, artifact, "model.safetensors", -1)
    for arguments, code, word in (
        (("m:v1", "--device", "cpu"), 1, "model.safetensors is not what was written"),
        (("m:v1", "--device", "abacus"), 2, "abacus"),
        (("m:v1", "--device", "meta"), 2, "meta"),
        (("m:v9",), 1, "one of: v1"),
    ):
        shown = command(*arguments)
        assert shown.returncode == code
        assert word in shown.stderr
        assert "Traceback" not in shown.stderr


def test_reading_through_a_proxys_client_gives_the_same_bytes(store: Store, artifact: Artifact) -> None:
    """Where the environment names a proxy, obstore speaks to it."""
    key = artifact.manifest.key("model.safetensors")
    room = memoryview(bytearray(100))
    assert store._read_through_proxy(key, 50, room) == artifact.manifest.files["model.safetensors"].size
    assert bytes(room) == store.get_range(key, 50, 100)
