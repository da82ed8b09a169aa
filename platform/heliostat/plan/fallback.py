"""On which of two groups a gang belongs: its own spot group, or that one's fallback. Pure.

A gang is never on both: its members exchange gradients with every step. While it is away it goes on asking for spot
nodes, for nothing else shows that the market gives again; once all of them are there, it returns.
"""

from __future__ import annotations

from dataclasses import dataclass

DRY_LIFE_S = 20.0
"""The autoscaler tries again every second or so. A refusal older than this is of another time."""
PATIENCE_S = 4.0
"""Less would leave for a market that refused once."""


@dataclass(frozen=True)
class Supply:
    """What was last seen of a group's market: when it refused a node (seconds since the epoch), and its words."""

    refused_at: float
    why: str = ""

    def is_dry(self, now: float) -> bool:
        return 0 <= now - self.refused_at < DRY_LIFE_S


def is_away(*, away: bool, low: int, wanted: int, at_home: int, missing_s: float, dry: bool) -> bool:
    """Whether the gang belongs on the fallback now.

    `at_home`: its members that live on its own group, without a notice. `missing_s`: for how long they have been fewer
    than `low`, what it needs to train at all. It goes only where the market refuses, and returns for all of `wanted`.
    """
    if away:
        return at_home < wanted
    return dry and at_home < low and missing_s >= PATIENCE_S
