"""The RayCluster: on-demand serving groups and spot training groups in one long-lived cluster."""

from __future__ import annotations

from collections.abc import Iterable

from heliostat.cluster.autoscaling import LABEL_ROLE, labels, resources
from heliostat.cluster.manifests.meta import Manifest, manifest
from heliostat.cluster.manifests.pods import head_pod, worker_pod
from heliostat.definition import ClusterDefinition, WorkerGroup

RAY_API = "ray.io/v1"


def ray_cluster(definition: ClusterDefinition) -> Manifest:
    spec = ray_cluster_spec(definition, definition.groups)
    # Recreate would end every pod, head and trainings too, for any change of a template. `upgrade.py` says instead
    # what a change takes.
    spec["upgradeStrategy"] = {"type": "None"}
    return manifest(definition, RAY_API, "RayCluster", definition.name, {"spec": spec})


def ray_cluster_spec(definition: ClusterDefinition, groups: Iterable[str], *, fixed: bool = False) -> Manifest:
    """With these worker groups only, in the order of the definition. `fixed`: each at its upper bound, for good."""
    wanted = set(groups)
    spec: Manifest = {
        "rayVersion": definition.ray.version,
        "enableInTreeAutoscaling": True,
        # Version 2 also gives the head its environment; the webhook refuses both at once.
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 60,
            "resources": {
                "limits": {"cpu": "1", "memory": "1Gi"},
                "requests": {"cpu": "500m", "memory": "512Mi"},
            },
        },
        "authOptions": _auth(definition),
        "headGroupSpec": _head_group(definition),
        "workerGroupSpecs": [
            _worker_group(definition, name, group) for name, group in definition.groups.items() if name in wanted
        ],
    }
    if fixed:
        del spec["autoscalerOptions"]
        spec["enableInTreeAutoscaling"] = False
        for group in spec["workerGroupSpecs"]:
            group["replicas"] = group["minReplicas"] = group["maxReplicas"]
    if definition.head.state:
        spec["gcsFaultToleranceOptions"] = _fault_tolerance(definition)
    return spec


def _auth(definition: ClusterDefinition) -> Manifest:
    secret = definition.auth.token_secret
    return {"mode": "token", "secretName": secret} if secret else {"mode": "token"}


def _fault_tolerance(definition: ClusterDefinition) -> Manifest:
    state = definition.head.state
    if state is None:
        return {}
    options: Manifest = {"backend": "redis", "redisAddress": state.redis}
    if state.password_secret:
        key = {"name": state.password_secret, "key": "redis-password"}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": key}}
    return options


def _head_group(definition: ClusterDefinition) -> Manifest:
    return {
        "serviceType": "ClusterIP",
        "rayStartParams": {},
        "resources": {"CPU": str(definition.head.cpus), "GPU": "0"},
        "labels": {LABEL_ROLE: "head"},
        "template": head_pod(definition),
    }


def _worker_group(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Manifest:
    # KubeRay counts pods of one host each; a TPU slice of several hosts is one replica.
    spec: Manifest = {
        "groupName": name,
        "replicas": group.nodes.low,
        "minReplicas": group.nodes.low,
        "maxReplicas": group.nodes.high,
        "numOfHosts": group.hosts,
        "idleTimeoutSeconds": max(1, round(group.idle_timeout.seconds)),
        "rayStartParams": {},
        "resources": {key: str(amount) for key, amount in resources(group).items()},
        "labels": labels(name, group),
        "template": worker_pod(definition, name, group),
    }
    if group.priority:
        spec["priority"] = group.priority
    return spec
