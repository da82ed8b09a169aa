"""What provides the nodes: Karpenter's NodePools on EKS, ComputeClasses on GKE. Elsewhere the node groups are yours.

One pool a group, so that a group's market, machine, zone and disks are decided in one place, and its pods need only
name the pool.
"""

from __future__ import annotations

from heliostat.cluster.autoscaling import LABEL_GROUP
from heliostat.cluster.manifests.meta import LABEL_CLUSTER, Manifest, manifest, object_name, owner_labels, present
from heliostat.cluster.manifests.placement import INSTANCE, ZONE, has_compute_class
from heliostat.definition import ClusterDefinition, Karpenter, WorkerGroup

_DISCOVERY = "karpenter.sh/discovery"


def karpenter_nodes(definition: ClusterDefinition) -> list[Manifest]:
    settings = definition.karpenter
    if definition.platform != "eks-karpenter" or settings is None:
        return []
    objects = [_node_class(definition, settings, "head", None), _head_pool(definition)]
    for name, group in definition.groups.items():
        objects += [_node_class(definition, settings, name, group), _node_pool(definition, name, group)]
    return objects


def compute_classes(definition: ClusterDefinition) -> list[Manifest]:
    return [
        _compute_class(definition, name, group)
        for name, group in definition.groups.items()
        if has_compute_class(definition, group)
    ]


def _node_class(definition: ClusterDefinition, settings: Karpenter, name: str, group: WorkerGroup | None) -> Manifest:
    by_tag = [{"tags": {_DISCOVERY: settings.discovery}}]
    disks = group is not None and any(volume.kind == "local-nvme" for volume in group.volumes.values())
    reservation = group.reservation if group else None
    spec = {
        "role": settings.node_role,
        "amiSelectorTerms": [{"alias": settings.ami}],
        "subnetSelectorTerms": by_tag,
        # EFA needs a group that allows itself: the one with this tag has to.
        "securityGroupSelectorTerms": by_tag,
        "tags": {key: value for key, value in owner_labels(definition).items() if key.startswith("heliostat.io/")},
        **present(
            instanceStorePolicy="RAID0" if disks else None,
            capacityReservationSelectorTerms=[{"id": reservation}] if reservation else None,
        ),
    }
    own = object_name(definition, name)
    return manifest(definition, "karpenter.k8s.aws/v1", "EC2NodeClass", own, {"spec": spec}, in_namespace=False)


def _head_pool(definition: ClusterDefinition) -> Manifest:
    instance = definition.head.instance
    machine = _in(INSTANCE, instance) if instance else _in("karpenter.k8s.aws/instance-category", "c", "m", "r")
    return _pool(definition, "head", [_in("karpenter.sh/capacity-type", "on-demand"), machine], taints=[], limits={})


def _node_pool(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Manifest:
    requirements = [_in("karpenter.sh/capacity-type", group.market), *_machine(group)]
    if group.zone:
        requirements.append(_in(ZONE, group.zone))
    taints = [present(key=taint.key, value=taint.value, effect=taint.effect) for taint in group.taints]
    # MIG slices do not exist before the node does: Karpenter cannot count them.
    counted = group.gpus and not group.mig
    limits = {group.device.resource: str(group.gpus * group.nodes.high)} if counted else {}
    return _pool(definition, name, requirements, taints=taints, limits=limits)


def _pool(
    definition: ClusterDefinition, name: str, requirements: list[Manifest], *, taints: list[Manifest], limits: Manifest
) -> Manifest:
    own = object_name(definition, name)
    template = {
        "metadata": {"labels": {LABEL_CLUSTER: definition.name, LABEL_GROUP: name}},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": own},
            "requirements": requirements,
            # By age alone no node is taken from under a training.
            "expireAfter": "Never",
            **present(taints=taints),
        },
    }
    spec = {
        "template": template,
        "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "60s"},
        **present(limits=limits),
    }
    return manifest(definition, "karpenter.sh/v1", "NodePool", own, {"spec": spec}, in_namespace=False)


def _machine(group: WorkerGroup) -> list[Manifest]:
    if group.instance:
        return [_in(INSTANCE, group.instance)]
    device, prefix = group.device, "karpenter.k8s.aws/instance-gpu"
    if device.karpenter is None or not group.gpus:
        return [_in("karpenter.k8s.aws/instance-category", "c", "m", "r")] if not group.gpus else []
    named = [_in(f"{prefix}-name", device.karpenter)]
    if not group.mig:
        named.append(_in(f"{prefix}-count", str(group.gpus)))
    memory = device.karpenter_memory_mib
    return [*named, _in(f"{prefix}-memory", str(memory))] if memory else named


def _compute_class(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Manifest:
    device = group.device
    accelerator: Manifest = {}
    if group.gpus and device.is_tpu:
        accelerator = {"tpu": {"type": device.gke, "count": group.gpus, "topology": group.topology}}
    elif group.gpus and device.gke:
        accelerator = {"gpu": {"type": device.gke, "count": group.gpus}}
    rule: Manifest = {
        **present(machineType=group.instance),
        **accelerator,
        **({"spot": group.market == "spot"} if group.market != "reserved" else {}),
        **present(
            location={"zones": [group.zone]} if group.zone else None,
            reservations=_reservation(group.reservation) if group.reservation else None,
        ),
    }
    taints = [present(key=taint.key, value=taint.value, effect=taint.effect) for taint in group.taints]
    spec = {
        "priorities": [rule],
        # Rather no node than another kind: the definition names fallbacks where it wants them.
        "whenUnsatisfiable": "DoNotScaleUp",
        "nodePoolAutoCreation": {"enabled": True},
        **present(nodePoolConfig=present(taints=taints)),
    }
    own = object_name(definition, name)
    return manifest(definition, "cloud.google.com/v1", "ComputeClass", own, {"spec": spec}, in_namespace=False)


def _reservation(name: str) -> Manifest:
    return {"affinity": "Specific", "specific": [{"name": name}]}


def _in(key: str, *values: str) -> Manifest:
    return {"key": key, "operator": "In", "values": list(values)}
