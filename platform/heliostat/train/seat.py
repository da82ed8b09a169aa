"""What driver, keeper and training process say to each other. Light: the keeper imports it, and no more of us."""

from __future__ import annotations

from dataclasses import dataclass, field

# The training process's entry, for `heliostat.train.warm`.
MAIN = "heliostat.train.child:main"
# What a rank asks of all after a step; the highest wins.
GO_ON, SAVE, LEAVE = 0.0, 1.0, 2.0
WORDS = {"save": SAVE, "leave": LEAVE}


@dataclass(frozen=True)
class Seat:
    """One worker's place in one attempt of a run."""

    rank: int
    world_size: int
    attempt: str
    generation: int
    nodes: int = 1  # that the attempt's workers are on


@dataclass(frozen=True)
class About:
    """Where a keeper is. `port` at `address` takes connections that last as long as it lives."""

    node_id: str  # Ray's
    address: str
    port: int
    began_at: float = 0.0  # when its process was made, in seconds since the epoch

    @property
    def name(self) -> str:
        """One keeper's alone, for the meter."""
        return f"{self.node_id[:16]}-{self.port}"


@dataclass(frozen=True)
class Ended:
    """How one training process ended: done, left, lost or failed. See `heliostat.train.child`."""

    kind: str
    text: str = ""
    progress: dict[str, float] = field(default_factory=dict)
