"""A first reckoning of GPU-seconds by worker group and market, folded from events. Pure.

Each node's time from start to end lies in one of three classes: starting (until its raylet has registered), working
(a training worker or a replica held its GPUs), idle. The fine classes come with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heliostat.events import Event


@dataclass(frozen=True)
class Interval:
    """Half open, in seconds since the epoch."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start)


@dataclass(frozen=True)
class GroupUse:
    """GPU-seconds of one worker group; `held` is the sum of the other three."""

    group: str
    market: str
    nodes: int
    held: float
    starting: float
    working: float
    idle: float


@dataclass(frozen=True)
class StepCount:
    """Steps of one run: completed ones, and those that were completed more than once because of a loss."""

    run: str
    completed: int
    recomputed: int
    reclaims: int


def reckon(events: Iterable[Event], *, now: float) -> list[GroupUse]:
    """One row per group and market; nodes that have not ended are counted up to `now`."""
    events = list(events)
    nodes = _nodes(events, now)
    busy = _busy(events, nodes)
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for node in nodes.values():
        starting = Interval(node.life.start, node.ready_at).seconds * node.gpus
        working = total(union(busy.get(node.name, []))) * node.gpus
        held = node.life.seconds * node.gpus
        rows.setdefault((node.group, node.market), []).append((held, starting, working))
    return [
        GroupUse(
            group=group,
            market=market,
            nodes=len(parts),
            held=sum(part[0] for part in parts),
            starting=sum(part[1] for part in parts),
            working=sum(part[2] for part in parts),
            idle=sum(held - starting - working for held, starting, working in parts),
        )
        for (group, market), parts in sorted(rows.items())
    ]


def count_steps(events: Iterable[Event]) -> list[StepCount]:
    seen: dict[str, list[int]] = {}
    left: dict[str, set[str]] = {}
    for event in events:
        run = str(event.fields.get("run", ""))
        if event.kind == "step":
            seen.setdefault(run, []).append(int(event.fields["step"]))
        if event.kind == "train_resumed":
            left.setdefault(run, set()).add(str(event.fields["attempt"]))
    return [
        StepCount(run, len(set(steps)), len(steps) - len(set(steps)), len(left.get(run, ())))
        for run, steps in seen.items()
    ]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda i: i.start):
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        elif interval.seconds > 0:
            merged.append(interval)
    return merged


def total(intervals: Iterable[Interval]) -> float:
    return sum(interval.seconds for interval in intervals)


@dataclass(frozen=True)
class _Node:
    name: str
    group: str
    market: str
    gpus: float
    life: Interval
    ready_at: float


def _nodes(events: list[Event], now: float) -> dict[str, _Node]:
    latest: dict[str, dict[str, object]] = {}
    for event in events:
        if event.kind in ("node_started", "node_ready", "node_ended", "reclaimed"):
            known = {key: value for key, value in event.fields.items() if value is not None}
            latest.setdefault(str(event.fields["node"]), {}).update(known)
    return {name: _node(name, fields, now) for name, fields in latest.items()}


def _node(name: str, fields: dict[str, object], now: float) -> _Node:
    started = _number(fields["started_at"])
    ended = _number(fields.get("ended_at", now))
    ready = min(_number(fields.get("ready_at", ended)), ended)
    return _Node(
        name, str(fields["group"]), str(fields["market"]), _number(fields["gpus"]), Interval(started, ended), ready
    )


def _busy(events: list[Event], nodes: dict[str, _Node]) -> dict[str, list[Interval]]:
    """When a training worker or a replica held each node's GPUs.

    A worker that was killed says no goodbye: it ends with the next worker on its node, with its run, or with the node.
    """
    opened: dict[tuple[str, str], float] = {}  # (node, who) -> since
    busy: dict[str, list[Interval]] = {}

    def close(key: tuple[str, str], at: float) -> None:
        if key in opened and key[0] in nodes:
            node = nodes[key[0]]
            since = max(opened.pop(key), node.ready_at)
            busy.setdefault(node.name, []).append(Interval(since, min(at, node.life.end)))

    for event in events:
        node, at = str(event.fields.get("node", "")), event.time_s
        who = str(event.fields.get("replica") or event.fields.get("run", ""))
        if event.kind in ("worker_started", "replica_ready"):
            close((node, who), at)
            opened[(node, who)] = at
        elif event.kind in ("worker_ended", "replica_ended"):
            close((node, who), at)
    for node, who in list(opened):
        close((node, who), float("inf"))
    return busy


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
