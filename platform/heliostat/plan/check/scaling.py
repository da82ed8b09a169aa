"""Rules on what scales, how, and what is held while nothing runs."""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.plan.check.model import Cluster, Group
from heliostat.plan.check.rule import Hit, Rule

LONG_IDLE_S = 3600


def _idle(cluster: Cluster) -> Iterator[Hit]:
    with_gpus = [group for group in cluster.groups if group.gpus]
    if cluster.kind == "RayJob":
        if with_gpus and not cluster.ends_with_job:
            yield Hit(
                cluster.place("end"),
                "the cluster, GPUs and all, stays when the job has ended",
                "write shutdownAfterJobFinishes: true, and ttlSecondsAfterFinished for time to look at it",
            )
        return
    for group in with_gpus:
        if group.role == "serving" or not (cluster.autoscaled or cluster.kind == "definition"):
            continue
        if group.low > 0:
            yield Hit(
                group.place("nodes"),
                f"group {group.name} never has fewer than {_nodes(group)}, work or none",
                _from_zero(cluster, group),
            )
        elif group.idle_timeout_s is not None and group.idle_timeout_s > LONG_IDLE_S:
            yield Hit(
                group.place("idle"),
                f"group {group.name} keeps its GPUs for {group.idle_timeout_s / 3600:g} h after its last work",
                "write some minutes",
            )


def _nodes(group: Group) -> str:
    count = group.low * group.hosts
    return f"{count} node{'s' * (count > 1)} with {group.gpus:g} GPU{'s' * (group.gpus > 1)} each"


def _from_zero(cluster: Cluster, group: Group) -> str:
    high = "" if group.high is None else group.high
    return f"write nodes: 0..{high}" if cluster.kind == "definition" else "write replicas: 0 and minReplicas: 0"


def _autoscaler(cluster: Cluster) -> Iterator[Hit]:
    if cluster.autoscaled or cluster.fixed_on_purpose or not cluster.groups:
        return
    if cluster.elastic:
        yield Hit(
            cluster.place("autoscaled"),
            "groups have room between minReplicas and maxReplicas, and nothing that uses it",
            "write enableInTreeAutoscaling: true, with autoscalerOptions.version: v2",
        )
    elif cluster.kind == "RayCluster" and any(group.gpus for group in cluster.groups):
        yield Hit(
            cluster.place("autoscaled"),
            "GPU nodes are held for as long as the cluster lives",
            "write enableInTreeAutoscaling: true with minReplicas: 0, or run the work as a RayJob",
        )


def _by_cpu(cluster: Cluster) -> Iterator[Hit]:
    for scaler in cluster.cpu_scalers:
        yield Hit(
            scaler.at,
            f"{scaler.name} scales {cluster.name} by its CPU",
            "remove it; let replicas scale on their queue (autoscaling_config.target_ongoing_requests) and nodes on "
            "what Ray asks for (enableInTreeAutoscaling)",
            line=scaler.line,
        )


RULES = (
    Rule(
        "idle-gpus",
        "warning",
        "GPU group that never scales to zero",
        "An idle GPU costs what a busy one does. A group whose lower bound is above zero, or that waits for hours "
        "after its last work, is paid for through nights and weekends. Serving groups are left out: a replica that "
        "is ready has its price.",
        "Lower bound 0 and an idle timeout of minutes. A RayJob takes its cluster with it when it ends.",
        _idle,
    ),
    Rule(
        "autoscaler-off",
        "warning",
        "Autoscaler off",
        "Without Ray's own autoscaler a group stays at its replicas: bounds are only read by it, and waiting work "
        "starts no node.",
        "enableInTreeAutoscaling: true. Leave it off where a queue such as Kueue admits the cluster whole.",
        _autoscaler,
    ),
    Rule(
        "cpu-autoscaling",
        "warning",
        "Autoscaling by CPU",
        "A GPU server is busy on the GPU. Its CPU says little about its load, and a second scaler removes pods that "
        "Ray's autoscaler holds for work.",
        "Replicas scale on requests in progress or on seconds of queued work, nodes on what Ray has to place.",
        _by_cpu,
    ),
)
