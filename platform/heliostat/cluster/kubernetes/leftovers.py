"""What of ours is there and no longer wanted, and what has to stay all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from heliostat.cluster.kubernetes.api import Api
from heliostat.cluster.kubernetes.diff import Change
from heliostat.cluster.kubernetes.objects import (
    BY_NAME,
    FIELD_MANAGER,
    LABEL_CLUSTER,
    LABEL_MANAGED_BY,
    OWNED_KINDS,
    Object,
    Ref,
    home_of,
    is_ours,
    namespaces_of,
    owner_of,
    rank,
    ref_of,
)
from heliostat.errors import Forbidden


def leftovers(
    api: Api,
    cluster: str,
    objects: Sequence[Object],
    *,
    keep: Iterable[Object],
    with_data: bool,
    removal: bool = False,
) -> tuple[list[Change], list[str]]:
    """What is ours and not in `keep`, last in first out; and what could not be looked at."""
    kept = {identity(ref_of(thing)) for thing in keep}
    found: dict[tuple[str, ...], Ref] = {}
    notes = []
    rendered = {(thing["apiVersion"], thing["kind"]) for thing in objects}
    for api_version, kind in dict.fromkeys((*OWNED_KINDS, *sorted(rendered))):
        try:
            for thing in _ours_of_kind(api, cluster, api_version, kind, namespaces_of(objects)):
                ref = ref_of(thing)
                # What is on its way out already is no news to an apply; a removal waits for it.
                if identity(ref) not in kept and (removal or not thing["metadata"].get("deletionTimestamp")):
                    found.setdefault(identity(ref), ref)
        except Forbidden as error:
            if (api_version, kind) in rendered:
                raise
            notes.append(f"{kind}s of ours were not looked for: {error.what}")
    refs = sorted(found.values(), key=lambda ref: (-rank(ref.kind), ref))
    return [_deletion(api, ref, cluster, with_data=with_data, removal=removal) for ref in refs], notes


def _ours_of_kind(api: Api, cluster: str, api_version: str, kind: str, namespaces: Sequence[str]) -> Iterator[Object]:
    resource = api.resource(api_version, kind)
    if resource is None:
        return
    selector = f"{LABEL_CLUSTER}={cluster},{LABEL_MANAGED_BY}={FIELD_MANAGER}"
    for namespace in namespaces if resource.namespaced else ("",):
        for thing in api.find(api_version, kind, namespace=namespace, labels=selector):
            if is_ours(thing, cluster) and home_of(thing) in namespaces:
                yield thing


def identity(ref: Ref) -> tuple[str, ...]:
    """Without the version: an object is the same in all versions of its API."""
    return ref.group, ref.kind, ref.namespace, ref.name


def _deletion(api: Api, ref: Ref, cluster: str, *, with_data: bool, removal: bool) -> Change:
    if ref.kind in BY_NAME and not removal:
        return Change("keep", ref, note="brought in by itself; it goes with heliostat down")
    if ref.kind == "PersistentVolumeClaim" and not with_data:
        return Change("keep", ref, note="it holds data: --with-data deletes it")
    if ref.kind == "Namespace":
        if not removal:
            return Change("keep", ref, note="not rendered; a namespace goes with heliostat down")
        if not with_data:
            return Change("keep", ref, note="volume claims in it would go too: --with-data deletes it")
        if guests := _guests(api, ref.name, cluster):
            return Change("keep", ref, note=f"others live in it: {', '.join(guests[:3])}")
    return Change("delete", ref)


# What would be a loss to somebody if its namespace went.
_GUEST_KINDS = (
    ("v1", "Pod"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("ray.io/v1", "RayCluster"),
)


def _guests(api: Api, namespace: str, cluster: str) -> list[str]:
    """What lies in the namespace and is neither ours nor made by KubeRay from something of ours."""
    rays = {
        thing["metadata"]["name"]
        for kind in ("RayCluster", "RayService", "RayJob")
        for thing in api.find("ray.io/v1", kind, namespace=namespace)
        if is_ours(thing, cluster)
    }
    guests = []
    for api_version, kind in _GUEST_KINDS:
        try:
            things = api.find(api_version, kind, namespace=namespace)
        except Forbidden:
            guests.append(f"perhaps {kind}s, which may not be listed")
            continue
        guests += [str(ref_of(thing)) for thing in things if not _at_home(thing, cluster, rays)]
    return guests


def _at_home(thing: Object, cluster: str, rays: set[str]) -> bool:
    labels = thing["metadata"].get("labels") or {}
    made_from = {labels.get("ray.io/cluster"), labels.get("ray.io/originated-from-cr-name")}
    return owner_of(thing) == cluster or bool(made_from & rays)
