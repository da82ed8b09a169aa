"""The end of a replica that could not tell it itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from heliostat.controller.duty import World
from heliostat.controller.meter import tell_lost_replicas
from heliostat.definition import load
from heliostat.errors import ClusterError
from heliostat.events import Spool, read_spool
from heliostat.serve.client import ServeClient
from heliostat.serve.desired import DesiredApp
from heliostat.serve.reports import ReplicaReport, read_reports, write_report
from heliostat.settings import Settings
from heliostat.store import Store

pytestmark = pytest.mark.real

APP = load(Path(__file__).parents[3] / "cluster" / "laptop.yaml").applications["intent-classifier"]


class Serve:
    """Knows these replicas; None: it does not answer."""

    def __init__(self, *known: str, away: bool = False) -> None:
        self.known, self.away, self.asked = set(known), away, 0

    def replicas(self) -> set[str]:
        self.asked += 1
        if self.away:
            raise ClusterError("away")
        return self.known


def world(store: Store, folder: Path, serve: Serve) -> World:
    settings = Settings(
        cluster="c", store=store.settings, spool=folder, gcs_address="", dashboard_url="http://127.0.0.1:1",
        serve_url="http://127.0.0.1:2",
    )  # fmt: skip
    return World(settings, store, cast("ServeClient", serve), Spool(folder, "controller"))


def report(store: Store, replica: str) -> float:
    """Writes one; returns when."""
    about: dict[str, Any] = {"node": "n", "version": 2, "digest": "d", "loaded_at": 1.0, "requests": 1}
    write_report(
        store,
        ReplicaReport(
            app="a", replica=replica, **about, last_request_at=1.0, queued_tokens=0, gpus=0.5, busy_s={"red": 1.5}
        ),
    )
    return time.time()


@pytest.fixture
def reported(store: Store) -> tuple[Store, float]:
    store.put("apps/a/desired.json", DesiredApp(name="a", spec=APP, package="").model_dump_json().encode())
    return store, report(store, "r1")


def test_a_silent_replica_that_serve_does_not_know_has_ended_at_its_last_report(
    reported: tuple[Store, float], tmp_path: Path
) -> None:
    store, at = reported
    tell_lost_replicas(world(store, tmp_path, Serve("r2")), at + 60)
    (event,) = read_spool(tmp_path)
    assert (event.kind, event.fields["replica"], event.fields["gpus"]) == ("replica_ended", "r1", 0.5)
    assert event.fields["busy_s"] == {"red": 1.5}
    assert event.fields["at"] == pytest.approx(at, abs=5)
    assert read_reports(store, "a") == []
    tell_lost_replicas(world(store, tmp_path, Serve("r2")), at + 70)
    assert len(read_spool(tmp_path)) == 1


def test_one_that_serve_knows_or_that_still_reports_is_left_alone(
    reported: tuple[Store, float], tmp_path: Path
) -> None:
    store, at = reported
    tell_lost_replicas(world(store, tmp_path, Serve("r1")), at + 60)
    fresh = Serve()
    tell_lost_replicas(world(store, tmp_path, fresh), at + 1)
    assert read_spool(tmp_path) == []
    assert fresh.asked == 0  # nobody is silent: Serve need not be asked


def test_while_serve_cannot_be_asked_nobody_is_lost(reported: tuple[Store, float], tmp_path: Path) -> None:
    store, at = reported
    with pytest.raises(ClusterError):
        tell_lost_replicas(world(store, tmp_path, Serve(away=True)), at + 60)
    assert read_spool(tmp_path) == []
