from __future__ import annotations

import math
import random

import pytest

from heliostat.errors import UsageError
from heliostat.plan.policy.checkpoint import checkpoint_interval, reclaims_per_node_hour


def test_the_interval_is_young_s_where_saving_is_cheap() -> None:
    found = checkpoint_interval(stall_s=0.5, step_s=0.01, rate_per_node_hour=1.0)
    assert found.seconds == pytest.approx(math.sqrt(2 * 0.5 * 3600), rel=0.02)
    assert found.steps == round(found.seconds / 0.01)


def test_more_nodes_are_lost_more_often_and_save_more_often() -> None:
    one, four = (checkpoint_interval(stall_s=2, step_s=0.1, rate_per_node_hour=0.2, nodes=n) for n in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 2, rel=0.05)
    assert four.lost_share > one.lost_share


def test_reclaims_with_notice_do_not_count() -> None:
    half = checkpoint_interval(stall_s=2, step_s=0.1, rate_per_node_hour=0.4, unannounced=0.5)
    assert half == checkpoint_interval(stall_s=2, step_s=0.1, rate_per_node_hour=0.2)


def test_a_checkpoint_that_costs_more_than_it_saves_waits_for_a_mean_life() -> None:
    assert checkpoint_interval(stall_s=100, step_s=1, rate_per_node_hour=3600 / 40).seconds == 40


def test_the_interval_is_at_least_a_step_and_at_least_what_was_asked() -> None:
    assert checkpoint_interval(stall_s=0, step_s=7, rate_per_node_hour=1).steps == 1
    assert checkpoint_interval(stall_s=0, step_s=7, rate_per_node_hour=1, least_s=70).steps == 10


def test_no_other_interval_loses_less_in_a_simulation() -> None:
    """Losses drawn at random: the chosen interval against a half and a double of it."""
    stall_s, mean_s, work_s = 5.0, 900.0, 400_000.0
    chosen = checkpoint_interval(stall_s=stall_s, step_s=1.0, rate_per_node_hour=3600 / mean_s).seconds

    def took(interval_s: float) -> float:
        draw, clock_s, done_s = random.Random(1), 0.0, 0.0
        next_loss_s = draw.expovariate(1 / mean_s)
        while done_s < work_s:
            if clock_s + interval_s + stall_s > next_loss_s:
                clock_s = next_loss_s
                next_loss_s += draw.expovariate(1 / mean_s)
            else:
                clock_s += interval_s + stall_s
                done_s += interval_s
        return clock_s

    assert took(chosen) < min(took(chosen / 2), took(chosen * 2))


def test_the_rate_begins_at_the_prior_and_ends_at_the_count() -> None:
    assert reclaims_per_node_hour(0, 0) == 1 / 8
    assert reclaims_per_node_hour(0, 1000) > 0
    assert reclaims_per_node_hour(500, 1000) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [{"stall_s": -1}, {"step_s": 0}, {"rate_per_node_hour": -1}, {"nodes": 0}, {"unannounced": 2}, {"unannounced": 0}],
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    given = {"stall_s": 1.0, "step_s": 1.0, "rate_per_node_hour": 1.0, **wrong}
    with pytest.raises(UsageError):
        checkpoint_interval(**given)  # type: ignore[arg-type]  # nodes is an int here too
