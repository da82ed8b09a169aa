"""What every object carries: its name, whose it is, and quantities as Kubernetes writes them."""

from __future__ import annotations

from typing import Any

from heliostat.definition import ClusterDefinition
from heliostat.units import Bytes

Manifest = dict[str, Any]  # Any: a Kubernetes object, checked against its schema by tests

LABEL_CLUSTER = "heliostat.io/cluster"
SETTINGS_DIR = "/etc/heliostat"
TOKEN_DIR = "/etc/heliostat-token"  # noqa: S105  # a folder
TOKEN_KEY = "auth_token"  # noqa: S105  # what KubeRay calls the key in its Secret

GCS_PORT, DASHBOARD_PORT, CLIENT_PORT, SERVE_PORT = 6379, 8265, 10001, 8000
METRICS_PORT, HAPROXY_METRICS_PORT, AGENT_PORT = 8080, 9101, 52365


def owner_labels(definition: ClusterDefinition) -> dict[str, str]:
    tags = definition.tags
    labels = {
        "app.kubernetes.io/managed-by": "heliostat",
        "app.kubernetes.io/part-of": definition.name,
        LABEL_CLUSTER: definition.name,
        "heliostat.io/team": tags.team,
        "heliostat.io/project": tags.project,
    }
    return {**labels, "heliostat.io/cost-centre": tags.cost_centre} if tags.cost_centre else labels


def manifest(
    definition: ClusterDefinition,
    api_version: str,
    kind: str,
    name: str,
    body: Manifest,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    in_namespace: bool = True,
) -> Manifest:
    """The object, with its owner. `body` is what stands beside its metadata."""
    metadata: Manifest = {"name": name, "labels": {**(labels or {}), **owner_labels(definition)}}
    if in_namespace:
        metadata["namespace"] = definition.namespace
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def object_name(definition: ClusterDefinition, part: str) -> str:
    return f"{definition.name}-{part}"


def quantity(size: Bytes) -> str:
    """24GiB -> "24Gi"; what is no whole number of MiB is counted in bytes."""
    for suffix, unit in (("Gi", 2**30), ("Mi", 2**20)):
        if size.bytes and size.bytes % unit == 0:
            return f"{size.bytes // unit}{suffix}"
    return str(size.bytes)


def head_service(definition: ClusterDefinition) -> str:
    """The DNS name of the Service that KubeRay makes for the head."""
    return f"{definition.name}-head-svc.{definition.namespace}.svc"


def present(**fields: Any) -> Manifest:  # Any: as Manifest
    """The fields that hold something; Kubernetes reads an empty list as a statement."""
    return {key: value for key, value in fields.items() if value not in (None, {}, [], "")}
