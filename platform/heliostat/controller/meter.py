"""The ledger goes on by itself: the sampler runs, and new segments are folded."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

from heliostat.controller.duty import World
from heliostat.errors import ClusterError, HeliostatError
from heliostat.meter.ledger import Folder
from heliostat.serve.desired import read_desired
from heliostat.serve.reports import living, read_reports, remove_report

log = logging.getLogger(__name__)

FOLD_S = 30.0
FULL_S = 86_400.0  # how often events that come days late are looked for
REPLICAS_S = 10.0


class Metering:
    """Looks after the sampler, a process, and the fold, a thread: neither holds up a round."""

    period_s = 2.0

    def __init__(self) -> None:
        self._sampler: subprocess.Popen[bytes] | None = None
        self._folding: threading.Thread | None = None
        self._folder: Folder | None = None
        self._folded_at = self._full_at = self._replicas_at = float("-inf")

    def forget(self) -> None:
        if self._sampler is not None:  # whoever has the lease has a sampler of its own
            self._sampler.terminate()
            self._sampler = None

    def act(self, world: World, now: float) -> None:
        if self._sampler is None or self._sampler.poll() is not None:
            self._sampler = _start_sampler(world)
        if now - self._replicas_at >= REPLICAS_S:
            self._replicas_at = now
            tell_lost_replicas(world, now)
        if now - self._folded_at >= FOLD_S and (self._folding is None or not self._folding.is_alive()):
            self._folded_at = now
            self._folding = threading.Thread(target=self._fold, args=(world, now), name="fold", daemon=True)
            self._folding.start()

    def _fold(self, world: World, now: float) -> None:
        begun = time.monotonic()
        try:
            self._folder = self._folder or Folder(world.store)
            full = now - self._full_at > FULL_S
            self._folder.update(now=now, full=full)
            self._full_at = now if full else self._full_at
        except HeliostatError as error:  # the store is away: the next time
            log.warning("the ledger was not folded: %s", error)
        except Exception:  # a thread's boundary: the ledger can be folded again at any time
            log.exception("the ledger was not folded")
            self._folder = None
        if time.monotonic() - begun > 5:
            log.info("folding took %.1f s", time.monotonic() - begun)


def _start_sampler(world: World) -> subprocess.Popen[bytes]:
    settings = world.settings
    env = dict(os.environ)
    if settings.token_path is not None:  # Ray reads these once, when it is first imported
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.token_path)}
    return subprocess.Popen([sys.executable, "-m", "heliostat.meter.sampler"], env=env, stdin=subprocess.DEVNULL)


def tell_lost_replicas(world: World, now: float) -> None:
    """A replica that was killed said no goodbye; its last report did, and Serve knows it no more.

    The end is told before the report is removed: killed in between, it is told twice, and a second end does nothing.
    """
    reports = [report for app in read_desired(world.store) for report in read_reports(world.store, app.name)]
    fresh = {report.replica for report in living(reports, now)}
    silent = [report for report in reports if report.replica not in fresh]
    if not silent:
        return
    known = world.serve.replicas()
    for report in silent:
        if report.replica in known:
            continue
        world.spool.emit(
            "replica_ended",
            app=report.app,
            replica=report.replica,
            node=report.node,
            version=report.version,
            gpus=report.gpus,
            busy_s=report.busy_s,
            at=report.reported_at,
            lost=True,
        )
        with suppress(ClusterError):
            remove_report(world.store, report.app, report.replica)
