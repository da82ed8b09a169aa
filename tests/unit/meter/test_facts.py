"""From the events that the platform emits to seconds by class."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from heliostat.events import Event
from heliostat.meter.cells import HOUR
from heliostat.meter.facts import Owner, Use, facts_of
from heliostat.meter.fold import Entries, fold
from heliostat.meter.state import State

_ids = count(1)


def event(kind: str, at: float, **fields: Any) -> Event:
    return Event(f"{next(_ids):032x}", kind, "test", at, at, fields)


def node(name: str, group: str, started: float, ready: float, ended: float | None = None) -> list[Event]:
    about = {"node": name, "group": group, "role": "x", "market": "spot", "gpus": 1.0, "started_at": started}
    events = [
        event("node_started", started, **about, ready_at=None, ended_at=None, reason=None),
        event("node_ready", ready, **about, ready_at=ready, ended_at=None, reason=None),
    ]
    # The end is found a while after it came.
    return (
        events if ended is None else [*events, event("node_ended", ended + 7, **about, ready_at=ready, ended_at=ended)]
    )


def seconds(events: list[Event], *, until: float = 3600) -> dict[tuple[str, str], float]:
    entries, _ = fold(State(), facts_of(events, end=round(until * 1e6)), until=round(until * 1e6))
    return by_name(entries)


def by_name(entries: Entries) -> dict[tuple[str, str], float]:
    sums: dict[tuple[str, str], float] = {}
    for owner, use, amount in zip(entries.owners_of, entries.use, entries.gpu_seconds, strict=True):
        key = (owner.name, Use(use).label)
        sums[key] = sums.get(key, 0.0) + float(amount)
    return sums


def test_a_training_with_a_reclaim() -> None:
    run = {"run": "classify-20260101-120000-ab12", "team": "red"}
    one, two = {**run, "attempt": "000001-aa"}, {**run, "attempt": "000002-bb"}
    events = [
        *node("a", "train", 0, 10, 60),
        *node("b", "train", 0, 10, 100),
        event("worker_started", 22, **one, rank=0, node="a", began_at=20.0),
        event("train_started", 30, **one, step=0, generation=1),
        event("step", 40, **one, step=1, total=9, loss=1.0),
        event("checkpoint", 41, **one, step=1, stall_s=0.5),
        event("step", 50, **one, step=2, total=9, loss=1.0),
        event("attempt_ended", 65, **run, number=1, outcome="lost", why="", reached=2),
        event("worker_started", 68, **two, rank=0, node="b", began_at=66.0),
        event("train_resumed", 70, **two, step=1, generation=2),
        event("step", 78, **two, step=2, total=9, loss=1.0),
        event("step", 88, **two, step=3, total=9, loss=1.0),
        event("train_finished", 92, **two, metrics={}),
        event("worker_ended", 94, **two, rank=0, node="b"),
        event("attempt_ended", 94.5, **run, number=2, outcome="done", why="", reached=3),
    ]
    assert seconds(events) == pytest.approx(
        {
            ("", "starting"): 20,
            ("", "unallocated"): 10 + 56 + 6,
            ("classify", "loading"): 10 + 4,
            ("classify", "training"): 10 + 9.5 + 10,
            ("classify", "checkpoint"): 0.5 + 4,
            ("classify", "recomputed"): 10 + 8,  # the step that was lost with node a, and step 2 again
            ("classify", "waiting"): 2,
        }
    )


def test_a_replica_that_takes_over_a_version_and_ends() -> None:
    about = {"app": "classifier", "replica": "r1", "node": "s", "gpus": 0.5}
    events = [
        *node("s", "serve", 0, 10, 100),
        event("replica_ready", 30, **about, version=1, digest="x", seconds=15.0),
        event("replica_busy", 60, **about, version=1, busy_s={"red": 4.0, "blue": 2.0}),
        event("version_live", 70, **about, version=2, digest="y", seconds=3.0),
        event("replica_ended", 90, **about, version=2, requests=9, teams={}, busy_s={"red": 5.0}),
    ]
    entries, _ = fold(State(), facts_of(events), until=HOUR)
    assert by_name(entries) == pytest.approx(
        {
            ("", "starting"): 10,
            ("", "unallocated"): 90 - 0.5 * 75,
            ("classifier", "loading"): 0.5 * 15,
            ("classifier", "serving"): 0.5 * 11,
            ("classifier", "reserved"): 0.5 * (24 + 25),
        }
    )
    shares = {(owner.version, owner.team) for owner in entries.owners_of}
    assert shares == {("", ""), ("v1", ""), ("v1", "red"), ("v1", "blue"), ("v2", ""), ("v2", "red")}


def test_an_event_that_lacks_what_its_kind_tells_is_counted_and_left_out() -> None:
    facts = facts_of([event("step", 5), event("node_sample", 5, node="a"), event("something_else", 5)])
    assert facts.unread == 2


def test_effect_not_telling_places_a_fact() -> None:
    """A node's end that was found after midnight belongs to the day before."""
    ended = node("a", "train", 0, 10, 95)[-1]
    assert [fact.what for fact in facts_of([ended], start=90_000_000, end=100_000_000).nodes] == ["ended"]
    assert not facts_of([ended], start=100_000_000).nodes


def test_a_run_that_a_person_named_is_its_own_job() -> None:
    started = event("worker_started", 5, run="my-run", attempt="000001-a", rank=0, node="a", user="ada", gpus=2)
    (seat,) = facts_of([started]).seats
    assert (seat.unit, seat.gpus) == ("my-run/1", 2.0)
    assert seat.owner == Owner("job", "my-run", version="my-run", user="ada")


def keeper(name: str, node: str, *, gpus: float = 1.0) -> dict[str, Any]:
    return {"keeper": name, "node": node, "gpus": gpus}


def test_a_keeper_holds_its_gpu_before_between_and_after_attempts() -> None:
    run = {"run": "words", "team": "red"}
    one, two = {**run, "attempt": "000001-aa"}, {**run, "attempt": "000002-bb"}
    mine = keeper("k1", "ray-a")
    started, ready, *ended = node("a", "train", 0, 10, 100)
    ready.fields["ray_node_id"] = "ray-a"
    events = [
        started,
        ready,
        *ended,
        event("gang_started", 11, **run),
        event("keeper_ready", 25, **run, **mine, began_at=20.0, seconds=9),
        event("attempt", 26, **run, number=1),
        event("worker_started", 31, **one, rank=0, **{**mine, "node": "a"}, began_at=30.0),
        event("train_started", 34, **one, step=0),
        event("step", 40, **one, step=1, total=9, loss=1.0),
        event("train_left", 41, **one, step=1),
        event("worker_ended", 42, **one, rank=0, **{**mine, "node": "a"}),
        event("attempt_ended", 44, **run, number=1, outcome="left", why="", reached=1, keepers=[mine]),
        event("attempt", 50, **run, number=2),
        event("worker_started", 56, **two, rank=0, **{**mine, "node": "a"}, began_at=55.0),
        event("train_resumed", 60, **two, step=1),
        event("step", 70, **two, step=2, total=9, loss=1.0),
        event("attempt_ended", 71, **run, number=2, outcome="lost", why="", reached=2, keepers=[mine]),
        event("keeper_ended", 80, **run, **mine),
    ]
    assert seconds(events) == pytest.approx(
        {
            ("", "starting"): 10,
            ("", "unallocated"): 10 + 20,
            ("words", "loading"): 4 + 5,
            ("words", "training"): 6 + 10,
            ("words", "checkpoint"): 1,
            # Before the first process, after it left, until the next one, and after that was lost.
            ("words", "waiting"): 10 + 3 + 11 + 9,
            ("words", "recomputed"): 1,
        }
    )


def test_a_driver_that_was_killed_leaves_nothing_held_and_nothing_unexplained() -> None:
    """The next driver of the run tells: what was held is free, what was under way is lost."""
    run = {"run": "words"}
    events = [
        *node("a", "train", 0, 10, 100),
        event("gang_started", 11, **run),
        event("keeper_ready", 12, **run, **keeper("k1", "a"), began_at=12.0, seconds=1),
        event("worker_started", 20, **run, attempt="000001-aa", rank=0, **keeper("k1", "a"), began_at=20.0),
        event("train_started", 22, **run, attempt="000001-aa", step=0),
        event("step", 30, **run, attempt="000001-aa", step=1, total=9, loss=1.0),
        event("gang_started", 35, **run),  # the driver was killed a moment before
        event("attempt", 40, **run, number=2),
        event("keeper_ready", 41, **run, **keeper("k2", "a"), began_at=38.0, seconds=1),
        event("keeper_ended", 50, **run, **keeper("k2", "a")),
    ]
    assert seconds(events) == pytest.approx(
        {
            ("", "starting"): 10,
            ("", "unallocated"): 2 + 3 + 50,
            ("words", "waiting"): 8 + 12,
            ("words", "loading"): 2,
            ("words", "training"): 8,
            ("words", "recomputed"): 5,
        }
    )


def test_a_lost_replica_is_told_of_afterwards() -> None:
    """The controller tells it when it finds the report silent; it counts from the report on."""
    about = {"app": "classifier", "replica": "r1", "node": "s", "gpus": 1.0, "version": 1}
    lost = event("replica_ended", 95, **about, busy_s={"red": 1.0}, lost=True)
    lost.fields["at"] = 60.0
    events = [
        lost,
        *node("s", "serve", 0, 10, 100),
        event("replica_ready", 20, **about, seconds=2.0, process_at=12.0),
        event("replica_busy", 40, **about, busy_s={"red": 5.0}),
    ]
    assert seconds(events) == pytest.approx(
        {
            ("", "starting"): 10,
            ("", "unallocated"): 2 + 40,
            ("classifier", "loading"): 8,
            ("classifier", "serving"): 6,
            ("classifier", "reserved"): 15 + 19,
        }
    )


def test_a_mig_slice_counts_as_the_part_of_a_card_that_it_is() -> None:
    nodes = node("m", "serve", 0, 10, 100)
    for told in nodes:
        told.fields.update(gpus=7.0, share=1 / 7)
    about = {"app": "classifier", "replica": "r1", "node": "m", "gpus": 1.0, "version": 1}
    events = [
        *nodes,
        event("replica_ready", 30, **about, seconds=0.0),
        event("replica_busy", 100, **about, busy_s={}),
    ]
    assert seconds(events) == pytest.approx(
        {("", "starting"): 10, ("", "unallocated"): 90 - 10, ("classifier", "reserved"): 10.0}
    )
