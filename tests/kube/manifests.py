"""A small mixed cluster as it would be rendered: serving on demand, training on spot."""

from __future__ import annotations

import base64
from typing import Any

Object = dict[str, Any]
SECRET_VALUE = base64.b64encode(b"hunter2-is-not-for-show").decode()


def mixed(cluster: str = "llm", namespace: str = "ml", *, with_namespace: bool = True) -> list[Object]:
    def thing(api_version: str, kind: str, name: str, **rest: Any) -> Object:
        meta: Object = {"name": name, "labels": labels()}
        if kind != "Namespace":
            meta["namespace"] = namespace
        return {"apiVersion": api_version, "kind": kind, "metadata": meta, **rest}

    def labels() -> Object:
        return {"heliostat.io/cluster": cluster, "app.kubernetes.io/managed-by": "heliostat"}

    rbac = "rbac.authorization.k8s.io"
    objects = [
        ray_cluster(thing("ray.io/v1", "RayCluster", cluster)),
        thing("v1", "ServiceAccount", f"{cluster}-controller"),
        thing(f"{rbac}/v1", "Role", f"{cluster}-controller",
              rules=[{"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]}]),
        thing(f"{rbac}/v1", "RoleBinding", f"{cluster}-controller",
              roleRef={"apiGroup": rbac, "kind": "Role", "name": f"{cluster}-controller"},
              subjects=[{"kind": "ServiceAccount", "name": f"{cluster}-controller", "namespace": namespace}]),
        thing("v1", "Secret", f"{cluster}-store", type="Opaque", data={"secret-key": SECRET_VALUE}),
        thing("v1", "ConfigMap", f"{cluster}-settings", data={"region": "eu-central-1", "budget": "100"}),
        thing("v1", "PersistentVolumeClaim", f"{cluster}-cache",
              spec={"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}}),
        thing("v1", "Service", f"{cluster}-front",
              spec={"selector": {"ray.io/cluster": cluster},
                    "ports": [{"name": "serve", "port": 8000, "protocol": "TCP"}]}),
        thing("networking.k8s.io/v1", "NetworkPolicy", cluster, spec={"podSelector": {}, "policyTypes": ["Ingress"]}),
        thing("policy/v1", "PodDisruptionBudget", f"{cluster}-serving",
              spec={"minAvailable": 1, "selector": {"matchLabels": {"heliostat.io/role": "serving"}}}),
    ]  # fmt: skip
    return [*objects, thing("v1", "Namespace", namespace)] if with_namespace else objects


def ray_cluster(thing: Object) -> Object:
    def template(image: str, gpus: int) -> Object:
        container: Object = {"name": "ray", "image": image, "env": [{"name": "S3_SECRET_KEY", "value": "do-not-show"}]}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
        return {"spec": {"containers": [container]}}

    image = "rayproject/ray:2.60.0"
    thing["spec"] = {
        "rayVersion": "2.60.0",
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2"},
        "headGroupSpec": {"rayStartParams": {}, "template": template(image, 0)},
        "workerGroupSpecs": [
            {"groupName": "serve", "minReplicas": 1, "maxReplicas": 4, "template": template(image, 1)},
            {"groupName": "train", "minReplicas": 0, "maxReplicas": 8, "template": template(image, 1)},
        ],
    }
    return thing


def find(objects: list[Object], kind: str) -> Object:
    return next(thing for thing in objects if thing["kind"] == kind)
