"""The upgrade preview: every field changed once, and how many more GPUs a change takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from heliostat.cluster.upgrade import Preview, preview
from heliostat.definition import ClusterDefinition, load
from heliostat.errors import UsageError
from tests.support.field_changes import CHANGES, Change, loaded, pair, put

ROOT = Path(__file__).parents[3]
IN_PLACE, GROUP, HEAD, NEW = "in place", "restarts a group", "restarts the head", "needs a new cluster"

OF_A_NODE = (
    *("role", "market", "instance", "accelerator", "cpus", "memory", "gpus", "mig", "topology", "zone", "placement"),
    *("fabric.kind", "fabric.interfaces", "fabric.resource", "reservation", "node_selector", "shared_memory"),
    *("taints.*.key", "taints.*.value", "taints.*.effect", "tolerations.*.key", "tolerations.*.effect"),
    *("volumes.*.mount", "volumes.*.kind", "volumes.*.size", "volumes.*.claim", "volumes.*.read_only"),
)
# What is not in place. Written by hand from KubeRay's rules, beside the code that derives it from the renderings.
EXPECTED = {
    "name": NEW,
    "platform": NEW,
    "namespace": NEW,
    "ray.version": NEW,
    "ray.image": NEW,
    "ray.pull_secret": HEAD,
    "head.cpus": HEAD,
    "head.memory": HEAD,
    "head.instance": HEAD,
    "head.state.redis": NEW,
    "head.state.password_secret": NEW,
    **{f"groups.*.{field}": GROUP for field in OF_A_NODE},
    "store.region": HEAD,
    "store.credentials_secret": HEAD,
    "auth.token_secret": NEW,
    "karpenter.node_role": HEAD,
    "karpenter.discovery": HEAD,
    "karpenter.ami": HEAD,
}


def example(name: str, *changes: tuple[str, Any]) -> ClusterDefinition:
    data = YAML(typ="safe", pure=True).load(ROOT / "cluster" / f"{name}.yaml")
    for place, value in changes:
        put(data, place, value)
    return loaded(data)


def compared(*changes: tuple[str, Any], running: dict[str, int] | None = None) -> Preview:
    return preview(example("aws"), example("aws", *changes), running=running)


@pytest.mark.parametrize("change", [c for c in CHANGES if c.example != "laptop"], ids=lambda change: change.field)
def test_every_field_changed_once(change: Change) -> None:
    before, after = pair(change)
    found = preview(before, after)
    about = [c for c in found.changes if c.field.startswith(change.place)]
    assert about, found
    assert {c.effect for c in about} == {EXPECTED.get(change.field, IN_PLACE)}
    assert all(c.why for c in found.changes)
    if EXPECTED.get(change.field) == GROUP:
        assert [c.groups for c in about] == [(change.place.split(".")[1],)]


def test_nothing_changed_is_nothing_to_do() -> None:
    found = preview(example("aws"), example("aws"))
    assert (found.changes, found.effect, found.more_gpus) == ((), IN_PLACE, 0)


def test_a_new_cluster_takes_the_gpus_of_a_second_one_beside_the_first() -> None:
    # serve has one node of one GPU at least; the application has one replica on serve-spot.
    assert compared(("ray.version", "2.61.0")).more_gpus == 2
    # What runs now has to move as well: 3 of serve, 2 machines of 8 for training.
    running = {"serve": 3, "train-h100": 2}
    assert compared(("ray.version", "2.61.0"), running=running).more_gpus == 3 + 1 + 16


def test_what_runs_beyond_the_new_upper_bound_does_not_move() -> None:
    changes = (("ray.version", "2.61.0"), ("groups.train-h100.nodes", "0..1"))
    assert compared(*changes, running={"train-h100": 4}).more_gpus == 8 + 1 + 1


def test_a_higher_floor_is_in_place_and_takes_its_gpus() -> None:
    found = compared(("groups.train-h100.nodes", "2..6"))
    (change,) = found.changes
    assert (change.effect, change.before, change.after, change.more_gpus) == (IN_PLACE, "0..4", "2..6", 16)
    assert found.more_gpus == 16


def test_a_change_of_an_application_restarts_nothing() -> None:
    found = compared(
        ("applications.intent-classifier.replicas", "2..3"),
        ("applications.intent-classifier.model", "other@production"),
    )
    assert found.effect == IN_PLACE
    assert all(not change.groups for change in found.changes)


def test_a_group_can_be_added_and_removed_while_the_others_run() -> None:
    spec = {
        "role": "training",
        "market": "spot",
        "accelerator": "L4",
        "cpus": 2,
        "memory": "8GiB",
        "gpus": 1,
        "nodes": 1,
    }
    (added,) = compared(("groups.more", spec)).changes
    assert (added.field, added.effect, added.before, added.more_gpus) == ("groups.more", IN_PLACE, None, 1)
    (removed,) = preview(example("aws", ("groups.more", spec)), example("aws")).changes
    assert (removed.effect, removed.after, removed.more_gpus) == (IN_PLACE, None, 0)


def test_a_head_without_state_takes_its_workers_along() -> None:
    change = ("head.cpus", 8)
    kept = preview(example("aws"), example("aws", change))
    stateless = ("head.state", None)
    lost = preview(example("aws", stateless), example("aws", stateless, change))
    assert (kept.effect, lost.effect) == (HEAD, NEW)
    assert "head.state is not set" in lost.changes[0].why


def test_the_heaviest_change_decides() -> None:
    found = compared(("tags.team", "others"), ("groups.serve.memory", "48GiB"), ("ray.image", "registry/h:2"))
    assert [change.effect for change in found.changes] == [NEW, GROUP, IN_PLACE]  # in the order of the definition
    assert found.effect == NEW


def test_staging_is_another_cluster_than_production() -> None:
    found = preview(load(ROOT / "cluster" / "aws.yaml"), load(ROOT / "cluster" / "aws-staging.yaml"))
    assert found.effect == NEW
    assert found.changes[0].field == "name"


def test_a_definition_for_a_laptop_has_no_preview() -> None:
    with pytest.raises(UsageError, match="names no platform"):
        preview(example("laptop"), example("laptop"))
