"""Kubernetes objects against the schemas of their kinds; unknown fields are refused, as the API server does if asked.

Ray's kinds: the CRDs of KubeRay, which lie beside the repository or nowhere. Kubernetes' own: kubernetes-validate.
PodMonitor and PrometheusRule: the models that cloudcoil makes from the Prometheus operator's CRDs.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).parents[2]
CORE = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1")
UNVALIDATED = ("EC2NodeClass", "NodePool", "ComputeClass")
"""Their schemas are in no package on PyPI."""
KUBERNETES = "1.35"


def crd_folder() -> Path | None:
    """Beside this checkout, beside the one it was made from, or where the environment says."""
    places = [Path(os.environ["KUBERAY_CRDS"])] if "KUBERAY_CRDS" in os.environ else []
    places += [folder / "shared" / "kuberay-crds" for folder in ROOT.parents[:2]]
    return next((place for place in places if place.is_dir()), None)


@dataclass(frozen=True)
class Verdict:
    kind: str
    schema: str | None
    """None: no schema was found for this kind."""
    mistakes: tuple[str, ...]


def validate(manifest: dict[str, Any]) -> Verdict:
    kind, api = manifest["kind"], manifest["apiVersion"]
    if api == "ray.io/v1":
        return _verdict(kind, "KubeRay CRD", _ray_schema(kind), manifest) if crd_folder() else Verdict(kind, None, ())
    if api in CORE:
        return _core(manifest)
    if api == "monitoring.coreos.com/v1":
        schema = _prometheus_schema(kind)
        return (
            _verdict(kind, "Prometheus operator (cloudcoil)", schema, manifest) if schema else Verdict(kind, None, ())
        )
    return Verdict(kind, None, ())


def _verdict(kind: str, name: str, schema: Any, manifest: dict[str, Any]) -> Verdict:
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return Verdict(kind, name, tuple(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found))


@functools.cache
def _ray_schema(kind: str) -> Any:
    from ruamel.yaml import YAML

    folder = crd_folder()
    assert folder is not None
    crd = YAML(typ="safe").load(folder / f"ray.io_{kind.lower()}s.yaml")
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own business
    return schema


def _strict(node: Any) -> Any:
    """A structural schema as JSON Schema that refuses what the API server would prune."""
    if isinstance(node, list):
        return [_strict(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _strict(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    keeps = node.get("x-kubernetes-preserve-unknown-fields")
    has_fields = node.get("type") == "object" and isinstance(node.get("properties"), dict)
    if has_fields and "additionalProperties" not in node and not keeps:
        plain["additionalProperties"] = False
    return plain


def _core(manifest: dict[str, Any]) -> Verdict:
    import kubernetes_validate

    name = f"Kubernetes {KUBERNETES} (kubernetes-validate)"
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return Verdict(manifest["kind"], name, (f"{'.'.join(map(str, error.path))}: {error.message}",))
    return Verdict(manifest["kind"], name, ())


@functools.cache
def _prometheus_schema(kind: str) -> Any:
    try:
        from cloudcoil.models.prometheus_operator import v1
    except ImportError:
        return None
    return _closed(getattr(v1, kind).model_json_schema(by_alias=True))


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if "properties" in node and "additionalProperties" not in node and isinstance(node["properties"], dict):
        closed["additionalProperties"] = False
    return closed
