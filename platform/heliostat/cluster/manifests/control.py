"""The controller as a Deployment, and the settings that it and every pod of the cluster read."""

from __future__ import annotations

import json

from heliostat.cluster.autoscaling import LABEL_ROLE
from heliostat.cluster.manifests.meta import (
    DASHBOARD_PORT,
    GCS_PORT,
    LABEL_CLUSTER,
    METRICS_PORT,
    SERVE_PORT,
    SETTINGS_DIR,
    TOKEN_DIR,
    TOKEN_KEY,
    Manifest,
    head_service,
    manifest,
    object_name,
    present,
    quantity,
)
from heliostat.cluster.manifests.placement import place_head
from heliostat.cluster.manifests.pods import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    SPOOL_DIR,
    pod_labels,
    store_environment,
    token_secret,
)
from heliostat.cluster.ray_env import METRICS_PORT as METRICS
from heliostat.cluster.ray_env import WASTE
from heliostat.definition import ClusterDefinition


def settings_map(definition: ClusterDefinition) -> Manifest:
    """`settings.json` (heliostat.settings), without a secret in it."""
    head, store = head_service(definition), definition.store
    settings = {
        "cluster": definition.name,
        "dashboard_url": f"http://{head}:{DASHBOARD_PORT}",
        "gcs_address": f"{head}:{GCS_PORT}",
        "token_path": f"{TOKEN_DIR}/{TOKEN_KEY}",
        "serve_url": f"http://{object_name(definition, 'serve')}.{definition.namespace}.svc:{SERVE_PORT}",
        "store": present(endpoint=store.endpoint, bucket=store.bucket, region=store.region),
        "spool": SPOOL_DIR,
    }
    text = json.dumps(settings, indent=1) + "\n"
    body = {"data": {"settings.json": text}}
    return manifest(definition, "v1", "ConfigMap", object_name(definition, "settings"), body)


def controller(definition: ClusterDefinition) -> Manifest:
    """One replica: it holds a lease, and its successor waits for that anyway."""
    labels = {**pod_labels(definition), LABEL_ROLE: "controller"}
    selector = {LABEL_CLUSTER: definition.name, LABEL_ROLE: "controller"}
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": labels}, "spec": _pod(definition)},
    }
    return manifest(definition, "apps/v1", "Deployment", object_name(definition, "controller"), {"spec": spec})


def _pod(definition: ClusterDefinition) -> Manifest:
    spec = definition.controller
    amounts = {"cpu": f"{spec.cpus:g}", "memory": quantity(spec.memory)}
    secret = definition.ray.pull_secret
    watched = definition.observability.metrics
    container = {
        "name": "controller",
        "image": definition.ray.image,
        "command": ["python", "-m", "heliostat.controller"],
        "env": [
            {"name": "HELIOSTAT_SETTINGS", "value": f"{SETTINGS_DIR}/settings.json"},
            {"name": WASTE, "value": definition.waste.model_dump_json()},
            *([{"name": METRICS, "value": str(METRICS_PORT)}] if watched else []),
            *store_environment(definition),
        ],
        **present(ports=[{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}] if watched else None),
        "resources": {"limits": amounts, "requests": amounts},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"mountPath": SETTINGS_DIR, "name": "settings", "readOnly": True},
            {"mountPath": TOKEN_DIR, "name": "token", "readOnly": True},
            {"mountPath": SPOOL_DIR, "name": "spool"},
            {"mountPath": "/tmp", "name": "tmp"},  # noqa: S108
        ],
    }
    return {
        **present(imagePullSecrets=[{"name": secret}] if secret else None),
        **place_head(definition),
        "serviceAccountName": object_name(definition, "ray"),
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "settings", "configMap": {"name": object_name(definition, "settings")}},
            # Not optional: the pod waits for the token that the operator makes.
            {"name": "token", "secret": {"secretName": token_secret(definition), "defaultMode": 0o440}},
            {"name": "spool", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
