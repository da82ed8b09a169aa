"""What holds for the number of replicas wanted, whatever the load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.plan.policy.scale import TARGET_BUSY, ReplicaLoad, wanted_replicas

loads = st.lists(
    st.builds(
        ReplicaLoad,
        backlog_s=st.floats(0, 1e4, allow_nan=False),
        busy=st.floats(0, 1, allow_nan=False),
    ),
    max_size=12,
)
bounds = st.tuples(st.integers(0, 5), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
targets = st.floats(0.01, 60)


@given(loads, st.integers(0, 12), targets, bounds)
def test_it_stays_within_the_bounds(
    found: list[ReplicaLoad], silent: int, target: float, bound: tuple[int, int]
) -> None:
    low, high = bound
    wanted = wanted_replicas(found, replicas=len(found) + silent, target_s=target, low=low, high=high)
    assert low <= wanted <= high


@given(loads.filter(bool), targets, st.integers(0, 11), st.floats(0, 100))
def test_more_waiting_work_never_asks_for_fewer(
    found: list[ReplicaLoad], target: float, which: int, more: float
) -> None:
    index = which % len(found)
    fuller = [*found]
    fuller[index] = ReplicaLoad(found[index].backlog_s + more, found[index].busy)

    def ask(given_loads: list[ReplicaLoad]) -> int:
        return wanted_replicas(given_loads, replicas=len(given_loads), target_s=target, low=0, high=10**6)

    assert ask(fuller) >= ask(found)


@given(st.integers(1, 50), targets)
def test_replicas_at_the_target_and_on_time_are_left_as_they_are(count: int, target: float) -> None:
    steady = [ReplicaLoad(backlog_s=target, busy=TARGET_BUSY)] * count
    assert wanted_replicas(steady, replicas=count, target_s=target, low=0, high=100) == count


@given(st.integers(1, 50), targets)
def test_a_full_house_asks_for_one_more_at_least(count: int, target: float) -> None:
    full = [ReplicaLoad(backlog_s=2 * target, busy=1.0)] * count
    assert wanted_replicas(full, replicas=count, target_s=target, low=0, high=100) > count


def test_nobody_at_work_needs_nobody_and_a_silent_replica_counts_as_full() -> None:
    assert wanted_replicas([ReplicaLoad(0.0, 0.0)], replicas=1, target_s=1, low=0, high=4) == 0
    assert wanted_replicas([], replicas=2, target_s=1, low=0, high=4) == 2
    assert wanted_replicas([], replicas=0, target_s=1, low=1, high=4) == 1


@pytest.mark.parametrize(("backlog", "busy"), [(-1.0, 0.5), (0.0, 1.5), (float("nan"), 0.5), (float("inf"), 0.5)])
def test_a_load_that_cannot_be_is_refused(backlog: float, busy: float) -> None:
    with pytest.raises(ValueError, match="no load"):
        ReplicaLoad(backlog, busy)
