"""The fold on small worlds whose answer is known."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from heliostat.meter.cells import HOUR
from heliostat.meter.facts import SECOND, Facts, Marks, NodeFact, Owner, Place, Samples, SeatFact, Use
from heliostat.meter.fold import Entries, fold
from heliostat.meter.state import State

SPOT = Place("train", "spot", "g5.xlarge", "a")
JOB = Owner("job", "classify", "red", "words", "classify-1")
APP = Owner("app", "classifier", "red", "words", "v3")


def node(started: int, ready: int, ended: int | None = None, *, gpus: float = 1.0, name: str = "n") -> list[NodeFact]:
    times = (("started", started), ("ready", ready), ("ended", ended))
    return [NodeFact(at * SECOND, what, name, SPOT, gpus) for what, at in times if at is not None]  # type: ignore[arg-type]


def seat(
    at: int, unit: str, *, gpus: float | None = None, owner: Owner = JOB, node: str = "n", slot: str = ""
) -> SeatFact:
    return SeatFact(at + 1, at * SECOND, "open", unit, node, slot or f"{unit}@{node}", gpus, owner)


def marks(*rows: tuple[int, str, Use] | tuple[int, str, Use, dict[str, object]]) -> Marks:
    def row(number: int, at: int, unit: str, use: Use, more: dict[str, object]) -> tuple[object, ...]:
        span = round(float(str(more["span"])) * SECOND) if "span" in more else -1
        return number + 1, at * SECOND, unit, use, span, more.get("step", -1), more.get("team", "")

    return Marks.of(row(n, *given[:3], given[3] if len(given) > 3 else {}) for n, given in enumerate(rows))  # type: ignore[misc,arg-type]


def by_use(entries: Entries) -> dict[str, float]:
    sums: dict[str, float] = {}
    for use, amount in zip(entries.use, entries.gpu_seconds, strict=True):
        sums[Use(use).label] = sums.get(Use(use).label, 0.0) + float(amount)
    return {use: amount for use, amount in sums.items() if abs(amount) > 1e-6}


def folded(
    *parts: Iterable[NodeFact | SeatFact], marks: Marks | None = None, samples: Iterable[tuple[int, str, float]] = ()
) -> dict[str, float]:
    given = [fact for part in parts for fact in part]
    facts = Facts(
        tuple(fact for fact in given if isinstance(fact, NodeFact)),
        tuple(fact for fact in given if isinstance(fact, SeatFact)),
        marks or Marks.of(()),
        Samples.of((at * SECOND, name, free) for at, name, free in samples),
    )
    return by_use(fold(State(), facts, until=HOUR)[0])


def test_a_training_is_loading_steps_stalls_and_steps_again() -> None:
    told = marks(
        (100, "r/1", Use.LOADING),
        (110, "r/1", Use.TRAINING, {"step": 1}),
        (120, "r/1", Use.TRAINING, {"step": 2}),
        (123, "r/1", Use.CHECKPOINT, {"span": 2}),
        (132, "r/1", Use.TRAINING, {"step": 3}),
        (140, "r/1", Use.RECOMPUTED),  # the attempt was lost
        (200, "r/2", Use.LOADING),
        (210, "r/2", Use.TRAINING, {"step": 3}),
        (220, "r/2", Use.TRAINING, {"step": 4}),
    )
    end = SeatFact(900, 140 * SECOND, "end", "r/1")
    assert folded(node(0, 50, 220), [seat(60, "r/1"), end, seat(150, "r/2")], marks=told) == pytest.approx(
        {
            "starting": 50,
            "loading": 40 + 50,
            "training": 30 + 10,
            "checkpoint": 2,
            "recomputed": 8 + 10,
            "unallocated": 10 + 10,
        }
    )


def test_a_replica_serves_teams_and_stands_ready_for_the_rest() -> None:
    told = marks(
        (20, "a/x", Use.LOADING),
        (50, "a/x", Use.SERVING, {"span": 6, "team": "red"}),
        (50, "a/x", Use.SERVING, {"span": 3, "team": "blue"}),
        (50, "a/x", Use.RESERVED),
    )
    facts = Facts(tuple(node(0, 10, 50)), (seat(10, "a/x", owner=APP),), told)
    entries, _ = fold(State(), facts, until=HOUR)
    teams = {
        (owner.team, Use(use)): amount
        for owner, use, amount in zip(entries.owners_of, entries.use, entries.gpu_seconds, strict=True)
    }
    assert teams == pytest.approx(
        {
            ("", Use.STARTING): 10,
            ("red", Use.LOADING): 10,
            ("red", Use.SERVING): 6,
            ("blue", Use.SERVING): 3,
            ("red", Use.RESERVED): 21,
        }
    )


def test_fractions_and_slices_count_as_what_they_are() -> None:
    """A seventh and a half of a GPU are held; the rest of the two can be given away."""
    told = marks((100, "a/x", Use.RESERVED), (100, "b/y", Use.RESERVED))
    held = folded(node(0, 0, 100, gpus=2.0), [seat(0, "a/x", gpus=1 / 7), seat(0, "b/y", gpus=0.5)], marks=told)
    assert held == pytest.approx({"reserved": 100 * (1 / 7 + 0.5), "unallocated": 100 * (2 - 1 / 7 - 0.5)})


def test_seven_sevenths_are_one_gpu() -> None:
    seats = [seat(0, f"a/{n}", gpus=1 / 7) for n in range(7)]
    told = marks(*((100, f"a/{n}", Use.RESERVED) for n in range(7)))
    assert folded(node(0, 0, 100), seats, marks=told) == pytest.approx({"reserved": 100})


def test_what_is_claimed_twice_is_shared() -> None:
    told = marks((100, "a/x", Use.RESERVED), (100, "r/1", Use.TRAINING, {"step": 1}))
    held = folded(node(0, 0, 100), [seat(0, "a/x", gpus=1.0), seat(60, "r/1", gpus=1.0)], marks=told)
    assert held == pytest.approx({"reserved": 60 + 20, "training": 20})


def test_what_is_told_beyond_the_time_there_was_is_overlap_and_in_no_class() -> None:
    told = marks((100, "r/1", Use.CHECKPOINT, {"span": 130}), (100, "r/1", Use.TRAINING, {"step": 1}))
    assert folded(node(0, 0, 100), [seat(0, "r/1")], marks=told) == pytest.approx({"checkpoint": 100, "overlap": 30})


def test_a_step_under_way_is_unexplained_until_it_is_told() -> None:
    facts = Facts(tuple(node(0, 0)), (seat(0, "r/1"),), marks((50, "r/1", Use.LOADING)))
    first, state = fold(State(), facts, until=80 * SECOND)
    assert by_use(first) == pytest.approx({"loading": 50, "unexplained": 30})
    told = Facts(marks=marks((90, "r/1", Use.TRAINING, {"step": 1})))
    second, _ = fold(state, told, until=90 * SECOND)
    assert by_use(second) == pytest.approx({"training": 40, "unexplained": -30})


def test_a_node_that_gave_samples_and_vanished_is_counted_to_its_last_sign_of_life() -> None:
    assert folded(node(0, 10), samples=[(30, "n", 1.0), (70, "n", 1.0)]) == pytest.approx(
        {"starting": 10, "unallocated": 60}
    )


def test_the_providers_word_on_a_nodes_end_goes_before_the_last_sign_of_life() -> None:
    assert folded(node(0, 10, 90), samples=[(30, "n", 1.0), (70, "n", 1.0)]) == pytest.approx(
        {"starting": 10, "unallocated": 80}
    )


def test_a_vanished_node_that_comes_back_was_there_all_the_time() -> None:
    first, state = fold(
        State(), Facts(tuple(node(0, 0)), samples=Samples.of([(60 * SECOND, "n", 1.0)])), until=200 * SECOND
    )
    assert first.total == pytest.approx(60)
    second, _ = fold(state, Facts(samples=Samples.of([(220 * SECOND, "n", 1.0)])), until=300 * SECOND)
    assert second.total == pytest.approx(160)


def test_what_ray_gave_to_somebody_unknown_is_unexplained() -> None:
    assert folded(node(0, 0, 100, gpus=4.0), samples=[(at, "n", 1.0) for at in range(0, 100, 20)]) == pytest.approx(
        {"unallocated": 100, "unexplained": 300}
    )


def test_without_samples_for_long_what_nobody_holds_is_unexplained() -> None:
    assert folded(node(0, 0, 1000), samples=[(0, "n", 1.0), (900, "n", 1.0)]) == pytest.approx(
        {"unallocated": 180 + 100, "unexplained": 720}
    )


def test_a_gang_follows_rank_0() -> None:
    """Two nodes, the second joined later: each second of either is in the class that rank 0 told."""
    facts = Facts(
        (*node(0, 0, 100, name="a"), *node(0, 0, 100, name="b", gpus=2.0)),
        (seat(0, "r/1", node="a"), seat(20, "r/1", node="b")),
        marks((40, "r/1", Use.LOADING), (100, "r/1", Use.TRAINING, {"step": 1})),
    )
    assert by_use(fold(State(), facts, until=HOUR)[0]) == pytest.approx(
        {"loading": 40 + 2 * 20, "training": 60 + 2 * 60, "unallocated": 2 * 20}
    )


def test_an_hour_gets_what_lies_in_it() -> None:
    facts = Facts(
        tuple(node(0, 0, 5400)), (seat(0, "r/1"),), marks((1800, "r/1", Use.LOADING), (5400, "r/1", Use.TRAINING))
    )
    entries, _ = fold(State(), facts, until=2 * HOUR)
    assert dict(
        zip(zip(entries.hour.tolist(), entries.use.tolist(), strict=True), entries.gpu_seconds, strict=True)
    ) == {
        (0, Use.LOADING): 1800,
        (0, Use.TRAINING): 1800,
        (1, Use.TRAINING): 1800,
    }


def test_a_node_told_to_stop_is_stopping_whatever_was_on_it() -> None:
    stop = NodeFact(60 * SECOND, "stopping", "n", SPOT, 1.0)
    told = marks((80, "r/1", Use.TRAINING, {"step": 1}))
    assert folded(node(0, 0, 100), [stop, seat(0, "r/1")], marks=told) == pytest.approx(
        {"training": 60, "starting": 40}
    )
