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

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heliostat.meter.cells import HOUR, Cells, cut, sums
from heliostat.meter.facts import SECOND, Facts, Floats, Ints, NodeFact, Owner, Place, Samples, SeatFact, Use
from heliostat.meter.state import NEVER, NodeState, Seat, State
from heliostat.meter.ticks import Units

SAMPLE_VALID = 180 * SECOND
"""How long a sample holds when none follows it: three of the sampler's periods."""

PENDING_LIMIT = 48 * HOUR
"""A unit that has held nothing for so long and said nothing is forgotten; its last time stays unexplained."""

RUN_LIMIT = 30 * 24 * HOUR
"""A run that resumes after a longer rest has its steps counted afresh."""

_USES = len(Use)
_NEW = NodeState(Place(), 0.0, started=0, counted=0)
_SLACK = 1 + 1e-9  # thirds and sevenths of a GPU do not add up to it exactly


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

    @classmethod
    def none(cls) -> Entries:
        return _added_up(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), (), ())

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


def joined(parts: Sequence[Entries]) -> Entries:
    """Entries of one stretch of time after the other as entries of all of it: what a later one moves is moved."""
    places: dict[Place, int] = {}
    owners: dict[Owner, int] = {}
    keys = []
    for part in parts:
        place = np.array([places.setdefault(each, len(places)) for each in part.places], dtype=np.int64)
        owner = np.array([owners.setdefault(each, len(owners)) for each in part.owners], dtype=np.int64)
        keys.append(_key(place[part.place], owner[part.owner], part.use) if len(part.hour) else part.hour)
    return replace(
        _added_up(
            np.concatenate([part.hour for part in parts]),
            np.concatenate(keys),
            np.concatenate([part.gpu_seconds for part in parts]) * SECOND,
            tuple(places),
            tuple(owners),
        ),
        lifetime=sum(part.lifetime for part in parts),
        orphans=sum(part.orphans for part in parts),
    )


def fold(state: State, facts: Facts, *, until: int) -> tuple[Entries, State]:
    """Fold the facts of [state.until, until), in any order, duplicates or not."""
    nodes = _take_nodes(state, facts.nodes)
    seats, openings = _take_seats(state, facts.seats, nodes)
    units = Units(state, facts.marks, openings)
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
            node = NodeState(fact.place, fact.gpus, started=fact.at, counted=fact.at, share=fact.share)
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

    def close_all(end: tuple[int, str]) -> None:
        for slot in [slot for slot, seat in active.items() if seat.node == end[1]]:
            close(slot, end[0])

    def open_(fact: SeatFact) -> None:
        name = names.get(fact.node, fact.node)
        node = nodes.get(name)
        if node is None or not node.started <= fact.at < min(node.stopping, node.ended):
            return  # on a node that was not there
        if not holding.get(fact.unit):
            openings.append((fact.unit, fact.at))
        if fact.slot in active:
            close(fact.slot, fact.at)
        active[fact.slot] = Seat(fact.unit, fact.slot, name, fact.gpus, fact.owner, fact.at, steady=fact.steady)
        holding.setdefault(fact.unit, set()).add(fact.slot)

    gone = [(min(node.stopping, node.ended), name) for name, node in nodes.items()]
    ends = iter(sorted(end for end in gone if end[0] < NEVER))
    next_end = next(ends, None)
    # What ends comes before what begins at the same instant.
    for fact in sorted(set(facts), key=lambda f: (f.at, f.what == "open", f.what, f.id)):
        while next_end is not None and next_end[0] <= fact.at:
            close_all(next_end)
            next_end = next(ends, None)
        if fact.what == "end":
            for unit in [fact.unit] if "/" in fact.unit else [each for each in holding if _run_of(each) == fact.unit]:
                for slot in sorted(holding.get(unit, ())):
                    close(slot, fact.at)
        elif fact.what == "close":
            if fact.slot in active and active[fact.slot].unit == fact.unit:
                close(fact.slot, fact.at)
        else:
            open_(fact)
    for end in [] if next_end is None else [next_end, *ends]:
        close_all(end)
    return done + list(active.values()), openings


def _run_of(unit: str) -> str:
    return unit.partition("/")[0]


def _of_ready_nodes(samples: Samples, nodes: Mapping[str, NodeState]) -> Samples:
    ready = np.array([nodes[name].ready if name in nodes else NEVER for name in samples.nodes], dtype=np.int64)
    keep = samples.at >= ready[samples.node] if len(samples.at) else np.zeros(0, dtype=bool)
    return Samples(samples.at[keep], samples.node[keep], samples.free[keep], samples.nodes)


def _last_samples(nodes: Mapping[str, NodeState], samples: Samples) -> dict[str, NodeState]:
    """Of what was said twice of one instant the lower figure counts, here and in `_evidence`."""
    last = np.full(len(samples.nodes), -1, dtype=np.int64)
    np.maximum.at(last, samples.node, samples.at)
    newest = np.flatnonzero(samples.at == last[samples.node])
    free = np.full(len(samples.nodes), np.inf)
    np.minimum.at(free, samples.node[newest], samples.free[newest])
    return {
        name: replace(nodes[name], sampled_at=at, free=said, unknown=None)
        for name, at, said in zip(samples.nodes, last.tolist(), free.tolist(), strict=True)
        if at >= 0
    }


def _signs_of_life(seats: Sequence[Seat], units: Units) -> dict[str, int]:
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
    steps = sorted([(claim.start, claim.gpus) for claim in claims] + [(claim.end, -claim.gpus) for claim in claims])
    total, worst = 0.0, 0.0
    for _, change in steps:  # ends come before starts of the same instant
        total += change
        worst = max(worst, total)
    if worst <= gpus * _SLACK:
        return claims
    times = sorted({at for at, _ in steps})
    shared = []
    for start, end in itertools.pairwise(times):
        there = [claim for claim in claims if claim.start <= start and end <= claim.end]
        share = min(1.0, gpus / max(sum(claim.gpus for claim in there), 1e-12))
        shared += [_Held(claim.seat, start, end, claim.gpus * share) for claim in there]
    return shared


# --- entering


class _Rows:
    """Collects GPU-seconds; equal keys are added up in the end."""

    def __init__(self, nodes: Mapping[str, NodeState]) -> None:
        self.node_codes = {name: code for code, name in enumerate(nodes)}
        self.places = list(dict.fromkeys(node.place for node in nodes.values()))
        codes = {place: code for code, place in enumerate(self.places)}
        self.place_of_node = np.array([codes[node.place] for node in nodes.values()], dtype=np.int64)
        self.share_of_node = np.array([node.share for node in nodes.values()])
        self.owners: dict[Owner, int] = {Owner(): 0}
        self.lifetime = 0.0
        self.orphans = 0
        self._parts: list[tuple[Ints, Ints, Floats]] = []

    def owner(self, owner: Owner) -> int:
        return self.owners.setdefault(owner, len(self.owners))

    def add(self, at: Ints, node: Ints, owner: Ints, use: Ints, gpu_us: Floats) -> None:
        """`at`: any instant of the hour."""
        key = _key(self.place_of_node[node], owner, use)
        self._parts.append((at // HOUR, key, gpu_us * self.share_of_node[node]))

    def entries(self) -> Entries:
        hour = np.concatenate([part[0] for part in self._parts]) if self._parts else np.zeros(0, dtype=np.int64)
        key = np.concatenate([part[1] for part in self._parts]) if self._parts else np.zeros(0, dtype=np.int64)
        gpu_us = np.concatenate([part[2] for part in self._parts]) if self._parts else np.zeros(0)
        entries = _added_up(hour, key, gpu_us, tuple(self.places), tuple(self.owners))
        return replace(entries, lifetime=self.lifetime, orphans=self.orphans)


def _key(place: Ints, owner: Ints, use: Ints | NDArray[np.int8]) -> Ints:
    return ((place << 24) + owner) * _USES + use


def _added_up(hour: Ints, key: Ints, gpu_us: Floats, places: tuple[Place, ...], owners: tuple[Owner, ...]) -> Entries:
    """Rows of an equal hour and key as one, without those that come to nothing and the owners that have none."""
    order = np.lexsort((key, hour))
    hour, key, gpu_us = hour[order], key[order], gpu_us[order]
    if len(hour):
        first = np.flatnonzero(np.append(True, (hour[1:] != hour[:-1]) | (key[1:] != key[:-1])))
        hour, key, gpu_us = hour[first], key[first], np.add.reduceat(gpu_us, first)
    some = np.abs(gpu_us) > 0.5  # half a microsecond of a GPU: what rounding leaves
    hour, key, gpu_us = hour[some], key[some], gpu_us[some]
    place, owner = key // _USES >> 24, key // _USES & ((1 << 24) - 1)
    used, renamed = np.unique(owner, return_inverse=True)
    return Entries(
        hour,
        place.astype(np.int32),
        renamed.astype(np.int32),
        (key % _USES).astype(np.int8),
        gpu_us / SECOND,
        places,
        tuple(owners[code] for code in used),
    )


def _enter_units(out: _Rows, held: Sequence[_Held], units: Units) -> None:
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
    cells = Cells([cut(lane) for lane in times])
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
    explained = sums(pair, np.where(use == Use.OVERLAP, 0.0, gpu_us), len(which))
    left = np.where(live, length * gpus, 0.0) - explained
    out.add(at, node, owner[which, 0], np.full(len(which), int(Use.UNEXPLAINED)), left)


def _by_cell(cells: Cells, units: Units, lane_of: Mapping[str, int]) -> tuple[Ints, Ints, Floats]:
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
        all_sums = sums(key, amount, size)
        found = np.flatnonzero(all_sums)
        return found // kinds, found % kinds, all_sums[found]
    found, inverse = np.unique(key, return_inverse=True)
    return found // kinds, found % kinds, sums(inverse, amount, len(found))


def _owners(out: _Rows, held: Sequence[_Held], units: Units) -> Ints:
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
    cuts = cut([start, end])
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
) -> dict[str, tuple[int, float]]:
    """What nobody held. Returns of each node the last sample reckoned with: (when, GPUs held by nobody known)."""
    claims: dict[str, list[_Held]] = {}
    for each in held:
        if not each.seat.final:
            claims.setdefault(each.seat.node, []).append(each)
    lanes, cuts = [], []
    for name, node in nodes.items():
        until = horizon[name]
        out.lifetime += (until - node.counted) / SECOND * node.gpus * node.share
        start, stop = max(node.counted, node.ready), min(node.stopping, until)
        _enter_span(out, name, 0, Use.STARTING, node.counted, min(node.ready, until), node.gpus)
        _enter_span(out, name, 0, Use.STARTING, max(start, stop), until, node.gpus)
        if start < stop:
            lanes.append(name)
            inner = [time for each in claims.get(name, ()) for time in (each.start, each.end)]
            cuts.append(cut([start, stop, *inner]))
    if not lanes:
        return {}
    cells = Cells(cuts)
    code = np.array([out.node_codes[name] for name in lanes], dtype=np.int64)
    gpus = np.array([nodes[name].gpus for name in lanes])
    length = (cells.end - cells.start).astype(np.float64)
    left = gpus[cells.lane] - _claimed(cells, lanes, claims)
    left[left < 1e-9] = 0.0
    known = [state.nodes.get(name, _NEW) for name in lanes]
    ready = [nodes[name].ready for name in lanes]
    which, cell, told, unknown, last = _evidence(cells, lanes, known, ready, left, samples)
    hidden = np.minimum(unknown[which], left[cell])
    free = sums(cell, (left[cell] - hidden) * told, len(length))
    owner = np.zeros(len(length), dtype=np.int64)
    for use, gpu_us in ((Use.UNALLOCATED, free), (Use.UNEXPLAINED, left * length - free)):
        out.add(cells.start, code[cells.lane], owner, np.full(len(length), int(use)), gpu_us)
    return last


def _claimed(cells: Cells, lanes: Sequence[str], claims: Mapping[str, Sequence[_Held]]) -> Floats:
    """GPUs in seats, by cell."""
    held = [(lane, each) for lane, name in enumerate(lanes) for each in claims.get(name, ())]
    if not held:
        return np.zeros(len(cells.start))
    which, cell, _ = cells.spread(
        np.array([lane for lane, _ in held], dtype=np.int64),
        np.array([each.start for _, each in held], dtype=np.int64),
        np.array([each.end for _, each in held], dtype=np.int64),
    )
    return sums(cell, np.array([each.gpus for _, each in held])[which], len(cells.start))


def _evidence(
    cells: Cells,
    lanes: Sequence[str],
    known: Sequence[NodeState],
    ready: Sequence[int],
    left: Floats,
    samples: Samples,
) -> tuple[Ints, Ints, Ints, Floats, dict[str, tuple[int, float]]]:
    """Where something is known of what no seat claims: spread intervals, the GPUs that somebody unknown holds there.

    A sample says so until the next one, a node that is ready and was never sampled until it is.
    """
    lane_of = {name: lane for lane, name in enumerate(lanes)}
    lane_codes = np.array([lane_of.get(name, -1) for name in samples.nodes], dtype=np.int64)
    lane = lane_codes[samples.node] if len(samples.node) else np.zeros(0, dtype=np.int64)
    low, high = cells.low, cells.high
    inside = lane >= 0
    inside[inside] = (samples.at[inside] >= low[lane[inside]]) & (samples.at[inside] < high[lane[inside]])
    lane, at, free = lane[inside], samples.at[inside], samples.free[inside]
    lane, at, free = _by_instant(lane, at, free)
    unknown = _unknown(left[cells.find(lane, at)], free)
    # What was known before the first sample of this fold.
    endless = np.array([node.sampled_at < 0 for node in known])
    first_at = np.array(
        [at if node.sampled_at < 0 else node.sampled_at for node, at in zip(known, ready, strict=True)], dtype=np.int64
    )
    reckoned = _unknown(left[cells.find(np.arange(len(lanes)), low)], np.array([node.free for node in known]))
    first_unknown = np.array(
        [
            0.0 if node.sampled_at < 0 else now if node.unknown is None else node.unknown
            for node, now in zip(known, reckoned.tolist(), strict=True)
        ]
    )
    lane = np.concatenate([np.arange(len(lanes)), lane])
    at, unknown = np.concatenate([first_at, at]), np.concatenate([first_unknown, unknown])
    endless = np.concatenate([endless, np.zeros(len(at) - len(lanes), dtype=bool)])
    order = np.argsort(lane, kind="stable")  # each lane's earlier knowledge first, then its samples by time
    lane, at, unknown, endless = lane[order], at[order], unknown[order], endless[order]
    until = np.append(at[1:], NEVER)
    until[np.append(lane[1:] != lane[:-1], True)] = NEVER
    until = np.where(endless, until, np.minimum(until, at + SAMPLE_VALID))
    which, cell, told = cells.spread(lane, at, until)
    end = np.flatnonzero(np.append(lane[1:] != lane[:-1], True))
    last = {lanes[lane[i]]: (int(at[i]), float(unknown[i])) for i in end if not endless[i]}
    return which, cell, told, unknown, last


def _by_instant(lane: Ints, at: Ints, free: Floats) -> tuple[Ints, Ints, Floats]:
    """By lane and time, each instant once."""
    if not len(at):
        return lane, at, free
    base = at.min()
    key = (lane << int(at.max() - base).bit_length()) + (at - base)
    order = np.argsort(key)
    key = key[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return lane[order][first], at[order][first], np.minimum.reduceat(free[order], first)


def _unknown(left: Floats, free: Floats) -> Floats:
    """GPUs that no seat claims, and that are not free either."""
    unknown = np.maximum(left - free, 0.0)
    unknown[unknown < 1e-9] = 0.0
    return unknown


# --- the next fold


def _next_state(
    state: State,
    nodes: Mapping[str, NodeState],
    horizon: Mapping[str, int],
    unknown: Mapping[str, tuple[int, float]],
    seats: Sequence[Seat],
    held: Sequence[_Held],
    units: Units,
    until: int,
) -> State:
    since = {name: int(at) for name, at in zip(units.names, units.since, strict=True) if at >= 0}
    kept: list[Seat] = []
    for each in held:  # what is entered as unexplained and may still be told
        told = max(each.start, since.get(each.seat.unit, each.start))
        if each.seat.steady is None and told < each.end and until - each.end < PENDING_LIMIT:
            kept.append(replace(each.seat, opened=told, closed=each.end, gpus=each.gpus, final=True))
    kept += [seat for seat in seats if seat.closed == NEVER]
    in_use = {seat.unit for seat in kept}
    occupied = {seat.node for seat in kept}
    alive = {}
    for name, node in nodes.items():
        if node.ended == NEVER or name in occupied:
            when, held_unknown = unknown.get(name, (-1, 0.0))
            known = held_unknown if when == node.sampled_at >= 0 else node.unknown
            alive[name] = replace(node, counted=horizon[name], unknown=known)
    return State(
        alive,
        tuple(kept),
        {unit: at for unit, at in since.items() if unit in in_use},
        tuple(each for each in units.pending if each[0] in in_use),
        {run: reached for run, reached in units.reached.items() if until - reached[1] < RUN_LIMIT},
        until,
    )
