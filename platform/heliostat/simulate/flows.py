"""An application whose requests are a flow: so many a minute, and the policy's answer to it.

What is kept is how much work there is before the replicas, not the requests. While few replicas' worth of work comes,
or work waits, the requests of each short step are drawn, as is their work: they raise the level, the replicas lower it
as fast as `curves` has measured, and at each report the policy is asked, as in production. So a queue lasts from one
minute to the next, and what comes in bursts makes replicas come and go.

Where much comes and nothing waits, it is *calm*: the scatter of the work is little beside it, so what the policy says
changes only when the load does or a replica comes or goes. It is asked then, and after Serve's delays; the waits are
those that the same steps have once they have settled at that load.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from heliostat.inference.load import WINDOW_S
from heliostat.serve.admission import EXCESS, POOL
from heliostat.serve.hold import HOLD_S, MAX_HELD
from heliostat.simulate.apps import App, Seat
from heliostat.simulate.curves import Curves, Measurements
from heliostat.simulate.measured import AppWork
from heliostat.simulate.queues import noise_of_busy
from heliostat.simulate.tally import Tally
from heliostat.simulate.traffic import MINUTE_S, Traffic

LEAST_STEP_S, MOST_STEP_S = 0.01, 0.05
"""Half a mean request's time, between these: waits below the first are not resolved."""
CALM_FROM = 16.0
"""Replicas' worth of work from which an application may be calm."""
CALM_LOAD = 0.9
"""Of what its replicas can do, up to which it may be."""
CALM_SERVICES = 2.0
"""Mean requests before a replica, up to which nothing is said to wait."""
NOISE_WINDOW_S = 3.0
"""`busy` is taken over 2 s and averaged over 2 s more: as much as a plain mean over 3 s evens out."""
NOISE = 1.0
"""Deviations above the mean that the replicas follow: a peak of 2 s adds one, and it goes after 10 s without."""
SLICES = 12
"""Into which those who wait for a cold start are divided."""
SETTLED_STEPS, WARM_STEPS = 2400, 400


@dataclass(frozen=True)
class Arrivals:
    """Of a stretch, step by step."""

    counts: list[float]
    works_s: list[float]
    """Of all of a step's requests together."""
    before_s: list[float]
    """Of the step's own work, what its mean request has before it: half of the others'."""
    requests: list[float]
    """[steps + 1] that came before each step."""
    work_s: list[float]
    """[steps + 1] the same."""


def step_of(work: AppWork) -> float:
    return min(MOST_STEP_S, max(LEAST_STEP_S, work.seconds_per_item / 2))


def draw_arrivals(requests: float, steps: int, work: AppWork, random: np.random.Generator) -> Arrivals:
    """So many requests, anywhere in the stretch. The sum of n gamma variables is one of n times the shape."""
    whole = int(requests)
    if whole < 8 * steps:
        counts = np.bincount(random.integers(0, steps, whole), minlength=steps).astype(np.float64)
    else:
        counts = random.multinomial(whole, np.full(steps, 1 / steps)).astype(np.float64)
    counts[-1] += requests - whole
    mean_s, variation = work.seconds_per_item, work.variation
    if variation:
        some = counts > 0
        works = np.zeros(steps)
        works[some] = random.gamma(counts[some] * variation**-2, mean_s * variation**2)
    else:
        works = counts * mean_s
    before = np.where(counts > 1, works * (1 - 1 / np.maximum(counts, 1)) / 2, 0.0)
    sums = [np.concatenate([[0.0], np.cumsum(of)]).tolist() for of in (counts, works)]
    return Arrivals(counts.tolist(), works.tolist(), before.tolist(), *sums)


def run_steps(
    level: float,
    arrivals: Arrivals,
    first: int,
    last: int,
    *,
    step_s: float,
    replicas: int,
    curves: Curves,
    mean_s: float,
    refuse: Sequence[float],
    seen: list[float],
) -> tuple[float, float, float]:
    """The level after the steps from `first` up to `last`, requests that were refused, and work that was done. Adds to
    `seen` those that were taken, by the level that they met."""
    inverse, half_s, top = 1 / curves.step_s, step_s / 2, len(curves.speed) - 1
    speed, counts, works, before = curves.speed, arrivals.counts, arrivals.works_s, arrivals.before_s
    refused = came_s = 0.0
    began = level
    for step in range(first, last):
        # Half of the step's work is done before what comes and half after it: the error is of second order.
        if level > 0.0:
            index = int(level * inverse + 0.999999)
            level -= speed[index if index < top else top] * half_s
            if level < 0.0:
                level = 0.0
        many = counts[step]
        if many:
            index = int((level + before[step] / replicas) * inverse + 0.999999)
            if index > top:
                index = top
            work_s = works[step] / replicas
            chance = refuse[index]
            if chance:
                # Whether one is refused does not depend on its own work, so the mean of it is refused.
                refused += many * chance
                work_s -= many * chance * mean_s / replicas
                many *= 1 - chance
            seen[index] += many
            came_s += work_s
            level += work_s
        if level > 0.0:
            index = int(level * inverse + 0.999999)
            level -= speed[index if index < top else top] * half_s
            if level < 0.0:
                level = 0.0
    return level, refused, (began + came_s - level) * replicas


@dataclass(frozen=True, eq=False)
class Settled:
    """What the steps come to where the load stays."""

    curves: Curves
    shares: list[float]
    """Of the requests, by the level that they meet."""
    level_s: float
    queued_s: float
    """That a replica reports."""
    cost: float


class FlowApp(App):
    """Replicas are events, requests are numbers."""

    def begin(self, traffic: Traffic, random: np.random.Generator) -> None:
        self.tally = Tally()
        self._random = random
        self._measurements = Measurements(self.work, max_queue_s=self.spec.max_queue.seconds)
        self._per_minute: list[int] = traffic.per_minute.tolist()
        self._minute = -1
        self.rate = 0.0
        """Requests/s of this minute."""
        self._offered = 0.0
        """Replicas' worth of work that they are."""
        self._left = 0.0
        """Requests of this minute that have not come yet."""
        self._since = 0.0
        """Up to when everything is counted."""
        self._last_request_at = -math.inf
        self._held: list[tuple[float, float]] = []
        """(when they came, how many), while no replica runs."""
        self._seen: dict[Curves, list[float]] = {}
        self._begin_steps()
        self._begin_calm()
        self._next_minute()

    @property
    def last_request_at(self) -> float:  # type: ignore[override]
        return self.engine.now if self.rate and self.ready else self._last_request_at

    # --- time passes

    def _next_minute(self) -> None:
        """To the next minute; a run of minutes without requests is one step."""
        self._settle()
        self._arrivals: Arrivals | None = None
        """Of what is left of this minute, from `_drawn_at`."""
        self._minute += 1
        count = self._per_minute[self._minute] if self._minute < len(self._per_minute) else 0
        self._left, self.rate = float(count), count / MINUTE_S
        self._offered = self.rate * self.work.seconds_per_item
        if self.rate and self.ready:
            self.answered()
        elif count:
            first = 1 - float(self._random.random()) ** (1 / count)  # the least of so many uniform ones
            self.engine.at(self.engine.now + first * MINUTE_S, self._first_comes)
        self._turn()
        if self._minute >= len(self._per_minute):
            return
        until = self._minute + 1
        while not count and until < len(self._per_minute) and self._per_minute[until] == 0:
            until += 1
        self._minute = until - 1
        self.engine.at(until * MINUTE_S, self._next_minute)

    def _first_comes(self) -> None:
        if not self.ready:
            self.wake()

    def _settle(self) -> None:
        """Count what came and was answered since the last change."""
        now = self.engine.now
        since, span, self._since = self._since, now - self._since, now
        if span <= 0:
            return
        if not self.ready:
            self._hold(since, span)
        elif self._calm:
            self._count_calm(since, span)
        elif self.rate:
            self._run_to(since, now)
        else:
            self._ebb(span)
        if self.rate:
            self._last_request_at = now

    def _take(self, since: float, span: float) -> float:
        """Its part of the requests that are left of this minute."""
        requests = self._left * min(1.0, span / ((self._minute + 1) * MINUTE_S - since)) if self._left else 0.0
        self._left -= requests
        self.tally.offered += requests
        return requests

    # --- while no replica runs

    def _hold(self, since: float, span: float) -> None:
        requests = self._take(since, span)
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
        """Those who were held, one behind the other at the first replica; what max_queue does not take is refused."""
        self._give_up_old()
        curves, service_s = self._measurements.of(1), self.work.seconds_per_item
        for at, many in self._held:
            # One more is taken while max_queue is not exceeded, so the last one does.
            room_s = self.spec.max_queue.seconds + service_s - self._level
            taken = max(0.0, min(many, room_s / service_s))
            self.tally.refused += many - taken  # before the replica's first report, from which it counts
            if taken:
                met_s = self.engine.now - at + self._level + taken * service_s / 2
                latency_s = met_s - self._level + curves.mean_latency_s[curves.index(self._level)]
                self._level += taken * service_s
                self.tally.answered += taken
                self.tally.wait.add(met_s, taken)
                self.tally.latency.add(max(met_s + service_s, latency_s), taken)
        self._held = []

    # --- step by step

    def _begin_steps(self) -> None:
        self._arrivals = None
        self._drawn_at = self._step_s = 0.0
        self._step = 0
        self._level = 0.0
        """Work before each of the replicas that have least of it, in seconds."""
        self._higher: list[float] = []
        """Of the other replicas: of those that were there before the last one came."""
        self._refused_of_report = self._busy_of_report = self._offered_of_report = 0.0
        self._reported_at, self._offered_before = self.engine.now, 0.0
        self._overload = False
        self._window: deque[tuple[float, float]] = deque(maxlen=max(1, round(WINDOW_S / self.rules.report_s)))
        """Of the last reports' times: (model time, requests refused)."""
        self._reports: deque[tuple[float, float]] = deque(
            maxlen=max(1, round(self.rules.look_back_s / self.rules.report_s))
        )
        """(backlog_s, busy) of all replicas together."""

    @property
    def _equal(self) -> int:
        """Replicas that have the least work; requests go there."""
        return self.ready - len(self._higher)

    def _run_to(self, since: float, now: float) -> None:
        if self._arrivals is None:
            span = (self._minute + 1) * MINUTE_S - since
            # Where so much comes and it is not calm, what waits is longer than a step.
            steps = max(1, round(span / (step_of(self.work) if self._offered < CALM_FROM else MOST_STEP_S)))
            self._arrivals = draw_arrivals(self._left, steps, self.work, self._random)
            self._drawn_at, self._step_s, self._step = since, span / steps, 0
        first, last = self._step, min(len(self._arrivals.counts), round((now - self._drawn_at) / self._step_s))
        if last <= first:
            return
        self._step = last
        requests = self._arrivals.requests[last] - self._arrivals.requests[first]
        self._left = max(0.0, self._left - requests)
        self.tally.offered += requests
        refused, work_s = 0.0, self._arrivals.work_s
        while first < last:
            # Whether the others have more yet, or too much waits, is looked at after each step.
            pool_s = POOL * self.work.seconds_per_item
            near = not self._overload and self._level > pool_s / 2 and pool_s < self.spec.max_queue.seconds
            until = first + 1 if self._higher or near else last
            refused += self._run(self._arrivals, first, until)
            self._offered_of_report += work_s[until] - work_s[first]
            if self._higher:
                self._lower((until - first) * self._step_s)
            if near and self._level > pool_s:
                self._look_for_overload(self._drawn_at + until * self._step_s)
            first = until
        self.tally.refused += refused
        self._refused_of_report += refused
        self.tally.answered += requests - refused

    def _run(self, arrivals: Arrivals, first: int, last: int) -> float:
        """How many were refused."""
        equal, curves = self._equal, self._curves()
        self._level, refused, done_s = run_steps(
            self._level,
            arrivals,
            first,
            last,
            step_s=self._step_s,
            replicas=equal,
            curves=curves,
            mean_s=self.work.seconds_per_item,
            refuse=curves.in_overload if self._overload else curves.full,
            seen=self._seen_at(curves),
        )
        self._did(done_s * curves.cost[curves.index(self._level)])
        return refused

    def _ebb(self, span: float) -> None:
        """Nothing comes."""
        if self._level:
            curves, left_s, before = self._curves(), span, self._level
            while self._level > 0 and left_s > 0:
                self._level -= curves.speed[curves.index(self._level)] * min(MOST_STEP_S, left_s)
                left_s -= MOST_STEP_S
            self._level = max(0.0, self._level)
            self._did((before - self._level) * self._equal * curves.cost[curves.index(before)])
        if self._higher:
            self._lower(span)

    def _lower(self, span: float) -> None:
        """The replicas with more work; those that have no more than the others any longer are among them."""
        kept: list[float] = []
        for level in sorted(self._higher):
            left = max(0.0, level - span)
            self._did(level - left)
            kept.append(left)
        self._higher = kept
        while self._higher and self._higher[0] <= self._level + self.work.seconds_per_item:
            equal = self._equal
            self._level = (self._level * equal + self._higher.pop(0)) / (equal + 1)

    def _did(self, model_s: float) -> None:
        self.busy_s += model_s
        self._busy_of_report += model_s

    def _curves(self) -> Curves:
        return self._measurements.of(self._equal)

    def _seen_at(self, curves: Curves) -> list[float]:
        if curves not in self._seen:
            self._seen[curves] = [0.0] * len(curves.speed)
        return self._seen[curves]

    # --- the policy, at its period

    def _tick(self) -> None:
        """Replicas report, the policy is asked. It rests while nothing can change."""
        self._ticks = False
        if not self.ready or self._calm:
            return
        self._settle()
        self._report()
        many = len(self._reports)
        backlog_s = math.fsum(backlog for backlog, _ in self._reports) / many
        busy = math.fsum(busy for _, busy in self._reports) / many
        wanted = self.rules.wanted_of_equals(self.ready, backlog_s=backlog_s, busy=busy)
        target = self.rules.delays.decide(wanted, self.target, self.engine.now)
        if target != self.target:
            self.set_target(target)
        quiet = not (self.rate or self._level or self._higher or backlog_s or busy)
        if self._may_be_calm():
            self._turn()
        elif not (quiet and wanted == self.target):
            self._tick_soon()

    def _report(self) -> None:
        self._window.append((self._busy_of_report, self._refused_of_report))
        self._look_for_overload(self.engine.now)
        self._reported_at, self._offered_before = self.engine.now, self._offered_of_report
        self._refused_of_report = self._busy_of_report = self._offered_of_report = 0.0
        curves = self._curves()
        queued_s = curves.queued_s[curves.index(self._level)] * self._equal + math.fsum(self._higher)
        sent_away_s = math.fsum(refused for _, refused in self._window) * self.work.seconds_per_item
        busy = math.fsum(busy for busy, _ in self._window) / WINDOW_S
        self._reports.append((queued_s + sent_away_s, min(busy, float(self.ready))))

    def _look_for_overload(self, at: float) -> None:
        """As `serve.admission` does, of all replicas together: its window is as long as reports are apart."""
        period_s = self.rules.report_s
        part = min(1.0, (at - self._reported_at) / period_s)
        came_s = self._offered_of_report + (1 - part) * self._offered_before
        if came_s <= EXCESS * self._equal * period_s:
            self._overload = False
        elif self._level > POOL * self.work.seconds_per_item:
            self._overload = True

    def bounds_changed(self) -> None:
        self._settle()
        if self._calm:
            self._ask()
        else:
            self._tick_soon()

    # --- calm

    def _begin_calm(self) -> None:
        self._calm = False
        self._asks = 0
        self._scatter = noise_of_busy(1.0, self.work.seconds_per_item, self.work.variation, NOISE_WINDOW_S)
        """For one replica's worth of work; it grows as the root of that."""
        self._settled: dict[tuple[int, int], Settled] = {}
        self._answered: dict[Settled, float] = {}

    def _turn(self) -> None:
        """Something has changed: is it calm now, and what does the policy say?"""
        was, self._calm = self._calm, self._may_be_calm()
        if was and not self._calm:
            self._leave_calm()
        if self._calm:
            self._ask()
        elif self.ready:
            self._tick_soon()

    def _may_be_calm(self) -> bool:
        if not CALM_FROM <= self._offered <= CALM_LOAD * self.ready:
            return False
        return self._calm or (not self._higher and self._level <= CALM_SERVICES * self.work.seconds_per_item)

    def _leave_calm(self) -> None:
        """To steps, from what there would have been."""
        self._asks += 1
        self._arrivals = None
        if not self.ready:
            return
        settled, busy = self._last_calm
        self._level = settled.level_s
        for _ in range(self._window.maxlen or 1):
            self._window.append((busy * self.rules.report_s, 0.0))
        for _ in range(self._reports.maxlen or 1):
            self._reports.append((settled.queued_s * self.ready, busy))

    def _settled_at(self, replicas: int, load: float) -> Settled:
        """For a load to the nearest hundredth, and replicas to the nearest eighth of an octave."""
        key = replicas, round(100 * load)
        found = self._settled.get(key)
        if found is None:
            alike, percent = round(2 ** (round(8 * math.log2(replicas)) / 8)), min(key[1], round(100 * CALM_LOAD))
            work, max_queue_s = self._measurements.work, self._measurements.max_queue_s
            found = self._settled[key] = settle(work, alike, percent, max_queue_s)
        return found

    def _count_calm(self, since: float, span: float) -> None:
        requests = self._take(since, span)
        settled = self._settled_at(self.ready, self._offered / self.ready)
        self._answered[settled] = self._answered.get(settled, 0.0) + requests
        self.tally.answered += requests
        self.busy_s += requests * self.work.seconds_per_item * settled.cost

    def _ask(self) -> None:
        """The policy's wish now. Where it is not the target it is asked again after Serve's delay."""
        wanted = self._wanted()
        target = self.rules.delays.decide(wanted, self.target, self.engine.now)
        if target != self.target:
            self.set_target(target)
            if not self._calm:
                return
            wanted = self._wanted()
            self.rules.delays.decide(wanted, self.target, self.engine.now)  # a wish that is left begins to wait now
        self._asks += 1
        if wanted != self.target:
            delay_s = self.rules.delays.delay_s(up=wanted > self.target, target=self.target)
            since = self.rules.delays.since
            due = (self.engine.now if since is None else since) + delay_s
            self.engine.at(max(due, self.engine.now), self._ask_again, self._asks)

    def _ask_again(self, asks: int) -> None:
        if asks == self._asks and self._calm:
            self._settle()
            self._ask()

    def _wanted(self) -> int:
        """By `plan.policy.scale`."""
        settled = self._settled_at(self.ready, self._offered / self.ready)
        self._last_calm = settled, self._offered * settled.cost
        busy = self._last_calm[1] + NOISE * self._scatter * math.sqrt(self._offered)
        return self.rules.wanted_of_equals(self.ready, backlog_s=settled.queued_s * self.ready, busy=busy)

    # --- replicas

    def settle_ready(self, change: int) -> None:
        self._settle()
        super().settle_ready(change)

    def opened(self, seat: Seat) -> object:
        self._last_request_at = self.engine.now
        others = self._equal - 1
        if self.ready == 1:
            self._begin_steps()
            self._let_in()
        elif self._level > self.work.seconds_per_item:
            self._higher += [self._level] * others
            self._level = 0.0
        else:
            self._level *= others / (others + 1)
        self.answered()
        self._turn()
        return seat

    def closed(self, seat: Seat) -> None:
        """It does what is before it."""
        seat.inside = None
        level = 0.0 if self._calm else self._level
        self._did(level)
        self.engine.at(self.engine.now + level, self.emptied, seat)
        self._one_less()

    def cut(self, seat: Seat) -> None:
        if seat.inside is not None:
            self._one_less()
            if self.ready and not self._calm:
                self._level += self._level / self._equal  # it goes to the others
        if self.rate and not self.ready:
            self.wake()
        self._turn()

    def _one_less(self) -> None:
        """Its reports are not counted any more."""
        if not self.ready:
            self._begin_steps()
            return
        if self._equal == 0:
            self._higher.sort()
            self._level = self._higher.pop(0)
        part = self.ready / (self.ready + 1)
        self._window = deque(((busy * part, refused) for busy, refused in self._window), self._window.maxlen)
        self._reports = deque(((queue * part, busy * part) for queue, busy in self._reports), self._reports.maxlen)

    def finish(self) -> None:
        self._settle()
        super().settle_ready(0)
        for settled, answered in self._answered.items():
            added = np.array(self._seen_at(settled.curves)) + np.array(settled.shares) * answered
            self._seen[settled.curves] = added.tolist()
        for curves, seen in self._seen.items():
            curves.tell(seen, self.tally)
        self._give_up_old()
        inside = 0.0 if self._calm else (self._level * self._equal + math.fsum(self._higher))
        inside = min(self.tally.answered, inside / self.work.seconds_per_item)
        self.tally.answered -= inside
        self.tally.left = math.fsum(many for _, many in self._held) + inside


@lru_cache(maxsize=4096)
def settle(work: AppWork, replicas: int, percent: int, max_queue_s: float) -> Settled:
    """Steps at one load, the first of them not counted. Remembered, for whoever has the same work."""
    curves, step_s = Measurements(work, max_queue_s=max_queue_s).of(replicas), step_of(work)
    random = np.random.default_rng((replicas, percent))
    requests = percent / 100 * replicas / work.seconds_per_item * step_s * SETTLED_STEPS
    arrivals = draw_arrivals(requests, SETTLED_STEPS, work, random)
    level, level_sum, seen = 0.0, 0.0, [0.0] * len(curves.speed)

    def run(first: int, last: int, level: float) -> float:
        return run_steps(
            level, arrivals, first, last,
            step_s=step_s, replicas=replicas, curves=curves, mean_s=work.seconds_per_item,
            refuse=curves.full, seen=seen,
        )[0]  # fmt: skip

    level = run(0, WARM_STEPS, level)
    seen[:] = [0.0] * len(seen)
    looks = range(WARM_STEPS, SETTLED_STEPS, 10)
    for first in looks:
        level = run(first, first + 10, level)
        level_sum += level
    mean_s = level_sum / len(looks)
    at, whole = curves.index(mean_s), math.fsum(seen)
    return Settled(
        curves=curves,
        shares=[many / whole for many in seen],
        level_s=mean_s,
        queued_s=curves.queued_s[at],
        cost=curves.cost[at],
    )
