"""The fold: facts in, GPU-seconds by hour, place, owner and class out. Pure, and in columns.

    state, facts up to a time  ->  entries, next state

Folding in pieces gives what folding at once gives, wherever it is cut. What cannot be told yet (a step under way at the
cut) is entered as unexplained and moved to its class by the next fold: such entries lie in hours before the cut, with a
minus. A node's time is, at every instant, parted so:

- starting or stopping: all of its GPUs, before it is ready and after it is told to stop;
- seats: what units hold of it, parted by their marks; where seats claim more than there is, each gets its share;
- what is left is unallocated, less what a sample says that somebody holds of whom nothing is known (unexplained). A
  node that gives no samples at all is taken at Ray's word: what no seat claims can be given away.

A node that gives samples is counted up to its last sign of life, or to its end where that is told: a machine that
vanished is not counted on. Within a tick (the time between two full marks) classes are spread evenly; ticks are
seconds to minutes, entries are hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from heliostat.meter.facts import (
    SECOND,
    Facts,
    Floats,
    Ints,
    Marks,
    NodeFact,
    Owner,
    Place,
    Samples,
    SeatFact,
    Use,
)

HOUR = 3600 * SECOND
NEVER = 2**62
SAMPLE_VALID = 180 * SECOND
"""How long a sample holds when none follows it: three of the sampler's periods."""

PENDING_LIMIT = 48 * HOUR
"""A unit that has held nothing for so long and said nothing is forgotten; its last time stays unexplained."""

RUN_LIMIT = 30 * 24 * HOUR
"""A run that resumes after a longer rest has its steps counted afresh."""

_USES = len(Use)
_SLACK = 1 + 1e-9  # thirds and sevenths of a GPU do not add up to it exactly


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
    unknown: float = 0.0  # GPUs that it says are held, and no seat claims


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


@dataclass(frozen=True)
class Entries:
    """Columns of equal length. `hour` counts since the epoch, `place` and `owner` into the lists.

    `lifetime` is the node GPU-seconds that these entries part, taken from the nodes alone.
    """

    hour: Ints
    place: NDArray[np.int32]
    owner: NDArray[np.int32]
    use: NDArray[np.int8]
    gpu_seconds: Floats
    places: tuple[Place, ...]
    owners: tuple[Owner, ...]
    lifetime: float = 0.0
    orphans: int = 0  # marks and samples of units and nodes that nothing is known of

    @property
    def places_of(self) -> list[Place]:
        return [self.places[code] for code in self.place]

    @property
    def owners_of(self) -> list[Owner]:
        return [self.owners[code] for code in self.owner]

    @property
    def total(self) -> float:
        """GPU-seconds of all classes."""
        return float(self.gpu_seconds[self.use != Use.OVERLAP].sum())


def fold(state: State, facts: Facts, *, until: int) -> tuple[Entries, State]:
    """Fold the facts of [state.until, until), in any order, duplicates or not."""
    nodes = _take_nodes(state, facts.nodes)
    seats, openings = _take_seats(state, facts.seats, nodes)
    units = _Units(state, facts.marks, openings)
    samples = _of_ready_nodes(facts.samples, nodes)
    nodes |= _last_samples(nodes, samples)
    heard = _signs_of_life(seats, units)
    horizon = {name: _horizon(node, heard.get(name, -1), until) for name, node in nodes.items()}
    held = _settle(seats, nodes, horizon)
    out = _Rows(nodes)
    out.orphans = units.unknown
    _enter_units(out, held, units)
    unknown = _enter_nodes(out, held, nodes, horizon, samples, state)
    return out.entries(), _next_state(state, nodes, horizon, unknown, seats, held, units, until)


# --- nodes and seats


def _take_nodes(state: State, facts: Iterable[NodeFact]) -> dict[str, NodeState]:
    nodes = dict(state.nodes)
    for fact in sorted(facts, key=lambda f: (f.at, f.what != "started", f.what, f.node)):
        node = nodes.get(fact.node)
        if node is None:
            if fact.what != "started":
                continue  # it was counted to its end, and this is an echo
            node = NodeState(fact.place, fact.gpus, started=fact.at, counted=fact.at)
        if fact.what != "started":
            node = replace(node, **{fact.what: min(getattr(node, fact.what), fact.at)})
        nodes[fact.node] = replace(node, alias=node.alias or fact.alias)
    return nodes


def _take_seats(
    state: State, facts: Iterable[SeatFact], nodes: Mapping[str, NodeState]
) -> tuple[list[Seat], list[tuple[str, int]]]:
    """(all seats, when a unit that held nothing began to hold something)."""
    names = {node.alias: name for name, node in nodes.items() if node.alias}
    done = [seat for seat in state.seats if seat.closed < NEVER]
    active = {seat.slot: seat for seat in state.seats if seat.closed == NEVER}
    holding: dict[str, set[str]] = {}
    for slot, seat in active.items():
        holding.setdefault(seat.unit, set()).add(slot)
    openings: list[tuple[str, int]] = []

    def close(slot: str, at: int) -> None:
        seat = active.pop(slot)
        holding[seat.unit].discard(slot)
        done.append(replace(seat, closed=max(at, seat.opened)))

    # What ends comes before what begins at the same instant.
    for fact in sorted(set(facts), key=lambda f: (f.at, f.what == "open", f.what, f.id)):
        node = names.get(fact.node, fact.node)
        if fact.what == "end":
            for slot in sorted(holding.get(fact.unit, ())):
                close(slot, fact.at)
        elif fact.what == "close":
            if fact.slot in active and active[fact.slot].unit == fact.unit:
                close(fact.slot, fact.at)
        else:
            if not holding.get(fact.unit):
                openings.append((fact.unit, fact.at))
            if fact.slot in active:
                close(fact.slot, fact.at)
            active[fact.slot] = Seat(
                fact.unit, fact.slot, node, fact.gpus, fact.owner, fact.at, steady=fact.steady
            )
            holding.setdefault(fact.unit, set()).add(fact.slot)
    return done + list(active.values()), openings


def _of_ready_nodes(samples: Samples, nodes: Mapping[str, NodeState]) -> Samples:
    ready = np.array([nodes[name].ready if name in nodes else NEVER for name in samples.nodes], dtype=np.int64)
    keep = samples.at >= ready[samples.node] if len(samples.at) else np.zeros(0, dtype=bool)
    return Samples(samples.at[keep], samples.node[keep], samples.free[keep], samples.nodes)


def _last_samples(nodes: Mapping[str, NodeState], samples: Samples) -> dict[str, NodeState]:
    last = np.full(len(samples.nodes), -1, dtype=np.int64)
    np.maximum.at(last, samples.node, samples.at)
    return {
        name: replace(nodes[name], sampled_at=at)
        for name, at in zip(samples.nodes, last.tolist(), strict=True)
        if at >= 0
    }


def _signs_of_life(seats: Sequence[Seat], units: _Units) -> dict[str, int]:
    """When those who held something of a node were last heard of."""
    heard: dict[str, int] = {}
    for seat in seats:
        if not seat.final:
            said = seat.closed if seat.closed < NEVER else max(units.heard.get(seat.unit, -1), seat.opened)
            heard[seat.node] = max(heard.get(seat.node, -1), said)
    return heard


def _horizon(node: NodeState, heard: int, until: int) -> int:
    """Up to when the node is counted."""
    if node.ended < NEVER:
        return max(node.counted, node.ended)
    if node.sampled_at < 0:
        return max(node.counted, until)
    return max(node.counted, node.sampled_at, heard)


@dataclass(frozen=True)
class _Held:
    """A seat's time on its node, settled: [start, end) with `gpus` of its own."""

    seat: Seat
    start: int
    end: int
    gpus: float


def _settle(seats: Sequence[Seat], nodes: Mapping[str, NodeState], horizon: Mapping[str, int]) -> list[_Held]:
    """Seats within their node's usable time, none of which claims what another has."""
    held = []
    of_node: dict[str, list[_Held]] = {}
    for seat in seats:
        node = nodes.get(seat.node)
        if node is None:
            continue
        if seat.final:
            held.append(_Held(seat, seat.opened, seat.closed, seat.gpus or 0.0))
            continue
        start = max(seat.opened, node.ready, node.counted)
        end = min(seat.closed, node.stopping, horizon[seat.node])
        if start < end:
            gpus = node.gpus if seat.gpus is None else min(seat.gpus, node.gpus)
            of_node.setdefault(seat.node, []).append(_Held(seat, start, end, gpus))
    for name, claims in of_node.items():
        held += _share_out(claims, nodes[name].gpus)
    return held


def _share_out(claims: list[_Held], gpus: float) -> list[_Held]:
    """The same claims where they fit; else cut at each other's ends, with shares where they claim too much."""
    if sum(claim.gpus for claim in claims) <= gpus * _SLACK:
        return claims
    steps = sorted(
        [(claim.start, claim.gpus) for claim in claims] + [(claim.end, -claim.gpus) for claim in claims]
    )
    total, worst = 0.0, 0.0
    for _, change in steps:  # ends come before starts of the same instant
        total += change
        worst = max(worst, total)
    if worst <= gpus * _SLACK:
        return claims
    cuts = sorted({at for at, _ in steps})
    shared = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        there = [claim for claim in claims if claim.start <= start and end <= claim.end]
        share = min(1.0, gpus / max(sum(claim.gpus for claim in there), 1e-12))
        shared += [_Held(claim.seat, start, end, claim.gpus * share) for claim in there]
    return shared


# --- units


class _Units:
    """The marks of this fold as ticks, in order, each with its classes."""

    def __init__(self, state: State, marks: Marks, openings: Sequence[tuple[str, int]]) -> None:
        names = list(dict.fromkeys([*marks.units, *state.since, *(unit for unit, _ in openings)]))
        self.names = names
        self.codes = {name: code for code, name in enumerate(names)}
        self.teams = list(dict.fromkeys([*marks.teams, *(team for *_, team in state.partial if team)]))
        self.since = np.array([state.since.get(name, -1) for name in names], dtype=np.int64)
        marks = _with(marks, self, state, openings)
        self.base = int(marks.at.min()) if len(marks.at) else 0
        marks = _sorted_once(marks, self.base)
        self.heard = _last_by_unit(marks, names)
        self.reached = dict(state.reached)
        use = _resolve_steps(marks, self)
        marks, use, self.unknown = self._of_known_units(marks, use, openings)
        self._make_ticks(marks, use)

    def _of_known_units(
        self, marks: Marks, use: NDArray[np.int8], openings: Sequence[tuple[str, int]]
    ) -> tuple[Marks, NDArray[np.int8], int]:
        """Without marks of units that hold nothing yet; a new unit's time begins with its first seat."""
        for unit, at in sorted(openings, key=lambda opening: -opening[1]):
            code = self.codes[unit]
            if unit not in self._known:
                self.since[code] = at
        begun = self.since[marks.unit]
        keep = (begun >= 0) & (marks.at >= begun)
        unknown = int((begun < 0).sum())
        return (marks if keep.all() else _pick(marks, keep)), use[keep], unknown

    _known: frozenset[str] = frozenset()

    def _make_ticks(self, marks: Marks, use: NDArray[np.int8]) -> None:
        full = marks.span < 0
        at, unit = marks.at[full], marks.unit[full]
        count = len(at)
        before = np.empty(count, dtype=np.int64)
        if count:
            before[1:] = at[:-1]
            first = np.ones(count, dtype=bool)
            first[1:] = unit[1:] != unit[:-1]
            before[first] = self.since[unit[first]]
        # The tick of a partial mark is that of the next full one of its unit, if there is one yet.
        partial = np.flatnonzero(~full)
        following = np.cumsum(full)[partial]
        known = following < count
        known[known] = unit[following[known]] == marks.unit[partial[known]]
        waiting = partial[~known]
        self.pending = [
            (self.names[marks.unit[i]], int(marks.at[i]), int(use[i]), int(marks.span[i]), self._team(marks.team[i]))
            for i in waiting
        ]
        partial, tick = partial[known], following[known]
        length = (at - before).astype(np.float64)
        told = np.bincount(tick, weights=marks.span[partial], minlength=count) if len(partial) else np.zeros(count)
        scale = np.where(told > length, length / np.maximum(told, 1), 1.0)
        self.tick_unit, self.tick_start, self.tick_end = unit, before, at
        rest = np.maximum(length - told, 0.0)
        beyond = np.flatnonzero(told > length)
        spans = marks.span[partial] * scale[tick] if len(partial) else np.zeros(0)
        self.part_tick = np.concatenate([np.arange(count), tick, beyond])
        self.part_use = np.concatenate([use[full], use[partial], np.full(len(beyond), Use.OVERLAP, dtype=np.int8)])
        self.part_team = np.concatenate(
            [marks.team[full], marks.team[partial], np.full(len(beyond), -1, dtype=np.int32)]
        )
        self.part_amount = np.concatenate([rest, spans, (told - length)[beyond]])
        np.maximum.at(self.since, unit, at)

    def _team(self, code: int) -> str:
        return "" if code < 0 else self.teams[code]


def _with(marks: Marks, units: _Units, state: State, openings: Sequence[tuple[str, int]]) -> Marks:
    """The marks of this fold, what the last one left over, and the openings: full marks that explain nothing."""
    units._known = frozenset(state.since)
    teams = {team: code for code, team in enumerate(units.teams)}
    rows = [
        (index, at, units.codes[unit], use, span, -1, teams.get(team, -1))
        for index, (unit, at, use, span, team) in enumerate(state.partial)
    ]
    rows += [(0, at, units.codes[unit], int(Use.UNEXPLAINED), -1, -1, -1) for unit, at in openings]
    if not rows:
        return marks
    extra = [np.array(column) for column in zip(*rows, strict=True)]
    columns = (marks.id, marks.at, marks.unit, marks.use, marks.span, marks.step, marks.team)
    joined = [np.concatenate([own, more.astype(own.dtype)]) for own, more in zip(columns, extra, strict=True)]
    return Marks(*joined, units=marks.units, teams=marks.teams)


def _pick(marks: Marks, which: NDArray[np.bool_] | NDArray[np.intp]) -> Marks:
    columns = (marks.id, marks.at, marks.unit, marks.use, marks.span, marks.step, marks.team)
    return Marks(*(column[which] for column in columns), units=marks.units, teams=marks.teams)


def _sorted_once(marks: Marks, base: int) -> Marks:
    """By unit and time, the partial marks of an instant before its full one; each mark once."""
    if not len(marks.at):
        return marks
    full = marks.span < 0
    bits = int(marks.at.max() - base).bit_length() + 1
    if bits + int(marks.unit.max()).bit_length() < 63:
        key = (marks.unit.astype(np.int64) << bits) | ((marks.at - base) << 1) | full
        order = np.argsort(key)
        ordered = key[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
    else:
        order = np.lexsort((full, marks.at, marks.unit))
        key = np.stack([marks.unit[order].astype(np.int64), marks.at[order], full[order].astype(np.int64)])
        ordered = np.cumsum(np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0)))
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(again):
        # Of the few at one instant, by id, so that the order of arrival cannot show.
        some = np.union1d(again, again + 1)
        at_once = order[some]
        inner = np.lexsort((marks.team[at_once], marks.use[at_once], marks.id[at_once], ordered[some]))
        order[some] = at_once[inner]
        ids, keys = marks.id[order[some]], ordered[some]
        repeated = np.append(False, (ids[1:] == ids[:-1]) & (keys[1:] == keys[:-1]))
        order = np.delete(order, some[repeated])
    return _pick(marks, order)


def _last_by_unit(marks: Marks, names: Sequence[str]) -> dict[str, int]:
    """Of sorted marks."""
    if not len(marks.at):
        return {}
    last = np.flatnonzero(np.append(marks.unit[1:] != marks.unit[:-1], True))
    return {names[unit]: int(at) for unit, at in zip(marks.unit[last], marks.at[last], strict=True)}


def _resolve_steps(marks: Marks, units: _Units) -> NDArray[np.int8]:
    """A step is computed again where its run had completed it before, by this attempt's predecessors."""
    use = marks.use.copy()
    steps = np.flatnonzero((marks.use == Use.TRAINING) & (marks.step >= 0))
    if not len(steps):
        return use
    runs: dict[str, int] = {}
    run_of_unit = np.array([runs.setdefault(name.rpartition("/")[0], len(runs)) for name in units.names])
    run, step = run_of_unit[marks.unit[steps]], marks.step[steps]
    # Sorted by unit; where each run has one unit only, that is by run and time already.
    changes = np.flatnonzero(np.append(True, run[1:] != run[:-1]))
    at = marks.at[steps]
    in_order = len(changes) == np.count_nonzero(np.bincount(run)) and bool(
        ((at[1:] >= at[:-1]) | (run[1:] != run[:-1])).all()
    )
    order = np.arange(len(steps)) if in_order else np.lexsort((marks.id[steps], at, run))
    run, step = run[order], step[order]
    names = list(runs)
    floor = np.array([units.reached.get(name, (0, 0))[0] for name in names], dtype=np.int64)
    # A running maximum per run: runs are lifted above one another, so that one pass does for all.
    lift = run.astype(np.int64) * (int(max(step.max(), floor.max(initial=0))) + 1)
    highest = np.maximum.accumulate(np.maximum(step, floor[run]) + lift) - lift
    before = np.empty_like(highest)
    before[1:] = highest[:-1]
    first = np.append(True, run[1:] != run[:-1])
    before[first] = floor[run[first]]
    use[steps[order][step <= before]] = Use.RECOMPUTED
    last = np.append(run[1:] != run[:-1], True)
    when = at[order][last]
    units.reached |= {names[r]: (int(h), int(t)) for r, h, t in zip(run[last], highest[last], when, strict=True)}
    return use


# --- entering


class _Cells:
    """Cuts of many timelines at once: cell i of lane k is [start, end), and starts at one of the lane's cuts."""

    def __init__(self, cuts: Sequence[NDArray[np.int64]]) -> None:
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

    def _key(self, lane: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
        return (lane.astype(np.int64) << self._bits) + (at - self._base)

    def find(self, lane: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cell in which the instant lies."""
        return np.searchsorted(self._keys, self._key(lane, at), side="right") - 1

    def spread(
        self, lane: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
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


def _cut(times: Iterable[int]) -> NDArray[np.int64]:
    """At these times, and at every hour between the first and the last."""
    points = set(times)
    return np.array(sorted(points.union(_hours(min(points), max(points)))), dtype=np.int64)


class _Rows:
    """Collects GPU-seconds; equal keys are added up in the end."""

    def __init__(self, nodes: Mapping[str, NodeState]) -> None:
        self.node_codes = {name: code for code, name in enumerate(nodes)}
        self.places = list(dict.fromkeys(node.place for node in nodes.values()))
        codes = {place: code for code, place in enumerate(self.places)}
        self.place_of_node = np.array([codes[node.place] for node in nodes.values()], dtype=np.int64)
        self.owners: dict[Owner, int] = {Owner(): 0}
        self.lifetime = 0.0
        self.orphans = 0
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []

    def owner(self, owner: Owner) -> int:
        return self.owners.setdefault(owner, len(self.owners))

    def add(
        self, at: Ints, node: NDArray[np.int64], owner: NDArray[np.int64], use: NDArray[np.int64], gpu_us: Floats
    ) -> None:
        """`at`: any instant of the hour."""
        self._parts.append((at // HOUR, ((self.place_of_node[node] << 24) + owner) * _USES + use, gpu_us))

    def entries(self) -> Entries:
        hour = np.concatenate([part[0] for part in self._parts]) if self._parts else np.zeros(0, dtype=np.int64)
        rest = np.concatenate([part[1] for part in self._parts]) if self._parts else np.zeros(0, dtype=np.int64)
        gpu_us = np.concatenate([part[2] for part in self._parts]) if self._parts else np.zeros(0)
        order = np.lexsort((rest, hour))
        hour, rest, gpu_us = hour[order], rest[order], gpu_us[order]
        if len(hour):
            first = np.flatnonzero(np.append(True, (hour[1:] != hour[:-1]) | (rest[1:] != rest[:-1])))
            hour, rest, gpu_us = hour[first], rest[first], np.add.reduceat(gpu_us, first)
        some = np.abs(gpu_us) > 0.5  # half a microsecond of a GPU: what rounding leaves
        hour, rest, gpu_us = hour[some], rest[some], gpu_us[some]
        place, owner = rest // _USES >> 24, rest // _USES & ((1 << 24) - 1)
        used, renamed = np.unique(owner, return_inverse=True)
        owners = list(self.owners)
        return Entries(
            hour,
            place.astype(np.int32),
            renamed.astype(np.int32),
            (rest % _USES).astype(np.int8),
            gpu_us / SECOND,
            tuple(self.places),
            tuple(owners[code] for code in used),
            self.lifetime,
            self.orphans,
        )


def _enter_units(out: _Rows, held: Sequence[_Held], units: _Units) -> None:
    """What units held: by their marks, or by the one class of a steady seat."""
    marked = [each for each in held if each.seat.steady is None]
    steady = [each for each in held if each.seat.steady is not None and not each.seat.final]
    for each in steady:
        _enter(out, each, each.seat.steady or Use.UNEXPLAINED)
    if not marked:
        return
    lanes = list(dict.fromkeys(each.seat.unit for each in marked))
    lane_of = {unit: lane for lane, unit in enumerate(lanes)}
    times: list[list[int]] = [[] for _ in lanes]
    for each in marked:
        times[lane_of[each.seat.unit]] += [each.start, each.end]
    cells = _Cells([_cut(lane) for lane in times])
    cell, kind, amount = _by_cell(cells, units, lane_of)

    lane = np.array([lane_of[each.seat.unit] for each in marked], dtype=np.int64)
    start = np.array([each.start for each in marked], dtype=np.int64)
    end = np.array([each.end for each in marked], dtype=np.int64)
    which, pair_cell, length = cells.spread(lane, start, end)
    node = np.array([out.node_codes[each.seat.node] for each in marked], dtype=np.int64)[which]
    gpus = np.array([each.gpus for each in marked])[which]
    live = np.array([not each.seat.final for each in marked])[which]
    owner = _owners(out, marked, units)
    # Every class that a cell has, for every seat in it.
    begin, stop = np.searchsorted(cell, pair_cell, "left"), np.searchsorted(cell, pair_cell, "right")
    counts = stop - begin
    pair = np.repeat(np.arange(len(which)), counts)
    item = begin[pair] + np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    gpu_us = amount[item] * gpus[pair]
    use = kind[item] % _USES
    at = cells.start[pair_cell]
    out.add(at[pair], node[pair], owner[which[pair], kind[item] // _USES], use, gpu_us)
    explained = np.bincount(pair, weights=np.where(use == Use.OVERLAP, 0.0, gpu_us), minlength=len(which))
    left = np.where(live, length * gpus, 0.0) - explained
    out.add(at, node, owner[which, 0], np.full(len(which), int(Use.UNEXPLAINED)), left)


def _by_cell(cells: _Cells, units: _Units, lane_of: Mapping[str, int]) -> tuple[Ints, Ints, Floats]:
    """(cell, (team + 1) * classes + class, microseconds), sorted by cell."""
    lane_of_unit = np.array([lane_of.get(name, -1) for name in units.names], dtype=np.int64)
    lane = lane_of_unit[units.tick_unit]
    start, end = units.tick_start, units.tick_end
    ok = lane >= 0
    ticks = np.flatnonzero(ok)
    which, cell, length = cells.spread(lane[ticks], start[ticks], end[ticks])
    tick = ticks[which]
    share = length / (end - start)[tick]
    # From ticks in cells to the parts of ticks in cells.
    counts = np.bincount(tick, minlength=len(start))
    offset = np.cumsum(counts) - counts
    some = np.flatnonzero((units.part_use != Use.UNEXPLAINED) & (units.part_amount > 0))
    of = units.part_tick[some]
    if len(tick) == 0 or len(some) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    repeats = counts[of]
    part = np.repeat(some, repeats)
    place = np.repeat(offset[of] - (np.cumsum(repeats) - repeats), repeats) + np.arange(len(part))
    kinds = (len(units.teams) + 1) * _USES
    kind = (units.part_team[part].astype(np.int64) + 1) * _USES + units.part_use[part]
    key = cell[place] * kinds + kind
    amount = units.part_amount[part] * share[place]
    size = len(cells.start) * kinds
    if size <= max(4_000_000, 4 * len(key)):
        sums = np.bincount(key, weights=amount, minlength=size)
        found = np.flatnonzero(sums)
        return found // kinds, found % kinds, sums[found]
    found, inverse = np.unique(key, return_inverse=True)
    return found // kinds, found % kinds, np.bincount(inverse, weights=amount)


def _owners(out: _Rows, held: Sequence[_Held], units: _Units) -> NDArray[np.int64]:
    """Codes by (held, team + 1): the owner itself, then with each team in its place."""
    distinct = list(dict.fromkeys(each.seat.owner for each in held))
    table = np.array(
        [
            [out.owner(owner), *(out.owner(replace(owner, team=team)) for team in units.teams)]
            if owner.kind == "app"
            else [out.owner(owner)] * (len(units.teams) + 1)
            for owner in distinct
        ],
        dtype=np.int64,
    )
    index = {owner: number for number, owner in enumerate(distinct)}
    return table[[index[each.seat.owner] for each in held]]


def _enter(out: _Rows, each: _Held, use: Use) -> None:
    """A seat that has one class for all of its time."""
    _enter_span(out, each.seat.node, out.owner(each.seat.owner), use, each.start, each.end, each.gpus)


def _enter_span(out: _Rows, node: str, owner: int, use: Use, start: int, end: int, gpus: float) -> None:
    if start >= end:
        return
    cuts = _cut([start, end])
    same = np.full(len(cuts) - 1, 1, dtype=np.int64)
    out.add(
        cuts[:-1], same * out.node_codes[node], same * owner, same * int(use), np.diff(cuts).astype(np.float64) * gpus
    )


def _enter_nodes(
    out: _Rows,
    held: Sequence[_Held],
    nodes: Mapping[str, NodeState],
    horizon: Mapping[str, int],
    samples: Samples,
    state: State,
) -> dict[str, float]:
    """What nobody held. Returns the GPUs that somebody unknown holds of each node, by its last sample."""
    claims: dict[str, list[_Held]] = {}
    for each in held:
        if not each.seat.final:
            claims.setdefault(each.seat.node, []).append(each)
    lanes, cuts = [], []
    for name, node in nodes.items():
        until = horizon[name]
        out.lifetime += (until - node.counted) / SECOND * node.gpus
        start, stop = max(node.counted, node.ready), min(node.stopping, until)
        _enter_span(out, name, 0, Use.STARTING, node.counted, min(node.ready, until), node.gpus)
        _enter_span(out, name, 0, Use.STARTING, max(start, stop), until, node.gpus)
        if start < stop:
            lanes.append(name)
            inner = [time for each in claims.get(name, ()) for time in (each.start, each.end)]
            cuts.append(_cut([start, stop, *inner]))
    if not lanes:
        return {}
    cells = _Cells(cuts)
    code = np.array([out.node_codes[name] for name in lanes], dtype=np.int64)
    gpus = np.array([nodes[name].gpus for name in lanes])
    length = (cells.end - cells.start).astype(np.float64)
    left = gpus[cells.lane] - _claimed(cells, lanes, claims)
    left[left < 1e-9] = 0.0
    before = [state.nodes.get(name, nodes[name]) for name in lanes]
    known = [(node.sampled_at, node.unknown) if name in state.nodes else (-1, 0.0) for name, node in zip(lanes, before, strict=True)]
    ready = [nodes[name].ready for name in lanes]
    which, cell, told, unknown, last = _evidence(cells, lanes, known, ready, left, samples)
    hidden = np.minimum(unknown[which], left[cell])
    free = np.bincount(cell, weights=(left[cell] - hidden) * told, minlength=len(length))
    owner = np.zeros(len(length), dtype=np.int64)
    for use, gpu_us in ((Use.UNALLOCATED, free), (Use.UNEXPLAINED, left * length - free)):
        out.add(cells.start, code[cells.lane], owner, np.full(len(length), int(use)), gpu_us)
    return last


def _claimed(cells: _Cells, lanes: Sequence[str], claims: Mapping[str, Sequence[_Held]]) -> Floats:
    """GPUs in seats, by cell."""
    held = [(lane, each) for lane, name in enumerate(lanes) for each in claims.get(name, ())]
    if not held:
        return np.zeros(len(cells.start))
    which, cell, _ = cells.spread(
        np.array([lane for lane, _ in held], dtype=np.int64),
        np.array([each.start for _, each in held], dtype=np.int64),
        np.array([each.end for _, each in held], dtype=np.int64),
    )
    return np.bincount(cell, weights=np.array([each.gpus for _, each in held])[which], minlength=len(cells.start))


def _evidence(
    cells: _Cells,
    lanes: Sequence[str],
    known: Sequence[tuple[int, float]],
    ready: Sequence[int],
    left: Floats,
    samples: Samples,
) -> tuple[Ints, Ints, Ints, Floats, dict[str, float]]:
    """Where something is known of what no seat claims: spread intervals, the GPUs that somebody unknown holds there.

    A sample says so until the next one, a node that is ready and was never sampled until it is.
    """
    lane_of = {name: lane for lane, name in enumerate(lanes)}
    lane_codes = np.array([lane_of.get(name, -1) for name in samples.nodes], dtype=np.int64)
    lane = lane_codes[samples.node] if len(samples.node) else np.zeros(0, dtype=np.int64)
    low, high = cells.low, cells.high
    inside = lane >= 0
    inside[inside] = (samples.at[inside] >= low[lane[inside]]) & (samples.at[inside] <= high[lane[inside]])
    lane, at, free = lane[inside], samples.at[inside], samples.free[inside]
    order = np.lexsort((free, at, lane))
    lane, at, free = lane[order], at[order], free[order]
    fresh = np.append(True, (lane[1:] != lane[:-1]) | (at[1:] != at[:-1])) if len(at) else np.zeros(0, dtype=bool)
    lane, at, free = lane[fresh], at[fresh], free[fresh]
    there = cells.find(lane, np.minimum(at, high[lane] - 1))
    unknown = np.maximum(left[there] - free, 0.0)
    unknown[unknown < 1e-9] = 0.0
    last = {lanes[k]: float(u) for k, u in zip(*_last_of(lane, unknown), strict=True)}
    # What was known before the first sample of this fold.
    endless = np.array([at < 0 for at, _ in known])
    first_at = np.where(endless, np.array(ready, dtype=np.int64), np.array([at for at, _ in known], dtype=np.int64))
    first_unknown = np.array([held for _, held in known])
    lane = np.concatenate([np.arange(len(lanes)), lane])
    at, unknown = np.concatenate([first_at, at]), np.concatenate([first_unknown, unknown])
    endless = np.concatenate([endless, np.zeros(len(at) - len(lanes), dtype=bool)])
    order = np.argsort(lane, kind="stable")  # each lane's earlier knowledge first, then its samples by time
    lane, at, unknown, endless = lane[order], at[order], unknown[order], endless[order]
    until = np.append(at[1:], NEVER)
    until[np.append(lane[1:] != lane[:-1], True)] = NEVER
    until = np.where(endless, until, np.minimum(until, at + SAMPLE_VALID))
    which, cell, told = cells.spread(lane, at, until)
    return which, cell, told, unknown, last


def _last_of(lane: Ints, unknown: Floats) -> tuple[list[int], list[float]]:
    end = np.flatnonzero(np.append(lane[1:] != lane[:-1], True)) if len(lane) else np.zeros(0, dtype=np.int64)
    return lane[end].tolist(), unknown[end].tolist()


# --- the next fold


def _next_state(
    state: State,
    nodes: Mapping[str, NodeState],
    horizon: Mapping[str, int],
    unknown: Mapping[str, float],
    seats: Sequence[Seat],
    held: Sequence[_Held],
    units: _Units,
    until: int,
) -> State:
    since = {name: int(at) for name, at in zip(units.names, units.since, strict=True) if at >= 0}
    kept: list[Seat] = []
    for each in held:  # what is entered as unexplained and may still be told
        told = max(each.start, since.get(each.seat.unit, each.start))
        if each.seat.steady is None and told < each.end and until - each.end < PENDING_LIMIT:
            kept.append(replace(each.seat, opened=told, closed=each.end, gpus=each.gpus, final=True))
    for seat in seats:
        node = nodes.get(seat.node)
        ended = node is not None and (node.ended < NEVER or node.stopping < NEVER)
        if seat.closed == NEVER and not ended and (node is not None or until - seat.opened < PENDING_LIMIT):
            kept.append(seat)
    occupied = {seat.node for seat in kept}
    alive = {}
    for name, node in nodes.items():
        if node.ended == NEVER or name in occupied:
            alive[name] = replace(node, counted=horizon[name], unknown=unknown.get(name, node.unknown))
    in_use = {seat.unit for seat in kept}
    return State(
        alive,
        tuple(kept),
        {unit: at for unit, at in since.items() if unit in in_use},
        tuple(each for each in units.pending if each[0] in in_use),
        {run: reached for run, reached in units.reached.items() if until - reached[1] < RUN_LIMIT},
        until,
    )
