from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat import events
from heliostat.events import Spool, read_spool


def test_what_is_emitted_is_read_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker-1")
    spool.emit("step", run="r", step=1)
    spool.emit("step", run="r", step=2)
    assert [event.fields["step"] for event in read_spool(tmp_path)] == [1, 2]


def test_a_line_torn_by_a_kill_is_ignored_and_spoils_no_later_one(tmp_path: Path) -> None:
    Spool(tmp_path, "a").emit("first")
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"id":"x","kind":"torn"')
    Spool(tmp_path, "a").emit("second")
    assert [event.kind for event in read_spool(tmp_path)] == ["first", "second"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: spool.emit("e", number=number, text="x" * 500), range(200)))
    assert sorted(event.fields["number"] for event in read_spool(tmp_path)) == list(range(200))


def test_a_field_may_not_take_a_name_of_the_envelope(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="time_s"):
        Spool(tmp_path, "a").emit("e", time_s=1)


def test_a_full_disk_ends_no_work_and_loses_no_event(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "a")
    (tmp_path / "a.jsonl").symlink_to("/dev/full")  # every write to it is refused: no space left
    spool.emit("first")
    spool.emit("second")
    with pytest.raises(OSError, match="No space left"):
        spool.flush()
    (tmp_path / "a.jsonl").unlink()
    spool.emit("third")
    assert [event.kind for event in read_spool(tmp_path)] == ["first", "second", "third"]


def test_what_a_full_disk_refused_is_written_without_a_further_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_S", 0.01)
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    Spool(tmp_path, "a").emit("last")
    (tmp_path / "a.jsonl").unlink()
    until = time.monotonic() + 10
    while not read_spool(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert [event.kind for event in read_spool(tmp_path)] == ["last"]


def test_no_more_is_held_than_fits_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HELD_EVENTS", 3)
    spool = Spool(tmp_path, "a")
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    for number in range(5):
        spool.emit("e", number=number)
    (tmp_path / "a.jsonl").unlink()
    spool.flush()
    assert [event.fields["number"] for event in read_spool(tmp_path)] == [2, 3, 4]


def test_a_folder_that_may_not_be_written_is_told_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "a")
    (tmp_path / "spool").rmdir()
    with pytest.raises(FileNotFoundError):
        spool.emit("e")
