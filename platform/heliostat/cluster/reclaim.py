"""Taking a spot node away for real: notice, then every process of it is killed. For game days and for the demo."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable

from heliostat.cluster import processes
from heliostat.cluster.embedded import read_record
from heliostat.cluster.gcs import drain
from heliostat.cluster.nodes import NodeRecord, emit_node_event, read_nodes, update_node
from heliostat.errors import ClusterError, ClusterNotUp
from heliostat.events import Spool
from heliostat.settings import Settings


def reclaim(
    settings: Settings,
    group: str,
    *,
    notice_s: float,
    node_id: str | None = None,
    seed: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> NodeRecord:
    """Reclaim one living node of the group, the one with that id or any. Returns its record as it ended.

    With a notice, Ray is told first (a drain with the reason preemption and this deadline), as a cloud's own notice
    would be passed on; at the deadline the node's processes get SIGKILL, whatever they have done by then.
    Raises ClusterError when the group has no node.
    """
    record = read_record(settings.cluster)
    if record is None or settings.state_dir is None:
        raise ClusterNotUp(
            "only an embedded cluster's nodes can be reclaimed here", do="heliostat up cluster/laptop.yaml"
        )
    living = [
        node
        for node in read_nodes(settings.state_dir)
        if node.group == group
        and node.ended_at is None
        and node.ray_node_id is not None
        and node_id in (None, node.node_id)
    ]
    if not living:
        which = f"group {group!r} has no running node" + (f" {node_id!r}" if node_id else "")
        raise ClusterError(which, do="start work on it first; heliostat status")
    node = random.Random(seed).choice(living)
    spool = Spool(settings.spool, f"reclaim-{os.getpid()}")
    node = update_node(settings.state_dir, node.node_id, reason="reclaimed")
    emit_node_event(spool, "reclaim_notice", node)
    _take(settings, processes.Mark(record.cluster_id, settings.state_dir / "sessions"), node, notice_s, progress)
    emit_node_event(spool, "reclaimed", node)
    return node


def retire(settings: Settings, node: NodeRecord, *, notice_s: float, reason: str) -> None:
    """End a node that is no good, and let its work leave before: a drain with the deadline, then SIGKILL.

    Where Ray refuses the drain, because the node does not answer it, the node is killed at once. Raises ClusterNotUp.
    """
    if settings.state_dir is None:
        raise ClusterNotUp("only an embedded cluster's nodes can be retired here", do="delete the node's pod")
    cluster_id = json.loads((settings.state_dir / "cluster.json").read_text())["cluster_id"]
    with contextlib.suppress(OSError):  # a full disk keeps no bad node
        update_node(settings.state_dir, node.node_id, reason=reason)
    mark = processes.Mark(cluster_id, settings.state_dir / "sessions")
    try:
        _take(settings, mark, node, notice_s, lambda _: None)
    except ClusterError:
        processes.kill_node(mark, node.node_id)


def _take(
    settings: Settings, mark: processes.Mark, node: NodeRecord, notice_s: float, progress: Callable[[str], None]
) -> None:
    deadline = time.time() + notice_s
    if notice_s > 0:
        progress(f"notice to {node.node_id}: {notice_s:g} s")
        drain(settings, str(node.ray_node_id), deadline=deadline)
        time.sleep(max(0.0, deadline - time.time()))
    if settings.state_dir is not None:
        with contextlib.suppress(OSError):
            update_node(settings.state_dir, node.node_id, stopping_at=time.time())
    killed = processes.kill_node(mark, node.node_id)
    progress(f"killed {killed} processes of {node.node_id}")
