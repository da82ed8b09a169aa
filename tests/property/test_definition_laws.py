"""Laws of the definition: what is valid loads as what was written, and a misspelt key is named, wherever it stands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from heliostat.definition import ClusterDefinition, load
from heliostat.errors import DefinitionError
from tests.support.definitions import definitions
from tests.support.field_changes import loaded

LAPTOP = Path(__file__).parents[2] / "cluster" / "laptop.yaml"

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("null", "true", "false")
)
groups = st.fixed_dictionaries(
    {
        "role": st.just("training"),
        "market": st.sampled_from(["on-demand", "spot"]),
        "cpus": st.integers(1, 64),
        "gpus": st.integers(0, 8),
        "nodes": st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: f"{min(pair)}..{max(pair)}"),
        "idle_timeout": st.integers(1, 10_000).map(lambda seconds: f"{seconds}s"),
    }
)


def written(data: Any, folder: str) -> Path:
    path = Path(folder) / "cluster.yaml"
    YAML(typ="safe", pure=True).dump(data, path)
    return path


def definition(group_specs: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "some",
        "groups": group_specs,
        "store": {"kind": "embedded", "bucket": "abc"},
        "tags": {"team": "a", "project": "b"},
    }


@given(st.dictionaries(names, groups, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_what_is_loaded_and_it_loads_again_from_its_own_json(specs: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(written(definition(specs), folder))
    assert set(loaded.groups) == set(specs)
    for name, spec in specs.items():
        group = loaded.groups[name]
        low, high = map(int, spec["nodes"].split(".."))
        assert (group.nodes.low, group.nodes.high) == (low, high)
        assert str(group.idle_timeout) == spec["idle_timeout"]
    assert ClusterDefinition.model_validate_json(loaded.model_dump_json()) == loaded


def mappings(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every mapping in the laptop's definition whose keys are the package's, not the user's."""
    if not isinstance(node, dict):
        return []
    here = [] if path and path[-1] in ("groups", "applications", "jobs") else [path]
    return here + [found for key, value in node.items() for found in mappings(value, (*path, key))]


EXAMPLE = YAML(typ="safe", pure=True).load(LAPTOP)


@given(st.sampled_from(mappings(EXAMPLE)), st.from_regex(r"zz[a-z]{1,8}", fullmatch=True))
@settings(max_examples=40, deadline=None)
def test_an_unknown_key_is_named_wherever_it_stands(path: tuple[str, ...], key: str) -> None:
    data = YAML(typ="safe", pure=True).load(LAPTOP)
    target = data
    for part in path:
        target = target[part]
    target[key] = 1
    with tempfile.TemporaryDirectory() as folder, pytest.raises(DefinitionError) as caught:
        load(written(data, folder))
    (problem,) = caught.value.problems
    assert problem.field == ".".join((*path, key))
    assert problem.line is not None


@given(definitions())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_sizes_durations_and_ranges_print_back_as_they_were_written(data: dict[str, Any]) -> None:
    found = loaded(data)
    for name, spec in data["groups"].items():
        group = found.groups[name]
        low, high = map(int, spec["nodes"].split(".."))
        assert str(group.nodes) == (spec["nodes"] if low != high else str(low))
        for field in ("memory", "idle_timeout", "shared_memory"):
            assert field not in spec or str(getattr(group, field)) == spec[field]
    assert ClusterDefinition.model_validate_json(found.model_dump_json()) == found


@given(definitions(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_part_said_in_an_overlay_is_as_good_as_said_in_the_file(data: dict[str, Any], pick: st.DataObject) -> None:
    group = pick.draw(st.sampled_from(sorted(data["groups"])))
    field = pick.draw(st.sampled_from(sorted(data["groups"][group])))
    moved = {"extends": "base.yaml", "groups": {group: {field: data["groups"][group][field]}}}
    rest = {
        **data,
        "groups": {
            name: {key: value for key, value in spec.items() if (name, key) != (group, field)}
            for name, spec in data["groups"].items()
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        YAML(typ="safe", pure=True).dump(rest, Path(folder) / "base.yaml")
        assert load(written(moved, folder)) == loaded(data)
