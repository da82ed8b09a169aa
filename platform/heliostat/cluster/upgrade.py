"""What a changed definition takes: which fields apply in place, which restart a group, which need a new cluster.

Pure. Nobody lists fields here: each changed field is applied alone, both definitions are rendered, and what differs in
the objects decides. The rules are KubeRay's and Kubernetes':

- Counts, idle timeouts and priorities of a worker group, and objects other than the RayCluster, apply in place.
- A pod is never changed: with `upgradeStrategy: None` running nodes keep their template, new nodes get the new one. The
  change has arrived when the group's nodes have been replaced. A label alone is not worth that.
- A node pool's new requirements reach new machines; those that run are drifted away, as if the group restarted.
- Head and workers must run one version of Ray, and the head's state cannot move: these need a new cluster, beside the
  old one until work has moved over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from heliostat.cluster.manifests import Manifest, ray_jobs, render
from heliostat.definition import ClusterDefinition, WorkerGroup
from heliostat.errors import UsageError

Effect = Literal["in place", "restarts a group", "restarts the head", "needs a new cluster"]
EFFECTS: tuple[Effect, ...] = ("in place", "restarts a group", "restarts the head", "needs a new cluster")
"""The lightest first."""
Path = tuple[str, ...]

_IN_PLACE_OF_GROUP = {"replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "priority", "scaleStrategy"}


@dataclass(frozen=True)
class FieldChange:
    field: str
    """Dotted, such as groups.train.memory."""
    before: str | None
    after: str | None
    """None: not set, or no such part."""
    effect: Effect
    groups: tuple[str, ...]
    """The worker groups whose nodes are replaced."""
    more_gpus: int
    """Accelerators held beyond today's while the change is made: a new cluster beside the old one, a higher floor."""
    why: str


@dataclass(frozen=True)
class Preview:
    changes: tuple[FieldChange, ...]

    @property
    def effect(self) -> Effect:
        """The heaviest of all."""
        return max((change.effect for change in self.changes), key=EFFECTS.index, default="in place")

    @property
    def more_gpus(self) -> int:
        """Together. A new cluster has the higher floors in it already."""
        new = [change.more_gpus for change in self.changes if change.effect == "needs a new cluster"]
        return max(new) if new else max(0, sum(change.more_gpus for change in self.changes))


def preview(old: ClusterDefinition, new: ClusterDefinition, *, running: Mapping[str, int] | None = None) -> Preview:
    """Every field that differs, in the order of the definition, with what it takes.

    `running` counts the nodes of each group that run now; without it the lower bounds are taken. Raises UsageError
    where one of the two names no platform.
    """
    for definition in (old, new):
        if definition.platform is None:
            raise UsageError(f"{definition.name!r} names no platform", do="on an embedded cluster: down, then up")
    before, after = _written(old), _written(new)
    fields = sorted(_differences(before, after), key=lambda path: (list(before) + list(after)).index(path[0]))
    return Preview(tuple(_change(path, old, new, before, after, running) for path in fields))


def _change(
    path: Path,
    old: ClusterDefinition,
    new: ClusterDefinition,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    running: Mapping[str, int] | None,
) -> FieldChange:
    alone = _with(old, path, _at(after, path))
    effect, groups, why = _effect(old, alone, path)
    floor = _floor(alone) - _floor(old)
    if effect == "needs a new cluster":
        more = _gpus(new, {name: _needed(new, name, (running or {}).get(name, 0)) for name in new.groups})
    else:
        more = max(0, floor)
    return FieldChange(".".join(path), _text(_at(before, path)), _text(_at(after, path)), effect, groups, more, why)


def _effect(old: ClusterDefinition, alone: ClusterDefinition, path: Path) -> tuple[Effect, tuple[str, ...], str]:
    """The heaviest effect of all differences between the two renderings."""
    if path == ("platform",):
        return "needs a new cluster", (), "it is in another Kubernetes"
    # What happens to the cluster says more than that an object beside it is written anew: so it comes first.
    differing = sorted(_object_changes(old, alone), key=lambda entry: entry[0][0] != "RayCluster")
    found = [_judge(object_key, where) for object_key, where in differing]
    if not found:
        return "in place", (), _unrendered(path)
    heaviest = max((effect for effect, _, _ in found), key=EFFECTS.index)
    why = next(reason for effect, _, reason in found if effect == heaviest)
    if heaviest == "restarts the head" and old.head.state is None:
        return "needs a new cluster", (), "a new head loses the workers and their work: head.state is not set"
    groups = sorted({group for effect, group, _ in found if group and effect == "restarts a group"})
    return heaviest, () if heaviest == "needs a new cluster" else tuple(groups), why


def _judge(object_key: Path, where: Path) -> tuple[Effect, str, str]:
    """(effect, the group it is about, why) of one difference: `where` in the object `object_key` (kind, name)."""
    kind, name = object_key
    if kind == "RayCluster":
        return _judge_cluster(where)
    if kind in ("NodePool", "EC2NodeClass", "ComputeClass"):
        return _judge_nodes(kind, name, where)
    if kind == "RayJob":
        return "in place", "", "the next submission of the job has it"
    if where == ("exists",):
        return "in place", "", f"the {kind} is made or removed"
    if kind == "ConfigMap":
        return "in place", "", "processes that start from now on read the new settings"
    return "in place", "", f"the {kind} is changed"


def _judge_cluster(where: Path) -> tuple[Effect, str, str]:
    if where == ("exists",) or (where[0] == "metadata" and where[1:2] != ("labels",)):
        return "needs a new cluster", "", "the RayCluster's name and namespace are its identity"
    if where[0] == "metadata":
        return "in place", "", "labels of the RayCluster are changed"
    match where[1]:
        case "workerGroupSpecs":
            return _judge_group(where[2], where[3:])
        case "headGroupSpec":
            return _judge_head(where[2:])
        case "gcsFaultToleranceOptions":
            return "needs a new cluster", "", "the head's state does not move from one store to another"
        case "rayVersion":
            return "needs a new cluster", "", "head and workers must run one version of Ray"
        case "authOptions":
            return "needs a new cluster", "", "every process of the cluster holds the token from its start"
        case _:
            return "restarts the head", "", "read by the autoscaler, which starts with the head"


def _judge_group(name: str, where: Path) -> tuple[Effect, str, str]:
    if where == ("exists",):
        return "in place", "", f"group {name} is added, or drained and removed"
    if where[0] in _IN_PLACE_OF_GROUP:
        return "in place", "", "the autoscaler reads it from the RayCluster"
    if where[:3] == ("template", "metadata", "labels"):
        return "in place", "", "new pods carry the label; those that run keep the old one"
    if _is_image(where):
        return "needs a new cluster", "", "head and workers must run one image"
    return "restarts a group", name, "a running pod keeps its template: the group's nodes are replaced"


def _judge_head(where: Path) -> tuple[Effect, str, str]:
    if where[:3] == ("template", "metadata", "labels"):
        return "in place", "", "the next head carries the label"
    if _is_image(where):
        return "needs a new cluster", "", "head and workers must run one image"
    return "restarts the head", "", "the head's pod is replaced; the workers live through it, thanks to head.state"


def _is_image(where: Path) -> bool:
    return where[-1] == "image"


def _judge_nodes(kind: str, name: str, where: Path) -> tuple[Effect, str, str]:
    group = name.partition("/")[2]
    if where == ("exists",):
        return "in place", "", f"the {kind} is made or removed"
    if where[0] == "metadata" or where[:2] in (("spec", "limits"), ("spec", "disruption"), ("spec", "tags")):
        return "in place", "", f"the {kind} is changed; its machines stay"
    if group == "head":
        return "restarts the head", "", f"the {kind} has other machines for the head"
    return "restarts a group", group, f"the {kind} has other machines: those that run are replaced"


def _unrendered(path: Path) -> str:
    if "gate" in path:
        return "read when a version is promoted"
    if path[0] == "applications" or path[-1] == "fallback":
        return "goes in through Serve's REST API; no node restarts"
    return "read by Heliostat itself"


def _object_changes(old: ClusterDefinition, new: ClusterDefinition) -> Iterator[tuple[Path, Path]]:
    """((kind, name), path in it) of every difference between the objects of the two."""
    before, after = _objects(old), _objects(new)
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in before or key not in after:
            yield key, ("exists",)
        else:
            for where in _differences(before[key], after[key]):
                yield key, where


def _objects(definition: ClusterDefinition) -> dict[Path, Manifest]:
    """By kind and part: pools as <cluster>/<group>, so that the group's name can be read from it."""
    found: dict[Path, Manifest] = {}
    for item in [*render(definition), *ray_jobs(definition)]:
        name = str(item["metadata"]["name"])
        if item["kind"] == "RayCluster":
            groups = {spec["groupName"]: spec for spec in item["spec"]["workerGroupSpecs"]}
            item = {**item, "spec": {**item["spec"], "workerGroupSpecs": groups}}
            name = ""  # another name is another cluster: found in its metadata
        elif name.startswith(f"{definition.name}-"):
            name = f"/{name.removeprefix(f'{definition.name}-')}"
        found[(item["kind"], name)] = item
    return found


def _differences(before: Any, after: Any, at: Path = ()) -> Iterator[Path]:
    """Where two trees differ: at their leaves, or where one side has no such part."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            here = (*at, str(key))
            if key not in before or key not in after:
                yield (*here, "exists") if _is_group(here) else here
            else:
                yield from _differences(before[key], after[key], here)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (left, right) in enumerate(zip(before, after, strict=True)):
            yield from _differences(left, right, (*at, str(index)))
    elif before != after:
        yield at


def _is_group(path: Path) -> bool:
    return path[:-1] == ("spec", "workerGroupSpecs")


def _written(definition: ClusterDefinition) -> dict[str, Any]:
    """The definition as plain data; lists are one value, named parts are not."""
    return dict(json.loads(definition.model_dump_json()))


def _at(data: Any, path: Iterable[str]) -> Any:
    for part in path:
        if isinstance(data, list):
            data = data[int(part)] if int(part) < len(data) else None
        elif isinstance(data, Mapping) and part in data:
            data = data[part]
        else:
            return None
    return data


def _with(old: ClusterDefinition, path: Path, value: Any) -> ClusterDefinition:
    """The old definition with this one value in it. It may break a rule between parts: it is only rendered."""
    if value is None and len(path) == 2 and path[0] == "groups":  # it may be the last one: unchecked
        return old.model_copy(update={"groups": {name: old.groups[name] for name in old.groups if name != path[1]}})
    data = _written(old)
    at: Any = data
    for part in path[:-1]:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {}) or at.setdefault(part, {})
    last: Any = int(path[-1]) if isinstance(at, list) else path[-1]
    if value is None and not isinstance(at, list) and _is_named_part(path):
        at.pop(last, None)
    else:
        at[last] = value
    try:
        return ClusterDefinition.model_validate(data)
    except ValidationError:  # valid only beside another change, such as one limit in place of another, which tells it
        return old


def _is_named_part(path: Path) -> bool:
    """groups.x, applications.x, jobs.x, groups.x.volumes.y and selectors' keys are taken away, fields become null."""
    return (len(path) == 2 and path[0] in ("groups", "applications", "jobs")) or path[-2:-1] in (
        ("volumes",),
        ("node_selector",),
        ("labels",),
        ("exempt",),
        ("shares",),
        ("teams",),
        ("projects",),
    )


def _floor(definition: ClusterDefinition) -> int:
    return _gpus(definition, {name: group.nodes.low for name, group in definition.groups.items()})


def _gpus(definition: ClusterDefinition, nodes: Mapping[str, int]) -> int:
    return sum(count * group_gpus(definition.groups[name]) for name, count in nodes.items())


def group_gpus(group: WorkerGroup) -> int:
    """Accelerators of one of the group's nodes; of all hosts of a TPU slice."""
    return group.gpus * group.hosts


def _needed(definition: ClusterDefinition, name: str, running: int) -> int:
    """Nodes of the group that a new cluster needs before work can move to it, at most its upper bound."""
    group = definition.groups[name]
    replicas = [
        (app.replicas.low, app.gpus_per_replica) for app in definition.applications.values() if app.group == name
    ]
    gpus = sum(low * each for low, each in replicas)
    for_apps = math.ceil(gpus / group.gpus) if group.gpus else 0
    return min(group.nodes.high, max(group.nodes.low, for_apps, running))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Mapping):  # a whole part, added or removed: what it says, not what it leaves open
        value = {key: entry for key, entry in value.items() if entry not in (None, [], {})}
    return value if isinstance(value, str) else json.dumps(value)
