"""Leaving the Ray autoscaler's figures alone. Pure.

In KubeRay's CRD `workerGroupSpecs` is one atomic list: server-side apply knows one owner for all of it. The Ray
autoscaler writes `replicas` and `scaleStrategy` into that list (as a JSON patch), which makes it the owner of the whole
list, and an apply that leaves `replicas` out sets them to the CRD's default of 0: every worker would go. So an apply
to an autoscaled cluster carries over what the autoscaler has set, is bound to the version that it was read from, and
may take the list from the autoscaler, and from no one else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from heliostat.cluster.kubernetes.diff import Ownership
from heliostat.cluster.kubernetes.objects import Object, applied_fields

_GROUPS = ".spec.workerGroupSpecs"
# Ray's autoscaler sends no field manager, so the server takes the client's name: the `requests` library's.
AUTOSCALER = "python-requests"


def is_autoscaled(thing: Object) -> bool:
    return thing.get("kind") == "RayCluster" and bool(thing.get("spec", {}).get("enableInTreeAutoscaling"))


def with_live_scale(wanted: Object, live: Object | None) -> Object:
    """A copy of `wanted` with each group's live replicas, within its new bounds, bound to the version of `live`.

    A group that is new starts with the replicas that `wanted` gives it; without any, with its minimum.
    """
    if not is_autoscaled(wanted):
        return wanted
    made = copy.deepcopy(wanted)
    live_groups = {g.get("groupName"): g for g in (live or {}).get("spec", {}).get("workerGroupSpecs") or []}
    for group in made["spec"].get("workerGroupSpecs") or []:
        lowest, highest = group.get("minReplicas", 0), group.get("maxReplicas")
        now = live_groups.get(group.get("groupName"), {})
        replicas = max(lowest, now.get("replicas", group.get("replicas", lowest)))
        group["replicas"] = replicas if highest is None else min(replicas, highest)
        if to_delete := (now.get("scaleStrategy") or {}).get("workersToDelete"):
            group["scaleStrategy"] = {"workersToDelete": list(to_delete)}
    if live is not None:
        made["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    return made


def only_hold_differs(live: Object, result: Object) -> bool:
    """Whether an apply would change nothing but who holds the list of groups, which goes back and forth for ever."""
    return is_autoscaled(result) and _beside_groups(live) == _beside_groups(result)


def _beside_groups(thing: Object) -> Object:
    fields = copy.deepcopy(applied_fields(thing) or {})
    fields.get("f:spec", {}).pop("f:workerGroupSpecs", None)
    return fields


def autoscaler_only(wanted: Object, owners: Iterable[Ownership]) -> bool:
    """Whether all that stands in the way is the autoscaler's hold on the list of groups."""
    return is_autoscaled(wanted) and all(o.manager == AUTOSCALER and o.path.startswith(_GROUPS) for o in owners)
