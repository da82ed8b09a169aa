"""Kubernetes objects as plain data: what they are called, whose they are, and the order in which they go in.

Pure: no client, no clock. An object is the `dict` that its YAML says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.errors import UsageError
from heliostat.names import check_name

Object = dict[str, Any]  # Any: what the YAML says; the API server holds the schema

FIELD_MANAGER = "heliostat"
LABEL_CLUSTER = "heliostat.io/cluster"
LABEL_HOME = "heliostat.io/namespace"  # on what lies in no namespace: whose of two clusters of one name it is
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"

# What stands earlier is needed by what stands later: a pod cannot start without its namespace, account, secret and
# quota, and a budget must be there before the pods that it protects. Kinds not named go in just before the workloads.
_FIRST = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "ResourceQuota",
    "LimitRange",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Secret",
    "ConfigMap",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
)
_LAST = ("Deployment", "RayCluster", "RayService", "RayJob", "RayCronJob")

# Other renderings of a definition, brought in by themselves: that they are missing from one says nothing.
BY_NAME = ("RayService", "RayJob", "RayCronJob")

# Where objects of ours may lie that are no longer rendered. A kind that the server lacks is passed over.
OWNED_KINDS: tuple[tuple[str, str], ...] = (
    ("v1", "Namespace"),
    ("v1", "ServiceAccount"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("v1", "ResourceQuota"),
    ("scheduling.k8s.io/v1", "PriorityClass"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("karpenter.sh/v1", "NodePool"),
    ("karpenter.k8s.aws/v1", "EC2NodeClass"),
    ("cloud.google.com/v1", "ComputeClass"),
    ("ray.io/v1", "RayCluster"),
    ("ray.io/v1", "RayService"),
    ("ray.io/v1", "RayJob"),
    ("ray.io/v1", "RayCronJob"),
)

# Looser than DNS, as the names of RBAC objects are, but safe in a URL path.
_OBJECT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9:_-]|\.(?!\.)){0,252}")


@dataclass(frozen=True, order=True)
class Ref:
    """Which object. `namespace` is "" for what belongs to no namespace."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def ref_of(thing: Object) -> Ref:
    meta = thing["metadata"]
    return Ref(thing["apiVersion"], thing["kind"], meta.get("namespace", ""), meta["name"])


def rank(kind: str) -> int:
    """Lower goes in first and comes out last."""
    if kind in _FIRST:
        return _FIRST.index(kind)
    return len(_FIRST) + 1 + (_LAST.index(kind) if kind in _LAST else -1)


def in_order(objects: Iterable[Object]) -> list[Object]:
    """By rank, then by name, so that the order never depends on the files."""
    return sorted(objects, key=lambda thing: (rank(thing["kind"]), ref_of(thing)))


def owner_of(thing: Object) -> str | None:
    """The Heliostat cluster that the object's labels name, or None."""
    labels = thing.get("metadata", {}).get("labels") or {}
    name = labels.get(LABEL_CLUSTER)
    return name if name and labels.get(LABEL_MANAGED_BY) == FIELD_MANAGER else None


def applied_fields(thing: Object, manager: str = FIELD_MANAGER) -> Object | None:
    """What the manager holds by server-side apply (FieldsV1), or None where it never applied the object."""
    for entry in thing.get("metadata", {}).get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return entry.get("fieldsV1") or {}
    return None


def is_ours(thing: Object, cluster: str) -> bool:
    """Applied by us for this cluster, and no controller's own.

    Labels alone would not do: controllers copy the labels of an object onto what they make from it.
    """
    controlled = any(owner.get("controller") for owner in thing["metadata"].get("ownerReferences") or [])
    return owner_of(thing) == cluster and applied_fields(thing) is not None and not controlled


def home_of(thing: Object) -> str:
    """The namespace of the cluster that the object is a part of, also for what lies in none itself."""
    meta = thing["metadata"]
    return str(meta.get("namespace") or (meta.get("labels") or {}).get(LABEL_HOME, ""))


def stamped(thing: Object, cluster: str, home: str) -> Object:
    """A copy with the owner labels."""
    made = copy.deepcopy(thing)
    labels = made["metadata"].setdefault("labels", {})
    labels.update({LABEL_CLUSTER: cluster, LABEL_MANAGED_BY: FIELD_MANAGER})
    if home and not made["metadata"].get("namespace"):
        labels[LABEL_HOME] = home
    return made


def check_objects(objects: Sequence[Object], *, where: str = "manifests") -> list[Object]:
    """The objects, if each can be found by what it says and no two are one. Raises UsageError with all mistakes."""
    mistakes: list[str] = []
    seen: set[Ref] = set()
    for index, thing in enumerate(objects, start=1):
        mistake = _mistake(thing)
        if mistake:
            mistakes.append(f"object {index}: {mistake}")
            continue
        ref = ref_of(thing)
        if ref in seen:
            mistakes.append(f"object {index}: {ref} is there twice")
        seen.add(ref)
    if mistakes:
        raise UsageError("; ".join(mistakes), where=where, do="render the manifests again: heliostat render")
    return list(objects)


def _mistake(thing: object) -> str:
    if not isinstance(thing, dict):
        return f"it is {type(thing).__name__}, not a mapping"
    for key in ("apiVersion", "kind"):
        if not isinstance(thing.get(key), str) or not thing[key]:
            return f"it has no {key}"
    if thing["kind"] == "List":
        return "a List: write its items as documents of their own"
    meta = thing.get("metadata")
    if not isinstance(meta, dict):
        return f"{thing['kind']} has no metadata"
    for key, required in (("name", True), ("namespace", False)):
        value = meta.get(key)
        if value is None and not required:
            continue
        if not isinstance(value, str) or not _OBJECT_NAME.fullmatch(value):
            return f"{thing['kind']} has no valid metadata.{key}: {value!r}"
    return ""


def load(paths: Iterable[Path]) -> list[Object]:
    """The objects of YAML files, and of all *.yaml and *.yml files in folders. Raises UsageError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from heliostat.definition.yaml_size import PARSER_ERRORS, is_too_deep, is_too_large

    paths = list(paths)
    objects: list[Object] = []
    for file in _files(paths):
        try:
            text = file.read_text(encoding="utf-8")
            if is_too_deep(text):
                raise RecursionError
            if any(is_too_large(node) for node in YAML(typ="safe", pure=True).compose_all(text)):
                raise UsageError(
                    "its aliases stand for too many values, or it refers to itself", where=str(file), do="write it out"
                )
            documents = list(YAML(typ="safe", pure=True).load_all(text))
        except OSError as error:
            raise UsageError(f"it cannot be read: {error.strerror}", where=str(file)) from error
        except RecursionError as error:
            raise UsageError(
                "it is nested too deep, or refers to itself", where=str(file), do="write it out"
            ) from error
        except UsageError:
            raise
        except (YAMLError, *PARSER_ERRORS) as error:
            raise UsageError(f"this is not YAML: {error}", where=str(file)) from error
        objects += check_objects([d for d in documents if d is not None], where=str(file))
    if not objects:
        raise UsageError("there are no manifests", where=", ".join(map(str, paths)), do="heliostat render DEFINITION")
    return check_objects(objects, where=", ".join(map(str, paths)))


def _files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml"))
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError("there is no such file or folder", where=str(path), do="heliostat render DEFINITION")
    return files


def cluster_of(objects: Sequence[Object]) -> str:
    """The cluster that the owner labels of the objects name. Raises UsageError where they name none, or several."""
    names = sorted({name for thing in objects if (name := owner_of(thing))})
    if len(names) != 1:
        found = f"name several clusters: {', '.join(names)}" if names else f"do not carry the label {LABEL_CLUSTER}"
        raise UsageError(f"the manifests {found}", do="apply what heliostat render made, one cluster at a time")
    return check_name(names[0], what="cluster name")


def is_whole(objects: Iterable[Object]) -> bool:
    """Whether this is all of a cluster, so that what is missing from it is no longer wanted."""
    return any(thing["kind"] == "RayCluster" for thing in objects)


def namespaces_of(objects: Iterable[Object]) -> list[str]:
    """Every namespace that the objects lie in, in order."""
    return sorted({ref_of(thing).namespace for thing in objects} - {""})
