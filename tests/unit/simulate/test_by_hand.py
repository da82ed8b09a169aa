"""Small cases worked by hand: the simulator agrees to the second."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heliostat.definition import ClusterDefinition
from heliostat.plan.policy.traces import Trace
from heliostat.simulate import Level, Scenario, simulate
from heliostat.simulate.jobs import JobTerms
from heliostat.simulate.measured import Measured
from heliostat.simulate.result import GroupFigures, Result
from heliostat.simulate.traffic import Traffic

SECOND = pytest.approx
APP = {"recipe": "a:B", "model": "m@production", "group": "serve", "route": "/a", "idle_timeout": "60s"}


def cluster(replicas: str = "1..1", **groups: Any) -> ClusterDefinition:
    return ClusterDefinition.model_validate(
        {
            "name": "hand",
            "groups": {
                "serve": group("serving", "on-demand", "0..1"),
                "train": group("training", "spot", "0..1", idle="60s"),
                **groups,
            },
            "applications": {"app": {**APP, "replicas": replicas}},
            "store": {"kind": "embedded", "bucket": "abc"},
            "tags": {"team": "a", "project": "b"},
        }
    )


def group(role: str, market: str, nodes: str, *, idle: str = "30s", **more: Any) -> dict[str, Any]:
    return {"role": role, "market": market, "cpus": 1, "gpus": 1, "nodes": nodes, "idle_timeout": idle, **more}


def measured(**more: Any) -> Measured:
    starts = {"node": "60s", "replica": "20s", "drain": "30s", **more.pop("starts", {})}
    return Measured.model_validate({"starts": starts, "usd_per_node_hour": {"serve": 3600.0}, **more})


def run(definition: ClusterDefinition, level: Level = "requests", *, seconds: float = 900, **more: Any) -> Result:
    return simulate(definition, Scenario(days=seconds / 86400, level=level, **{"measured": measured(), **more}))


def seconds_of(figures: GroupFigures) -> list[float]:
    parts = (figures.starting_gpu_h, figures.loading_gpu_h, figures.working_gpu_h, figures.idle_gpu_h)
    return [part * 3600 for part in parts]


def test_one_request_from_zero_and_back_to_zero() -> None:
    # 10 the request; the node is asked for at once, ready at 70; the replica answers from 90 on; answered at 91.
    # 151 idle for 60 s: the lower bound falls. 151.5 the next report; 2 s of Serve's delay; 153.5 told to stop;
    # 30 s of draining; 183.5 the node is idle; 213.5 it is gone.
    traffic = Traffic(np.array([1]), np.array([10.0]), np.array([1.0]))
    result = run(cluster(), traffic={"app": traffic})
    (app, serve) = result.apps[0], result.groups[0]
    assert seconds_of(serve) == SECOND([60, 20, 93.5, 30])
    assert (app.offered, app.answered, app.cold_starts, app.starts) == (1, 1, 1, 1)
    assert app.wait_mean_s == SECOND(80)
    assert app.replica_hours * 3600 == SECOND(63.5)
    assert result.usd == SECOND(203.5)


def test_a_flow_from_zero_and_back_to_zero() -> None:
    # The same with a minute's 60 requests: the first comes in its first seconds. 5 the autoscaler looks; node 65,
    # replica 85. The minute is over by then. 145 the bound falls; 145.5 the next report; 147.5 told to stop; 177.5 the
    # node is idle; 207.5 it is gone.
    work = {"applications": {"app": {"seconds_per_item": 0.01, "variation": 0.0, "batch_seconds": 0.0}}}
    result = run(cluster(), "flow", traffic={"app": Traffic(np.array([60]))}, measured=measured(**work))
    (app, serve) = result.apps[0], result.groups[0]
    assert seconds_of(serve) == SECOND([60, 20, 92.5, 30])
    assert (app.offered, app.answered, app.cold_starts) == SECOND((60, 60, 1))
    # Those of the minute have waited 55 s in the mean until 85, and half of the 0.6 s that they take together.
    assert app.wait_mean_s == SECOND(55.3, abs=0.1)


def test_held_longer_than_requests_are_held_is_given_up() -> None:
    slow = measured(starts={"node": "3m"})
    traffic = Traffic(np.array([1]), np.array([10.0]), np.array([1.0]))
    for level in ("requests", "flow"):
        app = run(cluster(), level, traffic={"app": traffic}, measured=slow).apps[0]  # type: ignore[arg-type]
        assert (app.answered, app.gave_up) == (0, 1)


SPOT = {"train": Trace("t", "availability", 1, 300, np.array([1, 1, 0, 1, 1, 1, 1, 1]))}


def test_a_job_that_is_reclaimed_without_notice() -> None:
    # 0 asked, 100 the node, 120 the first step; saved each second, at no cost. 600 reclaimed with 480 s done; 900 there
    # is spot again; 1000 the node, 1020 steps, 1540 done; 1600 the node is gone.
    job = JobTerms("j", "train", nodes=1, work_s=1000, restart_s=20, stall_s=0.0)
    known = measured(starts={"node": "100s", "notice": "0s"})
    result = run(cluster(), jobs=[job], spot=SPOT, seconds=2400, measured=known)
    assert seconds_of(result.groups[1]) == SECOND([200, 40, 1000, 60])
    jobs = result.jobs
    assert (jobs.finished, jobs.reclaims, jobs.queue_mean_s) == (1, 1, 120)
    assert [h * 3600 for h in (jobs.useful_gpu_h, jobs.recomputed_gpu_h, jobs.held_gpu_h)] == SECOND([1000, 0, 1040])


def test_a_job_loses_what_it_had_not_saved() -> None:
    # A stall of 50 s; Daly's interval at one reclaim in 8 h is above 480 s: all of it is lost at 600.
    job = JobTerms("j", "train", nodes=1, work_s=1000, restart_s=20, stall_s=50.0)
    known = measured(starts={"node": "100s", "notice": "0s"})
    result = run(cluster(), jobs=[job], spot=SPOT, seconds=2400, measured=known)
    lost_s = result.jobs.recomputed_gpu_h * 3600
    assert 400 < lost_s < 480  # 480 s of steps and stalls
    assert result.jobs.finished == 1


def test_with_notice_nothing_is_lost() -> None:
    # Reclaimed at 600, gone at 720: 600 s done by then, saved.
    job = JobTerms("j", "train", nodes=1, work_s=1000, restart_s=20, stall_s=0.0)
    known = measured(starts={"node": "100s", "notice": "2m"})
    result = run(cluster(), jobs=[job], spot=SPOT, seconds=2400, measured=known)
    assert result.jobs.recomputed_gpu_h == 0
    assert seconds_of(result.groups[1]) == SECOND([200, 40, 1000, 60])


def test_two_gangs_of_one_group_run_one_after_the_other() -> None:
    # 0 both; the first has the node from 60, works 80 to 180; the second, in the queue until 180, from 180: 200 to 300.
    jobs = [JobTerms(name, "train", nodes=1, work_s=100, restart_s=20, stall_s=0.0) for name in ("a", "b")]
    result = run(cluster(), jobs=jobs)
    assert result.jobs.queue_mean_s == SECOND((80 + 200) / 2)
    assert seconds_of(result.groups[1]) == SECOND([60, 40, 200, 60])


def test_a_deadline_moves_a_job_to_on_demand() -> None:
    # No spot at all: it waits while it may, then takes the other group, and ends in time.
    other = {"train-od": group("training", "on-demand", "0..1")}
    none = {"train": Trace("t", "availability", 1, 300, np.array([0, 0]))}
    job = JobTerms(
        "j", "train", nodes=1, work_s=1800, deadline_s=5400, policy="greedy spot", fallback="train-od", restart_s=20,
    )  # fmt: skip
    result = run(cluster(**other), jobs=[job], spot=none, seconds=7200)
    assert (result.jobs.finished, result.jobs.missed) == (1, 0)
    by_name = {figures.group: figures for figures in result.groups}
    assert by_name["train"].held_gpu_h == 0
    assert by_name["train-od"].working_gpu_h * 3600 == SECOND(1800)


def test_a_reclaimed_serving_node_loses_no_request() -> None:
    spot = {"serve-spot": group("serving", "spot", "0..1", fallback="serve", priority=10)}
    definition = cluster(**spot)
    definition = definition.model_copy(
        update={"applications": {"app": definition.applications["app"].model_copy(update={"group": "serve-spot"})}}
    )
    at_s = np.arange(5.0, 1500.0, 1.0)
    traffic = Traffic(np.full(25, 60), at_s, np.full(len(at_s), 0.02))
    taken = {"serve-spot": Trace("t", "availability", 1, 300, np.array([1, 1, 0, 0, 0]))}
    for notice in ("2m", "0s"):
        known = measured(starts={"notice": notice})
        result = run(definition, traffic={"app": traffic}, spot=taken, seconds=1500, measured=known)
        app = result.apps[0]
        assert (app.refused, app.gave_up) == (0, 0)
        assert app.answered + app.left == app.offered
        by_name = {figures.group: figures for figures in result.groups}
        assert by_name["serve-spot"].reclaimed == 1
        assert by_name["serve"].nodes_started == 1
