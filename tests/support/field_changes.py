"""Every field of the definition, changed once: an example to change, the place in it, and another valid value.

Three tests use it: each field has an effect, the table in `docs/definition.md`, and the upgrade preview.
"""

from __future__ import annotations

import copy
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

from heliostat.definition import ClusterDefinition, load

ROOT = Path(__file__).parents[2]
TRAIN = "groups.train-h100"


@dataclass(frozen=True)
class Change:
    field: str
    """As the model has it, with * for the names that users choose."""
    example: str
    place: str
    value: Any
    also: tuple[tuple[str, Any], ...] = ()
    """What has to be in the example, on both sides, for the change to be valid."""
    with_it: tuple[tuple[str, Any], ...] = ()
    """What has to change along with it."""


def _change(field: str, value: Any, *, example: str = "aws", place: str = "", **more: Any) -> Change:
    return Change(field, example, place or field, value, **more)


_SPARE = {
    "role": "serving",
    "market": "on-demand",
    "accelerator": "L4",
    "cpus": 2,
    "memory": "8GiB",
    "gpus": 1,
    "nodes": 0,
}
_STEADY = {**_SPARE, "role": "training"}
_VOLUME = "groups.train-h100.volumes"
_TAINT = f"{TRAIN}.taints.0"
_APP, _JOB = "applications.intent-classifier", "jobs.nightly"
_DUE = "jobs.intent-classifier"
_RETRAIN = ((f"{_APP}.retrain", {"every": "2d", "dataset": "data/old.csv", "arguments": ["--seed", "0"]}),)
_TERMS = (
    ("groups.train-own", {**_SPARE, "role": "training", "accelerator": "A100-80GB", "nodes": 1}),
    (f"{_DUE}.deadline", "8h"),
    (f"{_DUE}.work", "4h"),
    (f"{_DUE}.on_demand", "train-tpu"),
)

CHANGES = [
    _change("name", "speech"),
    _change("platform", "eks", with_it=(("karpenter", None),)),
    _change("namespace", "speech"),
    _change("ray.version", "2.61.0"),
    _change("ray.image", "registry.example/heliostat:0.3.0"),
    _change("ray.pull_secret", "registry-keys"),
    _change("head.cpus", 6),
    _change("head.memory", "32GiB"),
    _change("head.instance", "m7i.4xlarge"),
    _change("head.state.redis", "another.example:6379"),
    _change("head.state.password_secret", "another-secret"),
    _change(
        "groups.*.role",
        "training",
        place="groups.spare.role",
        also=(("groups.spare", _SPARE),),
    ),
    _change("groups.*.market", "on-demand", place=f"{TRAIN}.market"),
    _change("groups.*.instance", "p5en.48xlarge", place=f"{TRAIN}.instance"),
    _change("groups.*.accelerator", "A10G", place="groups.serve-spot.accelerator"),
    _change("groups.*.cpus", 170, place=f"{TRAIN}.cpus"),
    _change("groups.*.memory", "1800GiB", place=f"{TRAIN}.memory"),
    _change("groups.*.gpus", 4, place=f"{TRAIN}.gpus"),
    _change("groups.*.mig", "2g.20gb", example="onprem", place="groups.serve.mig"),
    _change("groups.*.topology", "4x8", example="gcp", place="groups.train-tpu.topology"),
    _change("groups.*.nodes", "1..6", place=f"{TRAIN}.nodes"),
    _change("groups.*.idle_timeout", "3m", place=f"{TRAIN}.idle_timeout"),
    _change("groups.*.zone", "us-east-1b", place=f"{TRAIN}.zone"),
    _change("groups.*.placement", "any", place=f"{TRAIN}.placement"),
    _change("groups.*.fabric.kind", None, place=f"{TRAIN}.fabric"),
    _change("groups.*.fabric.interfaces", 16, place=f"{TRAIN}.fabric.interfaces"),
    _change("groups.*.fabric.resource", "rdma/other", example="onprem", place="groups.train.fabric.resource"),
    _change("groups.*.fabric.gbytes_per_s", 25.0, place=f"{TRAIN}.fabric.gbytes_per_s"),
    _change("groups.*.fabric.check", "refuse", place=f"{TRAIN}.fabric.check"),
    _change(
        "groups.*.fallback",
        "serve-b",
        place="groups.serve-spot.fallback",
        also=(("groups.serve-b", _SPARE),),
    ),
    _change("groups.*.priority", 5, place=f"{TRAIN}.priority"),
    _change("groups.*.reservation", "voice-other", example="gcp", place="groups.train-tpu.reservation"),
    _change("groups.*.taints.*.key", "voice/other", place=f"{_TAINT}.key"),
    _change("groups.*.taints.*.value", "yes", place=f"{_TAINT}.value"),
    _change("groups.*.taints.*.effect", "NoExecute", place=f"{_TAINT}.effect"),
    _change("groups.*.tolerations.*.key", "gpu", example="azure", place="groups.serve.tolerations.0.key"),
    _change("groups.*.tolerations.*.effect", "NoExecute", example="azure", place="groups.serve.tolerations.0.effect"),
    _change("groups.*.node_selector", {"voice/rack": "a"}, place=f"{TRAIN}.node_selector"),
    _change("groups.*.shared_memory", "256GiB", place=f"{TRAIN}.shared_memory"),
    _change("groups.*.volumes.*.mount", "/nvme", place=f"{_VOLUME}.cache.mount"),
    _change(
        "groups.*.volumes.*.kind", "memory", place=f"{_VOLUME}.cache.kind", also=((f"{_VOLUME}.cache.size", "9GiB"),)
    ),
    _change("groups.*.volumes.*.size", "5TiB", place=f"{_VOLUME}.cache.size"),
    _change("groups.*.volumes.*.claim", "other-lustre", place=f"{_VOLUME}.datasets.claim"),
    _change("groups.*.volumes.*.read_only", False, place=f"{_VOLUME}.datasets.read_only"),
    _change("store.kind", "embedded", example="laptop", also=(("store", {"kind": "s3", "bucket": "heliostat"}),)),
    _change("store.bucket", "other-models"),
    _change("store.endpoint", "https://other.example", example="azure"),
    _change("store.region", "eu-west-1"),
    _change("store.credentials_secret", "other-keys", example="azure"),
    _change("store.identity", "arn:aws:iam::123456789012:role/other"),
    _change("applications.*.recipe", "serve_apps.other:Other", place=f"{_APP}.recipe"),
    _change("applications.*.model", "other@production", place=f"{_APP}.model"),
    _change("applications.*.group", "serve", place=f"{_APP}.group"),
    _change("applications.*.route", "/other", place=f"{_APP}.route"),
    _change("applications.*.replicas", "2..6", place=f"{_APP}.replicas"),
    _change("applications.*.gpus_per_replica", 0.5, place=f"{_APP}.gpus_per_replica"),
    _change("applications.*.idle_timeout", "9m", place=f"{_APP}.idle_timeout", also=((f"{_APP}.replicas", "0..6"),)),
    _change("applications.*.max_queue", "2s", place=f"{_APP}.max_queue"),
    _change("applications.*.dtype", "bf16", place=f"{_APP}.dtype"),
    _change("applications.*.keys", ["search"], place=f"{_APP}.keys"),
    _change("applications.*.signed_by", [f"ed25519:{'A' * 43}="], place=f"{_APP}.signed_by"),
    _change("applications.*.gate.min_accuracy", 0.9, place=f"{_APP}.gate.min_accuracy"),
    _change("applications.*.gate.min_macro_f1", 0.9, place=f"{_APP}.gate.min_macro_f1"),
    _change("applications.*.gate.max_drop", 0.2, place=f"{_APP}.gate.max_drop"),
    _change("applications.*.gate.confidence", 0.99, place=f"{_APP}.gate.confidence"),
    _change("applications.*.gate.slices", {"night": 0.8}, place=f"{_APP}.gate.slices"),
    _change("applications.*.gate.max_slice_drop", 0.1, place=f"{_APP}.gate.max_slice_drop"),
    _change("applications.*.gate.max_size", "1GiB", place=f"{_APP}.gate.max_size"),
    _change("applications.*.gate.licences", ["MIT"], place=f"{_APP}.gate.licences"),
    _change("applications.*.gate.whole_lineage", True, place=f"{_APP}.gate.whole_lineage"),
    _change("applications.*.release.shadow", 0.3, place=f"{_APP}.release.shadow"),
    _change("applications.*.release.canary", 0.3, place=f"{_APP}.release.canary"),
    _change("applications.*.release.requests", 30, place=f"{_APP}.release.requests"),
    _change("applications.*.release.patience", "1m", place=f"{_APP}.release.patience"),
    _change("applications.*.release.max_error_rate", 0.05, place=f"{_APP}.release.max_error_rate"),
    _change("applications.*.release.max_latency_ratio", 2.0, place=f"{_APP}.release.max_latency_ratio"),
    _change("applications.*.release.max_disagreement", 0.2, place=f"{_APP}.release.max_disagreement"),
    _change("applications.*.retrain.every", "1d", place=f"{_APP}.retrain.every", also=_RETRAIN),
    _change("applications.*.retrain.dataset", "data/new.csv", place=f"{_APP}.retrain.dataset", also=_RETRAIN),
    _change("applications.*.retrain.arguments", ["--seed", "1"], place=f"{_APP}.retrain.arguments", also=_RETRAIN),
    _change("jobs.*.entrypoint", "python -m train_jobs.other", place=f"{_JOB}.entrypoint"),
    _change("jobs.*.group", "train-neuron", place=f"{_JOB}.group"),
    _change("jobs.*.publishes", "other", place=f"{_JOB}.publishes"),
    _change("jobs.*.cluster", "shared", place=f"{_JOB}.cluster", also=((f"{_JOB}.queue", None),)),
    _change("jobs.*.queue", "other-queue", place=f"{_JOB}.queue"),
    _change("jobs.*.deadline", "9h", example="gcp", place=f"{_DUE}.deadline", also=_TERMS),
    _change("jobs.*.work", "5h", example="gcp", place=f"{_DUE}.work", also=_TERMS),
    _change("jobs.*.on_demand", "train-own", example="gcp", place=f"{_DUE}.on_demand", also=_TERMS),
    _change("jobs.*.time_limit", "8h", place=f"{_JOB}.time_limit"),
    _change("jobs.*.retries", 3, place=f"{_JOB}.retries"),
    _change("jobs.*.nodes", 2, place=f"{_JOB}.nodes"),
    _change("jobs.*.gpus", 1, place=f"{_DUE}.gpus", also=((f"{_DUE}.nodes", 1),)),
    _change("jobs.*.team", "others", place=f"{_JOB}.team"),
    _change("jobs.*.priority", 5, place=f"{_JOB}.priority"),
    _change(
        "jobs.*.falls_back",
        True,
        place=f"{_JOB}.falls_back",
        also=(("groups.steady", _STEADY), (f"{TRAIN}.fallback", "steady")),
    ),
    _change("sharing.shares", {"voice": 2.0}),
    _change("sharing.patience", "2m"),
    _change("jobs.*.project", "words", place=f"{_JOB}.project"),
    _change("tags.team", "others"),
    _change("tags.project", "other"),
    _change("tags.cost_centre", "CC-1"),
    _change("budgets.max_gpus", 32),
    _change("budgets.gpu_hours_per_month", 100),
    _change("waste.after", "2h"),
    _change("waste.act", "stop"),
    _change("waste.warn", "1h"),
    _change("waste.dry_run", False),
    _change("waste.quiet", ["Sat-Sun"]),
    _change("waste.exempt", {"nightly": "2026-12-31"}),
    *(
        _change(
            f"budgets.{scope}.*.{field}",
            value,
            place=f"budgets.{scope}.voice.{field}",
            also=((f"budgets.{scope}.voice.{'usd' if field == 'gpu_hours' else 'gpu_hours'}", 50.0),),
        )
        for scope in ("teams", "projects")
        for field, value in (("gpu_hours", 100.0), ("usd", 250.5), ("at_limit", "pause"))
    ),
    _change("auth.token_secret", "other-token"),
    _change("network.fenced", False, with_it=(("network.clients", []),)),
    _change("network.clients", ["web", "batch"]),
    _change("network.operator_namespace", "kuberay-system"),
    _change("network.monitoring_namespace", "prometheus"),
    _change("observability.metrics", False),
    _change("observability.alerts", False, also=(("budgets.gpu_hours_per_month", None),)),
    _change("observability.interval", "30s"),
    _change("observability.labels", {"release": "other"}),
    _change("controller.cpus", 1),
    _change("controller.memory", "2GiB"),
    _change("karpenter.node_role", "OtherRole"),
    _change("karpenter.discovery", "other"),
    _change("karpenter.ami", "bottlerocket@latest"),
    _change("ports.dashboard", 23901, example="laptop"),
    _change("ports.serve", 23902, example="laptop"),
    _change("ports.store", 23903, example="laptop"),
]


def pair(change: Change) -> tuple[ClusterDefinition, ClusterDefinition]:
    """The definition before and after, both valid."""
    data = YAML(typ="safe", pure=True).load(ROOT / "cluster" / f"{change.example}.yaml")
    for place, value in change.also:
        put(data, place, value)
    after = copy.deepcopy(data)
    for place, value in ((change.place, change.value), *change.with_it):
        put(after, place, value)
    return loaded(data), loaded(after)


def loaded(data: Any) -> ClusterDefinition:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        YAML(typ="safe", pure=True).dump(data, path)
        return load(path)


def put(data: Any, place: str, value: Any) -> None:
    *above, last = place.split(".")
    for part in above:
        data = data[int(part)] if isinstance(data, list) else data.setdefault(part, {})
    data[int(last) if isinstance(data, list) else last] = value


def model_fields(model: type[BaseModel] = ClusterDefinition, above: str = "") -> Iterator[tuple[str, Any]]:
    """(path with * for chosen names, field) of every field that holds a value and not another part."""
    for name, field in model.model_fields.items():
        part, many = _part(field.annotation)
        if part is None:
            yield f"{above}{name}", field
        else:
            yield from model_fields(part, f"{above}{name}.{'*.' if many else ''}")


def _part(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if origin in (typing.Union, types.UnionType):
        return next((found for found in map(_part, arguments) if found[0]), (None, False))
    if origin in (dict, tuple):
        part = next((found[0] for found in map(_part, arguments) if found[0]), None)
        return part, part is not None
    return None, False
