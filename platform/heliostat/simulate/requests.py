"""An application whose requests are single ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from heliostat.simulate.apps import App, Seat
from heliostat.simulate.front import Front, Replica
from heliostat.simulate.tally import Tally
from heliostat.simulate.traffic import Traffic, arrivals


class RequestApp(App):
    """Exact: each request, each pass of a model, each report of a replica."""

    def begin(self, traffic: Traffic, random: np.random.Generator) -> None:
        self.front = Front(self.engine, self.work, max_queue_s=self.spec.max_queue.seconds, random=random)
        self._reports: dict[Replica, deque[tuple[float, float]]] = {}
        self._kept = max(1, round(self.rules.look_back_s / self.rules.report_s))
        self.front.told = self.answered
        self._opened_at = -math.inf
        self._stream: Iterator[tuple[float, float]] = arrivals(traffic, random)
        self._next()

    @property
    def tally(self) -> Tally:  # type: ignore[override]  # read alone
        return self.front.tally

    @property
    def busy_s(self) -> float:  # type: ignore[override]
        return self.front.busy_s

    @property
    def last_request_at(self) -> float:  # type: ignore[override]
        return max(self._opened_at, self.front.last_answer_at)

    def _next(self) -> None:
        found = next(self._stream, None)
        if found is not None:
            self.engine.at(found[0], self._arrive, found[1])

    def _arrive(self, work_s: float) -> None:
        self.front.arrive(work_s)
        if self.target == 0:
            self.wake()
        self._tick_soon()
        self._next()

    # --- the policy, at its period

    def _tick(self) -> None:
        """Replicas report, the policy is asked. It rests while nothing can change."""
        now = self.engine.now
        for replica, seen in self._reports.items():
            found = replica.report(now)
            seen.append((found["backlog_s"], found["busy"]))
        self._ticks = False
        if self.ready:
            loads = {
                replica: (math.fsum(b for b, _ in seen) / len(seen), math.fsum(u for _, u in seen) / len(seen))
                for replica, seen in self._reports.items()
            }
            wanted = self.rules.wanted(loads, replicas=self.ready)
            target = self.rules.delays.decide(wanted, self.target, now)
            if target != self.target:
                self.set_target(target)
            quiet = self.front.empty and all(load == (0.0, 0.0) for load in loads.values())
            if not (quiet and wanted == self.target and len(self._reports) == self.ready):
                self._tick_soon()

    def bounds_changed(self) -> None:
        self._tick_soon()

    # --- replicas

    def opened(self, seat: Seat) -> Replica:
        self._opened_at = self.engine.now
        replica = self.front.add()
        self._reports[replica] = deque(maxlen=self._kept)
        self.answered()
        self._tick_soon()
        return replica

    def closed(self, seat: Seat) -> None:
        replica: Replica = seat.inside
        del self._reports[replica]
        self.front.close(replica, lambda: self.emptied(seat))

    def cut(self, seat: Seat) -> None:
        replica: Replica = seat.inside
        self._reports.pop(replica, None)
        self.front.cut(replica)
        if self.front.held and self.target == 0:
            self.wake()

    def finish(self) -> None:
        self.settle_ready(0)
        for replica in self.front.open + self.front.closing:
            if replica.running:
                self.front.busy_s += self.engine.now - replica.began_at
        self.front.finish()
