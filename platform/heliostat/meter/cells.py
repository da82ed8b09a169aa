"""Many timelines, cut into cells, so that intervals are spread over them in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from heliostat.meter.facts import SECOND, Floats, Ints

HOUR = 3600 * SECOND
"""In microseconds."""


class Cells:
    """Cuts of many timelines at once: cell i of lane k is [start, end), and starts at one of the lane's cuts."""

    def __init__(self, cuts: Sequence[Ints]) -> None:
        """`cuts` of each lane: sorted, each once, two at least."""
        counts = np.array([len(lane) for lane in cuts], dtype=np.int64)
        at = np.concatenate(cuts) if len(cuts) else np.zeros(0, dtype=np.int64)
        lane = np.repeat(np.arange(len(cuts)), counts)
        self.low = np.array([lane[0] for lane in cuts], dtype=np.int64)
        self.high = np.array([lane[-1] for lane in cuts], dtype=np.int64)
        self._base = int(at.min()) if len(at) else 0
        self._bits = max(1, int(at.max() - self._base).bit_length() + 1) if len(at) else 1
        self._keys = self._key(lane, at)
        self.start, self.lane = at, lane
        self.end = np.append(at[1:], 0)
        self.end[np.cumsum(counts) - 1] = self.high  # the last cut of a lane is a cell of no length

    def _key(self, lane: Ints, at: Ints) -> Ints:
        return (lane.astype(np.int64) << self._bits) + (at - self._base)

    def find(self, lane: Ints, at: Ints) -> Ints:
        """The cell in which the instant lies."""
        return np.searchsorted(self._keys, self._key(lane, at), side="right") - 1

    def spread(self, lane: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
        """(which interval, cell, microseconds of it there), for intervals that have a length within their lane."""
        start, end = np.maximum(start, self.low[lane]), np.minimum(end, self.high[lane])
        some = np.flatnonzero(start < end)
        lane, start, end = lane[some], start[some], end[some]
        first = self.find(lane, start)
        within = end <= self.end[first]
        if within.all():
            return some, first, end - start
        last = first.copy()
        last[~within] = self.find(lane[~within], end[~within] - 1)
        counts = last - first + 1
        which = np.repeat(np.arange(len(some)), counts)
        cell = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        length = np.minimum(end[which], self.end[cell]) - np.maximum(start[which], self.start[cell])
        return some[which], cell, length


def _hours(start: int, end: int) -> list[int]:
    """The full hours within."""
    return list(range(-(-start // HOUR) * HOUR, end, HOUR))


def cut(times: Iterable[int]) -> Ints:
    """At these times, and at every hour between the first and the last."""
    points = set(times)
    return np.array(sorted(points.union(_hours(min(points), max(points)))), dtype=np.int64)


def sums(codes: Ints, weights: Floats | Ints, size: int) -> Floats:
    """The weights of each code added up, for codes below `size`."""
    return np.bincount(codes, weights=weights, minlength=size).astype(np.float64)
