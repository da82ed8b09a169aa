"""The definition's worker groups as the configuration of Ray's autoscaler v2.

Node labels are the one scheduling language: whatever wants a node says which labels it must have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heliostat.definition import ClusterDefinition, WorkerGroup
from heliostat.files import put_file

CONFIG_FILE = "autoscaling.json"  # JSON is YAML
LABEL_GROUP = "heliostat.io/group"
LABEL_ROLE = "heliostat.io/role"
LABEL_MARKET = "ray.io/market-type"
LABEL_ACCELERATOR = "ray.io/accelerator-type"
LABEL_MIG = "heliostat.io/mig"
LABEL_ZONE = "ray.io/availability-zone"
# Beyond this a node that starts slowly is not worth waiting for.
LONGEST_GRACE_S = 90.0


def labels(name: str, group: WorkerGroup) -> dict[str, str]:
    found = {LABEL_GROUP: name, LABEL_ROLE: group.role, LABEL_MARKET: group.market}
    if group.device.ray_type:
        found[LABEL_ACCELERATOR] = group.device.ray_type
    if group.mig:
        found[LABEL_MIG] = group.mig  # each GPU that Ray counts is a slice of this profile
    if group.zone:
        found[LABEL_ZONE] = group.zone
    return found


def idle_limit_s(asked_s: float, started_in_s: float) -> float:
    """How long a node may be idle, where the last of its group took so long to start.

    Ray counts from when the node's process began, not from when it can be used: a node that took longer to start than
    it may be idle would be ended before its work is placed, and the next one after it, for ever. So it is held for as
    long again as it took, which is also what it would cost to have it back (the rule of rent or buy).
    """
    return max(asked_s, min(2 * started_in_s, LONGEST_GRACE_S))


def set_idle_limit(path: Path, group: str, seconds: float) -> None:
    """Change a group's limit in the file that the autoscaler reads anew at every look."""
    config = json.loads(path.read_text())
    if config["available_node_types"][group]["idle_timeout_s"] == seconds:
        return
    config["available_node_types"][group]["idle_timeout_s"] = seconds
    put_file(path, json.dumps(config, indent=1))


def _about(group: WorkerGroup) -> dict[str, object]:
    """What the node's events tell of it. `devices` where Ray does not call them GPU."""
    devices = None if group.device.ray_resource == "GPU" else group.gpus
    told = {"role": group.role, "market": group.market, "instance": group.instance, "zone": group.zone}
    known = {key: value for key, value in {**told, "devices": devices}.items() if value}
    return {**known, "idle_timeout_s": group.idle_timeout.seconds}


def resources(group: WorkerGroup) -> dict[str, int]:
    """What Ray counts on one node of the group."""
    return {"CPU": group.cpus, group.device.ray_resource: group.gpus * group.device.ray_units}


def autoscaling_config(
    definition: ClusterDefinition,
    *,
    cluster_id: str,
    state_dir: Path,
    spool: Path,
    temp_dir: Path,
    gcs_address: str,
    cuda_devices: int,
) -> dict[str, Any]:  # Any: Ray's own schema, written out as YAML at once
    """What `ray start --head --autoscaling-config` reads, with our provider in it."""
    groups = definition.groups
    node_types: dict[str, Any] = {
        "head": {
            "resources": {"CPU": definition.head.cpus, "GPU": 0},
            "labels": {LABEL_ROLE: "head"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 0,
        }
    }
    for name, group in groups.items():
        node_types[name] = {
            "resources": resources(group),
            "labels": labels(name, group),
            "node_config": {},
            "min_workers": group.nodes.low,
            "max_workers": group.nodes.high,
            "idle_timeout_s": group.idle_timeout.seconds,
            "priority": group.priority,
        }
    return {
        "cluster_name": definition.name,
        "max_workers": sum(group.nodes.high for group in groups.values()),
        "idle_timeout_minutes": 5,
        "upscaling_speed": 100,
        "provider": {
            "type": "external",
            "module": "heliostat.cluster.provider.EmbeddedProvider",
            # Nodes come with Ray; without this the autoscaler tries to install it over ssh, and fails.
            "disable_node_updaters": True,
            "cluster_id": cluster_id,
            "state_dir": str(state_dir),
            "spool": str(spool),
            "temp_dir": str(temp_dir),
            "gcs_address": gcs_address,
            "cuda_devices": cuda_devices,
            "max_gpus": definition.budgets.max_gpus,
            "groups": {name: _about(group) for name, group in groups.items()},
        },
        "available_node_types": node_types,
        "head_node_type": "head",
        # The autoscaler refuses a configuration without these, though nothing here uses them.
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "setup_commands": [],
        "initialization_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "auth": {},
        "docker": {},
    }
