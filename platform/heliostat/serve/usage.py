"""What a replica did since it last told: seconds of answering by team, and what was asked of it. For the meter. Pure.

The seconds are those in which the model ran. They are parted among teams by the tokens each asked for, and never told
beyond the time there was: a batch that runs across two tellings counts in the second with what is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from heliostat.inference.load import Load
from heliostat.serve.endpoint import Counts, TeamUse

NOBODY = ""
"""The team of a key, or of a caller, that has none."""


@dataclass(frozen=True)
class Told:
    """The sums up to a moment."""

    at: float  # seconds since the epoch
    forward_s: float = 0.0
    requests: int = 0
    tokens: int = 0
    teams: Mapping[str, TeamUse] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """From one telling to the next."""

    busy_s: dict[str, float]
    asked: dict[str, dict[str, int]]  # requests, items and tokens by team

    @property
    def any(self) -> bool:
        return bool(self.busy_s or self.asked)


def sums(load: Load, counts: Counts, at: float, *, before: Told) -> Told:
    """As they are now. `at` of the telling, its seconds no more than the time since the one before."""
    forward = load.forward_s if load.forward_s >= before.forward_s else before.forward_s + load.forward_s
    told = min(forward, before.forward_s + max(0.0, at - before.at))
    teams = {team: TeamUse(use.requests, use.items, use.tokens) for team, use in list(counts.teams.items())}
    return Told(at, told, counts.requests, max(load.tokens, before.tokens), teams)


def between(before: Told, now: Told) -> Use:
    asked = {team: _less(use, before.teams.get(team, TeamUse())) for team, use in now.teams.items()}
    known = sum(use.requests for use in asked.values()), sum(use.tokens for use in asked.values())
    rest = TeamUse(max(0, now.requests - before.requests - known[0]))
    if rest.requests:
        rest.tokens = max(0, now.tokens - before.tokens - known[1])
        asked[NOBODY] = rest
    asked = {team: use for team, use in asked.items() if use.requests}
    seconds = now.forward_s - before.forward_s
    return Use(
        _parted(seconds, asked),
        {team: {"requests": use.requests, "items": use.items, "tokens": use.tokens} for team, use in asked.items()},
    )


def _parted(seconds: float, asked: Mapping[str, TeamUse]) -> dict[str, float]:
    if seconds <= 0:
        return {}
    weights = {team: use.tokens or use.items or use.requests for team, use in asked.items()}
    whole = sum(weights.values())
    if not whole:
        return {NOBODY: round(seconds, 6)}  # it ran for nobody that has been answered yet
    return {team: round(seconds * weight / whole, 6) for team, weight in weights.items()}


def _less(use: TeamUse, before: TeamUse) -> TeamUse:
    return TeamUse(use.requests - before.requests, use.items - before.items, use.tokens - before.tokens)
