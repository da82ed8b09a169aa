"""What Prometheus reads and what it raises, for a cluster with the Prometheus operator and kube-state-metrics."""

from __future__ import annotations

from heliostat.cluster.manifests.meta import LABEL_CLUSTER, Manifest, manifest, object_name
from heliostat.definition import ClusterDefinition

_API = "monitoring.coreos.com/v1"
_ACCELERATORS = "nvidia_com_.+|amd_com_gpu|aws_amazon_com_neuron|google_com_tpu"


def pod_monitors(definition: ClusterDefinition) -> list[Manifest]:
    watch = definition.observability
    if not watch.metrics:
        return []
    interval = f"{max(1, round(watch.interval.seconds))}s"
    spec = {
        "selector": {"matchLabels": {LABEL_CLUSTER: definition.name}},
        "podMetricsEndpoints": [{"port": port, "interval": interval} for port in ("metrics", "haproxy")],
    }
    return [manifest(definition, _API, "PodMonitor", definition.name, {"spec": spec}, labels=dict(watch.labels))]


def alert_rules(definition: ClusterDefinition) -> list[Manifest]:
    watch = definition.observability
    if not watch.alerts:
        return []
    rules = [_head_down(definition), _controller_down(definition), _nodes_missing(definition), *_budget(definition)]
    spec = {"groups": [{"name": f"heliostat-{definition.name}", "rules": rules}]}
    return [manifest(definition, _API, "PrometheusRule", definition.name, {"spec": spec}, labels=dict(watch.labels))]


def _head_down(definition: ClusterDefinition) -> Manifest:
    pods = f'namespace="{definition.namespace}",pod=~"{definition.name}-head.*",condition="true"'
    return _alert(
        "HeliostatHeadNotReady",
        f"(max(kube_pod_status_ready{{{pods}}}) or vector(0)) == 0",
        "2m",
        "critical",
        f"The head of {definition.name} has not been ready for 2 minutes.",
    )


def _controller_down(definition: ClusterDefinition) -> Manifest:
    of = f'namespace="{definition.namespace}",deployment="{object_name(definition, "controller")}"'
    return _alert(
        "HeliostatControllerDown",
        f"kube_deployment_status_replicas_available{{{of}}} < 1",
        "5m",
        "critical",
        f"Nobody acts for {definition.name}: no rollback, no budget, no idle rule.",
    )


def _nodes_missing(definition: ClusterDefinition) -> Manifest:
    pods = f'namespace="{definition.namespace}",pod=~"{definition.name}-.*-worker-.*",phase="Pending"'
    return _alert(
        "HeliostatNodesPending",
        f"sum(kube_pod_status_phase{{{pods}}}) > 0",
        "15m",
        "warning",
        f"Worker nodes of {definition.name} have been waiting for machines for 15 minutes: capacity, or a quota.",
    )


def _budget(definition: ClusterDefinition) -> list[Manifest]:
    hours = definition.budgets.gpu_hours_per_month
    if hours is None:
        return []
    held = (
        f'kube_pod_container_resource_requests{{namespace="{definition.namespace}",resource=~"{_ACCELERATORS}"}} '
        "* on(namespace, pod) group_left() (kube_pod_status_phase"
        f'{{namespace="{definition.namespace}",phase="Running"}} == 1)'
    )
    # Every five minutes one sample of how many are held: twelve of them make an hour.
    used = f"sum_over_time(sum({held})[30d:5m]) / 12"
    return [
        _alert(
            "HeliostatGpuHoursSpent" if share == 1 else "HeliostatGpuHoursNearlySpent",
            f"{used} > {hours * share:g}",
            "5m",
            "critical" if share == 1 else "warning",
            f"{definition.name} has held {share:.0%} of its {hours} accelerator hours in 30 days.",
        )
        for share in (0.8, 1)
    ]


def _alert(name: str, expression: str, wait: str, severity: str, summary: str) -> Manifest:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
