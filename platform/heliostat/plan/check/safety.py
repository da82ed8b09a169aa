"""Rules on who may reach the cluster, what survives a lost head, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.plan.check.model import Cluster
from heliostat.plan.check.rule import Hit, Rule


def _no_auth(cluster: Cluster) -> Iterator[Hit]:
    if cluster.auth or cluster.embedded:
        return
    opened = f", and {cluster.exposed} opens it" if cluster.exposed else ""
    yield Hit(
        cluster.place("exposed" if cluster.exposed else "auth"),
        f"whoever reaches the dashboard runs code on the cluster{opened}",
        "write authOptions.mode: token (Ray 2.52 and KubeRay 1.5.1 or later)",
        severity=None if cluster.exposed else "warning",
    )


def _no_fault_tolerance(cluster: Cluster) -> Iterator[Hit]:
    serves = cluster.kind == "RayService" or any(group.role == "serving" for group in cluster.groups)
    if cluster.embedded or cluster.fault_tolerant or cluster.kind == "RayJob":
        return
    if cluster.production and serves:
        yield Hit(
            cluster.place("fault_tolerance"),
            "the head keeps its state in itself: when it is lost, every worker and every replica restarts",
            "name a Redis in head.state"
            if cluster.kind == "definition"
            else "add gcsFaultToleranceOptions with a Redis that survives the head",
        )


def _no_tags(cluster: Cluster) -> Iterator[Hit]:
    missing = [tag for tag in ("team", "project") if tag not in cluster.tags]
    if missing and not cluster.embedded:
        yield Hit(
            cluster.at,
            f"no label says which {' and which '.join(missing)} the cluster belongs to",
            f"add the labels {' and '.join(missing)} to its metadata",
        )


RULES = (
    Rule(
        "dashboard-without-auth",
        "error",
        "Dashboard without authentication",
        "Ray's dashboard and Jobs API run any code for whoever reaches the port, and clusters open to the internet "
        "have been taken for it. Within Kubernetes every pod reaches it. A warning where nothing exposes it.",
        "Token authentication; and no LoadBalancer, NodePort or Ingress in front of the head.",
        _no_auth,
    ),
    Rule(
        "no-gcs-fault-tolerance",
        "warning",
        "No GCS fault tolerance in production",
        "A head that restarts has forgotten its workers: all applications go down with it. With its state in Redis, "
        "replicas answer on while a new head comes up.",
        "gcsFaultToleranceOptions (in a definition: head.state). Asked of RayServices and of definitions for "
        "Kubernetes, unless name or namespace say staging, dev, test or the like; and of RayClusters that serve and "
        "say production.",
        _no_fault_tolerance,
    ),
    Rule(
        "missing-tags",
        "note",
        "Missing tags",
        "Nobody can say whose GPUs these are, or what they cost whom.",
        "Labels for the team and the project on the object; the clouds' cost reports read them.",
        _no_tags,
    ),
)
