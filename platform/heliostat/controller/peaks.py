"""Serving takes GPUs from training at its peaks, where both share one limit (budgets.max_gpus).

A serving group that is refused a node for the limit gets one of a gang's that can do with fewer: the gang gives it back
after a checkpoint, its node ends idle, and the limit has room. Once nothing is refused any more and there is room for
it, the gang may have its node again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliostat.cluster.embedded import definition_of
from heliostat.cluster.nodes import read_nodes, read_refusal
from heliostat.controller.duty import World
from heliostat.definition import ClusterDefinition, WorkerGroup
from heliostat.train import bounds
from heliostat.train.bounds import Bound, Held

NAME = "peak"
FRESH_S = 3.0
"""A refusal that is older is over: the autoscaler asks every second."""
CALM_S = 15.0
"""Without a refusal for so long, the peak is over."""


@dataclass(frozen=True)
class Pool:
    """`refused_at`: when serving was last refused a node for the limit. `free`: GPUs below the limit."""

    refused_at: float
    free: float
    held: Mapping[str, Held]
    bounds: Mapping[str, Bound]
    """By run, those of this duty."""
    gpus_per_node: Mapping[str, float]
    """By group."""
    serving: int = 0
    """Nodes of serving groups."""
    serving_before: int | None = None
    """The same when a node was last asked back; None where none was."""


def next_bounds(pool: Pool, now: float) -> dict[str, Bound | None]:
    """What to change, by run; None lifts the bound. One node at a time, and the next when that one has come free."""
    if now - pool.refused_at <= FRESH_S:
        moving = [run for run, bound in pool.bounds.items() if run in pool.held and pool.held[run].nodes > bound.nodes]
        if moving or pool.free >= min(pool.gpus_per_node.values(), default=0):
            return {}  # one is on its way, or has come: the autoscaler will ask
        if pool.serving_before is not None and pool.serving <= pool.serving_before:
            return {}  # what was given back last is not used yet: nodes take their time to end and to start
        able = [gang for gang in pool.held.values() if gang.nodes > gang.low and gang.group in pool.gpus_per_node]
        if not able:
            return {}
        giver = max(able, key=lambda gang: (gang.nodes - gang.low, gang.run))
        return {giver.run: Bound(nodes=giver.nodes - 1, why="serving needs a GPU for its peak")}
    if now - pool.refused_at < CALM_S:
        return {}
    for run, bound in sorted(pool.bounds.items()):
        gang = pool.held.get(run)
        if gang is None or pool.free >= pool.gpus_per_node.get(gang.group, 0):
            more = bound.nodes + 1
            return {run: None if gang is None or more >= gang.high else Bound(nodes=more, why=bound.why)}
    return {}


class Peaks:
    period_s = 1.0

    def __init__(self) -> None:
        self._definition: ClusterDefinition | None = None
        self._changed_at = float("-inf")
        self._serving_before: int | None = None

    def forget(self) -> None:
        self._changed_at, self._serving_before = float("-inf"), None

    def act(self, world: World, now: float) -> None:
        folder = world.settings.state_dir
        if folder is None:
            return
        self._definition = self._definition or definition_of(folder)
        limit = self._definition.budgets.max_gpus
        if limit is None or now - self._changed_at < self._settle_s(self._definition):
            return
        pool = self._pool(world, folder, self._definition, limit, now)
        for run, bound in next_bounds(pool, now).items():
            self._changed_at = now
            shrinks = bound is not None and run in pool.held and bound.nodes < pool.held[run].nodes
            self._serving_before = pool.serving if shrinks else None
            bounds.bind(world.store, run, NAME, None if bound is None else bound.nodes, bound.why if bound else "")
            world.spool.emit("peak_bound", run=run, nodes=None if bound is None else bound.nodes)

    def _settle_s(self, definition: ClusterDefinition) -> float:
        """From one change to the next: an idle node ends only after its timeout."""
        return 10.0 + max((g.idle_timeout.seconds for g in _training(definition).values()), default=0.0)

    def _pool(self, world: World, folder: Path, definition: ClusterDefinition, limit: int, now: float) -> Pool:
        refusals = [read_refusal(folder, name) for name, group in definition.groups.items() if group.role == "serving"]
        times = [refusal.at for refusal in refusals if refusal is not None and refusal.kind == "quota"]
        living = [node for node in read_nodes(folder) if node.ended_at is None]
        used, serving = sum(node.gpus for node in living), sum(node.role == "serving" for node in living)
        held = bounds.read_held(world.store, now)
        set_by_us = {
            run: known[NAME] for run in _bound_runs(world) if NAME in (known := bounds.read_bounds(world.store, run))
        }
        per_node = {name: float(group.gpus) for name, group in _training(definition).items()}
        asked_at = max(times, default=float("-inf"))
        return Pool(asked_at, limit - used, held, set_by_us, per_node, serving, self._serving_before)


def _bound_runs(world: World) -> Sequence[str]:
    keys = [info.key for info in world.store.list("gangs/")]
    return sorted({key.split("/")[1] for key in keys if "/bounds/" in key})


def _training(definition: ClusterDefinition) -> dict[str, WorkerGroup]:
    return {name: group for name, group in definition.groups.items() if group.role == "training"}
