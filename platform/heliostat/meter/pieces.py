"""A day that is folded in pieces: what was folded is kept, and only what came since is folded on. Pure.

Wherever a day is cut, the pieces add up to the same. So a ledger that is brought up every half a minute need not read
the day again each time, nor keep its events: it goes on from a piece that ends some minutes ago, and begins anew only
where somebody tells of the time before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from heliostat.events import Event
from heliostat.meter.counts import COUNTED, Counts, counts_of
from heliostat.meter.facts import SECOND, NodeFact, facts_of
from heliostat.meter.fold import Entries, fold, joined
from heliostat.meter.state import State

NodeTold = tuple[str, str, int]
"""(node, what happened to it, when): every event of a node tells again all that is known of it."""


@dataclass(frozen=True)
class Piece:
    """The time from `start` to `until`, in microseconds since the epoch."""

    start: int
    until: int
    entries: Entries
    counts: Counts
    state: State
    told: frozenset[NodeTold]
    unread: int = 0  # events of a known kind that lack what their kind must tell, in the last stretch


def empty_piece(state: State, start: int) -> Piece:
    """Nothing yet, after a day that ended with this state."""
    return Piece(start, start, Entries.none(), {}, state, frozenset())


def go_on(piece: Piece, events: Iterable[Event], until: int) -> Piece:
    """The piece and what the events tell of the time from its end to `until`. Others are passed over, but for the
    samples of power just before its end, which the first ones after it are reckoned from.
    """
    events = list(events)
    facts = facts_of(events, start=piece.until, end=until)
    entries, state = fold(piece.state, facts, until=until)
    counts = dict(piece.counts)
    for key, amount in counts_of(events, start=piece.until, end=until).items():
        counts[key] = counts.get(key, 0.0) + amount
    told = piece.told | _told(facts.nodes)
    return Piece(piece.start, until, joined([piece.entries, entries]), counts, state, told, facts.unread)


def is_late(events: Iterable[Event], *, start: int, end: int, told: Set[NodeTold]) -> bool:
    """Whether any of them tells of [start, end) what a fold of it, to which `told` was told, did not know."""
    events = list(events)
    facts = facts_of(events, start=start, end=end)
    if len(facts.seats) or len(facts.marks.at) or len(facts.samples.at) or not _told(facts.nodes) <= told:
        return True
    return any(event.kind in COUNTED and start <= event.time_s * SECOND < end for event in events)


def _told(nodes: Iterable[NodeFact]) -> frozenset[NodeTold]:
    return frozenset((fact.node, fact.what, fact.at) for fact in nodes)
