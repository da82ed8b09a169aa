"""The applications that are wanted are what Serve has; an idle serving group goes to zero."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import Any

from heliostat.controller.duty import World
from heliostat.controller.waste import read_resting
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp, read_desired
from heliostat.serve.reports import ReplicaReport, read_reports
from heliostat.settings import Settings
from heliostat.units import Duration

log = logging.getLogger(__name__)

REST_TIMEOUT = Duration.parse("2s")


@dataclass(frozen=True)
class AppState:
    """What one round saw of an application."""

    desired: DesiredApp
    reports: tuple[ReplicaReport, ...]


def awake_apps(apps: list[AppState], now: float) -> set[str]:
    """The rule: an application keeps its lower bound of replicas until it has been idle for its idle timeout.

    Then the bound falls to zero, its replicas leave, and the autoscaler takes the group's nodes. A request brings it
    back: Serve starts a replica for it, whose report makes the application awake again.
    """
    return {app.desired.name for app in apps if _idle_s(app, now) < app.desired.spec.idle_timeout.seconds}


def _idle_s(app: AppState, now: float) -> float:
    """Seconds since the last request; for ever where none was seen."""
    return now - max((report.last_request_at for report in app.reports), default=float("-inf"))


def laid_to_rest(app: AppState, at: float | None) -> AppState:
    """The application as if its idle timeout were over, where it was sent to zero `at` and has answered nothing since.

    Only while it has replicas: the next one starts for a request, and keeps the application's own timeout.
    """
    if at is None or not app.reports or max(report.last_request_at for report in app.reports) > at:
        return app
    spec = app.desired.spec.model_copy(update={"idle_timeout": REST_TIMEOUT})
    return replace(app, desired=app.desired.model_copy(update={"spec": spec}))


class Serving:
    """Serve's goal state has one writer: this."""

    period_s = 1.0

    def __init__(self) -> None:
        self._applied: str | None = None
        self._awake: set[str] = set()

    def forget(self) -> None:
        self._applied = None  # another one may change what Serve has

    def act(self, world: World, now: float) -> None:
        resting = read_resting(world.store)
        apps = [
            laid_to_rest(AppState(app, tuple(read_reports(world.store, app.name))), resting.get(app.name))
            for app in read_desired(world.store)
        ]
        awake = awake_apps(apps, now)
        self._tell(world, awake, {app.desired.name for app in apps})
        self._apply(world, [app.desired for app in apps], awake)

    def _apply(self, world: World, apps: list[DesiredApp], awake: set[str]) -> None:
        if not apps and self._applied is None:
            return  # nothing was ever wanted: Serve need not be started
        config = _goal(world.settings, apps, awake)
        wanted = json.dumps(config, sort_keys=True)
        known = world.serve.statuses()
        if wanted == self._applied and {app.name for app in apps} <= set(known):
            return
        world.serve.put(config)
        self._applied = wanted
        log.info("applied %d applications, awake: %s", len(apps), sorted(awake) or "none")

    def _tell(self, world: World, awake: set[str], wanted: set[str]) -> None:
        for app in sorted(awake - self._awake):
            world.spool.emit("app_awake", app=app)
        for app in sorted((self._awake - awake) & wanted):
            world.spool.emit("app_idle", app=app)
        self._awake = awake


def _goal(settings: Settings, apps: list[DesiredApp], awake: set[str]) -> dict[str, Any]:
    # On Kubernetes Serve listens on the pod's address, behind a NetworkPolicy.
    host = "127.0.0.1" if settings.state_dir is not None else "0.0.0.0"  # noqa: S104
    port = int(settings.serve_url.rsplit(":", 1)[1])
    return serve_config(apps, awake=awake, port=port, host=host)
