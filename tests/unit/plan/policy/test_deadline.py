from __future__ import annotations

from dataclasses import replace

import pytest

from heliostat.errors import UsageError
from heliostat.plan.policy.compare import compare, cut_all
from heliostat.plan.policy.deadline import Deadline, Greedy, Market, Observation, OnDemandOnly, Spell, UniformProgress
from heliostat.plan.policy.forecast import Forecast, Settings
from heliostat.plan.policy.optimum import optimum
from heliostat.plan.policy.rehearse import rehearse, rehearse_zones
from heliostat.plan.policy.traces import Window, generate

HOUR_S = 3600.0
JOB = Deadline(work_s=10 * HOUR_S, deadline_s=20 * HOUR_S, changeover_s=600, spot_price=0.3, poll_s=600)
TICKS = 120


def window(*spells: tuple[bool, float], before: tuple[Spell, ...] = ()) -> Window:
    """Spells of so many hours, then nothing up to the deadline."""
    up = [state for state, hours in spells for _ in range(round(hours * 6))]
    return Window("made", 0, 600, tuple((up + [False] * TICKS)[:TICKS]), before)


def seen(**changes: object) -> Observation:
    start = Observation(
        elapsed_s=0.0,
        work_left_s=JOB.work_s,
        market=Market.NONE,
        starting_left_s=0.0,
        spot_up=True,
        spell_s=0.0,
        spent_s=0.0,
    )
    return replace(start, **changes)  # type: ignore[arg-type]  # fields by name


def test_spot_all_along_costs_the_spot_price() -> None:
    for policy in (Greedy(JOB), UniformProgress(JOB), Forecast(JOB)):
        outcome = rehearse(policy, JOB, window((True, 20)))
        assert outcome.cost_s == pytest.approx(0.3 * (10 * HOUR_S + 600))
        assert (outcome.changes, outcome.reclaims, outcome.missed) == (1, 0, False)
        assert outcome.finish_s == 10 * HOUR_S + 600


def test_without_spot_every_policy_pays_for_on_demand_once_and_ends_in_time() -> None:
    for policy in (OnDemandOnly(JOB), Greedy(JOB), Forecast(JOB)):
        outcome = rehearse(policy, JOB, window())
        assert outcome.cost_s == pytest.approx(JOB.on_demand_cost_s)
        assert not outcome.missed


def test_the_outcome_tells_time_on_either_market_and_reclaims() -> None:
    outcome = rehearse(Greedy(JOB), JOB, window((True, 2), (False, 3), (True, 1)))
    assert outcome.reclaims == 2
    assert outcome.changes == 3  # spot twice, then on-demand to the end
    assert outcome.spot_s == 3 * HOUR_S
    assert outcome.on_demand_s == pytest.approx(10 * HOUR_S - 3 * HOUR_S + 3 * 600)


def test_a_reclaim_within_the_changeover_ends_it() -> None:
    outcome = rehearse(Greedy(replace(JOB, changeover_s=1200)), JOB, window((True, 1 / 6), (False, 1)))
    assert outcome.spot_s == 600
    assert outcome.on_demand_s == 10 * HOUR_S + 600  # nothing was gained on spot


def test_the_optimum_waits_for_spot_that_will_come() -> None:
    up = window((False, 8), (True, 12)).up
    assert optimum(JOB, up, tick_s=600) == pytest.approx(0.3 * JOB.on_demand_cost_s)


def test_the_forecast_comes_back_from_on_demand_when_spot_does() -> None:
    """Greedy never does: the slack is gone when spot appears."""
    late = window((False, 12), (True, 8))
    forecast, greedy = rehearse(Forecast(JOB), JOB, late), rehearse(Greedy(JOB), JOB, late)
    assert greedy.spot_s == 0
    assert forecast.spot_s > 7 * HOUR_S
    assert forecast.cost_s < 0.6 * greedy.cost_s


def test_the_forecast_learns_that_spot_here_never_stays() -> None:
    policy = Forecast(JOB)
    memory = policy.begin()
    late = seen(elapsed_s=13 * HOUR_S, work_left_s=6 * HOUR_S, spent_s=4 * HOUR_S + 600, market=Market.ON_DEMAND)
    steady = flighty = memory
    for _ in range(12):
        flighty = policy.learn(policy.learn(flighty, Spell(True, 600)), Spell(False, 6 * HOUR_S))
        steady = policy.learn(policy.learn(steady, Spell(True, 12 * HOUR_S)), Spell(False, 600))
    assert policy.lasts_s(flighty, 0) < HOUR_S < policy.lasts_s(steady, 0)
    assert policy.decide(late, steady) == Market.SPOT
    assert policy.decide(late, flighty) == Market.ON_DEMAND
    assert sum(flighty.up) == pytest.approx(1)
    assert sum(flighty.down) == pytest.approx(1)


def test_a_spell_that_lasts_is_expected_to_last() -> None:
    policy = Forecast(JOB)
    memory = policy.begin()
    assert policy.lasts_s(memory, 10 * HOUR_S) > policy.lasts_s(memory, HOUR_S) > policy.lasts_s(memory, 0)
    assert policy.lasts_s(memory, 20 * 365 * 24 * HOUR_S) > 0  # and no 0 / 0 after years


def test_a_decision_is_a_function_of_its_arguments() -> None:
    policy, other = Forecast(JOB), Forecast(JOB)
    memory = policy.learn(policy.begin(), Spell(True, 7200))
    policy.decide(seen(spot_up=False, elapsed_s=3600), memory)
    assert policy.decide(seen(), memory) == other.decide(seen(), memory)
    assert memory == other.learn(other.begin(), Spell(True, 7200))


def test_without_a_changeover_to_waste_there_is_no_first_try_of_spot() -> None:
    strict = Forecast(JOB, Settings(waste=0.0))
    assert rehearse(strict, JOB, window((True, 20))).cost_s == JOB.on_demand_cost_s


def test_a_choice_of_zones_moves_when_one_is_taken() -> None:
    zones = [window((True, 5)), window((False, 4), (True, 16))]
    outcome = rehearse_zones(Forecast(JOB), JOB, zones)
    assert (outcome.changes, outcome.reclaims, outcome.on_demand_s) == (2, 1, 0)
    assert outcome.cost_s == pytest.approx(0.3 * (JOB.work_s + 2 * 600))


def test_of_two_zones_the_one_that_keeps_its_nodes_is_taken() -> None:
    steady = tuple([Spell(True, 40 * HOUR_S), Spell(False, 600)] * 3)
    flighty = tuple([Spell(True, 600), Spell(False, 600)] * 30)
    for zones in (
        [window((True, 2), before=flighty), window((True, 20), before=steady)],
        [window((True, 20), before=steady), window((True, 2), before=flighty)],
    ):
        assert rehearse_zones(Forecast(JOB), JOB, zones).changes == 1


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"deadline_s": 10 * HOUR_S}, "too near"),
        ({"work_s": 0.0}, "work"),
        ({"spot_price": 1.5}, "spot price"),
        ({"changeover_s": -1.0}, "changeover"),
        ({"poll_s": 0.0}, "poll"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(wrong: dict[str, float], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        replace(JOB, **wrong)


def test_the_rows_of_a_comparison_agree_with_each_other() -> None:
    windows = cut_all([generate(1), generate(2)], deadline_s=JOB.deadline_s, stride_s=24 * HOUR_S, nodes=1)
    rows = {row.policy: row for row in compare(JOB, windows)}
    assert list(rows) == ["on-demand only", "greedy spot", "uniform progress", "forecast"]
    assert rows["on-demand only"].vs_on_demand == 1
    for row in rows.values():
        assert row.windows == len(windows)
        assert row.missed == 0
        assert 1 <= row.vs_optimum <= row.worst_vs_optimum
        assert row.median_finish_h <= row.p95_finish_h <= row.latest_finish_h <= 20 + 1e-6


def test_a_trace_that_does_not_fit_the_job_is_named() -> None:
    with pytest.raises(UsageError, match=r"24\.0h, the job has 48\.0h"):
        cut_all([generate(1, days=1)], deadline_s=48 * HOUR_S, stride_s=HOUR_S, nodes=1)
    with pytest.raises(UsageError, match="1 nodes, the job asks for 2"):
        cut_all([generate(1)], deadline_s=48 * HOUR_S, stride_s=HOUR_S, nodes=2)
