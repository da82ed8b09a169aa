"""Events on their way into the store: nothing is lost to a kill, to a second cluster or to midnight."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heliostat.events import Spool, read_events, ship_spool
from heliostat.store import Store

pytestmark = pytest.mark.real


def numbers(store: Store) -> list[int]:
    return sorted(event.fields["n"] for event in read_events(store))


def test_a_kill_between_the_segment_and_its_note_loses_and_doubles_nothing(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker")
    for n in range(3):
        spool.emit("step", n=n)
    ship_spool(store, tmp_path)
    (tmp_path / "worker.shipped").unlink()  # as if killed before the note
    for n in range(3, 6):
        spool.emit("step", n=n)
    while ship_spool(store, tmp_path):
        pass
    assert numbers(store) == list(range(6))
    assert len(store.list("events")) == 2


def test_two_machines_with_a_process_of_one_name_keep_both_their_events(store: Store, tmp_path: Path) -> None:
    for machine, n in (("one", 1), ("two", 2)):
        Spool(tmp_path / machine, "down").emit("node_ended", n=n, machine=machine, padding="x" * 100 * n)
        ship_spool(store, tmp_path / machine)
    assert numbers(store) == [1, 2]


def test_concurrent_shippers_of_one_folder_ship_each_line(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker")

    def emit_and_ship(n: int) -> None:
        spool.emit("step", n=n)
        ship_spool(store, tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(emit_and_ship, range(24)))
    ship_spool(store, tmp_path)
    assert numbers(store) == list(range(24))


def test_a_spool_begun_days_ago_still_shows_what_it_writes_today(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "controller")
    old = spool.emit("step", n=0)
    path = tmp_path / "controller.jsonl"
    path.write_text(path.read_text().replace(str(old.time_s), str(old.time_s - 3 * 86400)))
    spool.emit("step", n=1)
    ship_spool(store, tmp_path)
    since = datetime.now(UTC) - timedelta(minutes=5)
    assert [event.fields["n"] for event in read_events(store, since=since)] == [1]


def test_one_who_tells_something_all_the_time_is_shipped_now_and_then_and_one_who_was_silent_at_once(
    store: Store, tmp_path: Path
) -> None:
    busy, silent = Spool(tmp_path, "busy"), Spool(tmp_path, "silent")
    busy.emit("step", n=0)
    assert ship_spool(store, tmp_path, every_s=60) == 1
    for n in range(1, 5):
        busy.emit("step", n=n)
        assert ship_spool(store, tmp_path, every_s=60) == 0
    silent.emit("step", n=5)
    assert ship_spool(store, tmp_path, every_s=60) == 1
    assert numbers(store) == [0, 5]
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "busy.shipped", (an_hour_ago, an_hour_ago))
    assert ship_spool(store, tmp_path, every_s=60) == 1
    assert numbers(store) == list(range(6))
    assert len(store.list("events")) == 3
    an_hour_on = time.time() + 3600  # a clock that was put back
    os.utime(tmp_path / "busy.shipped", (an_hour_on, an_hour_on))
    busy.emit("step", n=6)
    assert ship_spool(store, tmp_path, every_s=60) == 1


def test_shipping_a_folder_that_is_not_there_ships_nothing(store: Store, tmp_path: Path) -> None:
    assert ship_spool(store, tmp_path / "none") == 0
