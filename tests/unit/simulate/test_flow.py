"""A flow's steps, and that they meet what single requests meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.definition import ClusterDefinition
from heliostat.serve.desired import DesiredApp
from heliostat.simulate import Level, Scenario, simulate
from heliostat.simulate.curves import measure
from heliostat.simulate.flows import draw_arrivals, run_steps, step_of
from heliostat.simulate.measured import AppWork, Measured
from heliostat.simulate.queues import mg1_wait_s
from heliostat.simulate.result import AppFigures
from heliostat.simulate.scaling import Rules
from heliostat.simulate.traffic import Traffic

WORK = AppWork(seconds_per_item=0.1, variation=1.0, batch_seconds=0.0)


@settings(deadline=None)
@given(st.floats(0, 500), st.integers(1, 300), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 9))
def test_what_is_drawn_of_a_stretch_is_as_many_as_come(
    requests: float, steps: int, variation: float, seed: int
) -> None:
    work = AppWork(seconds_per_item=0.1, variation=variation)
    drawn = draw_arrivals(requests, steps, work, np.random.default_rng(seed))
    assert math.fsum(drawn.counts) == pytest.approx(requests)
    assert drawn.requests[-1] == pytest.approx(requests)
    assert all(work_s == 0 for count, work_s in zip(drawn.counts, drawn.works_s, strict=True) if not count)


@settings(deadline=None)
@given(st.integers(1, 4), st.floats(0.1, 3.0), st.integers(0, 9))
def test_what_comes_is_taken_or_refused_and_work_is_done_or_left(replicas: int, load: float, seed: int) -> None:
    curves, steps, step_s = measure(WORK, replicas, 5.0), 400, step_of(WORK)
    requests = load * replicas / WORK.seconds_per_item * steps * step_s
    drawn = draw_arrivals(requests, steps, WORK, np.random.default_rng(seed))
    seen = [0.0] * len(curves.speed)
    level, refused, done_s = run_steps(
        0.0, drawn, 0, steps, step_s=step_s, replicas=replicas, curves=curves, mean_s=WORK.seconds_per_item,
        refuse=curves.full, seen=seen,
    )  # fmt: skip
    assert math.fsum(seen) + refused == pytest.approx(requests)
    taken_s = math.fsum(drawn.works_s) - refused * WORK.seconds_per_item
    assert done_s + level * replicas == pytest.approx(taken_s)
    assert done_s <= replicas * steps * step_s + 1e-6


def test_one_replicas_steps_wait_as_pollaczek_and_khinchine_say() -> None:
    busy, steps, step_s = 0.6, 100_000, step_of(WORK)
    curves = measure(WORK, 1, 5.0)
    drawn = draw_arrivals(busy / WORK.seconds_per_item * steps * step_s, steps, WORK, np.random.default_rng(1))
    seen = [0.0] * len(curves.speed)
    run_steps(
        0.0, drawn, 0, steps, step_s=step_s, replicas=1, curves=curves, mean_s=WORK.seconds_per_item,
        refuse=[0.0] * len(seen), seen=seen,
    )  # fmt: skip
    levels = np.maximum(0.0, np.arange(len(seen)) - 0.5) * curves.step_s
    assert levels @ seen / sum(seen) == pytest.approx(mg1_wait_s(busy / 0.1, 0.1, 1.0), rel=0.05)


def one_app(replicas: str) -> ClusterDefinition:
    app = {"recipe": "a:B", "model": "m@production", "group": "serve", "route": "/a", "replicas": replicas}
    serve = {"role": "serving", "market": "on-demand", "cpus": 1, "gpus": 1, "nodes": "0..4"}
    return ClusterDefinition.model_validate(
        {
            "name": "flow",
            "groups": {"serve": serve},
            "applications": {"app": app},
            "store": {"kind": "embedded", "bucket": "abc"},
            "tags": {"team": "a", "project": "b"},
        }
    )


def both(replicas: str, per_minute: list[int]) -> list[AppFigures]:
    measured = Measured.model_validate(
        {"starts": {"node": "60s", "replica": "20s"}, "applications": {"app": WORK.model_dump()}}
    )
    levels: tuple[Level, ...] = ("requests", "flow")
    return [
        simulate(
            one_app(replicas),
            Scenario(len(per_minute) / 1440, {"app": Traffic(np.array(per_minute))}, measured=measured, level=level),
        ).apps[0]
        for level in levels
    ]


def test_a_queue_lasts_from_one_minute_to_the_next() -> None:
    # Two minutes of 1.5 times what one replica does fill its queue of 5 s, which the quieter ones after them drain.
    exact, flow = both("1..1", [60] * 5 + [900, 900, 500, 500] * 5)
    assert flow.refused == pytest.approx(exact.refused, rel=0.05)
    assert flow.wait_mean_s == pytest.approx(exact.wait_mean_s, rel=0.05)
    assert flow.busy == pytest.approx(exact.busy, rel=0.02)


def test_replicas_that_come_have_empty_queues_and_the_others_do_not() -> None:
    exact, flow = both("1..3", ([100] * 3 + [1500] * 4) * 4)
    assert flow.replica_hours == pytest.approx(exact.replica_hours, rel=0.05)
    assert flow.refused == pytest.approx(exact.refused, rel=0.1)
    assert flow.wait_mean_s == pytest.approx(exact.wait_mean_s, rel=0.1)


@settings(deadline=None)
@given(st.integers(1, 12), st.floats(0, 30), st.floats(0, 12))
def test_equal_replicas_are_asked_for_as_the_policy_of_production_does(
    replicas: int, backlog: float, busy: float
) -> None:
    backlog, busy = round(backlog, 2), round(busy, 2)
    definition = one_app("1..9")
    rules = Rules(DesiredApp(name="app", spec=definition.applications["app"], package="", groups=("serve",)))
    loads = dict.fromkeys(range(replicas), (backlog / replicas, min(1.0, busy / replicas)))
    assert rules.wanted_of_equals(replicas, backlog_s=backlog, busy=busy) == rules.wanted(loads, replicas=replicas)
