"""Spot traces: how many nodes could be had, tick by tick. Read, written, recorded, generated, cut into windows.

One JSON file is one zone: `{"metadata": {"gap_seconds": 300}, "data": [1, 1, 0, ...]}`; data[i] holds from tick i to
the next. That is the form of the traces published with "Can't Be Late" (Wu et al., NSDI 2024); their names say more:
`<kind>_<nodes>-node_<cloud>-<start date>_<zone>_<gpu>_<gpus per node>.json`. Files written here say it in the metadata
as well: `kind`, `nodes`, `start`. Other names are taken too.

kind `availability`: nodes that could be had. kind `preemption`: nodes that were running, so that a 0 may also mean that
nobody asked for one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import UsageError
from heliostat.events import Event
from heliostat.plan.policy.deadline import Spell

SHORTEST_TICK_S = 60
"""Shorter ticks are merged: nobody moves a job every few seconds."""
AVAILABILITY, PREEMPTION = "availability", "preemption"

_NAME = re.compile(r"(?P<kind>[a-z]+)_(?P<nodes>\d+)-node_[a-z0-9]+-(?P<start>\d\d-\d\d-\d{4})_.+")


@dataclass(frozen=True, eq=False)
class Trace:
    """One zone over time."""

    name: str
    kind: str
    nodes: int
    """The most that were asked for."""
    tick_s: int
    counts: NDArray[np.int64]
    """[ticks] nodes that could be had, or that ran, by kind."""
    start: str | None = None
    """When the first tick was, as its source wrote it; traces of one clock have the same."""

    @property
    def seconds(self) -> int:
        return len(self.counts) * self.tick_s

    def up(self, nodes: int) -> NDArray[np.bool_]:
        """[ticks] whether a gang of so many nodes could be had whole."""
        return self.counts >= nodes


@dataclass(frozen=True)
class Window:
    """A stretch of a trace for one job, and what a recorder would know of the time before it, oldest first."""

    trace: str
    first_tick: int
    tick_s: int
    up: tuple[bool, ...]
    before: tuple[Spell, ...] = ()

    def forgotten(self) -> Window:
        """The same without what was before."""
        return Window(self.trace, self.first_tick, self.tick_s, self.up)


@dataclass(frozen=True)
class Skipped:
    """A file that holds no trace."""

    name: str
    why: str


def read_trace(path: Path) -> Trace:
    """One file; ticks shorter than `SHORTEST_TICK_S` merged. Raises UsageError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"not a readable JSON file: {error}", where=str(path), do="give a spot trace") from error
    try:
        return _coarse(_parse(path.stem, value))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"not a spot trace: {error}",
            where=str(path),
            do='write {"metadata": {"gap_seconds": 300}, "data": [1, 0, ...]}',
        ) from error


def read_folder(folder: Path) -> tuple[list[Trace], list[Skipped]]:
    """Every trace among the folder's .json files, by name, and the files that hold none, with the reason."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", do="give a folder of spot traces, one JSON file per zone")
    traces, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            traces.append(read_trace(path))
        except UsageError as error:
            skipped.append(Skipped(path.name, error.what))
    return traces, skipped


def write_trace(trace: Trace, path: Path) -> None:
    """In the form that `read_trace` reads."""
    metadata = {"gap_seconds": trace.tick_s, "kind": trace.kind, "nodes": trace.nodes, "start": trace.start}
    path.write_text(json.dumps({"metadata": metadata, "data": trace.counts.tolist()}))


def _parse(name: str, value: Any) -> Trace:  # Any: what JSON holds
    """Raises ValueError, with what is wrong."""
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        raise ValueError("no metadata")
    metadata, data, named = value["metadata"], value.get("data"), _NAME.fullmatch(name)
    gap = metadata.get("gap_seconds")
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not (math.isfinite(gap) and round(gap) >= 1):
        raise ValueError(f"metadata.gap_seconds is {gap!r}, not a number of seconds from 1")
    if not isinstance(data, list) or not data:
        raise ValueError("data is not a list of counts")
    wrong = next((x for x in data if not isinstance(x, int | float) or not 0 <= x < 2**31), None)
    if wrong is not None or None in data:
        raise ValueError(f"data holds {wrong!r}, not a count of nodes")
    counts = np.array(data, dtype=np.float64).astype(np.int64)
    nodes = metadata.get("nodes") or (int(named["nodes"]) if named else 0)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0:
        raise ValueError(f"metadata.nodes is {nodes!r}, not a count of nodes")
    return Trace(
        name=name,
        kind=str(metadata.get("kind") or (named["kind"] if named else AVAILABILITY)),
        nodes=nodes or max(1, int(counts.max())),
        tick_s=round(gap),
        counts=counts,
        start=metadata.get("start") or (named["start"] if named else None),
    )


def _coarse(trace: Trace) -> Trace:
    """Ticks merged to `SHORTEST_TICK_S` or more; a merged tick has what all of its ticks had."""
    if trace.tick_s >= SHORTEST_TICK_S:
        return trace
    by = min(-(-SHORTEST_TICK_S // trace.tick_s), len(trace.counts))
    whole = len(trace.counts) // by * by
    counts = trace.counts[:whole].reshape(-1, by).min(axis=1)
    return Trace(trace.name, trace.kind, trace.nodes, trace.tick_s * by, counts, trace.start)


def spells(up: NDArray[np.bool_], tick_s: int) -> list[Spell]:
    """The stretches of equal value, in order."""
    if not len(up):
        return []
    edges = np.concatenate([[0], np.flatnonzero(up[1:] != up[:-1]) + 1, [len(up)]])
    lengths = np.diff(edges) * tick_s
    return [Spell(bool(up[at]), float(s)) for at, s in zip(edges[:-1], lengths, strict=True)]


def cut(trace: Trace, *, seconds: float, stride_s: float, nodes: int) -> Iterator[Window]:
    """All windows of that length, one each stride (at least a tick), first to last; none if the trace is shorter."""
    up = trace.up(nodes)
    ticks = math.ceil(seconds / trace.tick_s)
    for first in range(0, len(up) - ticks + 1, max(1, int(stride_s // trace.tick_s))):
        before = tuple(spells(up[:first], trace.tick_s))
        yield Window(trace.name, first, trace.tick_s, tuple(up[first : first + ticks].tolist()), before)


@dataclass(frozen=True)
class Climate:
    """What `generate` draws from: spells with these means and a log-normal spread, and a day that favours the night."""

    mean_up_h: float = 4.0
    mean_down_h: float = 1.5
    spread: float = 1.2
    """Sigma of the logarithm: 0 is a clock, 1.2 many short spells and a few long ones."""
    day_swing: float = 0.3
    """Up spells that begin at noon are shorter by this share, at midnight longer; 0 for no day."""

    def __post_init__(self) -> None:
        if min(self.mean_up_h, self.mean_down_h) <= 0 or self.spread < 0 or not 0 <= self.day_swing < 1:
            raise UsageError(f"{self} cannot be", do="means above 0, a spread from 0, a day's swing from 0 to below 1")


def generate(
    seed: int, *, days: float = 14.0, tick_s: int = 300, nodes: int = 1, climate: Climate | None = None
) -> Trace:
    """A trace drawn with a seed: the same arguments give the same trace. It starts at midnight."""
    climate = climate or Climate()
    random = np.random.default_rng(seed)
    ticks = max(1, round(days * 86400 / tick_s))
    up = np.zeros(ticks, dtype=bool)
    share = climate.mean_up_h / (climate.mean_up_h + climate.mean_down_h)
    at, state = 0, bool(random.random() < share)
    while at < ticks:
        mean_h = climate.mean_up_h if state else climate.mean_down_h
        if state:
            mean_h *= 1 + climate.day_swing * math.cos(2 * math.pi * at * tick_s / 86400)
        length_h = random.lognormal(math.log(mean_h) - climate.spread**2 / 2, climate.spread)
        until = at + max(1, round(length_h * 3600 / tick_s))
        up[at:until] = state
        at, state = until, not state
    return Trace(f"generated-{seed}", AVAILABILITY, nodes, tick_s, up.astype(np.int64) * nodes)


def record(events: Iterable[Event], *, group: str, tick_s: int = 300, until: float) -> Trace:
    """One's own reclaims as a trace: how many spot nodes of a worker group were ready, tick by tick, up to `until`.

    Reads the events node_started, node_ready and node_ended; times are in seconds since the epoch. The kind is
    `preemption`: a 0 says that none ran, not that none could be had. Raises UsageError where there was no spot node.
    """
    lives: dict[str, tuple[float, float]] = {}
    for event in events:
        fields = event.fields
        if event.kind not in ("node_ready", "node_ended") or fields.get("group") != group or fields["market"] != "spot":
            continue
        if fields.get("ready_at") is not None:
            ended = fields.get("ended_at")
            lives[fields["node"]] = (fields["ready_at"], until if ended is None else ended)
    if not lives:
        raise UsageError(f"no spot node of group {group!r} was ever ready", do="record a group that has run on spot")
    first = min(ready for ready, _ in lives.values())
    moments = first + tick_s * np.arange(max(1, math.ceil((until - first) / tick_s)))
    counts = sum((moments >= ready) & (moments < ended) for ready, ended in lives.values()) + np.zeros(
        len(moments), int
    )
    start = np.datetime_as_string(np.datetime64(int(first), "s"), timezone="UTC")
    return Trace(group, PREEMPTION, max(1, int(counts.max())), tick_s, counts.astype(np.int64), str(start))
