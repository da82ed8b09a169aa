"""The one that acts when nobody is logged in: `python -m heliostat.controller`.

Level-triggered: each round reads the state of the world, asks pure functions what should be, and acts. Its state lies
in the store, it can be killed at any line, and two of them do no harm: only the holder of the lease acts.

Today's rules: events are shipped; the applications that are wanted are what Serve has; an idle serving group goes to
zero.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import HeliostatError, ObjectExists, ObjectMissing, SwapLost
from heliostat.events import Spool, ship_spool
from heliostat.serve.client import ServeClient
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp, read_desired
from heliostat.serve.reports import ReplicaReport, read_reports
from heliostat.settings import Settings, load
from heliostat.store import Store

log = logging.getLogger("heliostat.controller")

ROUND_S = 1.0
LEASE_KEY = "controller/lease.json"
LEASE_S = 10.0


class Lease(BaseModel):
    model_config = ConfigDict(frozen=True)

    holder: str
    expires_at: float  # seconds since the epoch
    generation: int


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


def take_lease(store: Store, holder: str, now: float) -> bool:
    """Hold, renew or take over the lease. One swap; True if this holder has it afterwards."""
    try:
        blob = store.get(LEASE_KEY)
    except ObjectMissing:
        return _create_lease(store, Lease(holder=holder, expires_at=now + LEASE_S, generation=1))
    try:
        lease = Lease.model_validate_json(blob.data)
    except ValidationError:
        lease = Lease(holder="", expires_at=0, generation=0)  # unreadable: as good as expired
    if lease.holder != holder and lease.expires_at > now:
        return False
    mine = Lease(holder=holder, expires_at=now + LEASE_S, generation=lease.generation + 1)
    try:
        store.swap(LEASE_KEY, mine.model_dump_json().encode(), blob.etag)
    except SwapLost:
        return False
    return True


def _create_lease(store: Store, lease: Lease) -> bool:
    try:
        store.create(LEASE_KEY, lease.model_dump_json().encode())
    except ObjectExists:
        return False
    return True


class Controller:
    """The loop. `apply_round` is one turn; everything it decides is in the pure functions above."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store.connect(settings.store)
        self._serve = ServeClient(settings)
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._spool = Spool(settings.spool, f"controller-{os.getpid()}")
        self._applied: str | None = None
        self._awake: set[str] = set()

    def run(self) -> None:
        while True:
            try:
                self.apply_round(time.time())
            except HeliostatError as error:  # the store or the cluster is away: the next round tries again
                log.warning("%s", error)
            except Exception:  # the loop's boundary: one bad round must not end the platform's owner
                log.exception("a round failed")
            time.sleep(ROUND_S)

    def apply_round(self, now: float) -> None:
        ship_spool(self._store, self._settings.spool)
        if not take_lease(self._store, self._holder, now):
            self._applied = None  # another one may change what Serve has
            return
        apps = [AppState(app, tuple(read_reports(self._store, app.name))) for app in read_desired(self._store)]
        awake = awake_apps(apps, now)
        self._tell(awake, {app.desired.name for app in apps})
        self._apply([app.desired for app in apps], awake)

    def _apply(self, apps: list[DesiredApp], awake: set[str]) -> None:
        if not apps and self._applied is None:
            return  # nothing was ever wanted: Serve need not be started
        # On Kubernetes Serve listens on the pod's address, behind a NetworkPolicy.
        host = "127.0.0.1" if self._settings.state_dir is not None else "0.0.0.0"  # noqa: S104
        port = int(self._settings.serve_url.rsplit(":", 1)[1])
        config = serve_config(apps, awake=awake, port=port, host=host)
        wanted = json.dumps(config, sort_keys=True)
        known = self._serve.statuses()
        if wanted == self._applied and {app.name for app in apps} <= set(known):
            return
        self._serve.put(config)
        self._applied = wanted
        log.info("applied %d applications, awake: %s", len(apps), sorted(awake) or "none")

    def _tell(self, awake: set[str], wanted: set[str]) -> None:
        for app in sorted(awake - self._awake):
            self._spool.emit("app_awake", app=app)
        for app in sorted((self._awake - awake) & wanted):
            self._spool.emit("app_idle", app=app)
        self._awake = awake


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    Controller(load()).run()


if __name__ == "__main__":
    main()
