"""Laws of the simulator, on small clusters of any kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.definition import ClusterDefinition
from heliostat.plan.policy.traces import Trace
from heliostat.simulate import Scenario, simulate
from heliostat.simulate.engine import Engine
from heliostat.simulate.front import Front
from heliostat.simulate.jobs import JobTerms
from heliostat.simulate.measured import AppWork, Measured
from heliostat.simulate.queues import mg1_wait_s
from heliostat.simulate.traffic import Traffic


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[ClusterDefinition, Scenario]:
    gpus = draw(st.sampled_from([1, 2, 4]))
    low = draw(st.integers(0, 1))
    definition = ClusterDefinition.model_validate(
        {
            "name": "any",
            "groups": {
                "serve": _group("serving", "on-demand", gpus, f"{low}..2"),
                "spot": _group("serving", "spot", gpus, "0..3", fallback="serve", priority=5),
                "train": _group("training", "spot", gpus, f"{low}..3"),
                "other": _group("training", "on-demand", gpus, "0..3"),
            },
            "applications": {
                "a": _app("spot", draw(st.sampled_from(["0..2", "1..3"])), draw(st.sampled_from([0.5, 1.0]))),
                "b": _app("serve", "1..2", 1.0),
            },
            "store": {"kind": "embedded", "bucket": "abc"},
            "tags": {"team": "t", "project": "p"},
        }
    )
    counts = st.lists(st.integers(0, 3), min_size=6, max_size=6)
    starts = {"node": "40s", "replica": "10s", "drain": "5s", "notice": draw(st.sampled_from(["0s", "2m"]))}
    jobs = draw(
        st.lists(
            st.builds(
                lambda nodes, work, at, late: (nodes, work, at, late),
                st.integers(1, 3), st.integers(60, 1200), st.integers(0, 1500), st.booleans(),
            ),
            max_size=5,
        )
    )  # fmt: skip
    scenario = Scenario(
        days=1800 / 86400,
        traffic={
            name: Traffic(np.array(draw(st.lists(st.sampled_from([0, 0, 3, 60, 400]), min_size=30, max_size=30))))
            for name in ("a", "b")
        },
        spot={name: Trace(name, "availability", 3, 300, np.array(draw(counts))) for name in ("spot", "train")},
        jobs=[
            JobTerms(
                f"j{n}", "train", nodes, float(work), float(at), policy="greedy spot", fallback="other",
                deadline_s=work + 4000.0 if late else None, team=f"t{n % 2}",
            )
            for n, (nodes, work, at, late) in enumerate(jobs)
        ],
        measured=Measured.model_validate(
            {
                "starts": starts,
                "applications": {name: {"seconds_per_item": 0.4, "variation": 1.0} for name in ("a", "b")},
                "usd_per_node_hour": dict.fromkeys(definition.groups, 1.0),
            }
        ),
        level=draw(st.sampled_from(["requests", "flow"])),
        seed=draw(st.integers(0, 9)),
    )  # fmt: skip
    return definition, scenario


def _group(role: str, market: str, gpus: int, nodes: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "market": market, "cpus": 1, "gpus": gpus, "nodes": nodes, "idle_timeout": "60s", **more}


def _app(group: str, replicas: str, gpus: float) -> dict[str, Any]:
    return {
        "recipe": "a:B", "model": "m@production", "group": group, "route": f"/{group}", "replicas": replicas,
        "gpus_per_replica": gpus, "idle_timeout": "2m",
    }  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(scenarios())
def test_nothing_is_lost_and_every_second_is_somebodys(given: tuple[ClusterDefinition, Scenario]) -> None:
    definition, scenario = given
    result = simulate(definition, scenario)
    for app in result.apps:
        offered = scenario.traffic[app.app].requests
        assert app.offered == pytest.approx(offered)
        assert app.answered + app.refused + app.gave_up + app.left == pytest.approx(offered)
        assert app.busy is None or app.busy >= 0
    for group in result.groups:
        # At 1 USD for a node and hour, USD are the hours of the nodes' lives.
        assert group.usd is not None
        assert group.held_gpu_h == pytest.approx(group.usd * definition.groups[group.group].gpus)
        parts = (group.starting_gpu_h, group.loading_gpu_h, group.working_gpu_h, group.idle_gpu_h)
        assert min(parts) >= -1e-9
    jobs = result.jobs
    assert jobs.useful_gpu_h + jobs.recomputed_gpu_h <= jobs.held_gpu_h + 1e-9
    training = [group for group in result.groups if definition.groups[group.group].role == "training"]
    assert jobs.held_gpu_h == pytest.approx(sum(group.loading_gpu_h + group.working_gpu_h for group in training))
    for point in result.points:
        assert all(count <= definition.groups[name].nodes.high for name, count in point.nodes.items())
    assert simulate(definition, scenario).figures() == result.figures()


def waits(servers: int, gaps: list[float], works: list[float]) -> list[float]:
    """Of each request in turn, in one queue before so many replicas."""
    engine, found = Engine(), []
    work = AppWork(batch_seconds=0.0)
    front = Front(engine, work, max_queue_s=math.inf, random=np.random.default_rng(0), shared=True, admit=False)
    for _ in range(servers):
        front.add()
    front.tally.wait.add = lambda seconds, weight=1.0: found.append(seconds)  # type: ignore[method-assign]
    at = 0.0
    for gap, seconds in zip(gaps, works, strict=True):
        at += gap
        engine.run(at)
        front.arrive(seconds)
    engine.run(1e9)
    return found


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60)), min_size=1, max_size=40),
)
def test_one_more_replica_lets_nobody_wait_longer(servers: int, asked: list[tuple[int, int]]) -> None:
    gaps, works = [float(gap) for gap, _ in asked], [float(work) for _, work in asked]
    few, more = waits(servers, gaps, works), waits(servers + 1, gaps, works)
    assert len(few) == len(more) == len(asked)
    assert all(late <= early + 1e-6 for early, late in zip(few, more, strict=True))


def test_the_mean_wait_is_pollaczek_and_khinchines() -> None:
    # Sampled; tests/benchmarks/simulate.py has six queues with their confidence intervals.
    random = np.random.default_rng(5)
    gaps = random.exponential(1 / 0.6, 30_000).tolist()
    found = waits(1, gaps, [1.0] * len(gaps))
    assert float(np.mean(found)) == pytest.approx(mg1_wait_s(0.6, 1.0, 0.0), rel=0.1)
