"""Which group a gang belongs on, which nodes are no good, and what a network should give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.definition import Fabric, WorkerGroup
from heliostat.plan import fabric
from heliostat.plan.fabric import Expectation, Pair, expectation, judge, rounds
from heliostat.plan.fallback import DRY_LIFE_S, PATIENCE_S, Supply, is_away
from heliostat.plan.sick import SLOW_FOR_S, GpuHealth, Slowness, gpu_trouble, straggler
from heliostat.units import CountRange

counts = st.integers(0, 8)


@given(counts, counts, counts, st.floats(0, 1e6), st.booleans())
def test_nobody_leaves_for_a_market_that_gives_and_nobody_returns_to_a_part(
    low: int, more: int, at_home: int, missing_s: float, dry: bool
) -> None:
    wanted = low + more
    assert not is_away(away=False, low=low, wanted=wanted, at_home=at_home, missing_s=missing_s, dry=False)
    assert is_away(away=True, low=low, wanted=wanted, at_home=at_home, missing_s=0, dry=dry) is (at_home < wanted)


@given(counts, counts, st.floats(0, 1e6))
def test_a_gang_that_can_train_where_it_belongs_stays(low: int, more: int, missing_s: float) -> None:
    assert not is_away(away=False, low=low, wanted=low + more, at_home=low, missing_s=missing_s, dry=True)


def test_it_leaves_a_dry_market_after_a_little_patience() -> None:
    for missing_s, away in ((PATIENCE_S - 0.1, False), (PATIENCE_S, True)):
        assert is_away(away=False, low=2, wanted=2, at_home=1, missing_s=missing_s, dry=True) is away


def test_a_refusal_is_of_its_time() -> None:
    assert Supply(1000.0).is_dry(1000.0 + DRY_LIFE_S - 1)
    assert not Supply(1000.0).is_dry(1000.0 + DRY_LIFE_S)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0.01, 0.0199), max_size=6))
def test_ordinary_differences_make_no_straggler(step_s: dict[str, float]) -> None:
    assert straggler(step_s) is None


def test_a_straggler_is_found_once_it_has_been_one_for_long_enough() -> None:
    slow = {"a": 0.1, "b": 0.5, "c": 0.11}
    assert straggler(slow) == ("b", 0.5, pytest.approx(0.105))
    assert straggler({"a": 0.001, "b": 0.004}) is None  # noise
    assert straggler({"a": 5.0}) is None  # nobody to compare with
    slowness = Slowness()
    assert slowness.look([slow], 100.0) == []
    assert slowness.look([slow], 100.0 + SLOW_FOR_S - 1) == []
    (verdict,) = slowness.look([slow], 100.0 + SLOW_FOR_S)
    assert (verdict.node, verdict.kind) == ("b", "straggler")
    assert "0.500 s there and 0.105 s on the others" in verdict.evidence


def test_a_straggler_that_was_well_in_between_begins_anew() -> None:
    slowness, slow = Slowness(), {"a": 0.1, "b": 0.5}
    slowness.look([slow], 100.0)
    slowness.look([{"a": 0.1, "b": 0.1}], 105.0)
    assert slowness.look([slow], 100.0 + SLOW_FOR_S) == []


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        (GpuHealth(0, "0:3b:00"), None),
        (GpuHealth(0, "0:3b:00", 0, xids=(31, 43)), None),  # a program's own faults
        (GpuHealth(1, "0:3b:00", 2), "GPU 1 (0:3b:00): 2 uncorrectable ECC errors"),
        (GpuHealth(0, "0:3b:00", xids=(79,)), "Xid 79: the GPU has fallen off the bus"),
        (GpuHealth(0, "0:3b:00", remap_failed=True), "could not be remapped"),
    ],
)
def test_a_gpu_is_in_trouble_for_what_only_a_new_one_cures(gpu: GpuHealth, told: str | None) -> None:
    found = gpu_trouble(gpu)
    assert found is None if told is None else told in (found or "")


@given(st.integers(2, 40))
def test_every_pair_meets_once_and_nobody_twice_in_a_round(ranks: int) -> None:
    made = rounds(ranks)
    pairs = [pair for one in made for pair in one]
    assert len(pairs) == len(set(pairs)) == ranks * (ranks - 1) // 2
    for one in made:
        met = [rank for pair in one for rank in pair]
        assert len(met) == len(set(met))
    assert len(made) == ranks - 1 + ranks % 2


def group(**fields: object) -> WorkerGroup:
    known = {"role": "training", "market": "spot", "cpus": 8, "gpus": 8, "nodes": CountRange(0, 4)}
    return WorkerGroup.model_validate({**known, **fields})


def test_what_a_pair_of_ranks_should_reach_follows_from_the_interfaces() -> None:
    assert expectation(group()) is None
    p5 = group(fabric=Fabric(kind="efa", interfaces=32))
    assert expectation(p5) == Expectation(50.0, "warn")  # 400 GB/s of the node, eight GPUs
    told = expectation(group(fabric=Fabric(kind="efa", gbytes_per_s=8.0, check="refuse")))
    assert told == Expectation(1.0, "refuse")
    assert fabric.from_environment(fabric.environment(p5)) == Expectation(50.0, "warn")
    assert expectation(group(fabric=Fabric(kind="efa")), embedded=True) == Expectation(None, "warn")
    assert fabric.environment(group()) == {}
    assert fabric.from_environment({fabric.VARIABLE: "{"}) is None


def test_only_pairs_far_below_are_blamed_the_slowest_first() -> None:
    pairs = [Pair(0, 1, 1e-5, 9.0), Pair(0, 2, 1e-3, 1.0), Pair(1, 2, 1e-3, 0.5)]
    assert [(p.a, p.b) for p in judge(pairs, Expectation(10.0)).slow] == [(1, 2), (0, 2)]
    assert judge(pairs, Expectation(None)).ok
