"""Laws of the fold, on arbitrary facts: also on ones that contradict one another."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.meter.cells import HOUR
from heliostat.meter.facts import SECOND, Facts, Marks, NodeFact, Owner, Place, Samples, SeatFact, Use
from heliostat.meter.fold import Entries, fold
from heliostat.meter.state import State

END = 3 * HOUR
NODES = ("n0", "n1")
UNITS = ("job-a/1", "job-a/2", "job-b/1", "app/r1")

MarkRow = tuple[int, int, str, Use, int, int, str]
World = tuple[tuple[NodeFact, ...], tuple[SeatFact, ...], tuple[MarkRow, ...], tuple[tuple[int, str, float], ...]]

# Coarse, so that instants coincide often; and over hour edges.
times = st.integers(0, 59).map(lambda tick: tick * 180 * SECOND)


@st.composite
def node_facts(draw: st.DrawFn, name: str) -> list[NodeFact]:
    place = Place(name, draw(st.sampled_from(["spot", "on-demand"])), "g5.xlarge", "a")
    # Soon ready and long-lived more often than not, so that something can happen on it.
    early = st.integers(0, 6).map(lambda tick: tick * 180 * SECOND)
    at = sorted(draw(st.tuples(early, early))) + sorted(draw(st.tuples(times, times)))
    at.sort()
    gpus = draw(st.sampled_from([1.0, 0.5, 4.0, 1 / 7]))
    told = ["started"]
    for what in ("ready", "stopping", "ended"):
        if not draw(st.booleans()) and what != "ready":
            continue
        told.append(what)
    return [
        NodeFact(at[("started", "ready", "stopping", "ended").index(what)], what, name, place, gpus)  # type: ignore[arg-type]
        for what in told
    ]


@st.composite
def seat_facts(draw: st.DrawFn) -> SeatFact:
    unit, node = draw(st.sampled_from(UNITS)), draw(st.sampled_from((*NODES, *NODES, "nowhere")))
    return SeatFact(
        0,
        draw(times),
        draw(st.sampled_from(["open", "open", "open", "close", "end"])),
        unit,
        node,
        f"{unit.partition('/')[0]}@{node}",
        draw(st.sampled_from([None, 1.0, 0.5, 1 / 7, 3.0])),
        Owner("app" if unit.startswith("app") else "job", unit.partition("/")[0], "team"),
        draw(st.sampled_from([None, None, None, Use.WAITING])),
    )


@st.composite
def mark_rows(draw: st.DrawFn) -> MarkRow:
    use = draw(st.sampled_from([Use.TRAINING, Use.TRAINING, Use.LOADING, Use.CHECKPOINT, Use.SERVING, Use.RESERVED]))
    span = -1 if use in (Use.TRAINING, Use.LOADING, Use.RESERVED) else draw(st.integers(0, 3000)) * SECOND
    step = draw(st.integers(1, 5)) if use is Use.TRAINING else -1
    team = draw(st.sampled_from(["", "red", "blue"])) if use is Use.SERVING else ""
    return 0, draw(times), draw(st.sampled_from(UNITS)), use, span, step, team


@st.composite
def worlds(draw: st.DrawFn) -> World:
    nodes = [fact for name in NODES for fact in draw(node_facts(name))]
    seats = draw(st.lists(seat_facts(), min_size=2, max_size=8))
    marks = draw(st.lists(mark_rows(), min_size=4, max_size=20))
    samples = draw(
        st.lists(st.tuples(times, st.sampled_from(NODES), st.sampled_from([0.0, 0.5, 1.0, 4.0])), max_size=6)
    )
    # Different events have different ids.
    numbered = tuple((number, *row[1:]) for number, row in enumerate(marks, start=1))
    return tuple(nodes), tuple(replace(seat, id=n) for n, seat in enumerate(seats, start=1)), numbered, tuple(samples)


def facts(world: World, start: int = 0, end: int = END) -> Facts:
    nodes, seats, marks, samples = world
    return Facts(
        tuple(fact for fact in nodes if start <= fact.at < end),
        tuple(fact for fact in seats if start <= fact.at < end),
        Marks.of(row for row in marks if start <= row[1] < end),
        Samples.of(row for row in samples if start <= row[0] < end),
    )


def table(*parts: Entries) -> dict[tuple[int, Place, Owner, Use], float]:
    sums: dict[tuple[int, Place, Owner, Use], float] = {}
    for part in parts:
        for hour, place, owner, use, amount in zip(
            part.hour, part.places_of, part.owners_of, part.use, part.gpu_seconds, strict=True
        ):
            key = (int(hour), place, owner, Use(use))
            sums[key] = sums.get(key, 0.0) + float(amount)
    return {key: amount for key, amount in sums.items() if abs(amount) > 1e-4}


def lifetimes(world: World) -> float:
    """Node GPU-seconds, reckoned apart from the fold; without samples."""
    total = 0.0
    nodes = world[0]
    for name in NODES:
        known = {fact.what: fact for fact in nodes if fact.node == name}
        started, ended = known["started"].at, known["ended"].at if "ended" in known else END
        total += (ended - started) / SECOND * known["started"].gpus
    return total


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_classes_sum_to_node_lifetimes(world: World) -> None:
    nodes, seats, marks, _ = world
    unsampled = (nodes, seats, marks, ())
    entries, _ = fold(State(), facts(unsampled), until=END)
    assert entries.total == pytest.approx(lifetimes(unsampled), abs=1e-3)
    assert entries.lifetime == pytest.approx(lifetimes(unsampled), abs=1e-3)
    sampled, _ = fold(State(), facts(world), until=END)
    assert sampled.total == pytest.approx(sampled.lifetime, abs=1e-3)
    assert sampled.total <= entries.total + 1e-3
    assert all(amount > -1e-4 for amount in table(sampled).values())


@settings(max_examples=60, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(world: World, chance: random.Random) -> None:
    shuffled = tuple(tuple(chance.sample(part, len(part))) for part in world)
    assert_same(fold(State(), facts(world), until=END), fold(State(), facts(shuffled), until=END))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_duplicates_change_nothing(world: World, chance: random.Random) -> None:
    doubled = tuple(
        tuple(chance.sample([*part, *part[: len(part) // 2]], len(part) + len(part) // 2)) for part in world
    )
    assert_same(fold(State(), facts(world), until=END), fold(State(), facts(doubled), until=END))  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(worlds(), st.lists(st.integers(1, 119).map(lambda half: half * 90 * SECOND), max_size=4, unique=True))
def test_folding_in_pieces_is_folding_at_once(world: World, cuts: list[int]) -> None:
    whole, _ = fold(State(), facts(world), until=END)
    parts, state, start = [], State(), 0
    for end in [*sorted(cuts), END]:
        part, state = fold(state, facts(world, start, end), until=end)
        assert part.total == pytest.approx(part.lifetime, abs=1e-3)
        parts.append(part)
        start = end
    assert table(*parts) == pytest.approx(table(whole), abs=1e-3)
    assert sum(part.lifetime for part in parts) == pytest.approx(whole.lifetime, abs=1e-3)


def assert_same(one: tuple[Entries, State], other: tuple[Entries, State]) -> None:
    assert table(other[0]) == pytest.approx(table(one[0]), abs=1e-6)
    assert other[0].lifetime == pytest.approx(one[0].lifetime)
