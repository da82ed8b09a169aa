"""The pods of head and workers: containers, environment, volumes, probes, and how they leave."""

from __future__ import annotations

from heliostat.cluster.autoscaling import LABEL_GROUP, LABEL_ROLE
from heliostat.cluster.manifests.meta import (
    AGENT_PORT,
    CLIENT_PORT,
    DASHBOARD_PORT,
    GCS_PORT,
    HAPROXY_METRICS_PORT,
    METRICS_PORT,
    SERVE_PORT,
    SETTINGS_DIR,
    TOKEN_DIR,
    Manifest,
    object_name,
    owner_labels,
    present,
    quantity,
)
from heliostat.cluster.manifests.placement import place, place_head
from heliostat.cluster.ray_env import serve_front_environment, train_environment
from heliostat.definition import ClusterDefinition, Volume, WorkerGroup
from heliostat.units import Bytes

SPOOL_DIR = "/var/spool/heliostat"
# Ray's images run as user 1000, who has to read the token. A large file system is not walked through for it.
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Whoever may submit jobs runs code here: it gets the rights of that user, and an image that it cannot change.
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

# From the cloud's warning until the machine is gone (docs/definition.md, "market").
NOTICE_S = {"eks-karpenter": 120, "eks": 120, "gke": 30, "aks": 30}
# What a pod gets of it. GKE keeps half of its 30 s for system pods; elsewhere the kubelet needs a moment.
_USABLE_S = {"eks-karpenter": 110, "eks": 110, "gke": 13, "aks": 25}
# Of a node that leaves for another reason: time for requests and for one checkpoint.
_CALM_GRACE_S = 120
_CALM_USABLE_S = 110

# One node's memory in 2 MiB pages for EFA's buffers, as in AWS's own p5 manifests.
_EFA_HUGE_PAGES = "5120Mi"
_FABRIC_RESOURCE = {"efa": "vpc.amazonaws.com/efa", "infiniband": "rdma/rdma_shared_device_a"}
# Nodes of a cloud take minutes; Ray Train would drop its workers after 60 s and ask for others, for ever.
_NODE_START_S = 900


def head_pod(definition: ClusterDefinition) -> Manifest:
    head = definition.head
    amounts = {"cpu": str(head.cpus), "memory": quantity(head.memory)}
    container = {
        **_container(definition, "ray-head"),
        "ports": [
            {"containerPort": GCS_PORT, "name": "gcs"},
            {"containerPort": DASHBOARD_PORT, "name": "dashboard"},
            {"containerPort": CLIENT_PORT, "name": "client"},
            {"containerPort": SERVE_PORT, "name": "serve"},
            *_metrics_ports(),
        ],
        "resources": {"limits": amounts, "requests": amounts},
        "readinessProbe": _probe("/api/gcs_healthz", DASHBOARD_PORT),
        "volumeMounts": _standing_mounts(),
    }
    spec = {**_pod(definition), **place_head(definition), "containers": [container]}
    labels = {**pod_labels(definition), LABEL_ROLE: "head"}
    return {"metadata": {"labels": labels, "annotations": _stay()}, "spec": {**spec, "volumes": _standing(definition)}}


def worker_pod(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Manifest:
    amounts = _amounts(definition, group)
    mounts, volumes = _volumes(group)
    container = {
        **_container(definition, "ray-worker", extra=_fabric_env(group)),
        "ports": _metrics_ports(),
        "resources": {"limits": amounts, "requests": amounts},
        "readinessProbe": _probe("/api/local_raylet_healthz", AGENT_PORT),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/bash", "-c", leave_command(definition, group)]}}},
        "volumeMounts": [*_standing_mounts(), *mounts],
    }
    if group.fabric:  # registered memory is locked
        container["securityContext"] = CONTAINER_SECURITY | {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
    spec = {
        **_pod(definition),
        **place(definition, name, group),
        "terminationGracePeriodSeconds": grace_s(definition, group),
        "containers": [container],
        "volumes": [*_standing(definition), *volumes],
    }
    labels = {**pod_labels(definition), LABEL_ROLE: group.role, LABEL_GROUP: name}
    metadata: Manifest = {"labels": labels}
    if group.role == "training":
        metadata["annotations"] = _stay()
    return {"metadata": metadata, "spec": spec}


def grace_s(definition: ClusterDefinition, group: WorkerGroup) -> int:
    """Seconds from the notice to SIGKILL: on spot what the cloud gives, not a second more."""
    return NOTICE_S.get(definition.platform or "", _CALM_GRACE_S) if group.market == "spot" else _CALM_GRACE_S


def leave_command(definition: ClusterDefinition, group: WorkerGroup) -> str:
    """Tell Ray that this node goes and when, as the embedded cluster's reclaim does, then let its work leave first.

    Training checkpoints on it (`train/context.py`), Serve moves its replicas. The raylet ends by itself once idle.
    """
    platform = definition.platform or ""
    usable = _USABLE_S.get(platform, _CALM_USABLE_S) if group.market == "spot" else _CALM_USABLE_S
    drain = (
        'ray drain-node --address="$RAY_ADDRESS" --reason=DRAIN_NODE_REASON_PREEMPTION '
        f"--reason-message='the pod is being ended' --deadline-remaining-seconds={usable}"
    )
    return f"{drain} && timeout {usable} bash -c 'while grep -qsx raylet /proc/[0-9]*/comm; do sleep 0.5; done'; true"


def pod_labels(definition: ClusterDefinition) -> dict[str, str]:
    labels = owner_labels(definition)
    if definition.platform == "aks" and definition.store.identity:
        labels["azure.workload.identity/use"] = "true"
    return labels


def store_environment(definition: ClusterDefinition) -> list[Manifest]:
    """How to sign requests to the store: by the keys of a Secret, or, without one, as what the pod is."""
    env: list[Manifest] = [{"name": "AWS_REGION", "value": definition.store.region}]
    secret = definition.store.credentials_secret
    if secret:
        env += [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ]
    return env


def token_secret(definition: ClusterDefinition) -> str:
    """The Secret with Ray's token; KubeRay names the one it makes like the cluster."""
    return definition.auth.token_secret or definition.name


def _pod(definition: ClusterDefinition) -> Manifest:
    secret = definition.ray.pull_secret
    return present(
        serviceAccountName=object_name(definition, "ray"),
        imagePullSecrets=[{"name": secret}] if secret else None,
        securityContext=POD_SECURITY,
    )


def _container(definition: ClusterDefinition, name: str, extra: dict[str, str] | None = None) -> Manifest:
    plain = {
        "HELIOSTAT_SETTINGS": f"{SETTINGS_DIR}/settings.json",
        "HOME": "/tmp",  # noqa: S108  # of the pod alone, and the one place besides volumes that can be written
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers run at nice 15 otherwise, and replicas starve beside them.
        "RAY_worker_niceness": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_NODE_START_S),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(HAPROXY_METRICS_PORT),
        **train_environment(),
        **serve_front_environment(),
        **(extra or {}),
    }
    env: list[Manifest] = [{"name": key, "value": value} for key, value in sorted(plain.items())]
    # From the pod's labels: so that another owner is no other container.
    env += [
        {"name": f"HELIOSTAT_{tag.upper()}", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{key}']"}}}
        for tag, key in (("team", "heliostat.io/team"), ("project", "heliostat.io/project"))
    ]
    return {
        "name": name,
        "image": definition.ray.image,
        "env": [*env, *store_environment(definition)],
        "securityContext": CONTAINER_SECURITY,
    }


def _fabric_env(group: WorkerGroup) -> dict[str, str]:
    return {"FI_PROVIDER": "efa"} if group.fabric and group.fabric.kind == "efa" else {}


def _amounts(definition: ClusterDefinition, group: WorkerGroup) -> dict[str, str]:
    """Requests and limits alike: extended resources and huge pages allow nothing else."""
    amounts = {"cpu": str(group.cpus), "memory": quantity(group.memory or Bytes(0))}
    if group.gpus:
        amounts[accelerator_resource(definition, group)] = str(group.gpus)
    if group.fabric:
        amounts[group.fabric.resource or _FABRIC_RESOURCE[group.fabric.kind]] = str(group.fabric.interfaces)
        if group.fabric.kind == "efa":
            amounts["hugepages-2Mi"] = _EFA_HUGE_PAGES
    disks = sum(volume.size.bytes for volume in group.volumes.values() if volume.kind == "local-nvme" and volume.size)
    if disks:
        amounts["ephemeral-storage"] = quantity(Bytes(disks))
    return amounts


def accelerator_resource(definition: ClusterDefinition, group: WorkerGroup) -> str:
    """GKE shares a card by partitioning the node's GPUs, and still calls each part nvidia.com/gpu."""
    by_profile = group.mig is not None and definition.platform != "gke"
    return f"nvidia.com/mig-{group.mig}" if by_profile else group.device.resource


def _volumes(group: WorkerGroup) -> tuple[list[Manifest], list[Manifest]]:
    """(mounts, volumes) of what the group asks for."""
    mounts, volumes = [], []
    shared = shared_memory(group)
    if shared is not None:
        mounts.append({"mountPath": "/dev/shm", "name": "shm"})  # noqa: S108  # a mount point
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(shared)}})
    for name, volume in group.volumes.items():
        mounts.append({"mountPath": volume.mount, "name": f"data-{name}", **present(readOnly=volume.read_only or None)})
        volumes.append({"name": f"data-{name}", **_volume_source(volume)})
    return mounts, volumes


def shared_memory(group: WorkerGroup) -> Bytes | None:
    """None leaves /dev/shm to KubeRay, which is right for replicas."""
    if group.shared_memory is not None or group.role != "training":
        return group.shared_memory
    return Bytes((group.memory or Bytes(0)).bytes // 2)


def _volume_source(volume: Volume) -> Manifest:
    if volume.kind == "claim":
        return {"persistentVolumeClaim": {"claimName": volume.claim, **present(readOnly=volume.read_only or None)}}
    size = quantity(volume.size or Bytes(0))
    # Local disks come as the node's ephemeral storage: Karpenter's RAID0, GKE's local SSD (`nodes.py`).
    return {"emptyDir": {"sizeLimit": size, **present(medium="Memory" if volume.kind == "memory" else None)}}


def _standing(definition: ClusterDefinition) -> list[Manifest]:
    return [
        {"name": "settings", "configMap": {"name": object_name(definition, "settings")}},
        # The Secret comes into being with the cluster: pods of the cluster do not wait for it, KubeRay gives them the
        # token in their environment.
        {"name": "token", "secret": {"secretName": token_secret(definition), "optional": True, "defaultMode": 0o440}},
        {"name": "spool", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _standing_mounts() -> list[Manifest]:
    return [
        {"mountPath": SETTINGS_DIR, "name": "settings", "readOnly": True},
        {"mountPath": TOKEN_DIR, "name": "token", "readOnly": True},
        {"mountPath": SPOOL_DIR, "name": "spool"},
        {"mountPath": "/tmp", "name": "tmp"},  # noqa: S108
    ]


def _metrics_ports() -> list[Manifest]:
    return [
        {"containerPort": METRICS_PORT, "name": "metrics"},
        {"containerPort": HAPROXY_METRICS_PORT, "name": "haproxy"},
    ]


def _probe(path: str, port: int) -> Manifest:
    """Both answer without a token."""
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 12}


def _stay() -> dict[str, str]:
    """Not to be moved for the sake of tidier nodes: Karpenter's word for it, and the Cluster Autoscaler's."""
    return {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
