"""Applications that are trained anew by a schedule, or when their dataset is: `heliostat app flow` in a process.

The process takes minutes to hours; here it is only begun when it is due (`promote.flows.due`), and begun again where it
was killed: a flow goes on where it was left.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from heliostat.controller.duty import World
from heliostat.promote.flows import CONTROLLER, dataset_tag, due, read_flow
from heliostat.serve.desired import read_desired

log = logging.getLogger(__name__)

PAUSE_S = 30.0
"""After a process that has ended, whatever became of it."""


class Flows:
    """One process for each application at most. Two controllers may begin one each: the record lets one go on."""

    period_s = 5.0

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._not_before: dict[str, float] = {}

    def forget(self) -> None:
        """The processes that this one has begun go on; another controller finds their flows under way."""

    def act(self, world: World, now: float) -> None:
        for app in read_desired(world.store):
            if app.spec.retrain is None or self._is_busy(app.name, now):
                continue
            found = read_flow(world.store, app.name)
            tag = dataset_tag(world.store, app.spec.retrain)
            why = due(None if found is None else found[0], app.spec.retrain, dataset=tag, now=now)
            if why:
                log.info("%s: the flow begins: %s", app.name, why)
                self._running[app.name] = _begin(world, app.name, why)

    def _is_busy(self, app: str, now: float) -> bool:
        process = self._running.get(app)
        if process is not None and process.poll() is None:
            return True
        if process is not None:
            log.info("%s: the flow has ended with %s", app, process.returncode)
            del self._running[app]
            self._not_before[app] = now + PAUSE_S
        return now < self._not_before.get(app, 0.0)


def _begin(world: World, app: str, why: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "heliostat.cli", "app", "flow", app, "--why", why]
    command += ["--cluster", world.settings.cluster]
    # Its lines go where the controller's do.
    # As whom it acts stands in the history; this is where Python looks for the user's name first.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "LOGNAME": CONTROLLER})
