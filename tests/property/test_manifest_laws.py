"""Laws of the renderings: any valid definition becomes valid objects, and the same ones every time."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.cli.render import as_yaml, chosen
from heliostat.cluster.manifests import render
from heliostat.cluster.manifests.meta import owner_labels
from heliostat.cluster.upgrade import preview
from heliostat.definition import ClusterDefinition
from tests.support.definitions import PLATFORMS, definitions
from tests.support.field_changes import loaded
from tests.support.kube_schemas import UNVALIDATED, crd_folder, validate
from tests.support.kuberay_rules import operator_mistakes

NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def everything(definition: ClusterDefinition) -> list[dict[str, Any]]:
    kinds = ["all", "rayservice", *(["rayjob"] if definition.jobs else [])]
    return [item for kind in kinds for item in chosen(definition, kind)]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_valid_definition_renders_to_valid_objects(platform: str) -> None:
    @given(definitions(platform))
    @settings(max_examples=8, deadline=None, suppress_health_check=SLOW)
    def law(data: dict[str, Any]) -> None:
        definition = loaded(data)
        for item in everything(definition):
            verdict = validate(item)
            assert verdict.mistakes == (), (verdict.kind, verdict.mistakes)
            assert operator_mistakes(item) == []
            skipped = verdict.schema is None
            assert not skipped or verdict.kind in UNVALIDATED or crd_folder() is None
            metadata = item["metadata"]
            assert NAME.fullmatch(metadata["name"]), metadata["name"]
            assert all(LABEL_VALUE.fullmatch(value) for value in metadata["labels"].values())
            assert owner_labels(definition).items() <= metadata["labels"].items()

    law()


@given(definitions())
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
def test_rendering_is_deterministic(data: dict[str, Any]) -> None:
    first = as_yaml(everything(loaded(data)))
    again = ClusterDefinition.model_validate_json(loaded(data).model_dump_json())
    assert as_yaml(everything(again)) == first


@given(definitions())
@settings(max_examples=30, deadline=None, suppress_health_check=SLOW)
def test_no_node_has_more_pods_than_its_group_allows_and_requests_equal_limits(data: dict[str, Any]) -> None:
    definition = loaded(data)
    (cluster,) = [item for item in render(definition) if item["kind"] == "RayCluster"]
    for spec in cluster["spec"]["workerGroupSpecs"]:
        group = definition.groups[spec["groupName"]]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (group.nodes.low, group.nodes.high)
        (container,) = spec["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


@given(definitions())
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_a_definition_beside_itself_takes_nothing(data: dict[str, Any]) -> None:
    assert preview(loaded(data), loaded(data)).changes == ()


@given(st.sampled_from(PLATFORMS).flatmap(lambda name: st.tuples(definitions(name), definitions(name))))
@settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
def test_any_definition_can_follow_any_other_and_every_change_is_told_with_a_reason(pair: Any) -> None:
    old, new = map(loaded, pair)
    found = preview(old, new)
    assert found.effect == ("needs a new cluster" if old.name != new.name else found.effect)
    for change in found.changes:
        assert change.before != change.after
        assert change.why
        assert change.more_gpus >= 0
        assert set(change.groups) <= set(old.groups) | set(new.groups)
