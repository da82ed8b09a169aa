"""The laws of deadline jobs, over arbitrary traces: kept deadlines, bounded costs, an optimum that nothing beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.plan.policy.deadline import Deadline, Greedy, Market, Observation, OnDemandOnly, Spell, UniformProgress
from heliostat.plan.policy.forecast import Forecast, Settings
from heliostat.plan.policy.optimum import optimum
from heliostat.plan.policy.rehearse import Outcome, rehearse, rehearse_zones
from heliostat.plan.policy.traces import Window

Policies = Callable[[Deadline], Any]  # Any: policies differ in what they remember


def forecast(job: Deadline) -> Forecast:
    """The laws hold for any plan, so a coarse one does: every example needs one of its own."""
    return Forecast(job, Settings(steps=40))


POLICIES: list[Policies] = [OnDemandOnly, Greedy, UniformProgress, forecast]
TICK_S = 300


class Erratic:
    """Any policy that keeps the two rules: it draws its choice from a list."""

    name = "erratic"

    def __init__(self, job: Deadline, choices: list[int]) -> None:
        self.job, self.choices = job, itertools.cycle(choices)

    def begin(self) -> None:
        return None

    def learn(self, memory: None, spell: Spell) -> None:
        return None

    def decide(self, now: Observation, memory: None) -> Market:
        from heliostat.plan.policy.deadline import can_try_spot, can_wait

        allowed = [Market.ON_DEMAND]
        allowed += [Market.NONE] * can_wait(self.job, now) + [Market.SPOT] * can_try_spot(self.job, now)
        return allowed[next(self.choices) % len(allowed)]


def window(up: list[bool], before: tuple[Spell, ...] = ()) -> Window:
    return Window("drawn", 0, TICK_S, tuple(up), before)


# Spells, not single ticks: long ones are what a policy is tempted by.
ups = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=30).map(
    lambda spells: (list(itertools.chain.from_iterable([up] * ticks for up, ticks in spells)) + [False] * 120)[:120]
)
histories = st.lists(st.tuples(st.booleans(), st.floats(300, 1e6)), max_size=6).map(
    lambda spells: tuple(Spell(*spell) for spell in spells)
)


@st.composite
def jobs(draw: st.DrawFn) -> Deadline:
    """Any job within the 120 ticks that can be done in time, deadlines between ticks included."""
    deadline_s = draw(st.integers(6, 120)) * TICK_S - draw(st.sampled_from([0, 0, 100]))
    changeover_s = draw(st.sampled_from([0, 60, 300, 450, 600]))
    most_s = deadline_s - changeover_s
    work_s = most_s * draw(st.one_of(st.just(1.0), st.floats(0.05, 1.0)))
    return Deadline(
        work_s=work_s,
        deadline_s=deadline_s,
        changeover_s=changeover_s,
        spot_price=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        poll_s=TICK_S,
    )


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=150, deadline=None)
@given(job=jobs(), up=ups, before=histories)
def test_a_deadline_that_can_be_met_is_met_on_any_trace(
    policy: Policies, job: Deadline, up: list[bool], before: tuple[Spell, ...]
) -> None:
    outcome = rehearse(policy(job), job, window(up, before))
    assert not outcome.missed
    assert outcome.finish_s <= job.deadline_s + 1e-3
    check_the_bill(outcome, job)


@settings(max_examples=300, deadline=None)
@given(job=jobs(), up=ups, choices=st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_the_two_rules_alone_keep_every_deadline(job: Deadline, up: list[bool], choices: list[int]) -> None:
    outcome = rehearse(Erratic(job, choices), job, window(up))
    assert not outcome.missed
    check_the_bill(outcome, job)


def check_the_bill(outcome: Outcome, job: Deadline) -> None:
    """Money is time held; time held is work, changeovers, and nothing else."""
    assert outcome.cost_s == pytest.approx(job.spot_price * outcome.spot_s + outcome.on_demand_s)
    held_s = outcome.spot_s + outcome.on_demand_s
    assert held_s >= job.work_s + job.changeover_s - 1e-3
    assert held_s <= job.work_s + outcome.changes * job.changeover_s + 1e-3


@settings(max_examples=150, deadline=None)
@given(job=jobs(), up=ups, before=histories)
def test_the_forecast_never_costs_more_than_its_bound_above_on_demand(
    job: Deadline, up: list[bool], before: tuple[Spell, ...]
) -> None:
    policy = forecast(job)
    outcome = rehearse(policy, job, window(up, before))
    assert outcome.cost_s <= policy.most_s + 1e-3


@settings(max_examples=150, deadline=None)
@given(job=jobs(), zones=st.lists(ups, min_size=1, max_size=4))
def test_a_choice_of_zones_keeps_the_deadline_and_the_bound(job: Deadline, zones: list[list[bool]]) -> None:
    policy = forecast(job)
    outcome = rehearse_zones(policy, job, [window(up) for up in zones])
    assert not outcome.missed
    assert outcome.cost_s <= policy.most_s + 1e-3
    check_the_bill(outcome, job)


@settings(max_examples=300, deadline=None)
@given(job=jobs(), up=ups, choices=st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_no_policy_costs_less_than_the_optimum(job: Deadline, up: list[bool], choices: list[int]) -> None:
    least = optimum(job, up, tick_s=TICK_S)
    for policy in (OnDemandOnly(job), Greedy(job), UniformProgress(job), Erratic(job, choices)):
        assert rehearse(policy, job, window(up)).cost_s >= least - 1e-3


def every_schedule(job: Deadline, up: list[bool]) -> float:
    """The least cost over all schedules of a market per tick, each simulated as it is."""
    best = math.inf
    for plan in itertools.product((Market.NONE, Market.SPOT, Market.ON_DEMAND), repeat=len(up)):
        if any(market == Market.SPOT and not there for market, there in zip(plan, up, strict=True)):
            continue
        best = min(best, cost_of(plan, job))
    return best


def cost_of(plan: tuple[Market, ...], job: Deadline) -> float:
    left_s, starting_s, cost_s, at = job.work_s, 0.0, 0.0, Market.NONE
    for tick, market in enumerate(plan):
        length_s = min(TICK_S, job.deadline_s - tick * TICK_S)
        if length_s <= 0:
            break
        if market != at:
            at, starting_s = market, job.changeover_s
        if market == Market.NONE:
            continue
        price = job.spot_price if market == Market.SPOT else 1.0
        if starting_s + left_s <= length_s:
            return cost_s + price * (starting_s + left_s)
        worked_s = max(0.0, length_s - starting_s)
        starting_s = max(0.0, starting_s - length_s)
        left_s -= worked_s
        cost_s += price * length_s
    return math.inf


@settings(max_examples=150, deadline=None)
@given(
    up=st.lists(st.booleans(), min_size=5, max_size=8),
    changeover_s=st.sampled_from([0, 150, 300, 450]),
    share=st.floats(0.1, 1.0),
    early_s=st.sampled_from([0, 100]),
    spot_price=st.sampled_from([0.1, 0.3, 0.9]),
)
def test_the_optimum_is_the_best_of_all_schedules(
    up: list[bool], changeover_s: int, share: float, early_s: int, spot_price: float
) -> None:
    deadline_s = len(up) * TICK_S - early_s
    job = Deadline((deadline_s - changeover_s) * share, deadline_s, changeover_s, spot_price, TICK_S)
    assert optimum(job, up, tick_s=TICK_S) == pytest.approx(every_schedule(job, up), abs=1e-3)
