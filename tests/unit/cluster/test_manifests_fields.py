"""No field of the definition does nothing: each one is changed, and what changes with it is the table in the docs.

After a wanted change: python -m tests.unit.cluster.test_manifests_fields
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from heliostat.cluster.applies import NOT_EMBEDDED, NOT_KUBERAY, ignored_when_embedded, why_not
from heliostat.definition import load
from tests.support.field_changes import CHANGES, ROOT, Change, model_fields, pair
from tests.support.renderings import differences, on_a_laptop, on_kuberay

PAGE = ROOT / "docs" / "definition.md"
HEAD = """# The definition, field by field

Made by `python -m tests.unit.cluster.test_manifests_fields`, which changes every field once and looks at what changes
with it in the rendered objects and in what an embedded cluster is given. A field without an effect fails the test.
`*` stands for a name that you choose, or for each entry of a list.

A pod of a spot group has from the notice to its end (`terminationGracePeriodSeconds`): 120 s on EKS, 30 s on GKE and
AKS. Of these its work is given 110, 13 and 25 s: GKE keeps half of its 30 s for system pods.

Applications of the running cluster go in through Serve's REST API, and jobs through Ray's Jobs API; RayService and
RayJob are the same in objects, for those who work with these (`heliostat render cluster/aws.yaml --kind rayservice`).

| field | what it is | KubeRay | embedded |
| --- | --- | --- | --- |
"""


@cache
def effects(index: int) -> tuple[list[str], list[str]]:
    """(in KubeRay's objects, on an embedded cluster): where the field goes."""
    before, after = pair(CHANGES[index])
    return (
        sorted(set(map(short, differences(on_kuberay(before), on_kuberay(after))))),
        sorted({path.partition(".")[0] for path in differences(on_a_laptop(before), on_a_laptop(after))}),
    )


def short(path: str) -> str:
    """RayCluster/.spec.workerGroupSpecs[].template.spec.nodeSelector.x -> RayCluster workerGroupSpecs.nodeSelector"""
    kind, _, rest = path.partition("/")
    rest = re.sub(r"^[^.]*\.?", "", rest) if not rest.startswith(".") else rest[1:]
    rest = rest.replace("[]", "")
    for noise in (
        "spec.",
        "rayClusterConfig.",
        "rayClusterSpec.",
        "template.",
        "containers.",
        "metadata.",
        "resources.",
    ):
        rest = rest.replace(noise, "")
    words = rest.split(".")
    kept = words[:2] if words[0] in ("workerGroupSpecs", "headGroupSpec") else words[:1]
    return f"{kind} {'.'.join(kept)}".strip()


def test_every_field_is_changed_once() -> None:
    assert {change.field for change in CHANGES} == {field for field, _ in model_fields()}
    assert len(CHANGES) == len({change.field for change in CHANGES})


@pytest.mark.parametrize("index", range(len(CHANGES)), ids=[change.field for change in CHANGES])
def test_a_field_has_an_effect_on_kuberay_or_the_reason_is_given(index: int) -> None:
    field, (found, _) = CHANGES[index].field, effects(index)
    if CHANGES[index].example == "laptop" and field == "store.kind":
        return  # pods cannot reach an embedded store: refused with any platform (tests/unit/definition)
    assert bool(found) != bool(why_not(field, NOT_KUBERAY)), found


@pytest.mark.parametrize("index", range(len(CHANGES)), ids=[change.field for change in CHANGES])
def test_a_field_has_an_effect_on_a_laptop_or_the_reason_is_given(index: int) -> None:
    field, (_, found) = CHANGES[index].field, effects(index)
    assert bool(found) != bool(why_not(field, NOT_EMBEDDED)), found


def test_up_can_say_what_a_laptop_does_not_use() -> None:
    notes = ignored_when_embedded(load(ROOT / "cluster" / "aws.yaml"))
    (machine,) = [note for note in notes if note.startswith("its nodes are processes of this one machine: ")]
    assert "groups.train-h100.fabric.interfaces" in machine
    assert "groups.train-h100.market" not in " ".join(notes)
    assert ignored_when_embedded(load(ROOT / "cluster" / "laptop.yaml")) == []


def test_the_page_is_what_the_code_does() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.unit.cluster.test_manifests_fields"


def page() -> str:
    described = dict(model_fields())
    rows = [row(index, change, described[change.field]) for index, change in enumerate(CHANGES)]
    return HEAD + "\n".join(rows) + "\n"


def row(index: int, change: Change, field: Any) -> str:
    kuberay, laptop = effects(index)
    if change.field == "store.kind":
        kuberay = ["refused with a platform: pods cannot reach an embedded store"]
    about = " ".join((field.description or "").split()).replace("|", "\\|")
    default = (
        ""
        if field.is_required() or field.get_default(call_default_factory=True) in (None, {}, ())
        else (f" Default {field.get_default(call_default_factory=True)}.")
    )
    return (
        f"| `{change.field}` | {about}{default} | {place(change.field, kuberay, NOT_KUBERAY)} "
        f"| {place(change.field, laptop, NOT_EMBEDDED)} |"
    )


def place(field: str, found: list[str], table: dict[str, str]) -> str:
    why = why_not(field, table)
    if why:
        return f"not applicable: {why}"
    # RayService and RayJob hold the same cluster once more.
    own = [place for place in found if not place.startswith(("RayService", "RayJob"))] or found
    return ", ".join(own[:4]) + (f" and {len(own) - 4} more" if len(own) > 4 else "")


if __name__ == "__main__":
    Path(PAGE).write_text(page())
