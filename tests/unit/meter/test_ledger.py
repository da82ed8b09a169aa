"""The ledger in a real store: folded in pieces, late, twice, at once, or by one that is killed, it says the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from heliostat.errors import CorruptArtifact
from heliostat.meter import ledger
from heliostat.meter.facts import Owner, Place, Use
from heliostat.meter.pieces import empty_piece, go_on
from heliostat.meter.report import report
from heliostat.meter.state import NodeState, Seat, State
from heliostat.sdk import Platform
from heliostat.settings import Settings
from heliostat.store import Store

pytestmark = pytest.mark.real

DAY = 86_400.0
MIDNIGHT = 20_000 * DAY  # of a day in 2024
NOON, END = MIDNIGHT - DAY / 2, MIDNIGHT + DAY
CHILD = Path(__file__).with_name("ledger_child.py")
_numbers = count()


def line(kind: str, at: float, **fields: Any) -> dict[str, Any]:
    about = {"id": uuid.uuid4().hex, "schema": 1, "time_s": at, "monotonic_s": at, "source": "test", "kind": kind}
    return {**about, **fields}


def ship(store: Store, lines: list[dict[str, Any]]) -> None:
    """A segment, as `ship_spool` would write it."""
    day = date.fromordinal(date(1970, 1, 1).toordinal() + int(lines[0]["time_s"] // DAY))
    data = "".join(json.dumps(each) + "\n" for each in lines)
    store.create(f"events/{day}/test/{next(_numbers):08d}.jsonl", data.encode())


def node_lines() -> list[dict[str, Any]]:
    about = {"node": "n", "group": "train", "market": "spot", "instance": "g5.xlarge", "gpus": 2.0, "started_at": NOON}
    return [
        line("node_started", NOON, **about, ready_at=None, ended_at=None),
        line("node_ready", NOON + 60, **about, ready_at=NOON + 60, ended_at=None),
        line("node_ended", END - 100, **about, ready_at=NOON + 60, ended_at=END - 200),
    ]


def run_lines() -> list[dict[str, Any]]:
    """A run over midnight: a step every 1,000 s, the last in the second day."""
    about = {"run": "words", "attempt": "000001-a", "team": "red"}
    return [
        line("worker_started", NOON + 100, **about, node="n", rank=0, gpus=1, began_at=NOON + 100),
        line("train_started", NOON + 200, **about, step=0),
        *(line("step", NOON + 200 + 1000 * n, **about, step=n) for n in range(1, 61)),
        line("worker_ended", NOON + 60_300, **about, node="n", rank=0),
    ]


EXPECTED = {
    "starting": 2 * 60,
    "loading": 100,
    "training": 60_000,
    "waiting": 100,
    "unallocated": 2 * (129_600 - 260) - 60_200,
}


def seconds(store: Store) -> dict[str, float]:
    return report(ledger.read(store)).total.gpu_seconds


@pytest.fixture
def told(store: Store) -> Store:
    ship(store, node_lines())
    ship(store, run_lines())
    return store


def test_a_ledger_says_what_was(told: Store) -> None:
    assert ledger.update(told, now=END) == 2
    assert seconds(told) == pytest.approx(EXPECTED)
    days = report(ledger.read(told), by=["day"]).lines
    assert [line.held for line in days] == pytest.approx([DAY, 2 * (DAY - 200)])


def test_updating_again_writes_nothing(told: Store) -> None:
    ledger.update(told, now=END)
    before = {info.key for info in told.list("ledger/")}
    assert ledger.update(told, now=END) == 0
    assert {info.key for info in told.list("ledger/")} == before


def test_updating_often_comes_to_the_same(told: Store) -> None:
    for now in (NOON + 500, NOON + 7000, MIDNIGHT - 1, MIDNIGHT + 200, MIDNIGHT + 40_000, END):
        ledger.update(told, now=now)
    assert seconds(told) == pytest.approx(EXPECTED)


def test_one_that_folds_on_writes_only_what_is_new(told: Store) -> None:
    folder = ledger.Folder(told)
    folder.update(now=MIDNIGHT + 200)
    assert folder.update(now=MIDNIGHT + 40_000) == 1  # the day before was over, and nothing new tells of it
    before = {info.key for info in told.list("ledger/")}
    folder.update(now=END)
    assert folder.update(now=END) == 0
    assert seconds(told) == pytest.approx(EXPECTED)
    assert {info.key for info in told.list("ledger/")} - before  # and the same as by one that begins anew
    ledger.update(told, now=END)
    assert seconds(told) == pytest.approx(EXPECTED)


def powered_world() -> list[dict[str, Any]]:
    """A day and a half of two nodes, one of them begun the day before: runs, a replica, power; in order of telling."""
    lines = [*node_lines(), *run_lines()]
    later = {"node": "m", "group": "serve", "market": "on-demand", "instance": "g6.xlarge", "gpus": 1.0}
    began, ended = MIDNIGHT + 3000, MIDNIGHT + 40_000
    about = {**later, "started_at": began, "ready_at": began + 90}
    lines += [
        line("node_started", began, **later, started_at=began, ready_at=None, ended_at=None),
        line("node_ready", began + 90, **about, ended_at=None),
        line("node_ended", ended + 30, **about, ended_at=ended),
    ]
    replica = {"app": "a", "replica": "r", "node": "m", "gpus": 1, "team": "red", "version": 1}
    lines.append(line("replica_ready", began + 400, **replica, process_at=began + 100, seconds=300))
    for at in range(int(began) + 460, int(ended), 60):
        asked = {"red": {"requests": 2, "items": 3, "tokens": 40}}
        lines.append(line("replica_busy", at, **replica, busy_s={"red": 20.0, "blue": 1.0}, asked=asked))
        lines.append(line("node_sample", at + 7, node="m", group="serve", gpus=1.0, free=0.0, power_w=100.0 + at % 50))
    return sorted(lines, key=lambda each: each["time_s"])


def amounts(*tables: Any) -> dict[tuple[Any, ...], float]:
    """Of the ledger's tables: the sum of each key."""
    sums: dict[tuple[Any, ...], float] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        *key, value = row.values()
        sums[tuple(key)] = sums.get(tuple(key), 0.0) + value
    return {key: value for key, value in sums.items() if abs(value) > 1e-6}


def at_once(store: Store, now: float) -> dict[tuple[Any, ...], float]:
    """The same of the events alone, each day folded in one piece."""
    events = [event for info in store.list("events/") for event in ledger.read_segment(store, info.key)]
    state, tables = State(), []
    for start in (MIDNIGHT - DAY, MIDNIGHT):
        piece = go_on(empty_piece(state, int(start * 1e6)), events, int(min(start + DAY, now) * 1e6))
        state = piece.state
        tables += [ledger.table_of(piece.entries), ledger.counts_table(piece.counts)]
        if now <= start + DAY:
            break
    return amounts(*tables)


def read_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every segment that is read."""
    found: list[str] = []
    read = ledger.read_segment

    def noting(store: Store, key: str) -> Any:
        found.append(key)
        return read(store, key)

    monkeypatch.setattr(ledger, "read_segment", noting)
    return found


@pytest.mark.parametrize("late", [False, True])
def test_one_that_goes_on_reads_each_segment_once_and_comes_to_what_one_that_begins_anew_does(
    store: Store, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """A segment an hour, each read when it comes; with `late`, one comes five hours after the others of its time."""
    folder, lines, kept_back = ledger.Folder(store), powered_world(), list[dict[str, Any]]()
    for hour in range(37):
        now = NOON + 3600 * (hour + 1)
        fresh = [each for each in lines if now - 3600 <= each["time_s"] < now]
        if late and hour == 20:
            kept_back, fresh = fresh[::3], [each for number, each in enumerate(fresh) if number % 3]
        if late and hour == 25:
            fresh = [*kept_back, *fresh]
        if fresh:
            ship(store, fresh)
        if hour in (13, 24, 25, 36):
            folder.update(now=now)
            gone_on = amounts(ledger.read(store), ledger.read_counts(store))
            assert gone_on == pytest.approx(at_once(store, now), abs=1e-3)
        else:
            with monkeypatch.context() as patch:
                seen = read_of(patch)
                for part in (1200, 600, 0):
                    folder.update(now=now - part)
                # A day that begins looks at those that may tell of it; here that is all of them, written in one minute.
                assert len(seen) <= 1 or hour in (11, 12, 35) or (late and hour == 25)


def test_entries_of_a_day_that_is_not_over_are_swept(told: Store) -> None:
    folder = ledger.Folder(told)
    for hour in range(1, 8):
        folder.update(now=MIDNIGHT + 3600 * hour)
    day = max(ledger.newest_entries(told))
    left = [info.key for info in told.list(f"ledger/{day}/") if info.key.endswith(".json") and info.key.count("/") == 2]
    assert len(left) == 2
    folder.update(now=END)
    assert seconds(told) == pytest.approx(EXPECTED)


def test_counts_lie_beside_the_rows(store: Store) -> None:
    ship(store, node_lines())
    ship(store, [*run_lines(), line("replica_busy", NOON + 500, app="a", replica="r", node="n", busy_s={},
                                    asked={"red": {"requests": 7, "items": 7, "tokens": 70}})])  # fmt: skip
    ledger.update(store, now=END)
    found = {(row["what"], row["team"]): row["amount"] for row in ledger.read_counts(store).to_pylist()
             if row["kind"] == "app"}  # fmt: skip
    assert found == {("requests", "red"): 7, ("items", "red"): 7, ("tokens", "red"): 70}
    steps = sum(row["amount"] for row in ledger.read_counts(store).to_pylist() if row["what"] == "steps")
    assert steps == 60


def test_a_late_event_becomes_a_new_entry_and_the_old_one_stays(store: Store) -> None:
    ship(store, node_lines())
    late = run_lines()
    ship(store, late[:-30])
    ledger.update(store, now=END)
    early = seconds(store)
    assert early["unexplained"] > 0
    ship(store, late[-30:])
    ledger.update(store, now=END)
    assert seconds(store) == pytest.approx(EXPECTED)
    day = max(ledger.newest_entries(store))
    (correction,) = ledger.corrections(store, day)
    moved = {row["use"]: row["gpu_seconds"] for row in correction.to_pylist()}
    assert sum(amount for amount in moved.values()) == pytest.approx(0, abs=1e-3)
    assert f"ledger/{day}/000001.json" in {info.key for info in store.list("ledger/")}


def test_segments_shipped_twice_change_nothing(told: Store) -> None:
    for info in told.list("events/"):
        told.create(info.key.replace(".jsonl", "-again.jsonl"), told.get(info.key).data)
    ledger.update(told, now=END)
    assert seconds(told) == pytest.approx(EXPECTED)


def test_a_torn_line_and_a_foreign_event_do_not_stop_the_count(told: Store) -> None:
    told.create(
        "events/2024-10-03/test/99999999.jsonl", b'{"id": "torn\n' + json.dumps(line("step", END)).encode() + b"\n"
    )
    said: list[str] = []
    ledger.update(told, now=END, progress=said.append)
    assert seconds(told) == pytest.approx(EXPECTED)
    assert any("lack what their kind must tell" in text for text in said)


def test_processes_that_fold_at_once_count_once(told: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ledger.update(Store.connect(told.settings), now=END), range(4)))
    ledger.update(told, now=END)
    assert seconds(told) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("writes", range(8))
def test_a_fold_that_is_killed_and_run_again_counts_once(told: Store, writes: int) -> None:
    settings = json.loads(told.settings.model_dump_json())
    secret = told.settings.secret_access_key
    settings["secret_access_key"] = secret.get_secret_value() if secret else None
    killed = subprocess.run(
        [sys.executable, str(CHILD), json.dumps(settings), str(END), str(writes)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    ledger.update(told, now=END)
    assert seconds(told) == pytest.approx(EXPECTED)


def test_a_changed_byte_is_found(told: Store) -> None:
    ledger.update(told, now=END)
    key = next(info.key for info in told.list("ledger/") if info.key.endswith("entries.parquet"))
    told.put(key, told.get(key).data[:-1] + b"x")
    with pytest.raises(CorruptArtifact):
        ledger.read(told)


def test_days_can_be_read_alone(told: Store) -> None:
    ledger.update(told, now=END)
    second = date.fromordinal(date(1970, 1, 1).toordinal() + 20_000)
    rows = ledger.read(told, since=second, until=second)
    assert report(rows).total.held == pytest.approx(2 * (DAY - 200))


def test_the_platform_brings_the_ledger_up_to_now_and_reports(told: Store, tmp_path: Path) -> None:
    settings = Settings(
        cluster="test", dashboard_url="http://127.0.0.1:1", gcs_address="", serve_url="http://127.0.0.1:2",
        store=told.settings,
        spool=tmp_path,
    )  # fmt: skip
    second = date.fromordinal(date(1970, 1, 1).toordinal() + 20_000)
    made = Platform(settings).cost_report(["team", "job"], until=second)
    assert made.total.gpu_seconds == pytest.approx(EXPECTED)
    assert [line.keys for line in made.lines] == [("red", "words"), (None, None)]
    assert made.total.usd > 0  # the catalogue knows g5.xlarge on spot
    assert made.prices[0].source
    assert len(ledger.newest_entries(told)) == 2  # the years without a node since then have no entries


def test_an_empty_store_is_an_empty_report(store: Store) -> None:
    assert ledger.update(store, now=END) == 0
    assert report(ledger.read(store), by=["team", "day", "job"]).lines == ()


def test_a_state_is_the_same_after_it_was_written() -> None:
    state = State(
        {"n": NodeState(Place("g", "spot", "i", "z"), 0.5, 1, 2, 3, alias="abc", sampled_at=4, unknown=0.25)},
        (
            Seat("r/1", "s", "n", None, Owner("job", "j", "t"), 5),
            Seat("r/2", "s", "n", 1 / 7, Owner(), 5, 9, Use.WAITING, final=True),
        ),
        {"r/1": 7},
        (("r/1", 8, int(Use.CHECKPOINT), 3, ""),),
        {"r": (12, 8)},
        99,
    )
    data = ledger.dump_state(state)
    assert ledger.dump_state(ledger.load_state(data)) == data
    assert ledger.load_state(data).nodes == state.nodes
    assert set(ledger.load_state(data).seats) == set(state.seats)
