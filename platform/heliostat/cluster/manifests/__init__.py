"""A definition as the objects of Kubernetes with KubeRay 1.7. Pure: values in, values out.

`render` gives the standing set, in the order in which it should be applied. `ray_service` and `ray_jobs` are other
renderings, to be asked for by name. Nothing here has a field that the CRDs lack: Ray 2.60 would read
`idleTerminationOptions`, but KubeRay 1.7 has no such field.
"""

from __future__ import annotations

from heliostat.cluster.manifests.access import (
    disruption_budgets,
    network_policies,
    quotas,
    serve_service,
    service_account,
)
from heliostat.cluster.manifests.control import controller, settings_map
from heliostat.cluster.manifests.meta import Manifest
from heliostat.cluster.manifests.monitoring import alert_rules, pod_monitors
from heliostat.cluster.manifests.nodes import compute_classes, karpenter_nodes
from heliostat.cluster.manifests.raycluster import ray_cluster
from heliostat.cluster.manifests.workloads import ray_job, ray_jobs, ray_service
from heliostat.definition import ClusterDefinition
from heliostat.errors import UsageError

__all__ = ["Manifest", "ray_job", "ray_jobs", "ray_service", "render"]


def render(definition: ClusterDefinition) -> list[Manifest]:
    """Every object of the cluster but its applications and jobs, which go in through Ray's own APIs.

    Raises UsageError for a definition without a platform.
    """
    if definition.platform is None:
        raise UsageError(
            f"{definition.name!r} is for an embedded cluster: it names no platform",
            do="add platform: eks-karpenter, eks, gke, aks or on-premises",
        )
    return [
        service_account(definition),
        settings_map(definition),
        *quotas(definition),
        *network_policies(definition),
        *karpenter_nodes(definition),
        *compute_classes(definition),
        ray_cluster(definition),
        serve_service(definition),
        *disruption_budgets(definition),
        controller(definition),
        *pod_monitors(definition),
        *alert_rules(definition),
    ]
