"""Who the pods are, who may reach them, how many accelerators they may hold, and what may be evicted."""

from __future__ import annotations

from heliostat.cluster.autoscaling import LABEL_GROUP, LABEL_ROLE
from heliostat.cluster.manifests.meta import (
    AGENT_PORT,
    DASHBOARD_PORT,
    HAPROXY_METRICS_PORT,
    LABEL_CLUSTER,
    METRICS_PORT,
    SERVE_PORT,
    Manifest,
    manifest,
    object_name,
)
from heliostat.cluster.manifests.pods import accelerator_resource
from heliostat.definition import ClusterDefinition

_IDENTITY = {
    "eks-karpenter": "eks.amazonaws.com/role-arn",
    "eks": "eks.amazonaws.com/role-arn",
    "gke": "iam.gke.io/gcp-service-account",
    "aks": "azure.workload.identity/client-id",
}


def service_account(definition: ClusterDefinition) -> Manifest:
    """What the pods act as towards the cloud. KubeRay binds the autoscaler's rights to it."""
    identity, key = definition.store.identity, _IDENTITY.get(definition.platform or "")
    annotations = {key: identity} if identity and key else None
    return manifest(definition, "v1", "ServiceAccount", object_name(definition, "ray"), {}, annotations=annotations)


def serve_service(definition: ClusterDefinition) -> Manifest:
    """Where clients call applications: Serve's front on the head."""
    spec = {
        "selector": {LABEL_CLUSTER: definition.name, LABEL_ROLE: "head"},
        "ports": [{"name": "serve", "port": SERVE_PORT, "targetPort": SERVE_PORT, "protocol": "TCP"}],
    }
    return manifest(definition, "v1", "Service", object_name(definition, "serve"), {"spec": spec})


def network_policies(definition: ClusterDefinition) -> list[Manifest]:
    """Within the cluster everything is open; from outside a few ports, to those who need them.

    HAProxy's statistics page, its metrics, the replicas' own ports (30000 to 31000 and, for gRPC, above 40000), GCS and
    the Ray client are open on every pod and ask nobody who they are: this fence is what keeps others off.
    """
    network = definition.network
    if not network.fenced:
        return []
    ingress = [
        {"from": [{"podSelector": {"matchLabels": {LABEL_CLUSTER: definition.name}}}]},
        _from(network.operator_namespace, DASHBOARD_PORT, AGENT_PORT, SERVE_PORT),
    ]
    if definition.observability.metrics:
        ingress.append(_from(network.monitoring_namespace, METRICS_PORT, HAPROXY_METRICS_PORT))
    ingress += [_from(namespace, SERVE_PORT) for namespace in network.clients]
    spec = {
        "podSelector": {"matchLabels": {LABEL_CLUSTER: definition.name}},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }
    return [manifest(definition, "networking.k8s.io/v1", "NetworkPolicy", definition.name, {"spec": spec})]


def disruption_budgets(definition: ClusterDefinition) -> list[Manifest]:
    """The head is never evicted; of a serving group one node at a time. Spot nodes go whether asked or not."""
    budgets = [_budget(definition, "head", {LABEL_ROLE: "head"}, at_most=0)]
    for name, group in definition.groups.items():
        if group.market != "spot":
            budgets.append(_budget(definition, name, {LABEL_GROUP: name}, at_most=1 if group.role == "serving" else 0))
    return budgets


def quotas(definition: ClusterDefinition) -> list[Manifest]:
    limit = definition.budgets.max_gpus
    names = sorted({accelerator_resource(definition, group) for group in definition.groups.values() if group.gpus})
    if limit is None or not names:
        return []
    hard = {f"requests.{name}": str(limit) for name in names}
    return [manifest(definition, "v1", "ResourceQuota", object_name(definition, "gpus"), {"spec": {"hard": hard}})]


def _budget(definition: ClusterDefinition, name: str, labels: dict[str, str], *, at_most: int) -> Manifest:
    spec = {"maxUnavailable": at_most, "selector": {"matchLabels": {LABEL_CLUSTER: definition.name, **labels}}}
    return manifest(definition, "policy/v1", "PodDisruptionBudget", object_name(definition, name), {"spec": spec})


def _from(namespace: str, *ports: int) -> Manifest:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    return {"from": [peer], "ports": [{"port": port, "protocol": "TCP"} for port in ports]}
