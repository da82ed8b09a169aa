"""The loop: ship events, hold the lease, call each duty that is due."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial

from heliostat.controller.budgets import BudgetsDuty
from heliostat.controller.duty import Duty, World
from heliostat.controller.fallback import Fallback
from heliostat.controller.flows import Flows
from heliostat.controller.lease import take_lease
from heliostat.controller.meter import Metering
from heliostat.controller.metrics import Metrics
from heliostat.controller.peaks import Peaks
from heliostat.controller.queue import Queue
from heliostat.controller.releases import Releases
from heliostat.controller.serving import Serving
from heliostat.controller.sick import Sick
from heliostat.controller.waste import Waste
from heliostat.errors import HeliostatError
from heliostat.events import Spool, ship_spool
from heliostat.serve.client import ServeClient
from heliostat.settings import Settings
from heliostat.store import Store

log = logging.getLogger(__name__)

ROUND_S = 1.0
SEGMENT_S = 5.0
"""Events of one process make a segment of the store no more often."""


def duties() -> list[Duty]:
    """Everything that the controller sees to, in the order of a round."""
    return [
        Serving(),
        Releases(),
        Flows(),
        Queue(),
        Fallback(),
        Peaks(),
        Sick(),
        Metering(),
        BudgetsDuty(),
        Waste(),
        Metrics(),
    ]


class Controller:
    """Everything it decides is in the pure functions of the duties' files and of the layers below."""

    def __init__(self, settings: Settings) -> None:
        self._world = World(
            settings=settings,
            store=Store.connect(settings.store),
            serve=ServeClient(settings),
            spool=Spool(settings.spool, f"controller-{os.getpid()}"),
        )
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._duties = duties()
        self._called = [float("-inf")] * len(self._duties)

    def run(self) -> None:
        while True:
            _guarded("the round", lambda: self.apply_round(time.time()))
            time.sleep(ROUND_S)

    def apply_round(self, now: float) -> None:
        try:
            ship_spool(self._world.store, self._world.settings.spool, every_s=SEGMENT_S)
        except OSError as error:  # a full disk: what is shipped cannot be noted, and is shipped again. The duties go on
            log.warning("events are not shipped: %s", error)
        if not take_lease(self._world.store, self._holder, now):
            for duty in self._duties:
                duty.forget()
            return
        for index, duty in enumerate(self._duties):
            if now - self._called[index] >= duty.period_s:
                self._called[index] = now
                # One duty's trouble is not the others': budgets hold while Serve is away.
                _guarded(type(duty).__name__, partial(duty.act, self._world, now))


def _guarded(what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except HeliostatError as error:  # the store or the cluster is away: the next round tries again
        log.warning("%s: %s", what, error)
    except Exception:  # the boundary of the loop: one bad round must not end the platform's owner
        log.exception("%s failed", what)
