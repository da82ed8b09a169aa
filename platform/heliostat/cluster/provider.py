"""The node provider of the embedded cluster: Ray's autoscaler v2 asks it for nodes, it starts processes.

It runs inside the head's autoscaler process. Each worker node is a process of its own (`heliostat.cluster.node`) in
its own session. What it started is written to `<state>/nodes/<id>.json`, so that other processes (status, reclaim,
down) can see it; start and end of each node become events for the meter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from heliostat.cluster import processes
from heliostat.cluster.autoscaling import CONFIG_FILE, idle_limit_s, set_idle_limit
from heliostat.cluster.head import REGISTER_LIMIT_S
from heliostat.cluster.nodes import (
    NodeRecord,
    clear_refusal,
    emit_node_event,
    note_refusal,
    read_capacity,
    read_node,
    update_node,
    write_node,
)
from heliostat.events import Spool

log = logging.getLogger(__name__)

HEAD = "head"
NODE_START_LIMIT_S = REGISTER_LIMIT_S


class EmbeddedProvider(NodeProvider):  # type: ignore[misc]  # Ray ships no types
    """Ray's v1 provider interface, which autoscaler v2 wraps.

    `provider_config` carries: state_dir, spool, gcs_address, temp_dir, max_gpus (of all groups together, or None), and
    of each of `groups` its role, market, idle_timeout_s, and where they are known instance, zone and devices.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._config = provider_config
        self._state_dir = Path(provider_config["state_dir"])
        self._mark = processes.Mark(provider_config["cluster_id"], self._state_dir / "sessions")
        self._spool = Spool(Path(provider_config["spool"]), f"provider-{os.getpid()}")
        self._lock = threading.RLock()
        # Nodes that start at the same moment on one machine can fail to register: one after another.
        self._starting = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._tags: dict[str, dict[str, str]] = {
            HEAD: {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD}
        }
        self._devices: dict[str, list[int]] = {}
        self._gpus: dict[str, float] = {}
        self._unmarked: list[NodeRecord] = []
        """Ended nodes whose end is not on disk yet."""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            self._reap()
            self._mark_ended()
            return [
                node
                for node, tags in self._tags.items()
                if all(tags.get(key) == value for key, value in tag_filters.items())
            ]

    def is_running(self, node_id: str) -> bool:
        with self._lock:
            return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        with self._lock:
            return dict(self._tags.get(node_id, {}))

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._lock:
            self._tags[node_id].update(tags)

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def external_ip(self, node_id: str) -> str:
        return node_id

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            with self._starting:
                group = tags[TAG_RAY_USER_NODE_TYPE]
                self._refuse_beyond_capacity(group)
                self._refuse_beyond_quota(group, resources.get("GPU", 0))
                clear_refusal(self._state_dir, group)
                self._start_one(tags, resources, labels)

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._running.get(node_id)
        if process is None:
            return
        with contextlib.suppress(OSError):  # a full disk keeps no node alive
            update_node(self._state_dir, node_id, stopping_at=time.time())
        processes.kill_node(self._mark, node_id)
        process.wait()
        self._forget(node_id, reason="scaled down")

    def _start_one(self, tags: dict[str, str], resources: dict[str, float], labels: dict[str, str]) -> None:
        group = tags[TAG_RAY_USER_NODE_TYPE]
        node_id = f"{group}-{uuid.uuid4().hex[:8]}"
        spec = {
            "node_id": node_id,
            "group": group,
            "gcs_address": self._config["gcs_address"],
            "temp_dir": self._config["temp_dir"],
            "state_dir": str(self._state_dir),
            "resources": resources,
            "labels": labels,
        }
        env = {**os.environ, processes.NODE_ID: node_id}
        devices = self._take_devices(int(resources.get("GPU", 0)))
        if devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        log_path = self._state_dir / "logs" / f"node-{node_id}.log"
        started_at = time.time()
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "heliostat.cluster.node", json.dumps(spec)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            record = self._note(spec, process.pid, started_at, devices)
        except OSError:  # nobody would know of it, and end it
            process.kill()
            process.wait()
            raise
        with self._lock:
            self._running[node_id] = process
            self._devices[node_id] = devices
            self._gpus[node_id] = float(resources.get("GPU", 0))
            self._tags[node_id] = {**tags, TAG_RAY_NODE_KIND: NODE_KIND_WORKER}
        emit_node_event(self._spool, "node_started", record)
        self._wait_registered(node_id, process, log_path)

    def _note(self, spec: dict[str, Any], pid: int, started_at: float, devices: list[int]) -> NodeRecord:
        """On disk, so that whoever ends the cluster finds the node."""
        node_id, group, resources = spec["node_id"], spec["group"], spec["resources"]
        processes.note_session(self._mark, pid, node_id=node_id)
        about = self._config["groups"][group]
        record = NodeRecord(
            node_id=node_id,
            group=group,
            role=about["role"],
            market=about["market"],
            gpus=float(about.get("devices", resources.get("GPU", 0))),
            cpus=float(resources.get("CPU", 0)),
            pid=pid,
            started_at=started_at,
            instance=about.get("instance") or "",
            zone=about.get("zone") or "",
            devices=tuple(devices),
        )
        write_node(self._state_dir, record)
        return record

    def _refuse_beyond_capacity(self, group: str) -> None:
        """As a cloud does that has no more spot machines to give."""
        limit = read_capacity(self._state_dir, group)
        if limit is None:
            return
        with self._lock:
            living = sum(self._tags[node].get(TAG_RAY_USER_NODE_TYPE) == group for node in self._running)
        if living >= limit:
            self._refuse(group, "no-capacity", f"insufficient capacity, {limit} nodes to be had")

    def _refuse_beyond_quota(self, group: str, gpus: float) -> None:
        """As a namespace's quota does on Kubernetes: the groups together hold no more than this."""
        limit = self._config.get("max_gpus")
        if limit is None or gpus == 0:
            return
        with self._lock:
            self._reap()
            held = sum(self._gpus[node] for node in self._running)
        if held + gpus > limit:
            self._refuse(group, "quota", f"the cluster holds {held:g} of its {limit} GPUs (budgets.max_gpus)")

    def _refuse(self, group: str, kind: str, why: str) -> None:
        note_refusal(self._state_dir, group, kind, why, time.time())
        raise RuntimeError(f"no node for group {group!r}: {why}")

    def _wait_registered(self, node_id: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        deadline = time.monotonic() + NODE_START_LIMIT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            record = read_node(self._state_dir, node_id)
            if record.ray_node_id:
                emit_node_event(self._spool, "node_ready", record)
                self._hold_for_its_start(record)
                return
            time.sleep(0.05)
        processes.kill_node(self._mark, node_id)
        self._forget(node_id, reason="failed to start")
        raise RuntimeError(f"node {node_id} did not start; its log is {log_path}")

    def _hold_for_its_start(self, record: NodeRecord) -> None:
        asked_s = self._config["groups"][record.group]["idle_timeout_s"]
        limit_s = idle_limit_s(asked_s, time.time() - record.started_at)
        set_idle_limit(self._state_dir / CONFIG_FILE, record.group, limit_s)

    def _reap(self) -> None:
        for node_id, process in list(self._running.items()):
            if process.poll() is not None:
                processes.kill_node(self._mark, node_id)
                self._forget(node_id, reason="lost")

    def _forget(self, node_id: str, *, reason: str) -> None:
        with self._lock:
            if self._running.pop(node_id, None) is None:
                return
            self._tags.pop(node_id, None)
            self._devices.pop(node_id, None)
            self._gpus.pop(node_id, None)
            record = read_node(self._state_dir, node_id)
            # A reclaim has already said why.
            record = replace(record, ended_at=time.time(), reason=record.reason or reason)
            emit_node_event(self._spool, "node_ended", record)
            self._unmarked.append(record)
            self._mark_ended()

    def _mark_ended(self) -> None:
        """A node is marked once its end is told: `down` tells the end of whatever is not marked."""
        with self._lock, contextlib.suppress(OSError):  # a full disk: at the autoscaler's next look
            self._spool.flush()
            while self._unmarked:
                write_node(self._state_dir, self._unmarked[0])
                del self._unmarked[0]

    def _take_devices(self, count: int) -> list[int]:
        """CUDA devices for a node, each given to one node at a time; [] where GPUs are only logical."""
        total = int(self._config.get("cuda_devices", 0))
        if total == 0 or count == 0:
            return []
        with self._lock:
            used = {device for devices in self._devices.values() for device in devices}
        free = [device for device in range(total) if device not in used]
        if len(free) < count:
            raise RuntimeError(f"no free CUDA device: {total} on this machine, {len(used)} in use, {count} wanted")
        return free[:count]
