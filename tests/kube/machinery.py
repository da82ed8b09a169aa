"""The part of Kubernetes' API machinery that an apply meets: versions, ownership of fields, deletion. No HTTP here.

Written after Kubernetes' API conventions and the published behaviour of server-side apply. What it leaves out: schemas
(apart from the kinds of lists below and the names of RayCluster's fields), conversion between versions, atomic maps,
and every admission plugin but the namespace's life cycle.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]  # elements as in FieldsV1: f:name, k:{"port":80}, and "." for an entry itself

# Lists whose entries are merged by key; all others are atomic, as in KubeRay's CRDs, which declare none.
MAP_LISTS = {("Service", ("f:spec", "f:ports")): ("port", "protocol")}
RAY_CLUSTER_FIELDS = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy", "rayVersion", "suspend"),
    *("tlsOptions", "upgradeStrategy", "workerGroupSpecs"),
}
# Defaults of KubeRay's CRD for one worker group.
WORKER_GROUP_DEFAULTS = {"replicas": 0, "minReplicas": 0, "maxReplicas": 2147483647, "numOfHosts": 1}
SERVER_SET = ("uid", "creationTimestamp", "resourceVersion", "generation", "managedFields", "deletionTimestamp")
_GONE = object()


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


RBAC = "rbac.authorization.k8s.io"
CORE_KINDS = (
    Kind("", "v1", "namespaces", "Namespace", False),
    Kind("", "v1", "pods", "Pod"),
    Kind("", "v1", "events", "Event"),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "services", "Service"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount"),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Kind("", "v1", "resourcequotas", "ResourceQuota"),
    Kind("apps", "v1", "deployments", "Deployment"),
    Kind("apps", "v1", "statefulsets", "StatefulSet"),
    Kind("batch", "v1", "jobs", "Job"),
    Kind(RBAC, "v1", "roles", "Role"),
    Kind(RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind(RBAC, "v1", "clusterroles", "ClusterRole", False),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
)
RAY_KINDS = (
    Kind("ray.io", "v1", "rayclusters", "RayCluster"),
    Kind("ray.io", "v1", "rayservices", "RayService"),
    Kind("ray.io", "v1", "rayjobs", "RayJob"),
)
# What else a rendering may hold, each with its own operator.
OTHER_KINDS = (
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Kind("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    Kind("karpenter.sh", "v1", "nodepools", "NodePool", False),
    Kind("karpenter.k8s.aws", "v1", "ec2nodeclasses", "EC2NodeClass", False),
    Kind("cloud.google.com", "v1", "computeclasses", "ComputeClass", False),
)


class Refusal(Exception):
    """What the server answers instead of an object."""

    def __init__(self, status: Object, headers: dict[str, str] | None = None) -> None:
        super().__init__(status["message"])
        self.status = status
        self.headers = headers or {}


def status(code: int, reason: str, message: str, **details: Any) -> Object:
    made: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    made |= {"reason": reason} if reason else {}
    made |= {"details": details} if details else {}
    return {**made, "code": code}


def _details(kind: Kind, name: str) -> Object:
    made = {"name": name, "kind": kind.plural}
    return {**made, "group": kind.group} if kind.group else made


def not_found(kind: Kind, name: str) -> Refusal:
    return Refusal(status(404, "NotFound", f'{kind.resource} "{name}" not found', **_details(kind, name)))


def modified(kind: Kind, name: str, why: str = "") -> Refusal:
    why = why or ("the object has been modified; please apply your changes to the latest version and try again")
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return Refusal(status(409, "Conflict", message, **_details(kind, name)))


def forbidden(kind: Kind, name: str, verb: str, namespace: str) -> Refusal:
    place = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
    subject = f'{kind.resource} "{name}"' if name else kind.resource
    message = (
        f'{subject} is forbidden: User "dev" cannot {verb} resource "{kind.plural}" in API group "{kind.group}"{place}'
    )
    return Refusal(status(403, "Forbidden", message, **_details(kind, name)))


def expired(version: int, oldest: int) -> Object:
    return status(410, "Expired", f"too old resource version: {version} ({oldest})")


def webhook_denied(webhook: str, why: str, code: int = 403) -> Refusal:
    return Refusal(
        status(code, "Forbidden" if code == 403 else "", f'admission webhook "{webhook}" denied the request: {why}')
    )


# Fields and who holds them.


def leaves(kind: str, value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of FieldsV1 that `value` sets."""
    keys = MAP_LISTS.get((kind, path))
    if keys and isinstance(value, list):
        for entry in value:
            at = (*path, _entry_key(entry, keys))
            yield (*at, ".")
            yield from leaves(kind, entry, at)
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(kind, inner, (*path, f"f:{key}"))
    elif path:
        yield path


def _entry_key(entry: Object, keys: tuple[str, ...]) -> str:
    named = {key: entry.get(key, "TCP" if key == "protocol" else None) for key in keys}
    return "k:" + json.dumps(named, separators=(",", ":"))


def value_at(thing: Any, path: Path) -> Any:
    for element in path:
        if element == ".":
            return True
        thing = _inner(thing, element)
        if thing is _GONE:
            return _GONE
    return thing


def _inner(thing: Any, element: str) -> Any:
    if element.startswith("f:"):
        return thing.get(element[2:], _GONE) if isinstance(thing, dict) else _GONE
    keys = json.loads(element[2:])
    for entry in thing if isinstance(thing, list) else ():
        if _entry_key(entry, tuple(keys)) == element:
            return entry
    return _GONE


def set_at(thing: Any, path: Path, value: Any) -> None:
    for element, following in itertools.pairwise(path):
        inner = _inner(thing, element)
        if inner is _GONE:
            inner = [] if following.startswith("k:") else {}
            if element.startswith("f:"):
                thing[element[2:]] = inner
            else:
                inner = dict(json.loads(element[2:]))
                thing.append(inner)
        thing = inner
    if path[-1].startswith("f:"):
        thing[path[-1][2:]] = copy.deepcopy(value)


def remove_at(thing: Any, path: Path) -> None:
    holder = value_at(thing, path[:-1])
    if path[-1] == ".":
        outer = value_at(thing, path[:-2])
        if isinstance(outer, list) and holder in outer:
            outer.remove(holder)
    elif isinstance(holder, dict):
        holder.pop(path[-1][2:], None)
        if not holder and len(path) > 1 and path[-2].startswith("f:"):
            remove_at(thing, path[:-1])


def to_fields(paths: set[Path]) -> Object:
    made: Object = {}
    for path in sorted(paths):
        at = made
        for element in path:
            at = at.setdefault(element, {})
    return made


def from_fields(fields: Object, path: Path = ()) -> set[Path]:
    if not fields:
        return {path} if path else set()
    return {leaf for element, inner in fields.items() for leaf in from_fields(inner, (*path, element))}


def owned_part(thing: Object) -> Object:
    """What an applier can own: all but the identity, what the server sets, and the status."""
    meta = {k: v for k, v in thing["metadata"].items() if k not in ("name", "namespace", *SERVER_SET)}
    made = {k: v for k, v in thing.items() if k not in ("apiVersion", "kind", "status", "metadata")}
    return {**made, "metadata": meta} if meta else made


def field_path(path: Path) -> str:
    """As conflicts name it: .spec.ports[port=80,protocol="TCP"].name"""
    text = ""
    for element in path:
        if element.startswith("f:"):
            name = element[2:]
            text += f".{name}"
        elif element.startswith("k:"):
            keys = json.loads(element[2:])
            text += "[" + ",".join(f"{k}={json.dumps(v)}" for k, v in keys.items()) + "]"
    return text


def apply_conflict(conflicts: list[tuple[Object, Path]]) -> Refusal:
    def printed(entry: Object) -> str:
        text = f'"{entry["manager"]}"'
        if entry.get("subresource"):
            text += f' with subresource "{entry["subresource"]}"'
        return f"{text} using {entry['apiVersion']} at {entry['time']}" if entry["operation"] == "Update" else text

    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {printed(entry)}", "field": field_path(path)}
        for entry, path in conflicts
    ]
    if len(conflicts) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        parts: dict[str, list[str]] = {}
        for entry, path in conflicts:
            parts.setdefault(printed(entry), []).append(f"- {field_path(path)}")
        told = "\n".join(line for who in sorted(parts) for line in (f"conflicts with {who}:", *parts[who]))
        message = f"Apply failed with {len(conflicts)} conflicts: {told}"
    return Refusal(status(409, "Conflict", message, causes=causes))


@dataclass(frozen=True)
class Event:
    version: int
    type: str
    kind: Kind
    thing: Object


@dataclass
class Cluster:
    """The state of one API server. Every public method is one request's worth, and atomic."""

    kinds: tuple[Kind, ...] = CORE_KINDS + RAY_KINDS
    admission: list[Callable[[str, Kind, Object], None]] = field(default_factory=list)
    objects: dict[tuple[Kind, str, str], Object] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    oldest: int = 0  # what a watch may still start from
    version: int = 100
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    def kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.kind == name)

    def read(self, kind: Kind, namespace: str, name: str) -> Object:
        with self.changed:
            if (kind, namespace, name) not in self.objects:
                raise not_found(kind, name)
            return copy.deepcopy(self.objects[kind, namespace, name])

    def all(self, kind: Kind, namespace: str = "") -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(thing)
                for (k, space, _), thing in sorted(self.objects.items(), key=lambda item: item[0][1:])
                if k == kind and namespace in ("", space)
            ]

    def apply(
        self, kind: Kind, namespace: str, name: str, sent: Object, *, manager: str, force: bool, dry_run: bool
    ) -> tuple[Object, bool]:
        """Server-side apply. Returns the object and whether it is new."""
        with self.changed:
            _check_fields(kind, sent)
            live = self.objects.get((kind, namespace, name))
            pinned = sent["metadata"].get("resourceVersion")
            if pinned and pinned != (live or {}).get("metadata", {}).get("resourceVersion"):
                raise modified(kind, name)
            part = owned_part(sent)
            paths = set(leaves(kind.kind, part))
            new = copy.deepcopy(live) if live else self._born(kind, namespace, name)
            entries = new["metadata"].setdefault("managedFields", [])
            mine = next((e for e in entries if e["manager"] == manager and e["operation"] == "Apply"), None)
            others = [entry for entry in entries if entry is not mine]
            conflicts = [
                (entry, path)
                for path in sorted(paths)
                if _differs(value_at(part, path), value_at(new, path))
                for entry in others
                if path in from_fields(entry["fieldsV1"])
            ]
            if conflicts and not force:
                raise apply_conflict(conflicts)
            for entry, path in conflicts:
                entry["fieldsV1"] = to_fields(from_fields(entry["fieldsV1"]) - {path})
            for path in sorted(paths):
                if _differs(value_at(part, path), value_at(new, path)):
                    set_at(new, path, value_at(part, path))
            held = {path for entry in others for path in from_fields(entry["fieldsV1"])}
            before = from_fields(mine["fieldsV1"]) if mine else set()
            for path in sorted(before - paths - held, key=len, reverse=True):
                if not any(other[: len(path)] == path for other in held | paths):  # an empty map that is filled by now
                    remove_at(new, path)
            new["metadata"]["managedFields"] = [e for e in others if e["fieldsV1"]]
            if mine is None or from_fields(mine["fieldsV1"]) != paths:
                mine = self._entry(kind, manager, "Apply", paths)
            new["metadata"]["managedFields"].append(mine)
            return self._write(kind, namespace, name, new, dry_run=dry_run), live is None

    def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Object], None],
        *,
        manager: str,
        subresource: str = "",
    ) -> Object:
        """What any other writer does; it takes the fields that it changes. Makes the object where there is none."""
        with self.changed:
            live = self.objects.get((kind, namespace, name))
            new = copy.deepcopy(live) if live else self._born(kind, namespace, name)
            old_part = {} if live is None else _part(live, subresource)
            change(new)
            new_part = _part(new, subresource)
            touched = {p for p in leaves(kind.kind, new_part) if value_at(new_part, p) != value_at(old_part, p)}
            touched |= {p for p in leaves(kind.kind, old_part) if value_at(new_part, p) is _GONE}
            entries = new["metadata"].setdefault("managedFields", [])
            mine = None
            for entry in entries:
                if (entry["manager"], entry["operation"], entry.get("subresource", "")) == (
                    manager,
                    "Update",
                    subresource,
                ):
                    mine = entry
                else:
                    entry["fieldsV1"] = to_fields(from_fields(entry["fieldsV1"]) - touched)
            now = (from_fields(mine["fieldsV1"]) if mine else set()) | touched
            now = {path for path in now if value_at(new_part, path) is not _GONE}
            new["metadata"]["managedFields"] = [e for e in entries if e is not mine and e["fieldsV1"]]
            if now:
                made = self._entry(kind, manager, "Update", now)
                new["metadata"]["managedFields"].append({**made, "subresource": subresource} if subresource else made)
            return self._write(kind, namespace, name, new, dry_run=False)

    def delete(self, kind: Kind, namespace: str, name: str, options: Object) -> Object:
        with self.changed:
            live = self.read(kind, namespace, name)
            meta, wanted = live["metadata"], options.get("preconditions") or {}
            for key, word in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
                if wanted.get(key) and wanted[key] != meta[key]:
                    told = f"{word} in precondition: {wanted[key]}, {word} in object meta: {meta[key]}"
                    raise modified(kind, name, f"Precondition failed: {told}")
            if not meta.get("deletionTimestamp"):
                meta["deletionTimestamp"] = now()
                if options.get("propagationPolicy") == "Foreground":
                    meta["finalizers"] = [*meta.get("finalizers", []), "foregroundDeletion"]
                if kind.kind == "Namespace":
                    meta["finalizers"] = [*meta.get("finalizers", []), "kubernetes"]
                    live.setdefault("status", {})["phase"] = "Terminating"
                if meta.get("finalizers"):
                    self._store("MODIFIED", kind, namespace, name, live)
            if not meta.get("finalizers"):
                self._drop(kind, namespace, name)
            return live

    def collect(self) -> None:
        """One round of the garbage collector and of the namespace controller."""
        with self.changed:
            uids = {thing["metadata"]["uid"] for thing in self.objects.values()}
            for (kind, namespace, name), thing in list(self.objects.items()):
                if self.objects.get((kind, namespace, name)) is not thing:
                    continue  # this round has dropped it
                owners = {owner["uid"] for owner in thing["metadata"].get("ownerReferences") or []}
                if owners and not owners & uids:
                    self._drop(kind, namespace, name)
                elif thing["metadata"].get("deletionTimestamp"):
                    self._finish(kind, namespace, name, thing)

    def compact(self) -> None:
        """Forget the past: a watch from any earlier version is Gone."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    def _finish(self, kind: Kind, namespace: str, name: str, thing: Object) -> None:
        uid, finalizers = thing["metadata"]["uid"], list(thing["metadata"].get("finalizers") or [])
        if kind.kind == "Namespace":
            below = [key for key in self.objects if key[1] == name]
        else:
            below = [
                key
                for key, other in self.objects.items()
                if any(owner["uid"] == uid for owner in other["metadata"].get("ownerReferences") or [])
            ]
        for key in below:
            self.delete(*key, {})
        if not below:
            finalizers = [f for f in finalizers if f not in ("foregroundDeletion", "kubernetes")]
        if not finalizers:
            self._drop(kind, namespace, name)
        elif finalizers != thing["metadata"].get("finalizers"):
            thing["metadata"]["finalizers"] = finalizers
            self._store("MODIFIED", kind, namespace, name, thing)

    def _born(self, kind: Kind, namespace: str, name: str) -> Object:
        if kind.namespaced:
            space = self.objects.get((self.kind("Namespace"), "", namespace))
            if space is None:
                raise not_found(self.kind("Namespace"), namespace)
            if space["metadata"].get("deletionTimestamp"):
                told = f"unable to create new content in namespace {namespace} because it is being terminated"
                cause = {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated"}
                raise Refusal(
                    status(403, "Forbidden", f'{kind.resource} "{name}" is forbidden: {told}',
                           **_details(kind, name), causes=[{**cause, "field": "metadata.namespace"}])
                )  # fmt: skip
        meta = {"name": name, **({"namespace": namespace} if kind.namespaced else {})}
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}

    def _entry(self, kind: Kind, manager: str, operation: str, paths: set[Path]) -> Object:
        return {
            "manager": manager,
            "operation": operation,
            "apiVersion": kind.api_version,
            "time": now(),
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields(paths),
        }

    def _write(self, kind: Kind, namespace: str, name: str, new: Object, *, dry_run: bool) -> Object:
        for group in (new.get("spec") or {}).get("workerGroupSpecs") or [] if kind.kind == "RayCluster" else []:
            for key, value in WORKER_GROUP_DEFAULTS.items():
                group.setdefault(key, value)
        if kind.kind == "Namespace":
            new.setdefault("status", {}).setdefault("phase", "Active")
        live = self.objects.get((kind, namespace, name))
        for check in self.admission:
            check("create" if live is None else "update", kind, new)
        if live is not None:
            meta = new["metadata"]
            meta["generation"] = live["metadata"].get("generation", 1) + (new.get("spec") != live.get("spec"))
        else:
            new["metadata"]["generation"] = 1
        if not dry_run and new != live:
            self._store("ADDED" if live is None else "MODIFIED", kind, namespace, name, new)
        return copy.deepcopy(new)

    def _store(self, what: str, kind: Kind, namespace: str, name: str, thing: Object) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, namespace, name] = thing
        self.history.append(Event(self.version, what, kind, copy.deepcopy(thing)))
        self.changed.notify_all()

    def _drop(self, kind: Kind, namespace: str, name: str) -> None:
        thing = self.objects.pop((kind, namespace, name), None)
        if thing is not None:
            self.version += 1
            last = copy.deepcopy(thing)
            last["metadata"]["resourceVersion"] = str(self.version)
            self.history.append(Event(self.version, "DELETED", kind, last))
            self.changed.notify_all()


def _differs(wanted: Any, there: Any) -> bool:
    """An empty map says nothing about the entries that others keep in it."""
    return bool(wanted != there) and not (wanted == {} and isinstance(there, dict))


def _part(thing: Object, subresource: str) -> Object:
    if subresource:
        return {subresource: thing[subresource]} if subresource in thing else {}
    return owned_part(thing)


def _check_fields(kind: Kind, sent: Object) -> None:
    unknown = sorted(set(sent.get("spec") or {}) - RAY_CLUSTER_FIELDS) if kind.kind == "RayCluster" else []
    if unknown:
        meta = sent["metadata"]
        told = (
            f"failed to create typed patch object ({meta.get('namespace')}/{meta['name']}; {kind.api_version}, "
            f"Kind={kind.kind}): .spec.{unknown[0]}: field not declared in schema"
        )
        raise Refusal(status(500, "", told))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
