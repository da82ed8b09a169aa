"""What is known of each worker node of the embedded cluster: a file per node, and its events.

Written by the provider (start, end), by the node itself (ready) and by a reclaim (why it ended); read by status,
reclaim and down.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from heliostat.events import Spool
from heliostat.files import put_file


@dataclass(frozen=True)
class NodeRecord:
    """One worker node as it lies on disk."""

    node_id: str
    group: str
    role: str
    market: str
    gpus: float
    cpus: float
    pid: int
    started_at: float  # seconds since the epoch
    instance: str = ""  # as the definition names it
    zone: str = ""
    ready_at: float | None = None
    ray_node_id: str | None = None  # hex, known once the raylet has registered
    stopping_at: float | None = None
    ended_at: float | None = None
    reason: str | None = None
    devices: tuple[int, ...] = ()
    """Of this machine's CUDA devices, those that are its own; () where GPUs are logical."""


def read_nodes(state_dir: Path) -> list[NodeRecord]:
    """Every node the provider ever started in this `up`, oldest first, the ended ones too."""
    folder = state_dir / "nodes"
    if not folder.is_dir():
        return []
    records = [_read(path) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: record.started_at)


def read_node(state_dir: Path, node_id: str) -> NodeRecord:
    return _read(state_dir / "nodes" / f"{node_id}.json")


def _read(path: Path) -> NodeRecord:
    return NodeRecord(**json.loads(path.read_text()))


def write_node(state_dir: Path, record: NodeRecord) -> None:
    folder = state_dir / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    put_file(folder / f"{record.node_id}.json", json.dumps(asdict(record)))


def update_node(state_dir: Path, node_id: str, **changes: Any) -> NodeRecord:  # Any: fields of NodeRecord
    record = replace(read_node(state_dir, node_id), **changes)
    write_node(state_dir, record)
    return record


def set_capacity(state_dir: Path, group: str, nodes: int | None) -> None:
    """Let the group have so many nodes at most, as a spot market that has run dry; None lifts it. For game days."""
    path = state_dir / "capacity" / group
    if nodes is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(nodes))


def read_capacity(state_dir: Path, group: str) -> int | None:
    try:
        return int((state_dir / "capacity" / group).read_text())
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True)
class Refusal:
    """Why a group was given no node, as its provider said it: the last time, and since when without a node between."""

    group: str
    kind: str  # no-capacity: the market has none; quota: the cluster may not have more
    why: str
    at: float  # seconds since the epoch
    first_at: float
    times: int = 1


def note_refusal(state_dir: Path, group: str, kind: str, why: str, now: float) -> Refusal:
    before = read_refusal(state_dir, group)
    if before is not None and before.kind == kind:
        refusal = Refusal(group, kind, why, now, before.first_at, before.times + 1)
    else:
        refusal = Refusal(group, kind, why, now, now)
    path = state_dir / "refusals" / f"{group}.json"
    path.parent.mkdir(exist_ok=True)
    put_file(path, json.dumps(asdict(refusal)))
    return refusal


def clear_refusal(state_dir: Path, group: str) -> None:
    """It was given a node."""
    (state_dir / "refusals" / f"{group}.json").unlink(missing_ok=True)


def read_refusal(state_dir: Path, group: str) -> Refusal | None:
    try:
        return Refusal(**json.loads((state_dir / "refusals" / f"{group}.json").read_text()))
    except (FileNotFoundError, ValueError):
        return None


def emit_node_event(spool: Spool, kind: str, record: NodeRecord) -> None:
    spool.emit(
        kind,
        node=record.node_id,
        group=record.group,
        role=record.role,
        market=record.market,
        gpus=record.gpus,
        started_at=record.started_at,
        ready_at=record.ready_at,
        stopping_at=record.stopping_at,
        ended_at=record.ended_at,
        reason=record.reason,
        instance=record.instance,
        zone=record.zone,
        ray_node_id=record.ray_node_id,
    )
