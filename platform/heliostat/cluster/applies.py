"""Which fields of a definition mean nothing on an embedded cluster, and why.

`up` says so for those that a definition sets; `docs/definition.md` lists them; a test fails for a field that neither
has an effect there nor stands here, and for one that stands here and has an effect all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from pydantic import BaseModel

from heliostat.definition import ClusterDefinition

_MACHINE = "its nodes are processes of this one machine"
_FILES = "its processes see this machine's own files and memory"
_RAYJOB = "a field of RayJob; jobs go in through Ray's Jobs API here"
_PODS = "it has no pods"

# Names that the user chooses are *.
NOT_EMBEDDED = {
    "platform": "it is one itself",
    "namespace": _PODS,
    "ray.*": "it runs the Ray of this Python",
    "head.memory": _MACHINE,
    "head.instance": _MACHINE,
    "head.state.*": "its head and its nodes share one machine, and end with it",
    "groups.*.memory": _MACHINE,
    "groups.*.topology": "it has no TPU slices",
    "groups.*.placement": _MACHINE,
    "groups.*.fabric.interfaces": _MACHINE,
    "groups.*.fabric.resource": _MACHINE,
    "groups.*.reservation": _MACHINE,
    "groups.*.taints*": _PODS,
    "groups.*.tolerations*": _PODS,
    "groups.*.node_selector*": _PODS,
    "groups.*.shared_memory": _FILES,
    "groups.*.volumes.*": _FILES,
    "jobs.*.cluster": _RAYJOB,
    "jobs.*.queue": _RAYJOB,
    "jobs.*.time_limit": _RAYJOB,
    "jobs.*.retries": _RAYJOB,
    "store.credentials_secret": "keys come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    "store.identity": "keys come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    "tags.cost_centre": "its events carry team and project",
    "budgets.gpu_hours_per_month": "nobody pays for its GPUs by the hour",
    "auth.*": "it makes a token of its own",
    "network.*": "it listens on 127.0.0.1 only",
    "observability.*": "no Prometheus watches it",
    "controller.*": "its controller is a process beside the head",
    "karpenter.*": _MACHINE,
}

_KUEUE = "there Kueue orders jobs, with quotas and priorities of its own"

NOT_KUBERAY = {
    "jobs.*.nodes": _KUEUE,
    "jobs.*.priority": _KUEUE,
    "sharing.*": _KUEUE,
    "ports.*": "every pod has an address of its own",
    "applications.*.gate.*": "no object has it: read when a version is promoted",
    "applications.*.release.*": "no object has it: read while a version is released",
    "applications.*.retrain.*": "the controller's pod has no definition to run it from: a CronJob of `app flow` does",
    "budgets.teams.*": "no object has it: `heliostat cost budget apply` grants it",
    "budgets.projects.*": "no object has it: `heliostat cost budget apply` grants it",
}


def why_not(field: str, table: dict[str, str]) -> str | None:
    """The reason why the field, such as groups.train.zone, means nothing; None where it means something."""
    return next((why for pattern, why in table.items() if fnmatchcase(field, pattern)), None)


def ignored_when_embedded(definition: ClusterDefinition) -> list[str]:
    """What the definition sets and an embedded cluster does not use: one line for each reason, with the fields."""
    fields: dict[str, list[str]] = {}
    for field in _set_fields(definition):
        why = why_not(field, NOT_EMBEDDED)
        if why:
            fields.setdefault(why, []).append(field)
    return [f"{why}: {', '.join(found)}" for why, found in fields.items()]


def _set_fields(part: BaseModel, above: str = "") -> Iterator[str]:
    for name in type(part).model_fields:
        if name not in part.model_fields_set:
            continue
        value, here = getattr(part, name), f"{above}{name}"
        if isinstance(value, BaseModel):
            yield from _set_fields(value, f"{here}.")
        elif isinstance(value, dict) and any(isinstance(entry, BaseModel) for entry in value.values()):
            for key, entry in value.items():
                yield from _set_fields(entry, f"{here}.{key}.")
        elif value not in (None, (), {}):
            yield here
