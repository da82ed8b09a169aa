"""An application whose requests are a flow: so many a minute, and the policy's answer to it.

Within a minute the rate stands still, so what the policy says changes only when a replica comes or goes, or a backlog
grows: it is asked then, and after Serve's delays, which is what asking at every period comes to. Two things a flow
would leave out are put back. The work of a few seconds scatters around its mean, and the policy follows it: where that
makes replicas come and go all the time, it is drawn every second; where many replicas even it out, `NOISE` deviations
are added. And requests wait and are refused at loads below 1: `curves` has measured how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from heliostat.plan.policy.scale import ReplicaLoad
from heliostat.serve.hold import HOLD_S, MAX_HELD
from heliostat.simulate.apps import App, Seat
from heliostat.simulate.curves import Cell, Curves
from heliostat.simulate.queues import noise_of_busy
from heliostat.simulate.tally import Tally
from heliostat.simulate.traffic import MINUTE_S, Traffic

NOISE_WINDOW_S = 3.0
"""`busy` is taken over 2 s and averaged over 2 s more: as much as a plain mean over 3 s evens out."""
NOISE = 1.0
"""Deviations above the mean that the replicas follow: a peak of 2 s adds one, and it goes after 10 s without."""
DRAWN_BELOW = 16.0
"""Replicas' worth of work below which the scatter is drawn."""
DRAW_S = 1.0
_WEIGHTS = np.array([1, 2, 3, 4, 3, 2, 1]) / 16
"""What a report of 2 s and a mean over 2 s, taken every half second, make of the half seconds before."""
_CHUNK = 4096
SLICES = 12
"""Into which those who wait for a cold start are divided."""


class FlowApp(App):
    """Replicas are events, requests are numbers."""

    def begin(self, traffic: Traffic, curves: Curves, random: np.random.Generator) -> None:
        self.tally = Tally()
        self._curves = curves
        self._scatter = _scatter(random)
        self._draws = False
        self._per_minute: list[int] = traffic.per_minute.tolist()
        self._minute = -1
        self.rate = 0.0
        """Requests/s of this minute."""
        self._since = 0.0
        self._held: list[tuple[float, float]] = []
        """(when they came, how many), while no replica runs."""
        self._backlog_s = 0.0
        """Of work beyond what the curves have: what was held, and is being answered now."""
        self._last_request_at = -math.inf
        self._asks = 0
        self._cell: Cell | None = None
        self._answered: dict[Cell, float] = {}
        """How many, at each load; spread over the latencies at the end."""
        self._next_minute()

    @property
    def last_request_at(self) -> float:  # type: ignore[override]
        return self.engine.now if self.rate and self.ready else self._last_request_at

    # --- time passes

    def _next_minute(self) -> None:
        """To the next minute; a run of minutes without requests is one step."""
        self._minute += 1
        if self._minute >= len(self._per_minute):
            self._settle()
            self.rate = 0.0
            self._ask()
            return
        self._settle()
        rate = self._per_minute[self._minute] / MINUTE_S
        if rate != self.rate:
            self.rate = rate
            self._load_changed()
        if rate and self.ready:
            self.answered()
        elif rate:
            self.wake()
        until = self._minute + 1
        while rate == 0.0 and until < len(self._per_minute) and self._per_minute[until] == 0:
            until += 1
        self._minute = until - 1
        self.engine.at(until * MINUTE_S, self._next_minute)

    def _settle(self) -> None:
        """Count what came and was answered since the last change."""
        now = self.engine.now
        span, self._since = now - self._since, now
        if span <= 0:
            return
        requests = self.rate * span
        self.tally.offered += requests
        if not self.ready:
            self._hold(requests, now - span, span)
            return
        self._drain(span)
        if not requests:
            return
        cell = self._cell or self._now()
        answered = requests * (1 - cell.refused)
        self.tally.refused += requests - answered
        self.tally.answered += answered
        self._answered[cell] = self._answered.get(cell, 0.0) + answered
        self.busy_s += answered * self.work.seconds_per_item * cell.cost
        self._last_request_at = now

    def _now(self) -> Cell:
        load = self.rate * self.work.seconds_per_item / self.ready
        self._cell = self._curves.at(self.ready, load)
        return self._cell

    def _hold(self, requests: float, since: float, span: float) -> None:
        if not requests:
            return
        self._give_up_old()
        slices = max(1, min(SLICES, int(requests)))
        for index in range(slices):
            room = MAX_HELD - sum(many for _, many in self._held)
            taken = max(0.0, min(requests / slices, room))
            self.tally.refused += requests / slices - taken
            if taken:
                self._held.append((since + (index + 0.5) * span / slices, taken))
        self._give_up_old()

    def _give_up_old(self) -> None:
        kept = [(at, many) for at, many in self._held if self.engine.now - at <= HOLD_S]
        self.tally.gave_up += sum(many for _, many in self._held) - sum(many for _, many in kept)
        self._held = kept

    def _let_in(self) -> None:
        """Those who were held, one behind the other over all replicas; what max_queue does not take is refused."""
        self._give_up_old()
        service_s, now = self.work.seconds_per_item, self.engine.now
        for at, many in self._held:
            room_s = self.ready * self.spec.max_queue.seconds - self._backlog_s
            taken = max(0.0, min(many, room_s / service_s + self.ready))
            self.tally.refused += many - taken
            waits_s = now - at + (self._backlog_s + taken * service_s / 2) / self.ready
            self._backlog_s += taken * service_s
            self.tally.answered += taken
            self.tally.wait.add(waits_s, taken)
            self.tally.latency.add(waits_s + service_s, taken)
            self.busy_s += taken * service_s
        self._held = []

    def _drain(self, span: float) -> None:
        room = max(0.0, self.ready - self.rate * self.work.seconds_per_item)
        self._backlog_s = max(0.0, self._backlog_s - room * span)

    # --- the policy

    def _load_changed(self) -> None:
        self._cell = None
        self._ask()

    def _ask(self) -> None:
        """The policy's wish now. Where it is not the target, or more is being refused, it is asked again later."""
        if not self.ready:
            return
        wanted = self._wanted()
        target = self.rules.delays.decide(wanted, self.target, self.engine.now)
        if target != self.target:
            self.set_target(target)
            if not self.ready:
                return
            wanted = self._wanted()
            self.rules.delays.decide(wanted, self.target, self.engine.now)  # a wish that is left begins to wait now
        self._asks += 1
        if wanted != self.target:
            delay_s = self.rules.delays.delay_s(up=wanted > self.target, target=self.target)
            since = self.rules.delays.since
            due = (self.engine.now if since is None else since) + delay_s
            self.engine.at(max(due, self.engine.now), self._ask_again, self._asks)
        elif self._backlog_s > 0:
            self.engine.at(self.engine.now + self.rules.delays.upscale_s, self._ask_again, self._asks)

    def _ask_again(self, asks: int) -> None:
        if asks == self._asks:
            self._settle()
            self._ask()

    def _wanted(self) -> int:
        """By `plan.policy.scale`, of replicas that share the work equally."""
        work, ready = self.work, self.ready
        busy = sent_away_s = queued_s = 0.0
        if self.rate:
            cell = self._cell or self._now()
            offered = self.rate * work.seconds_per_item
            busy = self._busy(offered, offered * (1 - cell.refused) * cell.cost)
            # What is sent away within the window counts as backlog, as replicas report it.
            sent_away_s = cell.refused * offered * self.rules.look_back_s
            queued_s = cell.wait_s  # before a new item
        if self._backlog_s > 0:
            busy = 1.0
        load = ReplicaLoad((self._backlog_s + sent_away_s) / ready + queued_s, busy)
        return self.rules.wanted_of_equals(load, replicas=ready)

    def _busy(self, offered: float, done: float) -> float:
        """Share of the time that a replica reports to have worked."""
        work, drawn = self.work, offered < DRAWN_BELOW
        window_s = self.rules.report_s if drawn else NOISE_WINDOW_S
        deviation = noise_of_busy(offered, work.seconds_per_item, work.variation, window_s)
        noise = next(self._scatter) if drawn else NOISE
        if drawn and not self._draws:
            self._draws = True
            self.engine.at(self.engine.now + DRAW_S, self._drawn_again)
        return min(1.0, max(0.0, done + noise * deviation) / self.ready)

    def _drawn_again(self) -> None:
        self._draws = False
        if self.rate and self.ready:
            self._settle()
            self._ask()

    def bounds_changed(self) -> None:
        self._settle()
        self._ask()

    # --- replicas

    def settle_ready(self, change: int) -> None:
        self._settle()
        super().settle_ready(change)
        self._cell = None

    def opened(self, seat: Seat) -> None:
        self._last_request_at = self.engine.now
        if self._held:
            self._let_in()
        self.answered()
        self._ask()

    def closed(self, seat: Seat) -> None:
        self.emptied(seat)

    def cut(self, seat: Seat) -> None:
        if self.rate and not self.ready:
            self.wake()
        self._ask()

    def finish(self) -> None:
        self._settle()
        super().settle_ready(0)
        for cell, answered in self._answered.items():
            self.tally.latency.add_all(cell.latency, cell.latency_s, answered)
            self.tally.wait.add_all(cell.wait, cell.wait_s, answered)
        self._give_up_old()
        self.tally.left = math.fsum(many for _, many in self._held)


def _scatter(random: np.random.Generator) -> Iterator[float]:
    """Of the work of a second after the other as reports show it, in deviations of half a second's."""
    while True:
        white = random.standard_normal(2 * _CHUNK)
        yield from np.convolve(white, _WEIGHTS, mode="valid")[::2].tolist()
