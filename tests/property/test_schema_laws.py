"""The JSON Schema and the model: the schema refuses nothing that the model takes, and no structural mistake passes it.

Valid definitions are spoilt in one place at a time. Rules between parts, and a size or range that is written well and
means nothing (8..4), are the model's alone.
"""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from heliostat.definition import ClusterDefinition
from heliostat.definition.schema import json_schema
from heliostat.errors import DefinitionError
from tests.support.definitions import definitions
from tests.support.field_changes import loaded

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
# What pydantic calls a mistake that a schema can see. "value_error" is what our own types and rules say.
OWN_RULE = {"value_error"}

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 200),
    st.sampled_from([0.5, 1.5, -0.5]),
    st.sampled_from(["", "x", "spot", "2..8", "8..2", "5m", "24GiB", "Nothing Of This", "a/b", "T4", "-", "..", "é"]),
    st.sampled_from([[], {}, [1], ["x"], {"x": 1}, [{"key": "k"}]]),
)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(*at, key), *places(node[key], (*at, key))]]


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    data = copy.deepcopy(draw(definitions()))
    *above, last = draw(st.sampled_from(places(data)))
    target: Any = data
    for part in above:
        target = target[part]
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            target[last] = draw(values)
        case "remove":
            del target[last]
        case _ if isinstance(target[last], dict):
            target[last][draw(st.sampled_from(["unknown", "Not A Name", "name", "gpus"]))] = draw(values)
        case _:
            target[last] = draw(values)
    return data


@given(spoilt())
@settings(max_examples=80, deadline=None, suppress_health_check=SLOW)
def test_what_the_schema_refuses_the_model_refuses(data: dict[str, Any]) -> None:
    if not VALIDATOR.is_valid(data):
        try:
            loaded(data)
        except DefinitionError:
            return
        raise AssertionError([error.message for error in VALIDATOR.iter_errors(data)])


@given(spoilt())
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
def test_a_structural_mistake_that_the_model_refuses_the_schema_refuses(data: dict[str, Any]) -> None:
    try:
        ClusterDefinition.model_validate(data)
    except ValidationError as error:
        structural = [found for found in error.errors() if found["type"] not in OWN_RULE]
        if structural:
            assert not VALIDATOR.is_valid(data), structural


@given(definitions())
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
def test_what_the_model_takes_the_schema_takes(data: dict[str, Any]) -> None:
    loaded(data)
    VALIDATOR.validate(data)


@given(definitions(), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
def test_an_overlay_of_any_part_of_a_valid_definition_passes_the_schema(
    data: dict[str, Any], pick: st.DataObject
) -> None:
    overlay = copy.deepcopy(data)
    for _ in range(pick.draw(st.integers(1, 6))):
        found = [place for place in places(overlay) if not any(isinstance(part, int) for part in place)]
        if not found:
            break
        *above, last = pick.draw(st.sampled_from(found))
        target: Any = overlay
        for part in above:
            target = target[part]
        if pick.draw(st.booleans()):
            del target[last]
        else:
            target[last] = None
    VALIDATOR.validate({"extends": "base.yaml", **overlay})
