"""Which machines a group's pods go to: selectors, affinity and tolerations, by platform.

Every platform answers the same four questions with labels of its own: which market, which machine, which accelerator,
how close together. Accelerators are chosen by the cloud's stable label where it has one; elsewhere by NVIDIA's product
label, against the list of whole spellings of one product.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.cluster.autoscaling import LABEL_GROUP
from heliostat.cluster.manifests.meta import LABEL_CLUSTER, Manifest, object_name, present
from heliostat.definition import ClusterDefinition, WorkerGroup

INSTANCE = "node.kubernetes.io/instance-type"
ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
COMPUTE_CLASS = "cloud.google.com/compute-class"

# The narrowest part of the network that nodes are labelled with, where they are.
_CLOSE = {
    "eks-karpenter": "topology.k8s.aws/network-node-layer-3",
    "eks": "topology.k8s.aws/network-node-layer-3",
    "gke": "cloud.google.com/gce-topology-block",
}


@dataclass
class Wanted:
    """What nodes must have. `labels` by equality; `affinity` where a list or a negation is needed."""

    labels: dict[str, str] = field(default_factory=dict)
    affinity: list[Manifest] = field(default_factory=list)
    tolerations: list[Manifest] = field(default_factory=list)


def place(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Manifest:
    """The part of a pod's spec that says where it may run."""
    wanted = _wanted(definition, name, group)
    wanted.labels |= group.node_selector
    if group.zone:
        wanted.labels[ZONE] = group.zone
    if group.gpus:
        wanted.tolerations.append(_tolerate(group.device.resource))
    for taint in group.taints:
        wanted.tolerations.append(_tolerate(taint.key, taint.value, taint.effect))
    for toleration in group.tolerations:
        wanted.tolerations.append(_tolerate(toleration.key, None, toleration.effect))
    return present(
        nodeSelector=dict(sorted(wanted.labels.items())),
        affinity=_affinity(definition, name, group, wanted),
        tolerations=wanted.tolerations,
        topologySpreadConstraints=_spread(definition, name) if group.placement == "spread" else None,
    )


def place_head(definition: ClusterDefinition) -> Manifest:
    """The head and the controller: never on spot, and nowhere near an accelerator."""
    labels = {INSTANCE: definition.head.instance} if definition.head.instance else {}
    affinity: list[Manifest] = []
    match definition.platform:
        case "eks-karpenter":
            labels |= _own_nodes(definition, "head") | {"karpenter.sh/capacity-type": "on-demand"}
        case "eks":
            labels |= {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
        case "gke":
            affinity = [_expression("cloud.google.com/gke-spot", "NotIn", ["true"])]
        case "aks":
            affinity = [_expression("kubernetes.azure.com/scalesetpriority", "NotIn", ["spot"])]
    return present(nodeSelector=dict(sorted(labels.items())), affinity=_node_affinity(affinity))


def has_compute_class(definition: ClusterDefinition, group: WorkerGroup) -> bool:
    """A ComputeClass has no MIG partitions, and must know a machine or an accelerator."""
    named = group.instance is not None or (group.accelerator is not None and group.gpus > 0)
    return definition.platform == "gke" and group.mig is None and named


def _wanted(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Wanted:
    match definition.platform:
        case "eks-karpenter":
            return _on_karpenter(definition, name, group)
        case "eks":
            return _on_eks(group)
        case "gke":
            return _on_gke(definition, name, group)
        case "aks":
            return _on_aks(group)
        case _:
            return Wanted(_instance(group), _product(group))


def _on_karpenter(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Wanted:
    """The NodePool of the group labels its nodes; it has chosen the machine already (`nodes.py`)."""
    return Wanted({"karpenter.sh/capacity-type": group.market, **_own_nodes(definition, name), **_instance(group)})


def _on_eks(group: WorkerGroup) -> Wanted:
    capacity = {"on-demand": "ON_DEMAND", "spot": "SPOT", "reserved": "CAPACITY_BLOCK"}[group.market]
    return Wanted({"eks.amazonaws.com/capacityType": capacity, **_instance(group)}, _product(group))


def _on_gke(definition: ClusterDefinition, name: str, group: WorkerGroup) -> Wanted:
    # A pod that asks for a class and for what the class has chosen as well is refused where the two disagree.
    if has_compute_class(definition, group):
        own = object_name(definition, name)
        return Wanted({COMPUTE_CLASS: own}, tolerations=[_tolerate(COMPUTE_CLASS, own)])
    labels, device = _instance(group), group.device
    affinity: list[Manifest] = []
    if group.market == "spot":
        labels["cloud.google.com/gke-spot"] = "true"
    else:
        affinity.append(_expression("cloud.google.com/gke-spot", "NotIn", ["true"]))
    if group.reservation:
        labels["cloud.google.com/reservation-name"] = group.reservation
    if device.gke:
        labels["cloud.google.com/gke-accelerator"] = device.gke
    if group.mig:
        labels["cloud.google.com/gke-gpu-partition-size"] = group.mig
    return Wanted(labels, affinity)


def _on_aks(group: WorkerGroup) -> Wanted:
    labels, affinity, key = _instance(group), _product(group), "kubernetes.azure.com/scalesetpriority"
    if group.market == "spot":
        # AKS taints every spot pool with the label's own key.
        return Wanted({**labels, key: "spot"}, affinity, [_tolerate(key, "spot")])
    return Wanted(labels, [*affinity, _expression(key, "NotIn", ["spot"])])


def _own_nodes(definition: ClusterDefinition, name: str) -> dict[str, str]:
    return {LABEL_CLUSTER: definition.name, LABEL_GROUP: name}


def _instance(group: WorkerGroup) -> dict[str, str]:
    return {INSTANCE: group.instance} if group.instance else {}


def _product(group: WorkerGroup) -> list[Manifest]:
    products = group.device.products
    return [_expression("nvidia.com/gpu.product", "In", list(products))] if products else []


def _affinity(definition: ClusterDefinition, name: str, group: WorkerGroup, wanted: Wanted) -> Manifest:
    together = _together(definition, name) if group.placement == "compact" else {}
    return {**_node_affinity(wanted.affinity), **together}


def _node_affinity(expressions: list[Manifest]) -> Manifest:
    if not expressions:
        return {}
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _together(definition: ClusterDefinition, name: str) -> Manifest:
    """In one zone, and in one block of its network where nodes say which they are in."""
    near = {"labelSelector": {"matchLabels": _own_nodes(definition, name)}}
    rules: Manifest = {"requiredDuringSchedulingIgnoredDuringExecution": [{**near, "topologyKey": ZONE}]}
    key = _CLOSE.get(definition.platform or "")
    if key:
        close = {"weight": 100, "podAffinityTerm": {**near, "topologyKey": key}}
        rules["preferredDuringSchedulingIgnoredDuringExecution"] = [close]
    return {"podAffinity": rules}


def _spread(definition: ClusterDefinition, name: str) -> list[Manifest]:
    near = {"matchLabels": _own_nodes(definition, name)}
    return [{"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": near}]


def _expression(key: str, operator: str, values: list[str]) -> Manifest:
    return {"key": key, "operator": operator, "values": values}


def _tolerate(key: str, value: str | None = None, effect: str | None = "NoSchedule") -> Manifest:
    if value is None:
        return present(key=key, operator="Exists", effect=effect)
    return present(key=key, operator="Equal", effect=effect) | {"value": value}
