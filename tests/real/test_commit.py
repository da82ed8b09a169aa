from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from heliostat.commit import (
    PART_BYTES,
    Manifest,
    Parts,
    Source,
    commit,
    describe,
    newest_complete,
    read_file,
    read_manifest,
    unnamed,
)
from heliostat.errors import CorruptArtifact, ObjectExists, UsageError
from heliostat.events import Spool, read_events, ship_spool
from heliostat.store import Store

pytestmark = pytest.mark.real


def test_files_are_seen_only_once_the_manifest_is_there(store: Store) -> None:
    store.put("checkpoints/r/000000000010/dead/state.json", b"half")  # an attempt that was killed
    assert newest_complete(store, "checkpoints/r/") is None
    commit(
        store,
        "checkpoints/r/000000000005",
        {"a": b"1"},
        manifest_key="checkpoints/r/000000000005/manifest.json",
        attempt="x",
    )
    newest = newest_complete(store, "checkpoints/r/")
    assert newest is not None
    assert read_file(store, newest, "a") == b"1"


def test_a_zombie_overwrites_nothing(store: Store) -> None:
    made = commit(store, "m/v1", {"a": b"live"}, manifest_key="m/v1/manifest.json", attempt="live")
    with pytest.raises(ObjectExists):
        commit(store, "m/v1", {"a": b"zombie"}, manifest_key="m/v1/manifest.json", attempt="zombie")
    assert read_file(store, made, "a") == b"live"


def test_a_commit_whose_answer_was_lost_is_found_to_be_ours(store: Store) -> None:
    first = commit(store, "m/v1", {"a": b"1"}, manifest_key="m/v1/manifest.json", attempt="same")
    assert commit(store, "m/v1", {"a": b"1"}, manifest_key="m/v1/manifest.json", attempt="same") == first


def test_a_flipped_byte_is_refused_with_the_file(store: Store) -> None:
    made = commit(store, "m/v1", {"w.bin": b"abc"}, manifest_key="m/v1/manifest.json", attempt="x")
    store.put("m/v1/x/w.bin", b"abd")
    with pytest.raises(CorruptArtifact, match=r"w\.bin"):
        read_file(store, made, "w.bin")


def test_a_manifest_that_reaches_outside_itself_is_refused(store: Store) -> None:
    store.put("m/v1/manifest.json", b'{"prefix":"other/v1","attempt":"x","files":{},"body":""}')
    with pytest.raises(CorruptArtifact):
        read_manifest(store, "m/v1/manifest.json")


def _checkpoint(store: Store, step: int, files: Mapping[str, bytes | Path]) -> Manifest:
    folder = f"checkpoints/r/{step:012d}"
    return commit(store, folder, files, manifest_key=f"{folder}/manifest.json", attempt="x")


def test_the_newest_that_is_whole_is_found_behind_those_that_are_not(store: Store) -> None:
    whole = _checkpoint(store, 10, {"a": b"1", "b": b"2"})
    gone, short, unreadable = (_checkpoint(store, step, {"a": b"12"}) for step in (20, 30, 40))
    store.delete(gone.key("a"))
    store.put(short.key("a"), b"1")
    store.put(f"{unreadable.prefix}/manifest.json", b"{")
    assert newest_complete(store, "checkpoints/r/") == whole
    store.delete(whole.key("b"))
    assert newest_complete(store, "checkpoints/r/") is None


def test_what_no_manifest_names_is_told(store: Store) -> None:
    made = _checkpoint(store, 10, {"a": b"1"})
    store.put(f"{made.prefix}/dead/a", b"half")
    listing = [info for info in store.list("checkpoints/r") if not info.key.endswith("/manifest.json")]
    assert [info.key for info in unnamed(listing, [made])] == [f"{made.prefix}/dead/a"]


def test_digests_of_a_large_file_are_those_of_its_bytes_and_it_is_read_once(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * (2 * PART_BYTES // 256) + b"tail"
    (tmp_path / "w").write_bytes(data)
    read: list[int] = []
    source = Source.of(tmp_path / "w", read.append)
    assert sum(read) == len(data)
    assert source.entry == describe(data)
    assert source.entry.sha256 == hashlib.sha256(data).hexdigest()
    assert source.entry.parts is not None
    assert [len(source.entry.parts.blake3), source.entry.parts.size] == [3, PART_BYTES]
    made = _checkpoint(store, 1, {"w": source.content})
    assert made.files["w"] == source.entry
    assert describe(b"").parts == Parts(size=PART_BYTES, blake3=())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read.*nothing"):
        Source.of(tmp_path / "nothing")


def test_a_manifest_whose_parts_do_not_cover_its_file_is_refused(store: Store) -> None:
    made = _checkpoint(store, 1, {"a": b"1"})
    key = f"{made.prefix}/manifest.json"
    store.put(key, store.get(key).data.replace(b'"size":1,', b'"size":99999999,'))
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        read_manifest(store, key)


def test_events_are_shipped_once_even_if_the_note_was_lost(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "a")
    spool.emit("one")
    assert ship_spool(store, tmp_path) == 1
    (tmp_path / "a.shipped").unlink()  # killed between the segment and its note
    spool.emit("two")
    while ship_spool(store, tmp_path):
        pass
    assert [event.kind for event in read_events(store)] == ["one", "two"]
