"""Latencies and waits of many requests, in little room: counts by logarithmic bins of 1 %."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEAST_S, PER_DECADE, DECADES = 1e-4, 230, 10
BINS = PER_DECADE * DECADES + 1
_EDGES = np.concatenate([[0.0], LEAST_S * 10 ** (np.arange(BINS) / PER_DECADE)])
"""[BINS + 1]; the first bin is what is below LEAST_S."""


class Histogram:
    """Of seconds. Counts may be fractions: a flow has no single requests."""

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.total = 0.0
        self.sum_s = 0.0

    def add(self, seconds: float, weight: float = 1.0) -> None:
        self.counts[bin_of(seconds)] += weight
        self.total += weight
        self.sum_s += weight * seconds

    def add_many(self, seconds: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """[n] each."""
        logs = np.log10(np.maximum(seconds, LEAST_S) / LEAST_S) * PER_DECADE
        bins = np.where(seconds < LEAST_S, 0, np.minimum(BINS - 1, 1 + logs.astype(np.int64)))
        self.counts += np.bincount(bins, weights, minlength=BINS)
        self.total += float(weights.sum())
        self.sum_s += float(weights @ seconds)

    @property
    def mean_s(self) -> float | None:
        return self.sum_s / self.total if self.total else None

    def quantile(self, share: float) -> float | None:
        """Within 1 %, above LEAST_S; None where nothing was counted."""
        if self.total <= 0:
            return None
        sums = np.cumsum(self.counts)
        at = min(int(np.searchsorted(sums, share * sums[-1])), BINS - 1)
        before = sums[at - 1] if at else 0.0
        part = (share * sums[-1] - before) / self.counts[at] if self.counts[at] else 0.0
        return float(_EDGES[at] + part * (_EDGES[at + 1] - _EDGES[at]))


def bin_of(seconds: float) -> int:
    if seconds < LEAST_S:
        return 0
    return min(BINS - 1, 1 + int(math.log10(seconds / LEAST_S) * PER_DECADE))


class Tally:
    """What became of an application's requests: each is answered, refused, given up, or still there at the end."""

    def __init__(self) -> None:
        self.offered = self.answered = self.refused = self.gave_up = self.left = 0.0
        self.latency, self.wait = Histogram(), Histogram()
