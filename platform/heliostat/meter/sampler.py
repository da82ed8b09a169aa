"""Looks at every node from outside: what Ray could still give away, and what its devices and processes do.

    python -m heliostat.meter.sampler        started by the controller, and ended with it

It holds nothing: killed and started again, it goes on. A state of a node is told (`node_sample`) when two looks in a
row agree on it, with the time of the first of them, so that a GPU that is handed from one to another is not caught in
between; and again every half minute, so that a machine that vanished is seen to be gone.

Where no provider of ours tells when nodes start and end (Kubernetes), Ray's list of nodes does, to a look's accuracy.
Devices come from Ray's own agents (NVML), processor time from /proc where the nodes are processes of this machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliostat.cluster.autoscaling import LABEL_MIG
from heliostat.cluster.nodes import NodeRecord, read_nodes
from heliostat.definition.accelerators import ACCELERATORS
from heliostat.events import Spool
from heliostat.plan.catalogue import load as load_catalogue
from heliostat.settings import Settings, load

log = logging.getLogger(__name__)

LOOK_S = 3.0
TELL_S = 30.0
DEVICES_S = 10.0
HEAD = "head"
_RESOURCES = ("GPU", "neuron_cores", "TPU")


@dataclass(frozen=True)
class NodeLook:
    """One node at one moment. Devices, not what Ray calls them: two NeuronCores are one."""

    ray_id: str
    group: str
    gpus: float
    free: float
    market: str = ""
    zone: str = ""
    share: float = 1.0  # of a whole device that one of `gpus` is


@dataclass(frozen=True)
class Devices:
    """Of a node: mean duty cycle (0 to 1), sums of the others. None where nobody measures."""

    duty: float | None = None
    memory_bytes: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Sample:
    node: NodeLook
    at: float


@dataclass
class Settled:
    """Which looks are worth telling."""

    tell_s: float = TELL_S
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each node: (free, since)
    _told: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each node: (free, when)

    def take(self, looks: Sequence[NodeLook], now: float) -> list[Sample]:
        """Those that agree with the look before, and are news or due."""
        found = []
        for look in looks:
            free, since = self._before.get(look.ray_id, (None, now))
            if free != look.free:
                self._before[look.ray_id] = (look.free, now)
                continue
            told, when = self._told.get(look.ray_id, (None, 0.0))
            if told != look.free:
                found.append(Sample(look, since))
            elif now - when >= self.tell_s:
                found.append(Sample(look, now))
            else:
                continue
            self._told[look.ray_id] = (look.free, now)
        here = {look.ray_id for look in looks}
        for known in (self._before, self._told):
            for gone in set(known) - here:
                del known[gone]
        return found


def nodes_in(status: Mapping[str, Any]) -> Iterator[NodeLook]:  # Any: GetClusterStatusReply as JSON
    """The living worker nodes of a status (cluster/gcs.py)."""
    for state in (status.get("clusterResourceState") or {}).get("nodeStates", ()):
        group = state.get("rayNodeTypeName", "")
        labels = state.get("labels") or {}
        if state.get("status") == "DEAD" or group == HEAD or labels.get("heliostat.io/role") == HEAD:
            continue
        total, available = state.get("totalResources") or {}, state.get("availableResources") or {}
        resource = next((name for name in _RESOURCES if total.get(name)), None)
        if resource is None:
            continue
        units = _units(labels.get("ray.io/accelerator-type", ""), resource)
        yield NodeLook(
            state["nodeId"],
            labels.get("heliostat.io/group") or group,
            float(total[resource]) / units,
            round(float(available.get(resource, 0.0)) / units, 6),
            labels.get("ray.io/market-type", ""),
            labels.get("ray.io/availability-zone", ""),
            _share(labels.get(LABEL_MIG, "")),
        )


def _units(ray_type: str, resource: str) -> int:
    """How many of Ray's resource one device is."""
    if resource == "GPU":
        return 1
    same = [a.ray_units for a in ACCELERATORS.values() if a.ray_resource == resource and a.ray_type == ray_type]
    return max(same, default=1)


def _share(profile: str) -> float:
    """Of a card that a MIG slice takes: as many as fit are the whole of it. 1 for a whole card."""
    if not profile:
        return 1.0
    known = [each.most for each in load_catalogue().mig_profiles if each.profile == profile]
    return 1 / max(known) if known else int(profile[0]) / 7


def devices_of(entries: Sequence[Mapping[str, Any]], which: Sequence[int] = ()) -> Devices:  # Any: Ray's agent's JSON
    """What Ray's agent tells of a node's devices; of those with these indices, where some are given."""
    mine = [entry for entry in entries if not which or entry.get("index") in which]
    duty = [entry["utilizationGpu"] for entry in mine if _known(entry.get("utilizationGpu"))]
    memory = [entry["memoryUsed"] for entry in mine if entry.get("memoryUsed") is not None]
    power = [entry["powerMw"] for entry in mine if entry.get("powerMw") is not None]
    return Devices(
        sum(duty) / len(duty) / 100 if duty else None,
        sum(memory) * 2.0**20 if memory else None,
        sum(power) / 1000 if power else None,
    )


def _known(percent: float | None) -> bool:
    """Ray's agent says -1 where the driver does not tell."""
    return percent is not None and percent >= 0


class Sampler:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spool = Spool(settings.spool, "sampler")
        self._settled = Settled()
        self._client: Any = None  # Any: Ray's compiled client
        self._devices: dict[str, list[Devices]] = {}
        self._devices_at = 0.0
        self._busy: dict[str, tuple[float, float]] = {}  # of each node: (when, processor seconds)
        self._seen: dict[str, tuple[NodeLook, float]] = {}  # without a provider: (node, since)

    def run(self) -> None:
        """Until whoever started it is gone."""
        parent = os.getppid()
        while os.getppid() == parent:
            begun = time.monotonic()
            try:
                self.look(time.time())
            except Exception as error:  # noqa: BLE001  # the boundary of the loop: the cluster is away, or starts again
                log.warning("no look: %s: %s", type(error).__name__, error)
                self._client = None
            time.sleep(max(0.2, LOOK_S - (time.monotonic() - begun)))

    def look(self, now: float) -> None:
        looks = list(nodes_in(self._status()))
        records = self._records()
        if records is None:
            self._tell_nodes(looks, now)
        if now - self._devices_at > DEVICES_S:
            self._devices_at = now
            self._take_devices(records or {})
        samples = self._settled.take(looks, now)
        cpu = self._processor_seconds() if samples else {}
        for sample in samples:
            record = None if records is None else records.get(sample.node.ray_id)
            if records is not None and record is None:
                continue  # not one of ours, or not noted yet
            self._tell(sample, record, cpu, now)

    def _tell(self, sample: Sample, record: NodeRecord | None, cpu: Mapping[str, float], now: float) -> None:
        look = sample.node
        name = look.ray_id if record is None else record.node_id
        seen = self._devices.pop(look.ray_id, [])
        duties = [each.duty for each in seen if each.duty is not None]
        powers = [each.power_w for each in seen if each.power_w is not None]
        self._spool.emit(
            "node_sample",
            node=name,
            at=sample.at,
            free=look.free,
            gpus=look.gpus,
            group=look.group,
            duty=round(sum(duties) / len(duties), 4) if duties else None,
            memory_bytes=seen[-1].memory_bytes if seen else None,
            power_w=round(sum(powers) / len(powers), 1) if powers else None,
            cpu_cores=self._cores(name, cpu, now),
        )

    def _cores(self, name: str, cpu: Mapping[str, float], now: float) -> float | None:
        """Processors that the node's processes kept busy since it was told last."""
        if name not in cpu:
            return None
        before = self._busy.get(name)
        self._busy[name] = (now, cpu[name])
        if before is None or now <= before[0]:
            return None
        return round(max(0.0, cpu[name] - before[1]) / (now - before[0]), 3)

    def _status(self) -> dict[str, Any]:  # Any: JSON
        from google.protobuf.json_format import MessageToDict
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module
        from ray.core.generated import autoscaler_pb2

        if self._client is None:
            self._client = GcsClient(address=self._settings.gcs_address)
        reply = autoscaler_pb2.GetClusterStatusReply()
        reply.ParseFromString(self._client.get_cluster_status(timeout_s=5))
        status: dict[str, Any] = MessageToDict(reply)
        for state, raw in zip(
            (status.get("clusterResourceState") or {}).get("nodeStates", ()),
            reply.cluster_resource_state.node_states,
            strict=False,
        ):
            state["nodeId"] = raw.node_id.hex()
        return status

    def _records(self) -> dict[str, NodeRecord] | None:
        """By Ray's id. None where no provider of ours starts nodes."""
        folder = self._settings.state_dir
        if folder is None:
            return None
        return {node.ray_node_id: node for node in read_nodes(folder) if node.ray_node_id}

    def _tell_nodes(self, looks: Sequence[NodeLook], now: float) -> None:
        here = {look.ray_id: look for look in looks}
        for ray_id, look in here.items():
            if ray_id not in self._seen:
                self._seen[ray_id] = (look, now)
                self._tell_node("node_ready", look, now, None)
        for ray_id in set(self._seen) - set(here):
            look, since = self._seen.pop(ray_id)
            self._tell_node("node_ended", look, since, now)

    def _tell_node(self, kind: str, look: NodeLook, since: float, ended: float | None) -> None:
        self._spool.emit(
            kind,
            node=look.ray_id,
            group=look.group,
            market=look.market,
            zone=look.zone,
            gpus=look.gpus,
            share=look.share,
            ray_node_id=look.ray_id,
            started_at=since,
            ready_at=since,
            ended_at=ended,
        )

    def _take_devices(self, records: Mapping[str, NodeRecord]) -> None:
        import httpx

        token = self._settings.token_path
        headers = {} if token is None else {"Authorization": f"Bearer {token.read_text().strip()}"}
        try:
            answer = httpx.get(
                f"{self._settings.dashboard_url}/nodes", params={"view": "summary"}, headers=headers, timeout=5
            )
            summary = answer.json()["data"]["summary"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return
        for node in summary:
            ray_id, gpus = (node.get("raylet") or {}).get("nodeId"), node.get("gpus") or ()
            if ray_id and gpus:
                record = records.get(ray_id)
                self._devices.setdefault(ray_id, []).append(devices_of(gpus, record.devices if record else ()))

    def _processor_seconds(self) -> dict[str, float]:
        """Of the processes of each node, those that have ended left out. {} where they are not on this machine."""
        from heliostat.cluster.embedded import mark, read_record
        from heliostat.cluster.processes import owned

        record = None if self._settings.state_dir is None else read_record(self._settings.cluster)
        if record is None:
            return {}
        sums: dict[str, float] = {}
        for process in owned(mark(record)):
            if process.node_id:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    sums[process.node_id] = sums.get(process.node_id, 0.0) + _cpu_s(process.pid)
        return sums


def _cpu_s(pid: int) -> float:
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    Sampler(load()).run()


if __name__ == "__main__":
    main()
