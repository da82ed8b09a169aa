"""Finds nodes that are frozen, slow or broken, says why, drains them and has them replaced.

The replacement is Ray's autoscaler's: what ran on the node asks for another one as soon as it has the notice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliostat.cluster.gpus import read_gpus
from heliostat.cluster.nodes import NodeRecord, read_nodes
from heliostat.cluster.reclaim import retire
from heliostat.controller.dashboard import ask
from heliostat.controller.duty import World
from heliostat.plan.sick import LOSSES, GpuHealth, Slowness, Verdict, gpu_trouble
from heliostat.train.bounds import Held, read_held

log = logging.getLogger(__name__)

NOTICE_S = 30.0
"""For what runs there: to find another node, and to save."""
GPUS_EVERY_S = 30.0
HEALTH_CHECK = "health check"
"""Ray's words for a node that does not answer."""


class Sick:
    """On an embedded cluster: on Kubernetes a node is its own machine's and its cloud's to replace."""

    period_s = 2.0

    def __init__(self, read: Callable[[], list[GpuHealth]] = read_gpus) -> None:
        self._slowness = Slowness()
        self._handled: set[str] = set()
        self._read_gpus = read
        self._gpus: Sequence[GpuHealth] = ()
        self._gpus_at = float("-inf")

    def forget(self) -> None:
        self._slowness = Slowness()

    def act(self, world: World, now: float) -> None:
        folder = world.settings.state_dir
        if folder is None:
            return
        nodes = [n for n in read_nodes(folder) if n.ended_at is None and n.ray_node_id and n.reason is None]
        nodes = [node for node in nodes if node.node_id not in self._handled]
        if not nodes:
            return
        by_ray = {str(node.ray_node_id): node for node in nodes}
        held = read_held(world.store, now)
        found = [
            *unresponsive(by_ray, ask(world.settings, "GET", "/api/v0/nodes?limit=10000")),
            *self._slowness.look([gang.step_s for gang in held.values()], now),
            *loses_workers(held.values()),
            *self._broken(nodes, now),
        ]
        for verdict in found:
            node = by_ray.get(verdict.node)
            if node is not None and node.node_id not in self._handled:
                self._handled.add(node.node_id)
                self._replace(world, node, verdict)

    def _broken(self, nodes: Sequence[NodeRecord], now: float) -> list[Verdict]:
        if not any(node.devices for node in nodes):
            return []
        if now - self._gpus_at >= GPUS_EVERY_S:
            self._gpus_at = now
            self._gpus = self._read_gpus()
        return broken(nodes, self._gpus)

    def _replace(self, world: World, node: NodeRecord, verdict: Verdict) -> None:
        log.warning("%s is %s: %s", node.node_id, verdict.kind, verdict.evidence)
        world.spool.emit("node_sick", node=node.node_id, group=node.group, what=verdict.kind, evidence=verdict.evidence)
        notice_s = NOTICE_S if verdict.answers else 0.0
        arguments = {"notice_s": notice_s, "reason": f"{verdict.kind}: {verdict.evidence}"}
        threading.Thread(
            target=retire, args=(world.settings, node), kwargs=arguments, daemon=True, name=f"retire-{node.node_id}"
        ).start()


def unresponsive(by_ray: Mapping[str, NodeRecord], answer: Any) -> list[Verdict]:  # Any: JSON of Ray's state API
    """Nodes that did not answer Ray's health check while their processes are still there.

    A node that is being scaled down is dead to Ray a moment before its processes end, with other words.
    """
    rows = answer["data"]["result"]["result"]
    return [
        Verdict(row["node_id"], "unresponsive", str(row["state_message"])[:300], answers=False)
        for row in rows
        if row.get("state") == "DEAD"
        and row.get("node_id") in by_ray
        and HEALTH_CHECK in str(row.get("state_message")).lower()
    ]


def loses_workers(gangs: Any) -> list[Verdict]:  # Any: an iterable of Held
    found: dict[str, int] = {}
    gang: Held
    for gang in gangs:
        for node, count in gang.losses.items():
            found[node] = found.get(node, 0) + count
    return [
        Verdict(node, "loses-workers", f"{count} workers were lost there, and the node lived on")
        for node, count in found.items()
        if count >= LOSSES
    ]


def broken(nodes: Sequence[NodeRecord], gpus: Sequence[GpuHealth]) -> list[Verdict]:
    """Nodes that hold a GPU which only a reset or a new card cures."""
    trouble = {gpu.index: why for gpu in gpus if (why := gpu_trouble(gpu)) is not None}
    return [
        Verdict(str(node.ray_node_id), "gpu-errors", trouble[device])
        for node in nodes
        for device in node.devices
        if device in trouble
    ]
