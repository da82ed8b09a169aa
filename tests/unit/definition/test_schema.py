"""The JSON Schema that is checked in: made from the model, valid, and taking every example."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from heliostat.definition.schema import json_schema

CLUSTER = Path(__file__).parents[3] / "cluster"
EXAMPLES = sorted(CLUSTER.glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_file_is_what_the_model_says() -> None:
    kept = json.loads((CLUSTER / "schema.json").read_text())
    assert kept == json_schema(), "run: heliostat schema > cluster/schema.json"


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_takes_the_example_and_the_example_names_it(path: Path) -> None:
    VALIDATOR.validate(YAML(typ="safe", pure=True).load(path))
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_fields_are_described_where_an_editor_shows_it() -> None:
    group = json_schema()["$defs"]["WorkerGroup"]["properties"]
    assert "compact" in group["placement"]["description"]
    assert "H100-80GB" in group["accelerator"]["anyOf"][0]["enum"]


def test_an_overlay_may_leave_out_and_take_away_but_not_misspell() -> None:
    VALIDATOR.validate({"extends": "aws.yaml", "groups": {"train": None, "serve": {"nodes": "0..2"}}})
    for wrong in (
        {"groups": {"serve": {"nodes": "0..2"}}},  # no overlay: the rest is missing
        {"extends": "aws.yaml", "groups": {"serve": {"node": "0..2"}}},
        {"extends": "aws.yaml", "groups": {"serve": {"nodes": "two"}}},
        {"extends": 1},
    ):
        assert not VALIDATOR.is_valid(wrong), wrong
