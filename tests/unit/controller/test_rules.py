from __future__ import annotations

from pathlib import Path

from heliostat.controller.serving import AppState, awake_apps
from heliostat.definition import load
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp
from heliostat.serve.reports import ReplicaReport

APP = load(Path(__file__).parents[3] / "cluster" / "laptop.yaml").applications["intent-classifier"]
DESIRED = DesiredApp(name="intent-classifier", spec=APP, package="file:///recipes.zip")


def report(last_request_at: float) -> ReplicaReport:
    return ReplicaReport(
        app="intent-classifier",
        replica="r",
        node="n",
        version=1,
        digest="sha256:0",
        loaded_at=0,
        requests=1,
        last_request_at=last_request_at,
        queued_tokens=0,
    )


def awake(*last_requests: float, now: float) -> bool:
    state = AppState(DESIRED, tuple(report(at) for at in last_requests))
    return awake_apps([state], now) == {"intent-classifier"}


def test_an_application_never_asked_is_asleep() -> None:
    assert not awake(now=1000)


def test_an_application_sleeps_once_idle_for_its_timeout() -> None:
    timeout = APP.idle_timeout.seconds
    assert awake(1000, now=1000 + timeout - 0.1)
    assert not awake(1000, now=1000 + timeout)


def test_one_busy_replica_keeps_the_application_awake() -> None:
    assert awake(0, 999, now=1000)


def test_sleeping_takes_the_lower_bound_away_and_nothing_else() -> None:
    (up,) = serve_config([DESIRED], awake={"intent-classifier"}, port=8000)["applications"]
    (asleep,) = serve_config([DESIRED], awake=set(), port=8000)["applications"]
    scaling = [app["deployments"][0].pop("autoscaling_config") for app in (up, asleep)]
    assert up == asleep
    assert (scaling[0]["min_replicas"], scaling[1]["min_replicas"]) == (1, 0)
