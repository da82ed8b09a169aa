"""What one fold of the ledger leaves for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from heliostat.meter.facts import Owner, Place, Use

NEVER = 2**62
"""Later than any time, in microseconds."""


@dataclass(frozen=True)
class NodeState:
    place: Place
    gpus: float
    started: int
    counted: int  # all before it is in the entries
    ready: int = NEVER
    stopping: int = NEVER
    ended: int = NEVER
    alias: str = ""
    sampled_at: int = -1  # the last sample, -1: none so far
    free: float = 0.0  # what it said
    share: float = 1.0  # of a whole device that one of `gpus` is
    unknown: float | None = None  # GPUs held by then and in no seat; None: not reckoned yet, for nothing after it was


@dataclass(frozen=True)
class Seat:
    """Open where `closed` is NEVER. `final`: entered as unexplained, with its share of the node settled."""

    unit: str
    slot: str
    node: str
    gpus: float | None
    owner: Owner
    opened: int
    closed: int = NEVER
    steady: Use | None = None
    final: bool = False


@dataclass(frozen=True)
class State:
    """What a fold leaves for the next one."""

    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    seats: tuple[Seat, ...] = ()
    since: Mapping[str, int] = field(default_factory=dict)  # of each unit, its last full mark
    partial: tuple[tuple[str, int, int, int, str], ...] = ()  # (unit, at, use, span, team) after it
    reached: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of each run: (highest step, when)
    until: int = 0
