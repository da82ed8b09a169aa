from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.events import Event
from heliostat.meter.reckon import Interval, count_steps, reckon, total, union

_ids = count()


def event(kind: str, at: float, **fields: object) -> Event:
    return Event(str(next(_ids)), kind, "test", at, at, dict(fields))


def node(name: str, started: float, ready: float, ended: float | None) -> list[Event]:
    about = {"node": name, "group": "train", "market": "spot", "gpus": 1.0, "started_at": started}
    events = [
        event("node_started", started, **about, ready_at=None, ended_at=None),
        event("node_ready", ready, **about, ready_at=ready, ended_at=None),
    ]
    if ended is not None:
        events.append(event("node_ended", ended, **about, ready_at=ready, ended_at=ended))
    return events


def test_a_node_is_starting_then_working_then_idle() -> None:
    events = [
        *node("a", 0, 5, 100),
        event("worker_started", 10, node="a", run="r"),
        event("worker_ended", 60, node="a", run="r"),
    ]
    (row,) = reckon(events, now=200)
    assert (row.held, row.starting, row.working, row.idle) == (100, 5, 50, 45)


def test_a_killed_worker_ends_with_its_node() -> None:
    (row,) = reckon([*node("a", 0, 5, 40), event("worker_started", 10, node="a", run="r")], now=500)
    assert row.working == 30


def test_a_living_node_is_counted_up_to_now() -> None:
    (row,) = reckon(node("a", 0, 5, None), now=50)
    assert row.held == 50


def test_a_step_done_twice_is_a_step_recomputed() -> None:
    steps = [event("step", at, run="r", step=step) for at, step in enumerate([1, 2, 3, 2, 3, 4])]
    (row,) = count_steps([*steps, event("train_resumed", 3, run="r", attempt="x", step=1)])
    assert (row.completed, row.recomputed, row.reclaims) == (4, 2, 1)


intervals = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: Interval(min(pair), max(pair))), max_size=8
)


@given(intervals)
def test_a_union_counts_every_second_once(parts: list[Interval]) -> None:
    covered = sum(any(part.start <= second < part.end for part in parts) for second in range(51))
    assert total(union(parts)) == covered


@given(intervals, st.floats(0, 20), st.floats(20, 60))
def test_the_three_classes_add_up_to_what_was_held(busy: list[Interval], ready: float, ended: float) -> None:
    events = node("a", 0, ready, ended)
    for number, part in enumerate(busy):
        events.append(event("worker_started", part.start, node="a", run=str(number)))
        events.append(event("worker_ended", part.end, node="a", run=str(number)))
    (row,) = reckon(sorted(events, key=lambda e: e.time_s), now=100)
    assert row.starting + row.working + row.idle == pytest.approx(row.held)
    assert min(row.starting, row.working, row.idle) >= -1e-9
