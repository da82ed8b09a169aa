"""How long requests take at a load, and how many are refused there: measured once on the per-request model.

A flow has no single requests. So for a number of replicas and a load, a stretch of single requests is run through the
very front that `RequestApp` has, and what is found serves every minute of the flow that is near it. Loads between two
cells are mixed of both.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.simulate.engine import Engine
from heliostat.simulate.front import PER_SECOND, Front
from heliostat.simulate.measured import AppWork
from heliostat.simulate.tally import Tally

LOADS = (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.94, 1.0, 1.1, 1.3, 1.7, 2.5, 4.0)
"""Work that arrives over what the replicas can do."""
REPLICAS = (1, 2, 3, 4, 6, 8, 12, 16)
"""More replicas than the last are taken for that many: their queues hardly differ."""
REQUESTS, WARM = 6000, 1000


@dataclass(frozen=True, eq=False)
class Cell:
    """At one load: shares [BINS] of the answered requests by latency and by wait, their means, the share refused, and
    what overheads add."""

    latency: NDArray[np.float64]
    wait: NDArray[np.float64]
    latency_s: float
    wait_s: float
    refused: float
    cost: float
    """Time that the models ran, over the work that they did: above 1 where passes have an overhead."""


class Curves:
    """Of one kind of work. Cells are measured when they are first asked for."""

    def __init__(self, work: AppWork, *, max_queue_s: float, seed: int) -> None:
        self._work, self._max_queue_s, self._seed = work, max_queue_s, seed
        self._cells: dict[tuple[int, int], Cell] = {}
        self._mixed: dict[tuple[int, int], Cell] = {}

    def at(self, replicas: int, load: float) -> Cell:
        """For a load to the nearest hundredth."""
        size = min(bisect.bisect_right(REPLICAS, replicas) - 1, len(REPLICAS) - 1)
        hundredths = min(round(load * 100), round(LOADS[-1] * 100))
        key = (size, hundredths)
        if key not in self._mixed:
            self._mixed[key] = self._mix(size, hundredths / 100)
        return self._mixed[key]

    def _mix(self, size: int, load: float) -> Cell:
        above = min(max(1, bisect.bisect_left(LOADS, load)), len(LOADS) - 1)
        low, high = self._cell(size, above - 1), self._cell(size, above)
        part = min(1.0, max(0.0, (load - LOADS[above - 1]) / (LOADS[above] - LOADS[above - 1])))
        return Cell(
            latency=low.latency * (1 - part) + high.latency * part,
            wait=low.wait * (1 - part) + high.wait * part,
            latency_s=low.latency_s * (1 - part) + high.latency_s * part,
            wait_s=low.wait_s * (1 - part) + high.wait_s * part,
            refused=low.refused * (1 - part) + high.refused * part,
            cost=low.cost * (1 - part) + high.cost * part,
        )

    def _cell(self, size: int, load: int) -> Cell:
        if (size, load) not in self._cells:
            self._cells[size, load] = self._measure(REPLICAS[size], LOADS[load], (self._seed, size, load))
        return self._cells[size, load]

    def _measure(self, replicas: int, load: float, seed: tuple[int, int, int]) -> Cell:
        random, engine = np.random.default_rng(seed), Engine()
        front = Front(engine, self._work, max_queue_s=self._max_queue_s, random=random)
        for _ in range(replicas):
            front.add()
        gap_s = self._work.seconds_per_item / (load * replicas)
        at = 0.0
        for number, gap in enumerate(random.exponential(gap_s, WARM + REQUESTS).tolist()):
            at += gap
            engine.run(at)
            if number == WARM:
                front.tally = Tally()  # what came before is not counted
            front.arrive()
        tally = front.tally
        return Cell(
            latency=tally.latency.shares(),
            wait=tally.wait.shares(),
            latency_s=tally.latency.mean_s or 0.0,
            wait_s=tally.wait.mean_s or 0.0,
            refused=tally.refused / tally.offered,
            cost=front.busy_s * PER_SECOND / max(1, sum(one.done_tokens for one in front.open)),
        )
