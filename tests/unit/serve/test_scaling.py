"""The policy as Serve finds, makes and calls it, and what a replica tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heliostat.definition import load
from heliostat.inference.load import Load
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp
from heliostat.serve.endpoint import Counts
from heliostat.serve.scaling import BACKLOG, BUSY, Demand

APP = load(Path(__file__).parents[3] / "cluster" / "laptop.yaml").applications["intent-classifier"]


@dataclass
class Context:
    """The part of Serve's AutoscalingContext that the policy reads."""

    aggregated_metrics: dict[str, dict[str, float]] | None
    current_num_replicas: int
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 4


@pytest.fixture(scope="module")
def policy() -> Any:
    """Made from what we tell Serve, by Serve's own code."""
    config = pytest.importorskip("ray.serve.config", reason="ray is not installed")
    state = pytest.importorskip("ray.serve._private.autoscaling_state")
    wanted = DesiredApp(name="a", spec=APP, package="file:///recipes.zip")
    (app,) = serve_config([wanted], awake={"a"}, port=8000)["applications"]
    scaling = config.AutoscalingConfig(**app["deployments"][0]["autoscaling_config"])
    return state._resolve_policy_callable(scaling.policy)


def report(*, queued_s: float, busy: float, sheds: int = 0, before: int = 0) -> dict[str, float]:
    demand = Demand()
    demand.report(0.0, queued_s=0.0, busy=0.0, sheds=before, mean_request_s=0.01)
    return demand.report(1.0, queued_s=queued_s, busy=busy, sheds=sheds, mean_request_s=0.01)


def wanted(policy: Any, *reports: dict[str, float], replicas: int | None = None) -> int:
    metrics = {key: {str(i): one[key] for i, one in enumerate(reports)} for key in (BACKLOG, BUSY)}
    count, state = policy(Context(metrics, len(reports) if replicas is None else replicas))
    assert state == {}
    return int(count)


def test_a_replica_that_keeps_up_stays_alone(policy: Any) -> None:
    assert wanted(policy, report(queued_s=0.2, busy=0.7)) == 1


def test_a_full_replica_gets_a_second(policy: Any) -> None:
    assert wanted(policy, report(queued_s=0.2, busy=1.0)) == 2


def test_work_that_was_refused_is_asked_for_too(policy: Any) -> None:
    assert wanted(policy, report(queued_s=0.2, busy=1.0, sheds=1500)) == 4


def test_idle_replicas_leave_to_the_lower_bound(policy: Any) -> None:
    assert wanted(policy, report(queued_s=0.0, busy=0.0), report(queued_s=0.0, busy=0.1)) == 1


def test_without_a_report_nothing_is_taken_away(policy: Any) -> None:
    assert policy(Context(None, 2))[0] == 2


def test_metrics_take_what_a_replica_has() -> None:
    pytest.importorskip("ray.util.metrics", reason="ray is not installed")
    from heliostat.serve.metrics import ReplicaMetrics

    metrics = ReplicaMetrics("app")
    load = Load(waiting_items=2, waiting_tokens=64, tokens_per_s=100, busy=0.5, items=10, tokens=320, batches=3)
    metrics.tell(load, Counts(requests=9, sheds=1), version=3)
    metrics.tell(Load(items=1), Counts(requests=9, sheds=1), version=4)  # another version, whose sums begin again
    assert metrics._told["heliostat_items"] == 1
