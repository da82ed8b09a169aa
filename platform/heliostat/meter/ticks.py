"""Marks in order: each unit's time as ticks from one full mark to the next, with the classes of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliostat.meter.cells import sums
from heliostat.meter.facts import Marks, Use
from heliostat.meter.state import State


class Units:
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
        return (marks if keep.all() else marks.pick(keep)), use[keep], unknown

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
        following = np.cumsum(full, dtype=np.int64)[partial]
        known = following < count
        known[known] = unit[following[known]] == marks.unit[partial[known]]
        waiting = partial[~known]
        self.pending = [
            (self.names[marks.unit[i]], int(marks.at[i]), int(use[i]), int(marks.span[i]), self._team(marks.team[i]))
            for i in waiting
        ]
        partial, tick = partial[known], following[known]
        length = (at - before).astype(np.float64)
        told = sums(tick, marks.span[partial], count)
        scale = np.where(told > length, length / np.maximum(told, 1), 1.0)
        self.tick_unit, self.tick_start, self.tick_end = unit, before, at
        rest = np.maximum(length - told, 0.0)
        beyond = np.flatnonzero(told > length)
        spans = marks.span[partial] * scale[tick]
        self.part_tick = np.concatenate([np.arange(count), tick, beyond])
        self.part_use = np.concatenate([use[full], use[partial], np.full(len(beyond), Use.OVERLAP, dtype=np.int8)])
        self.part_team = np.concatenate(
            [marks.team[full], marks.team[partial], np.full(len(beyond), -1, dtype=np.int32)]
        )
        self.part_amount = np.concatenate([rest, spans, (told - length)[beyond]])
        np.maximum.at(self.since, unit, at)

    def _team(self, code: int) -> str:
        return "" if code < 0 else self.teams[code]


def _with(marks: Marks, units: Units, state: State, openings: Sequence[tuple[str, int]]) -> Marks:
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
    return Marks.from_columns(
        [np.concatenate([own, more.astype(own.dtype)]) for own, more in zip(marks.columns, extra, strict=True)],
        units=marks.units,
        teams=marks.teams,
    )


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
    return marks.pick(order)


def _last_by_unit(marks: Marks, names: Sequence[str]) -> dict[str, int]:
    """Of sorted marks."""
    if not len(marks.at):
        return {}
    last = np.flatnonzero(np.append(marks.unit[1:] != marks.unit[:-1], True))
    return {names[unit]: int(at) for unit, at in zip(marks.unit[last], marks.at[last], strict=True)}


def _resolve_steps(marks: Marks, units: Units) -> NDArray[np.int8]:
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
    first = np.append(True, run[1:] != run[:-1])
    lift = np.cumsum(first, dtype=np.int64) * (int(max(step.max(), floor.max(initial=0))) + 1)
    highest = np.maximum.accumulate(np.maximum(step, floor[run]) + lift) - lift
    before = np.empty_like(highest)
    before[1:] = highest[:-1]
    before[first] = floor[run[first]]
    use[steps[order][step <= before]] = Use.RECOMPUTED
    last = np.append(run[1:] != run[:-1], True)
    when = at[order][last]
    units.reached |= {names[r]: (int(h), int(t)) for r, h, t in zip(run[last], highest[last], when, strict=True)}
    return use
