"""How many replicas an application should have: from the work that waits and the work that is done, never from CPU.

Pure. The same function runs in Serve's controller (heliostat.serve.scaling) and in simulations.

Two figures are enough. `busy` is the work done: how many replicas' worth of model time was used, at most one for each
replica. It tells how many are needed to keep up, but says nothing beyond a full house. `backlog_s` is the work that
waits, in seconds of one replica: it tells how far behind they are. A count of requests is neither: one request may be
thirty times another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TARGET_BUSY = 0.85
"""Replicas are added before they are full: at 0.85 the mean wait of an M/D/1 queue is 2.8 services, at 0.95 9.5."""
DRAIN_S = 5.0
"""In how many seconds added replicas should clear what waits beyond the target."""


@dataclass(frozen=True)
class ReplicaLoad:
    """What one replica reports; seconds are of its own model time."""

    backlog_s: float
    """Work that waits or runs now: what a new item has before it."""
    busy: float
    """Share of the last moments in which the model ran, 0 to 1."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.backlog_s) and self.backlog_s >= 0 and 0 <= self.busy <= 1):
            raise ValueError(f"{self} is no load: backlog_s is 0 or more and busy lies between 0 and 1")


def wanted_replicas(loads: list[ReplicaLoad], *, replicas: int, target_s: float, low: int, high: int) -> int:
    """Replicas wanted now, between `low` and `high`; `replicas` run, some of which may not have reported yet.

    A replica without a report counts as full: it has just started, and work is on its way to it. With nothing to go
    on (no replica runs) it is the lower bound; starting the first one is for whoever holds the requests.
    """
    if target_s <= 0 or not 0 <= low <= high:
        raise ValueError(f"target_s {target_s}, low {low}, high {high}: the target is above 0 and low at most high")
    if replicas == 0:
        return low
    silent = max(0, replicas - len(loads))
    busy = sum(load.busy for load in loads) + silent * TARGET_BUSY
    late_s = max(0.0, sum(load.backlog_s for load in loads) - replicas * target_s)
    # Rounded first, so that 1.7000000000000002 / 0.85 is 2 and not 3.
    wanted = math.ceil(round(busy / TARGET_BUSY + late_s / DRAIN_S, 6))
    return min(max(wanted, low), high)
