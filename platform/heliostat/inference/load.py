"""How loaded a model is: what waits, what runs, how fast it goes and how much of the last moments it ran.

Measured by whoever runs the model (runner.py, generate.py); read by admission, by the scaling policy and by metrics.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 2.0
"""Over which `busy` is taken: several batches of any model that answers requests, and short enough to scale by."""


@dataclass(frozen=True)
class Load:
    """One model at one moment. The sums are since it was made and only grow."""

    waiting_tokens: int = 0
    waiting_items: int = 0
    running_tokens: int = 0
    tokens_per_s: float = 0.0
    """While it runs; 0.0 before anything was measured."""
    busy: float = 0.0
    """Share of the last seconds in which it ran, 0 to 1; of its slots, where it has some."""
    items: int = 0
    """Run so far, as are the tokens and the batches."""
    tokens: int = 0
    batches: int = 0
    waited_s: float = 0.0
    """Time in the queue of all items that have run, together."""
    forward_s: float = 0.0
    """Time that the model ran."""

    @property
    def seconds_per_token(self) -> float:
        return 1 / self.tokens_per_s if self.tokens_per_s else 0.0

    @property
    def queued_s(self) -> float:
        """Seconds of work before a new item."""
        return (self.waiting_tokens + self.running_tokens) * self.seconds_per_token


class DutyCycle:
    """The share of the last `window_s` seconds in which something ran. Not thread-safe: its owner locks."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._runs: deque[tuple[float, float, float]] = deque()  # (from, to, share of the capacity that was used)
        self._used_s = 0.0  # of all of them, kept as a sum: admission asks for every request
        self._began: tuple[float, float] | None = None

    def begin(self, now: float, share: float = 1.0) -> None:
        """Something runs from now on; what ran before has ended."""
        self.end(now)
        self._began = (now, share)

    def end(self, now: float) -> None:
        if self._began is not None:
            begin, share = self._began
            self._runs.append((begin, now, share))
            self._used_s += (now - begin) * share
            self._began = None
        self._forget(now)

    def share(self, now: float) -> float:
        """0.0 to 1.0, what runs now included."""
        self._forget(now)
        since = now - self._window_s
        used = self._used_s
        if self._runs and self._runs[0][0] < since:  # the oldest began before the window
            used -= (since - self._runs[0][0]) * self._runs[0][2]
        if self._began is not None:
            used += (now - max(self._began[0], since)) * self._began[1]
        return min(1.0, max(0.0, used / self._window_s))

    def _forget(self, now: float) -> None:
        while self._runs and self._runs[0][1] <= now - self._window_s:
            begin, end, share = self._runs.popleft()
            self._used_s -= (end - begin) * share
        if not self._runs:
            self._used_s = 0.0  # so that rounding does not add up
