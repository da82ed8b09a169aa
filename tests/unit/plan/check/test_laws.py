"""Whatever stands in a file, the answer is a report or a clear error; and a report follows its file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from heliostat.definition import ClusterDefinition
from heliostat.errors import UsageError
from heliostat.plan.check import RULES, Report, check_definition, check_text
from heliostat.plan.check.yaml_file import read_documents
from tests.support.definitions import definitions

MANIFESTS = [
    list(YAML(typ="safe").load_all(path.read_text()))
    for path in sorted((Path(__file__).parents[3] / "manifests").glob("*.yaml"))
]
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**12),
    st.floats(allow_nan=True),
    st.text(max_size=12),
    st.sampled_from(["1e9", "500m", "16Gi", "{{ .Values.x }}", "a: [", "*x", "0", "-1"]),
    st.just([]),
    st.just({}),
    st.just([{}]),
    st.just({"a": [None]}),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in entries for place in places(inner, (*at, key)))]


def put(documents: list[Any], place: tuple[Any, ...], value: Any) -> None:
    target: Any = documents
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value


def check(text: str) -> Report | UsageError:
    try:
        return check_text(text)
    except UsageError as error:
        return error


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_manifest_with_anything_anywhere_gives_a_report_or_a_usage_error(data: st.DataObject) -> None:
    documents = copy.deepcopy(data.draw(st.sampled_from(MANIFESTS)))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([place for place in places(documents) if place]))
        put(documents, place, copy.deepcopy(data.draw(junk)))
    text = "\n---\n".join(json.dumps(document) for document in documents)
    told = check(text)
    if isinstance(told, UsageError):
        assert told.where
        assert told.do
    else:
        assert {finding.rule for finding in told.findings} <= {rule.id for rule in RULES}
        assert all(finding.line for finding in told.findings)


@given(definitions())
@settings(max_examples=60, deadline=None)
def test_any_valid_definition_gets_a_report_whose_places_are_in_it(data: dict[str, Any]) -> None:
    definition = ClusterDefinition.model_validate(data)
    for finding in check_definition(definition).findings:
        parts = finding.at.split(".")
        assert parts[0] in ClusterDefinition.model_fields
        assert parts[0] != "groups" or parts[1] in definition.groups
        assert finding.do


@settings(deadline=None)
@given(st.integers(0, 5), st.text("ab \t#", max_size=20))
def test_comments_and_blank_lines_move_a_finding_and_change_nothing_else(lines: int, comment: str) -> None:
    path = Path(__file__).parents[3] / "manifests" / "bad-70b-on-l4.yaml"
    above = f"# {comment}\n" * lines
    before, after = check_text(path.read_text()), check_text(above + path.read_text())
    moved = [(f.rule, f.what, (f.line or 0) + lines) for f in before.findings]
    assert [(f.rule, f.what, f.line) for f in after.findings] == moved


KEYS = st.text("ab.[]\"'/ ", max_size=8)


@settings(deadline=None)
@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner)))
def test_every_path_of_a_document_has_a_line(value: object) -> None:
    (document,) = read_documents(json.dumps({"root": value}, indent=1), "file")
    last = len(json.dumps({"root": value}, indent=1).splitlines())
    assert all(1 <= line <= last for line in document.lines.values())
