"""What a platform cannot do is refused, with the field and what to write; every mistake of a file at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from heliostat.definition import load
from heliostat.errors import DefinitionError
from tests.support.field_changes import loaded, put

ROOT = Path(__file__).parents[3]
SERVE = {
    "role": "serving",
    "market": "reserved",
    "accelerator": "L4",
    "cpus": 2,
    "memory": "8GiB",
    "gpus": 1,
    "nodes": 1,
}
JOB = {"entrypoint": "python -m train_jobs.intent_classifier", "group": "train-h100", "publishes": "m"}
VOLUMES, SELECTOR = "groups.train-h100.volumes", "groups.serve.node_selector"


def refused(example: str, *changes: tuple[str, Any]) -> dict[str, str]:
    data = YAML(typ="safe", pure=True).load(ROOT / "cluster" / f"{example}.yaml")
    for place, value in changes:
        put(data, place, value)
    with pytest.raises(DefinitionError) as caught:
        loaded(data)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("example", "place", "value", "field", "expected"),
    [
        ("aws", "ray.image", None, "ray.image", "is missing"),
        ("aws", "ray.version", "2.51.0", "ray.version", "2.52.0 or later"),
        ("aws", "karpenter", None, "karpenter", "node_role"),
        ("aws", "store", {"kind": "embedded", "bucket": "abc"}, "store.kind", "write s3"),
        ("aws", "groups.serve.memory", None, "groups.serve.memory", "is missing"),
        ("aws", "groups.serve.memory", "1MiB", "groups.serve.memory", "512MiB or more"),
        ("aws", "groups.serve.accelerator", "L5", "groups.serve.accelerator", "write one of: T4"),
        ("aws", "groups.serve.accelerator", "TPU-v6e", "groups.serve.accelerator", "platform gke only"),
        ("aws", "groups.train-h100.fabric.kind", "infiniband", "groups.train-h100.fabric.kind", "write efa"),
        ("aws", "groups.train-h100.shared_memory", "2TiB", "groups.train-h100.shared_memory", "processes nothing"),
        ("aws", "groups.train-h100.mig", "1g.11gb", "groups.train-h100.mig", "write one of: 1g.10gb"),
        ("aws", "groups.train-h100.topology", "2x2", "groups.train-h100.topology", "only TPU"),
        ("aws", "groups.train-h100.placement", "spread", "groups.train-h100.placement", "for serving"),
        ("aws", "groups.serve.placement", "compact", "groups.serve.placement", "for training"),
        ("aws", "groups.serve.zone", "us-east-1a", "groups.serve.placement", "contradicts"),
        ("aws", "groups.serve-spot.fallback", None, "groups.serve-spot.market", "serving on spot alone"),
        ("aws", "groups.serve.fallback", "serve", "groups.serve.fallback", "only a spot group"),
        ("aws", "groups.train-h100.fallback", "serve", "groups.train-h100.fallback", "is not an on-demand training"),
        ("aws", "jobs.nightly.falls_back", True, "jobs.nightly.falls_back", "has no fallback"),
        ("aws", "jobs.nightly.nodes", 99, "jobs.nightly.nodes", "at most; write that or less"),
        ("aws", "jobs.nightly.gpus", 1, "jobs.nightly.gpus", "shares its nodes with nobody"),
        ("aws", "jobs.intent-classifier.gpus", 9, "jobs.intent-classifier.gpus", "has 8; write that or less"),
        ("aws", "jobs.intent-classifier", {**JOB, "gpus": 2, "nodes": 2}, "jobs.intent-classifier.gpus", "nodes: 1"),
        ("aws", "groups.serve.market", "reserved", "groups.serve.reservation", "is missing"),
        ("aws", "groups.serve", {**SERVE, "reservation": "mine"}, "groups.serve.reservation", "starts with cr-"),
        ("aws", "groups.serve.reservation", "cr-1", "groups.serve.reservation", "market: reserved"),
        ("aws", "groups.serve.node_selector", {"karpenter.sh/x": "y"}, f"{SELECTOR}.karpenter.sh/x", "set by"),
        ("aws", f"{VOLUMES}.cache.claim", "x", f"{VOLUMES}.cache.claim", "has none"),
        ("aws", f"{VOLUMES}.cache.size", None, f"{VOLUMES}.cache.size", "add a limit"),
        ("aws", f"{VOLUMES}.cache.mount", "/datasets", f"{VOLUMES}.datasets.mount", "already"),
        ("aws", f"{VOLUMES}.cache.read_only", True, f"{VOLUMES}.cache.read_only", "empty"),
        ("aws", "groups.train-h100.nodes", 0, "jobs.nightly.group", "can have no nodes"),
        ("aws", "jobs.nightly.cluster", "shared", "jobs.nightly.queue", "cluster: own"),
        ("aws", "groups.serve.nodes", 70, "budgets.max_gpus", "is less than"),
        ("aws", "observability.alerts", False, "budgets.gpu_hours_per_month", "observability.alerts: true"),
        ("aws", "network.fenced", False, "network.clients", "would be ignored"),
        ("aws", "store.credentials_secret", "keys", "store.credentials_secret", "remove one of the two"),
        ("aws", "name", "v" * 50, "name", "at most 47"),
        ("aws", "tags.team", "speech-", "tags.team", "letter or digit"),
        ("gcp", "groups.train-tpu.topology", None, "groups.train-tpu.accelerator", "add a topology"),
        ("gcp", "groups.train-tpu.gpus", 3, "groups.train-tpu.gpus", "do not divide"),
        ("gcp", "groups.serve.accelerator", "A10G", "groups.serve.accelerator", "GKE does not offer"),
        ("gcp", "groups.train-h100.fabric", {"kind": "efa"}, "groups.train-h100.fabric", "on the node pool"),
        ("azure", "groups.serve.reservation", "x", "groups.serve.reservation", "market: reserved"),
        ("onprem", "groups.train.market", "spot", "groups.train.market", "no spot market"),
        ("onprem", "store.identity", "me", "store.identity", "no cloud identity"),
        ("onprem", "groups.serve.accelerator", "Trainium1", "groups.serve.accelerator", "eks-karpenter and eks only"),
        ("laptop", "store.identity", "me", "store.identity", "makes its own keys"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_cure(
    example: str, place: str, value: Any, field: str, expected: str
) -> None:
    found = refused(example, (place, value))
    assert expected in found.get(field, ""), found


def test_a_group_called_head_would_be_taken_for_the_head(tmp_path: Path) -> None:
    text = (
        (ROOT / "cluster" / "laptop.yaml")
        .read_text()
        .replace("  train:\n", "  head:\n")
        .replace("group: train", "group: head")
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError, match="the head's own node"):
        load(path)


def test_five_mistakes_in_a_definition_for_kubernetes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    changes = (
        ("platform: eks-karpenter", "platform: eks-carpenter"),  # an unknown value
        ("cpus: 180", "cpu: 180"),  # a misspelt key
        ("fallback: serve", "fallback: nowhere"),  # a rule between parts
        ("size: 10TiB", "size: ten"),  # no size
        ("retries: 2", "retries: many"),  # no number
    )
    text = (ROOT / "cluster" / "aws.yaml").read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load(path)
    lines = text.splitlines()
    told = {lines[problem.line - 1].strip() for problem in caught.value.problems if problem.line}
    assert {new for _, new in changes} <= told
    # A misspelt required key is told twice: the key that is not known, and the one that is not there.
    assert len(caught.value.problems) == 6
