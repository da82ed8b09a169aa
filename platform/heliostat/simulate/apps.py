"""An application's replicas: started and stopped as its rules say, on nodes, whatever its requests are.

`RequestApp` (requests.py) and `FlowApp` (flows.py) say what the replicas do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from heliostat.serve.desired import DesiredApp
from heliostat.simulate.engine import Engine, next_tick
from heliostat.simulate.measured import AppWork, Starts
from heliostat.simulate.nodes import Node, Nodes, Want
from heliostat.simulate.scaling import CONTROLLER_S, Rules
from heliostat.simulate.tally import Tally
from heliostat.simulate.traffic import Traffic

WANTED, LOADING, READY, DRAINING, GONE = "wanted", "loading", "ready", "draining", "gone"


class Seat:
    """A replica's place: the GPUs that it waits for or holds. It is the node's holder."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.state = WANTED
        self.doomed = False
        """Its node is being taken: another one starts in its stead."""
        self.node: Node | None = None
        self.want: Want | None = None
        self.inside: Any = None
        """What `opened` returned."""
        self.empty = self.drained = False
        """While it drains: it has answered what it had; its least time has passed."""

    @property
    def stays(self) -> bool:
        return not self.doomed and self.state != DRAINING

    def noticed(self, node: Node) -> None:
        self.app.staying -= self.stays
        self.doomed = True
        self.app.replace()

    def lost(self, node: Node) -> None:
        self.app.staying -= self.stays
        was, self.state = self.state, GONE
        self.app.coming -= was == LOADING
        self.app.seats.pop(self, None)
        node.holders.pop(self)
        if was == READY:
            self.app.settle_ready(-1)
        if was in (READY, DRAINING):
            self.app.cut(self)
        self.app.replace()


class App:
    """What both kinds share.

    Subclasses: `tally`, `begin`, `opened`, `closed`, `cut`, `finish`, `_tick`, `last_request_at`.
    """

    tally: Tally
    last_request_at = -math.inf
    busy_s = 0.0

    def __init__(
        self, engine: Engine, nodes: Nodes, desired: DesiredApp, work: AppWork, starts: dict[str, Starts]
    ) -> None:
        self.engine, self.nodes, self.desired, self.work = engine, nodes, desired, work
        self.name, self.spec = desired.name, desired.spec
        self.rules = Rules(desired)
        self.groups = desired.groups or (desired.spec.group,)
        self._starts = starts
        self.seats: dict[Seat, None] = {}
        self.staying = 0
        """Of the seats, those that do not leave."""
        self.coming = 0
        """Of the seats, those that do not answer yet."""
        self.target = 0
        self.ready = 0
        self.ready_seconds = 0.0
        self._ready_since = 0.0
        self.cold_starts = self.starts = 0
        self._checks_at = -1.0
        self._ticks = False

    # --- for subclasses

    def begin(self, traffic: Traffic, random: np.random.Generator) -> None:
        """The requests that are to come."""
        raise NotImplementedError

    def opened(self, seat: Seat) -> Any:  # Any: what the subclass keeps for it
        """A replica answers from now on."""
        raise NotImplementedError

    def closed(self, seat: Seat) -> None:
        """It takes no more; call `emptied(seat)` when it has nothing left."""
        raise NotImplementedError

    def cut(self, seat: Seat) -> None:
        """Its node is gone."""
        raise NotImplementedError

    def finish(self) -> None:
        """The end of the simulation."""
        raise NotImplementedError

    def _tick(self) -> None:
        """Replicas report, the policy is asked. Takes `_ticks` back, and rests while nothing can change."""
        raise NotImplementedError

    def _tick_soon(self) -> None:
        """At the policy's next period, once."""
        if not self._ticks:
            self._ticks = True
            period_s = self.rules.report_s
            self.engine.at(next_tick(self.engine.now + period_s / 1000, period_s), self._tick)

    # --- target

    def wake(self) -> None:
        """A request came and nothing runs: Serve starts a replica without asking the policy."""
        if self.target == 0:
            self.cold_starts += 1
            self.set_target(1)

    def set_target(self, target: int) -> None:
        self.target = target
        self.replace()

    def replace(self) -> None:
        """Start what is missing of the target, stop what is beyond it. What is doomed does not count."""
        for _ in range(self.target - self.staying):
            self._start()
        beyond = self.staying - self.target
        if beyond > 0:
            for seat in self._youngest(beyond):
                self._stop(seat)
        if self.target == 0:
            for seat in [seat for seat in self.seats if seat.doomed and seat.state != DRAINING]:
                self._stop(seat)

    def _youngest(self, many: int) -> list[Seat]:
        """Of those that stay: those that wait for a node first, then those that load."""
        found: list[Seat] = []
        for state in (WANTED, LOADING, READY) if self.coming else (READY,):
            for seat in reversed(self.seats):
                if len(found) == many:
                    return found
                if seat.state == state and not seat.doomed:
                    found.append(seat)
        return found

    def _start(self) -> None:
        self.starts += 1
        self.staying += 1
        self.coming += 1
        seat = Seat(self)
        self.seats[seat] = None
        seat.want = Want(seat, self.spec.gpus_per_replica, self.groups, lambda node: self._placed(seat, node))
        self.nodes.want(seat.want)

    def _placed(self, seat: Seat, node: Node) -> None:
        seat.node, seat.state = node, LOADING
        self.engine.at(self.engine.now + self._starts[node.group.name].replica.seconds, self._loaded, seat)

    def _loaded(self, seat: Seat) -> None:
        if seat.state != LOADING or seat.node is None:
            return
        self.nodes.works(seat.node, seat)
        seat.state = READY
        self.coming -= 1
        self.settle_ready(+1)
        seat.inside = self.opened(seat)

    def _stop(self, seat: Seat) -> None:
        self.staying -= seat.stays
        was, seat.state = seat.state, DRAINING
        self.coming -= was in (WANTED, LOADING)
        if was == READY and seat.node is not None:
            self.settle_ready(-1)
            self.engine.at(self.engine.now + self._starts[seat.node.group.name].drain.seconds, self._drained, seat)
            self.closed(seat)
        else:
            self._gone(seat, loading=was == LOADING)

    def _drained(self, seat: Seat) -> None:
        seat.drained = True
        self._part(seat)

    def emptied(self, seat: Seat) -> None:
        """The replica has answered what it had."""
        seat.empty = True
        self._part(seat)

    def _part(self, seat: Seat) -> None:
        if seat.state == DRAINING and seat.empty and seat.drained:
            self._gone(seat, loading=False)

    def _gone(self, seat: Seat, *, loading: bool) -> None:
        seat.state = GONE
        self.seats.pop(seat, None)
        if seat.node is not None:
            self.nodes.release(seat.node, seat, loading=loading)
        elif seat.want is not None:
            self.nodes.drop(seat.want)

    def settle_ready(self, change: int) -> None:
        """Replica-seconds up to now, and how many are ready from now on."""
        self.ready_seconds += self.ready * (self.engine.now - self._ready_since)
        self._ready_since = self.engine.now
        self.ready += change

    # --- the controller's idle rule

    def answered(self) -> None:
        """A request was answered just now: the application is awake."""
        if not self.rules.awake:
            self._check_soon(self.engine.now)

    def _check_soon(self, when: float) -> None:
        at = next_tick(when, CONTROLLER_S)
        if self._checks_at < self.engine.now or at < self._checks_at:
            self._checks_at = at
            self.engine.at(at, self._check, at)

    def _check(self, at: float) -> None:
        if at != self._checks_at:
            return
        self._checks_at = -1.0
        was = self.rules.awake
        self.rules.look(self.last_request_at, self.engine.now)
        if self.rules.awake:
            self._check_soon(max(self.last_request_at + self.spec.idle_timeout.seconds, self.engine.now + CONTROLLER_S))
        if was != self.rules.awake:
            self.bounds_changed()

    def bounds_changed(self) -> None:
        """The lower bound is another one."""
