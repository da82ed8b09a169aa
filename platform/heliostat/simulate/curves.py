"""What a request meets where so much work waits: measured once on the per-request model.

A flow knows how much work there is before the replicas, not how it lies among them, nor which requests share a pass.
So stretches of single requests, light, heavy and ebbing, are run through the very front that `RequestApp` has. What
each met is kept by the work per replica that was there when it came: how long it waited and took, how many replicas
ran, what they would have reported, whether it would have been refused. Given that work, little depends on how it came
to be there, so what was measured holds while load and replicas change too.

*Level* is that work: seconds per replica, what runs included as far as it is not done.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat.inference.batching import Item
from heliostat.serve.admission import LEAST_S, ORDINARY_SERVICES
from heliostat.simulate.engine import Engine
from heliostat.simulate.front import PER_SECOND, Front, Replica
from heliostat.simulate.measured import AppWork
from heliostat.simulate.tally import Tally

Floats = NDArray[np.float64]

LOADS = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 0.85, 1.1, 0.75, 1.5, 0.95, 1.2, 2.5, 1.1, 0.5)
"""Of one stretch after the other: work that arrives over what the replicas can do."""
REPLICAS = (1, 2, 3, 4, 6, 8, 12, 16)
"""More replicas than the last are taken for that many."""
REQUESTS = 17_000
BINS = 200
"""Of levels, each with as many of the requests."""
KEPT = 100
"""Requests of a bin whose waits are kept."""
STEPS_A_SERVICE = 8
"""Levels are told apart by that part of a mean request."""
MOST_STEPS = 20_000
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Curves:
    """Of one kind of work before so many replicas. Lists are by level: first for none, then in steps of `step_s`; the
    last is for all above."""

    step_s: float
    speed: list[float]
    """Work done per second and replica."""
    queued_s: list[float]
    """What a replica reports to be before a new request: what runs counts whole."""
    cost: list[float]
    """Seconds that a model runs for a second of work: above 1 where passes have an overhead."""
    full: list[float]
    """Chance that `max_queue` refuses."""
    in_overload: list[float]
    """The same in overload, where what waits beyond what is ordinary is refused too."""
    mean_latency_s: list[float]
    _bins: Floats
    """[bins] the mean level of each."""
    _met: list[tuple[Floats, Floats, Floats]]
    """By bin, of some of its requests: level, wait, latency."""

    def index(self, level_s: float) -> int:
        return min(len(self.speed) - 1, math.ceil(level_s / self.step_s - ROUNDING))

    def tell(self, seen: list[float], tally: Tally) -> None:
        """Counts of requests by the level that they met, to the waits and latencies of a tally."""
        found: list[tuple[Floats, Floats, float]] = []
        for index in np.flatnonzero(np.array(seen)).tolist():
            level_s = max(0.0, index - 0.5) * self.step_s
            levels, waits, latencies = self._met[_nearest(self._bins, level_s)]
            # Where everybody waits, a little more before one is as much more to wait.
            more = level_s - levels if waits.min() > 0 else np.zeros(len(levels))
            found.append((waits + more, latencies + more, seen[index] / len(levels)))
        if found:
            weights = np.concatenate([np.full(len(waits), weight) for waits, _, weight in found])
            tally.wait.add_many(np.concatenate([waits for waits, _, _ in found]), weights)
            tally.latency.add_many(np.concatenate([latencies for _, latencies, _ in found]), weights)


def _nearest(sorted_values: Floats, value: float) -> int:
    at = int(np.searchsorted(sorted_values, value))
    if at == 0 or at == len(sorted_values):
        return min(at, len(sorted_values) - 1)
    return at if sorted_values[at] - value < value - sorted_values[at - 1] else at - 1


class Measurements:
    """Of one kind of work. Curves are measured when they are first asked for."""

    def __init__(self, work: AppWork, *, max_queue_s: float) -> None:
        # How often they come is not part of what they are.
        self.work, self.max_queue_s = work.model_copy(update={"requests_per_second": None}), max_queue_s
        self._by_replicas: dict[int, Curves] = {}

    def of(self, replicas: int) -> Curves:
        found = self._by_replicas.get(replicas)
        if found is None:
            size = REPLICAS[max(0, bisect.bisect_right(REPLICAS, replicas) - 1)]
            found = self._by_replicas[replicas] = measure(self.work, size, self.max_queue_s)
        return found


class _Watched(Front):
    """Keeps what became of each request."""

    def watch(self, requests: int) -> None:
        self.waits, self.latencies = np.full(requests + 1, np.nan), np.full(requests + 1, np.nan)

    def _end(self, replica: Replica, items: tuple[Item, ...], took_s: float) -> None:
        for item in items:
            number: Any = item.id
            self.waits[number] = replica.began_at - item.arrived_s
            self.latencies[number] = self.engine.now - item.arrived_s
        super()._end(replica, items, took_s)


@lru_cache(maxsize=256)
def measure(work: AppWork, replicas: int, max_queue_s: float) -> Curves:
    """Runs stretches of single requests at `LOADS`. Remembered: it takes a quarter of a second, and depends on nothing
    else, so definitions that are compared, and seeds, share it."""
    random, engine = np.random.default_rng(replicas), Engine()
    front = _Watched(engine, work, max_queue_s=max_queue_s, random=random)
    front.watch(REQUESTS)
    for _ in range(replicas):
        front.add()
    mean_gap_s = work.seconds_per_item / replicas
    gaps = np.concatenate([random.exponential(mean_gap_s / load, REQUESTS // len(LOADS)) for load in LOADS])
    met = np.empty((len(gaps), 6))  # level, speed, running, queued, full, ordinary
    numbers = np.zeros(len(gaps), dtype=np.int64)
    for index, at in enumerate(np.cumsum(gaps).tolist()):
        engine.run(at)
        met[index] = _met(front, work, max_queue_s)
        refused = front.tally.refused
        front.arrive()
        numbers[index] = -1 if front.tally.refused > refused else front.taken
    engine.run(math.inf)
    waits = np.where(numbers >= 0, front.waits[numbers], np.nan)
    latencies = np.where(numbers >= 0, front.latencies[numbers], np.nan)
    return _curves(met, waits, latencies, work, max_queue_s)


def _met(front: Front, work: AppWork, max_queue_s: float) -> tuple[float, ...]:
    """What a request that comes now meets."""
    now, many = front.engine.now, len(front.open)
    level = speed = queued_s = 0.0
    running = 0
    for one in front.open:
        waiting = one.batcher.queued_tokens
        level += waiting
        queued_s += (waiting + one.running_tokens) / PER_SECOND * one.slowness
        if one.running:
            took_s = one.running_tokens / PER_SECOND + work.pass_overhead
            level += one.running_tokens * max(0.0, 1 - (now - one.began_at) / took_s)
            speed += one.running_tokens / PER_SECOND / took_s
            running += 1
    load = front.next_replica().load()
    ordinary_s = max(LEAST_S, ORDINARY_SERVICES * work.seconds_per_item)
    return (
        level / PER_SECOND / many,
        speed / many,
        running / many,
        queued_s / many,
        float(load.queued_s > max_queue_s),
        float(load.waiting_tokens * load.seconds_per_token > ordinary_s),
    )


def _curves(met: Floats, waits: Floats, latencies: Floats, work: AppWork, max_queue_s: float) -> Curves:
    """Means by level, between which lines are drawn."""
    order = np.argsort(met[:, 0], kind="stable")
    met, waits, latencies = met[order], waits[order], latencies[order]
    empty = int((met[:, 0] <= 0).sum())
    bins = [part for part in [np.arange(empty), *np.array_split(np.arange(empty, len(met)), BINS)] if len(part)]
    means = np.array([met[part].mean(axis=0) for part in bins])
    top_s = float(means[-1, 0])
    most_s = max(top_s, min(max_queue_s, MOST_STEPS * work.seconds_per_item / STEPS_A_SERVICE)) * 1.5
    step_s = max(work.seconds_per_item / STEPS_A_SERVICE, most_s / MOST_STEPS)
    levels = np.maximum(0.0, np.arange(math.ceil(most_s / step_s) + 2) - 0.5) * step_s
    beyond = np.maximum(0.0, levels - top_s)
    some = means[means[:, 0] > 0]

    def line(column: int) -> Floats:
        """Where there is little work, at least one replica does it: nothing is drawn towards an empty one."""
        return np.asarray(np.interp(levels, some[:, 0], some[:, column]))

    speed, running = line(1), line(2)
    queued = line(3) + beyond
    queued[0] = 0.0
    full = np.where((beyond > 0) & (queued > max_queue_s), 1.0, line(4))
    kept = [_some(part, met[:, 0], waits, latencies) for part in bins]
    answered = [(mean, one) for mean, one in zip(means[:, 0], kept, strict=True) if len(one[0])]
    by_bin = np.array([mean for mean, _ in answered])
    return Curves(
        step_s=step_s,
        speed=speed.tolist(),
        queued_s=queued.tolist(),
        cost=(running / np.maximum(speed, 1e-9)).tolist(),
        full=full.tolist(),
        in_overload=np.maximum(full, line(5)).tolist(),
        mean_latency_s=(np.interp(levels, by_bin, [one[2].mean() for _, one in answered]) + beyond).tolist(),
        _bins=by_bin,
        _met=[one for _, one in answered],
    )


def _some(part: NDArray[np.int64], levels: Floats, waits: Floats, latencies: Floats) -> tuple[Floats, Floats, Floats]:
    part = part[~np.isnan(waits[part])]
    part = part[:: max(1, len(part) // KEPT)]
    return levels[part], waits[part], latencies[part]
