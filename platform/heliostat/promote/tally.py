"""What is counted of a version on trial beside the one that it is to replace: pure sums, and what they show.

A replica counts (`heliostat.serve.trial`), the controller adds up and decides (`release.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

_STEP = 1.1
"""Ratio of two neighbouring latency buckets: a median is known to a twentieth."""


class Latencies(BaseModel):
    """How many answers took how long: buckets of a growing width, so that replicas can be added up."""

    model_config = ConfigDict(frozen=True)

    buckets: Mapping[int, int] = Field(default_factory=dict)
    """Bucket b holds what took 1.1**b to 1.1**(b+1) ms."""

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def quantile_ms(self, share: float) -> float:
        """The middle of the bucket in which the quantile lies; NaN where nothing was counted."""
        left = share * self.count
        for bucket, count in sorted(self.buckets.items()):
            left -= count
            if left <= 0:
                return float(_STEP ** (bucket + 0.5))
        return float("nan")

    @property
    def median_ms(self) -> float:
        return self.quantile_ms(0.5)


def bucket_of(milliseconds: float) -> int:
    return math.floor(math.log(max(milliseconds, 0.01), _STEP))


class Tally(BaseModel):
    """What one replica has seen of one release. Sums, since the replica began with it."""

    model_config = ConfigDict(frozen=True)

    release: str
    """Its id."""
    version: int
    digest: str = ""
    """What the replica has loaded of it; "" while it has nothing."""
    error: str | None = None
    """Why it could not be loaded."""
    replica: str = ""
    alone: bool = False
    """It does not fit beside the version before: this replica has to give that one up for it."""
    hold_s: float = 0.0
    """For how long its requests would then wait, by what its own start took."""
    probed: int = 0
    """Recent requests, or the recipe's examples, that both answered when it was loaded: nobody waited for them."""
    shadowed: int = 0
    """Requests that were copied to it and answered by the other one."""
    requests: int = 0
    """Requests that it was given first."""
    compared: int = 0
    """Pairs of answers to the same request, wherever they come from."""
    disagreed: int = 0
    drift: float = 0.0
    """Sum over the pairs of how far their numbers lie apart."""
    errors: int = 0
    """What it failed at and the other one answered."""
    nans: int = 0
    """Those of them whose answer was not a finite number."""
    last_error: str = ""
    before: Latencies = Latencies()
    """Of the version before, over the same time."""
    tried: Latencies = Latencies()

    @property
    def mean_drift(self) -> float:
        return self.drift / self.compared if self.compared else 0.0


def add(tallies: Sequence[Tally]) -> Tally:
    """All replicas together. At least one; all of the same release."""
    first = tallies[0]
    counts = ("probed", "shadowed", "requests", "compared", "disagreed", "drift", "errors", "nans")
    return first.model_copy(
        update={
            **{name: sum(getattr(tally, name) for tally in tallies) for name in counts},
            "error": next((tally.error for tally in tallies if tally.error), None),
            "last_error": next((tally.last_error for tally in tallies if tally.last_error), ""),
            "before": _merge(tally.before for tally in tallies),
            "tried": _merge(tally.tried for tally in tallies),
        }
    )


def _merge(many: Iterable[Latencies]) -> Latencies:
    buckets: dict[int, int] = {}
    for one in many:
        for bucket, count in one.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
    return Latencies(buckets=buckets)


def least_share(hits: int, of: int, z: float) -> float:
    """The lower end of Wilson's interval for a proportion, at `z` standard deviations (Wilson 1927)."""
    if of == 0:
        return 0.0
    share = hits / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - spread) / (1 + z * z / of))
