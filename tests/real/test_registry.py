"""Publishing and finding versions, on a real S3 server."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat import commit
from heliostat.definition import GateRules
from heliostat.errors import (
    CorruptArtifact,
    HeliostatError,
    ObjectExists,
    StoreError,
    UnknownAlias,
    UnknownModel,
    UnknownVersion,
    UsageError,
)
from heliostat.promote.gate import Verdict, judge, store_verdict
from heliostat.registry import (
    Artifact,
    Damaged,
    get_alias,
    list_models,
    list_versions,
    load_file,
    load_files,
    publish,
    resolve,
    scan,
)
from heliostat.store import Store
from tests.real.registry_world import META, MODEL, flip, point, put, weights

pytestmark = pytest.mark.real


def test_the_same_content_twice_is_one_version_whatever_is_said_about_it(store: Store) -> None:
    first = put(store, 1)
    again = publish(store, name=MODEL, files={"config.json": b"1"}, metadata=META.model_copy(update={"licence": "MIT"}))
    assert again == first
    assert put(store, 2).version == 2


def test_32_publishers_leave_versions_without_a_gap_and_what_was_equal_once(store: Store) -> None:
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda n: put(store, n % 24), range(32)))  # eight of them publish what another does
    assert sorted({artifact.version for artifact in made}) == list(range(1, 25))
    versions = list_versions(store, MODEL)
    assert [artifact.version for artifact in versions] == list(range(1, 25))
    assert len({artifact.digest for artifact in versions}) == 24
    # Whoever published what another had published at the same moment has cleared up after itself.
    attempts = {info.key.split("/")[3] for info in store.list(f"models/{MODEL}/files")}
    assert attempts == {artifact.manifest.attempt for artifact in versions}


class _Counting(Store):
    """Notes what is put."""

    puts: list[str]

    def put(self, key: str, data: bytes | Path) -> str:
        self.puts.append(key)
        return super().put(key, data)


def test_files_go_up_once_however_often_the_number_is_lost(store: Store) -> None:
    class Late(_Counting):
        """Somebody else is always a moment faster."""

        rivals = 3

        def create(self, key: str, data: bytes) -> str:
            if self.rivals and key.endswith("/manifest.json"):
                self.rivals -= 1
                put(store, 100 + self.rivals)
            return super().create(key, data)

    late = Late(store.settings, store._client)
    late.puts = []
    assert put(late, 1).version == 4
    assert len(late.puts) == 1


class _AnswerLost(Store):
    """A store whose conditional writes arrive, and whose answers do not: the client's retry is told "no"."""

    def create(self, key: str, data: bytes) -> str:
        super().create(key, data)
        return super().create(key, data)

    def swap(self, key: str, data: bytes, etag: str) -> str:
        super().swap(key, data, etag)
        return super().swap(key, data, etag)


def test_lost_answers_neither_claim_two_versions_nor_deny_a_move(store: Store) -> None:
    deaf = _AnswerLost(store.settings, store._client)
    with pytest.raises(ObjectExists):
        deaf.create("proof", b"x")
    assert [put(deaf, 1).version, put(deaf, 2).version] == [1, 2]
    point(deaf, 1, None)
    assert point(deaf, 2, 1).version == 2
    alias = get_alias(store, MODEL, "production")
    assert alias is not None
    assert alias.generation == 2


@pytest.mark.parametrize(
    "hostile",
    [
        {"model.pkl": b"x"},
        {"model.bin": b"x"},
        {"config.json": b"\x80\x04K\x01."},
        {"../escape.json": b"{}"},
        {"/abs.json": b"{}"},
        {"a//b.json": b"{}"},
        {"a/./b.json": b"{}"},
        {"a\\b.json": b"{}"},
        {"\uff0e\uff0e/b.json": b"{}"},  # full-width dots
        {"c\u043enfig.json": b"{}"},  # a Cyrillic o
        {"x" * 1000 + ".json": b"{}"},
        {"a.json": b"{}", "a.json/b.json": b"{}"},
        {"model.safetensors": b"not safetensors"},
        {},
    ],
)
def test_unsafe_files_are_refused_before_anything_is_written(store: Store, hostile: dict[str, bytes]) -> None:
    with pytest.raises(HeliostatError) as caught:
        publish(store, name=MODEL, files=hostile, metadata=META)
    assert caught.value.exit_code == 2
    assert store.list("models/") == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "a/b", "x" * 1000, "m\u043edel", "Model", "", ".", "model\n", "mo\u200bdel"]
)
def test_hostile_names_reach_no_key(store: Store, name: str) -> None:
    for ask in (
        lambda: publish(store, name=name, files={"a.json": b"{}"}, metadata=META),
        lambda: resolve(store, f"{name}:v1"),
        lambda: get_alias(store, name, "production"),
        lambda: get_alias(store, MODEL, name),
        lambda: list_versions(store, name),
    ):
        with pytest.raises(UsageError):
            ask()
    assert store.list("") == []


@pytest.mark.parametrize("version", ["v0", "v-1", "v01", "v\uff11", "1", "v1/../v2", "v" + "9" * 1000])
def test_hostile_versions_are_refused(store: Store, version: str) -> None:
    with pytest.raises(UsageError):
        resolve(store, f"{MODEL}:{version}")


def test_what_is_not_there_is_told_with_what_is(store: Store) -> None:
    with pytest.raises(UnknownModel):
        resolve(store, "nothing:v1")
    put(store, 1)
    with pytest.raises(UnknownVersion, match="one of: v1"):
        resolve(store, f"{MODEL}:v9")
    with pytest.raises(UnknownAlias, match="promote a version first"):
        resolve(store, f"{MODEL}@production")


def test_what_the_weights_are_is_read_off_their_header(store: Store) -> None:
    about = put(store, 1, **{"model.safetensors": weights(1)}).metadata
    assert (about.parameters, about.dtype, about.vram_bytes, about.format) == (4, "float32", 16, "safetensors")


def test_a_file_that_changes_while_it_is_published_claims_no_version(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    payload = 9 * 2**20  # beyond what is kept in memory
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (payload, payload)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(payload))

    class Meddled(Store):
        def put(self, key: str, data: bytes | Path) -> str:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")
            return super().put(key, data)

    with pytest.raises(UsageError, match="changed while"):
        publish(Meddled(store.settings, store._client), name=MODEL, files={"w.safetensors": path}, metadata=META)
    assert list_models(store) == []
    assert publish(store, name=MODEL, files={"w.safetensors": path}, metadata=META).version == 1


def test_a_publisher_that_was_asleep_for_half_a_day_does_not_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(store, 1)
    with pytest.raises(StoreError, match="a sweep may be deleting"):
        commit.seal(store, made.manifest, key="models/model/v2/manifest.json", begun=0)
    assert sorted(scan(store, MODEL)) == [1]


@pytest.fixture
def three(store: Store) -> Store:
    for number in (1, 2, 3):
        put(store, number)
    return store


FOREIGN = '{"prefix":"models/other/files","attempt":"x","files":{"a.json":{"size":2,"sha256":"%s"}},"body":""}' % (
    "0" * 64
)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"\xff" * 100,
        b'{"deleted": 3}',
        FOREIGN.encode(),
        FOREIGN.replace("models/other/files", "models").encode(),
        FOREIGN.replace("models/other/files", "models/model/v1").encode(),
        FOREIGN.replace("models/other/files", "/etc").encode(),
        FOREIGN.replace("models/other/files", "models/model/files").replace('"x"', '"../../other/files/x"').encode(),
        FOREIGN.replace("models/other/files", "models/model/files").replace("a.json", "/etc/passwd").encode(),
        FOREIGN.replace("models/other/files", "models/model/files").replace("a.json", "../y/a.json").encode(),
        FOREIGN.replace("models/other/files", "models/model/files").replace("a.json", "x" * 1000).encode(),
        FOREIGN.replace("models/other/files", "models/model/files").encode(),  # describes no version
    ],
)
def test_a_manifest_of_an_attacker_is_refused_and_the_other_versions_live_on(three: Store, manifest: bytes) -> None:
    three.put("models/model/v2/manifest.json", manifest)
    with pytest.raises(CorruptArtifact):
        resolve(three, "model:v2")
    assert [artifact.version for artifact in list_versions(three, MODEL)] == [1, 3]
    damaged = scan(three, MODEL)[2]
    assert isinstance(damaged, Damaged)
    assert "v2" in damaged.error or "models/" in damaged.error
    assert put(three, 4).version == 4
    assert load_files(three, resolve(three, "model:v3"))


def test_a_manifest_copied_from_another_version_is_refused(three: Store) -> None:
    three.put("models/model/v2/manifest.json", three.get("models/model/v1/manifest.json").data)
    with pytest.raises(CorruptArtifact, match="says that it is model 1"):
        resolve(three, "model:v2")


def test_a_manifest_that_names_a_pickle_is_refused_though_its_digests_are_right(store: Store) -> None:
    made = put(store, 1)
    pickled = b"\x80\x04K\x01."
    for name in ("model.pkl", "config.json"):
        entry = commit.describe(pickled)
        store.put(f"models/model/files/evil/{name}", pickled)
        body = made.manifest.body.replace(made.digest, _digest({name: entry})).replace('"version":1', '"version":2')
        evil = commit.Manifest(prefix="models/model/files", attempt="evil", files={name: entry}, body=body)
        store.put("models/model/v2/manifest.json", evil.model_dump_json().encode())
        with pytest.raises(HeliostatError, match=name.replace(".", r"\.")):
            load_files(store, resolve(store, "model:v2"))


def _digest(files: dict[str, commit.FileEntry]) -> str:
    from heliostat.registry import artifact_digest

    return artifact_digest(files)


def test_versions_written_before_files_had_a_folder_of_their_own_still_load(store: Store) -> None:
    made = put(store, 1)
    old = made.manifest.model_copy(update={"prefix": "models/model/v1", "schema_version": 1})
    store.put("models/model/v1/manifest.json", old.model_dump_json().encode())
    store.put(f"models/model/v1/{old.attempt}/config.json", b"1")
    assert load_files(store, resolve(store, "model:v1")) == {"config.json": b"1"}


def test_a_flipped_byte_stops_the_load(store: Store) -> None:
    artifact = put(store, 1, **{"model.safetensors": weights(1)})
    flip(store, artifact.manifest.key("model.safetensors"), -1)
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        load_files(store, artifact)


def test_a_file_that_is_gone_is_named_as_damage(store: Store) -> None:
    artifact = put(store, 1)
    store.delete(artifact.manifest.key("config.json"))
    with pytest.raises(CorruptArtifact, match=r"config\.json is gone"):
        load_file(store, artifact, "config.json")


def test_concurrent_judges_keep_every_verdict(store: Store) -> None:
    artifact = put(store, 1)
    verdict = judge(GateRules(), {}, None)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: store_verdict(store, artifact, verdict), range(8)))
    assert len(set(keys)) == 8
    for key in keys:
        assert not Verdict.model_validate_json(store.get(key).data).passed


def test_an_artifact_reads_back_as_it_was_published(store: Store) -> None:
    made = put(store, 1, **{"model.safetensors": weights(1)})
    assert isinstance(made, Artifact)
    assert resolve(store, "model:v1") == made
