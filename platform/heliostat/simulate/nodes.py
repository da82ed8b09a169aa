"""Nodes as events: asked for, ready, working, idle, reclaimed, ended; and whose GPU-seconds they were.

As Ray's autoscaler does it: at each look, what finds no room gets nodes of the suiting group with the highest
priority that may have more; a node without work for its group's idle timeout is ended, down to the lower bound. Spot
comes and goes by a trace: what runs above what can be had is reclaimed, with the group's notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from heliostat.definition import WorkerGroup
from heliostat.plan.policy.traces import Trace
from heliostat.simulate.engine import Engine, next_tick
from heliostat.simulate.measured import Starts

ROOM = 1e-9
"""Shares of GPUs are not exact."""


class Holder(Protocol):
    """What holds GPUs of a node, and is told when the node goes."""

    def noticed(self, node: Node) -> None:
        """The node will be taken when its notice ends."""

    def lost(self, node: Node) -> None:
        """The node is gone, and what was held on it."""


@dataclass(eq=False)
class Node:
    """One machine. Its GPU-seconds are settled whenever what it holds changes."""

    group: Group
    asked_at: float
    name: str = ""
    ready_at: float | None = None
    ended_at: float | None = None
    leaving: bool = False
    free: float = 0.0
    loading: float = 0.0
    """GPUs held by what has not begun to work: replicas that start, gangs that gather."""
    holders: dict[Holder, float] = field(default_factory=dict)
    idle_since: float = 0.0
    settled_at: float = 0.0
    promised: float = 0.0
    """GPUs that somebody waits for, while it starts."""

    def settle(self, now: float) -> None:
        span, use = now - self.settled_at, self.group.use
        self.settled_at = now
        if span <= 0:
            return
        gpus = self.group.gpus
        if self.ready_at is None:
            use.starting += span * gpus
            return
        use.loading += span * self.loading
        use.working += span * (gpus - self.free - self.loading)
        use.idle += span * self.free


@dataclass
class Use:
    """GPU-seconds of a group; they add up to the lifetimes of its nodes times their GPUs."""

    starting: float = 0.0
    loading: float = 0.0
    working: float = 0.0
    idle: float = 0.0

    @property
    def held(self) -> float:
        return self.starting + self.loading + self.working + self.idle


@dataclass(eq=False)
class Group:
    name: str
    spec: WorkerGroup
    starts: Starts
    spot: Trace | None = None
    use: Use = field(default_factory=Use)
    nodes: dict[Node, None] = field(default_factory=dict)
    """Alive, in the order they were asked for."""
    roomy: dict[Node, None] = field(default_factory=dict)
    """Ready, with something free, not leaving."""
    starting: dict[Node, None] = field(default_factory=dict)
    """Not ready yet, not leaving."""
    reclaimed: int = 0
    started: int = 0
    node_seconds: float = 0.0
    """Of those that have ended."""

    @property
    def gpus(self) -> float:
        return float(self.spec.gpus * self.spec.hosts)

    def may_have(self, now: float) -> int:
        """Nodes at most: the definition's bound, and of spot what there is. A trace of fewer nodes than the bound is
        scaled up to it."""
        high = self.spec.nodes.high
        if self.spot is None:
            return high
        index = min(int(now // self.spot.tick_s), len(self.spot.counts) - 1)
        return min(high, int(high * int(self.spot.counts[index]) / self.spot.nodes))


@dataclass(eq=False)
class Want:
    """GPUs on one node of any of `groups`; `take(node)` is called when it has them."""

    holder: Holder
    gpus: float
    groups: tuple[str, ...]
    take: Callable[[Node], None]
    node: Node | None = None
    """That was started for it."""


class Nodes:
    """All groups of a cluster."""

    def __init__(
        self, engine: Engine, groups: Sequence[Group], *, period_s: float, random: np.random.Generator
    ) -> None:
        self.engine, self._period_s, self._random = engine, period_s, random
        self.groups = {group.name: group for group in groups}
        self.wants: dict[Want, None] = {}
        self._wants_of: dict[str, dict[Want, None]] = {group.name: {} for group in groups}
        """The same by group."""
        self.watchers: list[Callable[[], None]] = []
        """Called when there is more or less spot."""
        self._looks = False
        self._ordered: dict[tuple[str, ...], list[str]] = {}
        for group in groups:
            for _ in range(min(group.spec.nodes.low, group.may_have(0.0))):
                self.start(group)
            if group.spot is not None:
                self._watch_spot(group, group.spot)

    # --- work asks for GPUs

    def want(self, want: Want) -> None:
        if not self._place(want):
            self._wait(want)

    def _wait(self, want: Want) -> None:
        self.wants[want] = None
        for name in want.groups:
            self._wants_of[name][want] = None
        self._look_soon()

    def drop(self, want: Want) -> None:
        """It is not wanted any more."""
        self.wants.pop(want, None)
        for name in want.groups:
            self._wants_of[name].pop(want, None)
        if want.node is not None:
            want.node.promised -= want.gpus
            want.node = None

    def hold(self, node: Node, holder: Holder, gpus: float, *, loading: bool = True) -> None:
        node.settle(self.engine.now)
        node.holders[holder] = node.holders.get(holder, 0.0) + gpus
        node.free -= gpus
        node.loading += gpus if loading else 0.0
        if node.free <= ROOM:
            node.group.roomy.pop(node, None)

    def works(self, node: Node, holder: Holder, *, loading: bool = False) -> None:
        """What the holder has there works from now on; or, of a gang that lost a node, waits again."""
        node.settle(self.engine.now)
        node.loading += node.holders[holder] * (1 if loading else -1)

    def release(self, node: Node, holder: Holder, *, loading: bool = False) -> None:
        now = self.engine.now
        node.settle(now)
        gpus = node.holders.pop(holder)
        node.free += gpus
        node.loading -= gpus if loading else 0.0
        if not node.holders:
            node.free, node.loading = node.group.gpus, 0.0  # no rounding is kept
            self._idle(node)
        self._room(node)

    def _room(self, node: Node) -> None:
        """Something of the node is free: those who wait longest have it first."""
        if node.leaving or node.ended_at is not None or node.ready_at is None:
            return
        if node.free > ROOM:
            node.group.roomy[node] = None
        wants = self._wants_of[node.group.name]
        if not wants:
            return
        for want in [want for want in wants if want.node is node] + [want for want in wants if want.node is not node]:
            if node.free <= ROOM:
                break
            if want.gpus <= node.free + ROOM:
                self._give(want, node)

    def _place(self, want: Want) -> bool:
        """On the node with the least room that is enough, as whoever packs does."""
        for name in self._by_priority(want.groups):
            best: Node | None = None
            for node in self.groups[name].roomy:
                if node.free + ROOM >= want.gpus and (best is None or node.free < best.free):
                    best = node
            if best is not None:
                self._give(want, best)
                return True
        return False

    def _give(self, want: Want, node: Node) -> None:
        self.drop(want)
        self.hold(node, want.holder, want.gpus)
        want.take(node)

    def _by_priority(self, names: tuple[str, ...]) -> list[str]:
        if names not in self._ordered:
            self._ordered[names] = sorted(names, key=lambda name: -self.groups[name].spec.priority)
        return self._ordered[names]

    # --- the autoscaler

    def _look_soon(self) -> None:
        if not self._looks:
            self._looks = True
            self.engine.at(next_tick(self.engine.now, self._period_s), self._look)

    def _look(self) -> None:
        """Nodes for what waits and has none promised. What still finds none is looked at again when that may change:
        the end of a node, or a tick of a spot trace."""
        self._looks = False
        starting = {node: None for group in self.groups.values() for node in group.starting}
        full: set[tuple[float, tuple[str, ...]]] = set()
        for want in [want for want in self.wants if want.node is None]:
            if (want.gpus, want.groups) in full:
                continue
            node = self._promise(want, starting)
            if node is None:
                full.add((want.gpus, want.groups))
            else:
                starting[node] = None

    def _promise(self, want: Want, starting: Iterable[Node]) -> Node | None:
        for node in starting:
            if node.group.name in want.groups and node.group.gpus - node.promised + ROOM >= want.gpus:
                break
        else:
            for name in self._by_priority(want.groups):
                group = self.groups[name]
                if len(group.nodes) < group.may_have(self.engine.now) and want.gpus <= group.gpus:
                    node = self.start(group)
                    break
            else:
                return None
        want.node = node
        node.promised += want.gpus
        return node

    def start(self, group: Group) -> Node:
        now = self.engine.now
        node = Node(group, asked_at=now, name=f"{group.name}-{group.started}", settled_at=now, free=group.gpus)
        group.nodes[node] = group.starting[node] = None
        group.started += 1
        self.engine.at(now + group.starts.node.seconds, self._ready, node)
        return node

    def _ready(self, node: Node) -> None:
        if node.ended_at is not None:
            return
        node.settle(self.engine.now)
        node.ready_at = self.engine.now
        node.group.starting.pop(node, None)
        self._idle(node)
        self._room(node)

    def _idle(self, node: Node) -> None:
        node.idle_since = self.engine.now
        self.engine.at(self.engine.now + node.group.spec.idle_timeout.seconds, self._end_idle, node, node.idle_since)

    def _end_idle(self, node: Node, since: float) -> None:
        if node.ended_at is not None or node.holders or node.idle_since != since:
            return
        if len(node.group.nodes) > node.group.spec.nodes.low:
            self.end(node)

    def end(self, node: Node) -> None:
        """It is gone; whoever held something there is told."""
        now = self.engine.now
        node.settle(now)
        node.ended_at = now
        node.group.node_seconds += now - node.asked_at
        node.group.nodes.pop(node)
        node.group.starting.pop(node, None)
        node.group.roomy.pop(node, None)
        self._break_promises(node)
        for holder in list(node.holders):
            holder.lost(node)
        if self.wants:
            self._look_soon()  # there may be room for another one
        while len(node.group.nodes) < min(node.group.spec.nodes.low, node.group.may_have(now)):
            self.start(node.group)

    # --- spot

    def _watch_spot(self, group: Group, trace: Trace) -> None:
        """At each change of the trace: reclaims above it, and a new look at what waits."""
        for index in (np.flatnonzero(np.diff(trace.counts)) + 1).tolist():
            self.engine.at(float(index * trace.tick_s), self._spot_changed, group)

    def _spot_changed(self, group: Group) -> None:
        staying = [node for node in group.nodes if not node.leaving]
        excess = len(staying) - group.may_have(self.engine.now)
        if excess > 0:
            for number in sorted(self._random.choice(len(staying), excess, replace=False).tolist()):
                self._reclaim(staying[number])
        elif self.wants:
            self._look_soon()
        while len(group.nodes) < min(group.spec.nodes.low, group.may_have(self.engine.now)):
            self.start(group)
        for tell in self.watchers:
            tell()

    def _reclaim(self, node: Node) -> None:
        node.group.reclaimed += 1
        node.leaving = True
        node.group.starting.pop(node, None)
        node.group.roomy.pop(node, None)
        self._break_promises(node)
        self.engine.at(self.engine.now + node.group.starts.notice.seconds, self._taken, node)
        for holder in list(node.holders):
            holder.noticed(node)

    def _break_promises(self, node: Node) -> None:
        """Whoever waits for it waits for another one."""
        for want in [want for want in self.wants if want.node is node]:
            self.drop(want)
            self._wait(want)

    def _taken(self, node: Node) -> None:
        if node.ended_at is None:
            self.end(node)

    def finish(self) -> None:
        """The end of the simulation: what runs is settled, and stays."""
        for group in self.groups.values():
            for node in group.nodes:
                node.settle(self.engine.now)
                group.node_seconds += self.engine.now - node.asked_at
