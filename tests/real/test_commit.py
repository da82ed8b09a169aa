from __future__ import annotations

import pytest

from heliostat.commit import commit, newest_complete, read_file, read_manifest
from heliostat.errors import CorruptArtifact, ObjectExists
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


def test_events_are_shipped_once_even_if_the_note_was_lost(store: Store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    spool = Spool(tmp_path, "a")
    spool.emit("one")
    assert ship_spool(store, tmp_path) == 1
    (tmp_path / "a.shipped").unlink()  # killed between the segment and its note
    spool.emit("two")
    while ship_spool(store, tmp_path):
        pass
    assert [event.kind for event in read_events(store)] == ["one", "two"]
