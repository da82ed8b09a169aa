"""The registry where it hurts: twice rolled back, concurrent promoters and judges, hostile headers, lost objects."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heliostat.definition import GateRules
from heliostat.errors import AliasMoved, CorruptArtifact, ObjectExists, RegistryError, UnsafeArtifact
from heliostat.promote.gate import Verdict, judge, store_verdict
from heliostat.registry import (
    Alias,
    Artifact,
    ArtifactMetadata,
    Lineage,
    download,
    get_alias,
    list_versions,
    load_file,
    move_alias,
    publish,
    resolve,
    rollback_alias,
)
from heliostat.store import Store

pytestmark = pytest.mark.real
META = ArtifactMetadata(
    framework="torch",
    lineage=Lineage(job="job", code_version="abc", dataset_digest="sha256:0"),
    parameters=1,
    dtype="float32",
    licence="Apache-2.0",
)


def put(store: Store, number: int) -> Artifact:
    return publish(store, name="model", files={"config.json": b"%d" % number}, metadata=META)


def point(store: Store, version: int, expected: int | None, who: str = "ann") -> Alias:
    return move_alias(
        store, name="model", alias="production", to_version=version, expected_version=expected, who=who, why="test"
    )


def safetensors(offsets: list[list[int]], payload: int) -> bytes:
    header = json.dumps(
        {f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": span} for n, span in enumerate(offsets)}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * payload


def test_32_publishers_leave_versions_without_a_gap(store: Store) -> None:
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda n: put(store, n % 24), range(32)))  # eight of them publish what another does
    assert sorted({artifact.version for artifact in made}) == list(range(1, 25))
    assert [artifact.version for artifact in list_versions(store, "model")] == list(range(1, 25))
    assert len({artifact.digest for artifact in made}) == 24


def test_of_16_promoters_one_wins_and_the_others_are_told_who(store: Store) -> None:
    for n in range(1, 5):
        put(store, n)
    point(store, 1, None)

    def promote(n: int) -> str:
        try:
            point(store, 2 + n % 3, 1, who=f"promoter-{n}")
        except AliasMoved as error:
            return str(error)
        return f"won promoter-{n}"

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(promote, range(16)))
    (won,) = [text for text in told if text.startswith("won")]
    assert all(won.removeprefix("won ") in text for text in told)
    alias = get_alias(store, "model", "production")
    assert alias is not None
    assert (alias.generation, len(alias.history)) == (2, 2)


def test_a_second_rollback_goes_further_back_and_never_to_what_was_taken_away(store: Store) -> None:
    for n in range(1, 4):
        put(store, n)
        point(store, n, None if n == 1 else n - 1)

    def back() -> int:
        return rollback_alias(store, name="model", alias="production", who="ann", why="bad").version

    assert [back(), back()] == [2, 1]
    with pytest.raises(RegistryError, match="never pointed at an earlier"):
        back()
    point(store, 3, 1)
    assert back() == 1


def test_an_alias_written_before_rollbacks_were_marked_still_reads(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    moves = [
        {"at": datetime.now(UTC).isoformat(), "who": "a", "why": "b", "from_version": before, "to_version": after}
        for before, after in ((None, 1), (1, 2))
    ]
    store.create_json(
        "models/model/aliases/production.json",
        {"name": "model", "alias": "production", "version": 2, "generation": 2, "history": moves},
    )
    assert rollback_alias(store, name="model", alias="production", who="ann", why="bad").version == 1


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
    alias = get_alias(store, "model", "production")
    assert alias is not None
    assert alias.generation == 2


@pytest.mark.parametrize(
    "content",
    [
        safetensors([[0, 4], [4, 8]], 7),
        safetensors([[0, 4], [2, 8]], 8),
        safetensors([[4, 8]], 8),
        safetensors([[]], 0),
        struct.pack("<Q", 2**63) + b"{}",
        b"\x80\x04\x95",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
    ids=["short", "overlap", "hole", "no offsets", "huge header", "pickle", "deep"],
)
def test_a_file_that_is_only_called_safetensors_is_refused(store: Store, content: bytes) -> None:
    with pytest.raises(UnsafeArtifact, match=r"w\.safetensors"):
        publish(store, name="model", files={"w.safetensors": content}, metadata=META)
    assert store.list("models") == []


def test_what_safetensors_writes_is_taken_from_a_file_and_comes_back(store: Store, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load, save_file

    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    publish(store, name="model", files={"w.safetensors": tmp_path / "w.safetensors"}, metadata=META)
    artifact = resolve(store, "model:v1")
    assert torch.equal(load(load_file(store, artifact, "w.safetensors"))["a"], torch.arange(6.0).view(2, 3))
    download(store, artifact, tmp_path / "back")
    assert (tmp_path / "back" / "w.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


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
