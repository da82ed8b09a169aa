"""A clock and a heap of what happens next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any


class Engine:
    """Runs events in the order of their times; of equal times, the one that was asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds from the start."""
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def at(self, when_s: float, act: Callable[..., None], *arguments: Any) -> None:  # Any: the event's own
        """`act(*arguments)` at that time, or now if it has passed. What no longer holds then, `act` has to see."""
        heappush(self._heap, (max(when_s, self.now), next(self._numbers), act, arguments))

    def run(self, until_s: float) -> None:
        """Everything up to and at that time; the clock stands there afterwards."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now, _, act, arguments = heappop(heap)
            self.events += 1
            act(*arguments)
        self.now = until_s


def next_tick(now_s: float, period_s: float) -> float:
    """The first multiple of the period that is not before now. Rounding errors of sums do not cost a period."""
    return -(-(now_s - 1e-9) // period_s) * period_s
