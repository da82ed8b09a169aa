"""Rules on how machines are bought, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.definition import ACCELERATORS
from heliostat.plan.catalogue import load
from heliostat.plan.check import cards
from heliostat.plan.check.model import Cluster, Group
from heliostat.plan.check.rule import Hit, Rule


def _training(cluster: Cluster) -> Iterator[Group]:
    if not cluster.embedded:
        yield from (group for group in cluster.groups if group.role == "training" and group.gpus and group.high != 0)


def _spot_alone(cluster: Cluster) -> Iterator[Hit]:
    steady = [g.name for g in cluster.groups if g.role == "serving" and g.market != "spot" and g.high != 0]
    for group in cluster.groups:
        if group.role == "serving" and group.market == "spot" and group.fallback is None and not steady:
            yield Hit(
                group.place("market"),
                f"serving group {group.name} is on spot, and no other group could take its replicas over",
                "add a serving group on on-demand machines with the same GPU, or move this one there",
            )


def _on_demand(cluster: Cluster) -> Iterator[Hit]:
    for group in _training(cluster):
        if group.market == "on-demand":
            yield Hit(
                group.place("market"),
                f"training group {group.name} is on on-demand machines, and nothing says why",
                "move it to spot, with checkpoints; or say why: # heliostat: allow on-demand-training because ...",
            )


def _across_zones(cluster: Cluster) -> Iterator[Hit]:
    for group in _training(cluster):
        if group.many_nodes and not group.close and not _is_tpu(group):
            yield Hit(
                group.place("market"),
                f"the nodes of training group {group.name} may lie in several zones",
                "give the group one zone and placement: compact"
                if cluster.kind == "definition"
                else "select one topology.kubernetes.io/zone, or require podAffinity to the group's own pods by zone",
            )


def _no_fabric(cluster: Cluster) -> Iterator[Hit]:
    for group in _training(cluster):
        if not group.many_nodes or group.fabric or not group.fabric_applies or _is_tpu(group):
            continue
        known = cards.instance(group.instance) if group.instance else None
        offered = known.fabric if known and known.fabric != "none" else None
        if known and offered and known.accelerators >= 8:
            count = f", {known.efa_interfaces} interfaces" if known.efa_interfaces else ""
            yield Hit(
                group.place("gpus"),
                f"training group {group.name} does not use the fabric of {known.name} ({offered}{count})",
                "add fabric: to the group"
                if cluster.kind == "definition"
                else "ask for its interfaces in the pod's limits (vpc.amazonaws.com/efa, rdma/...), "
                "with the node pool that has them",
            )
        elif known is None and _nvlink(group) and group.gpus >= 8:
            yield Hit(
                group.place("gpus"),
                f"training group {group.name} has several nodes of {group.gpus:g} x {group.card}, joined by plain "
                "network alone",
                "give it machines with EFA, InfiniBand or RoCE, and ask for the interfaces",
            )


def _no_nvlink(cluster: Cluster) -> Iterator[Hit]:
    for group in _training(cluster):
        if group.gpus > 1 and _nvlink(group) == 0 and group.mig is None:
            yield Hit(
                group.place("gpus"),
                f"the {group.gpus:g} {group.card} of a node in training group {group.name} are joined by PCIe alone",
                "expect data parallelism to pay and tensor parallelism not to; cards with NVLink: A100, H100, H200",
            )


def _nvlink(group: Group) -> float | None:
    """GB/s; None where it is not known."""
    card = load().accelerators.get(group.card or "")
    return card.nvlink_gb_s if card and card.vendor == "nvidia" else None


def _is_tpu(group: Group) -> bool:
    """A slice's hosts are joined by its own network, whichever zone it is in."""
    if group.resources.get("TPU"):
        return True
    return group.card in ACCELERATORS and ACCELERATORS[group.card].is_tpu


RULES = (
    Rule(
        "spot-serving-alone",
        "error",
        "Serving on spot with no fallback",
        "When the market takes the machines back, it takes many at once, and no new ones come. Requests then find no "
        "replica.",
        "A second serving group on on-demand machines that the replicas may move to, or no spot for serving.",
        _spot_alone,
    ),
    Rule(
        "on-demand-training",
        "warning",
        "Training on on-demand with no reason given",
        "Training that writes checkpoints loses minutes with a reclaimed machine, and spot costs a half to a tenth. "
        "There are reasons for on-demand (a deadline, no spot of the kind); a reader should find them.",
        "Spot; or a comment: # heliostat: allow on-demand-training because the deadline leaves no room",
        _on_demand,
    ),
    Rule(
        "training-across-zones",
        "warning",
        "Multi-node training across zones",
        "Every step exchanges gradients between all nodes. Between zones the latency is several times as long, the "
        "bandwidth a fraction, and the traffic is billed.",
        "One zone and a compact placement for the group's nodes.",
        _across_zones,
    ),
    Rule(
        "training-without-fabric",
        "warning",
        "Multi-node training without a fabric",
        "Machines made for it have EFA, InfiniBand or RoCE at hundreds of GB/s. Pods that do not ask for the "
        "interfaces speak TCP over the ordinary network card, and the GPUs wait.",
        "Ask for the machine's interfaces, or stay on one node.",
        _no_fabric,
    ),
    Rule(
        "training-without-nvlink",
        "note",
        "Training group without an interconnect",
        "GPUs of one node without NVLink exchange over PCIe, at a twentieth of the rate. Small models do not mind.",
        "Fewer, larger GPUs; or cards with NVLink.",
        _no_nvlink,
    ),
)
