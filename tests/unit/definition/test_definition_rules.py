"""Rules between parts of a definition, and mistakes that a first reading could stop at."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.definition import load
from heliostat.errors import DefinitionError, Problem

LAPTOP = Path(__file__).parents[3] / "cluster" / "laptop.yaml"


def problems(tmp_path: Path, text: str) -> tuple[Problem, ...]:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load(path)
    return caught.value.problems


def line_of(text: str, fragment: str, nth: int = 1) -> int:
    return [number for number, line in enumerate(text.splitlines(), 1) if fragment in line][nth - 1]


def test_every_duplicate_key_is_told_with_both_its_lines(tmp_path: Path) -> None:
    text = LAPTOP.read_text().replace("  train:\n", "  serve:\n").replace("  team: demo\n", "  team: demo\n  team: b\n")
    found = [problem for problem in problems(tmp_path, text) if "duplicate" in problem.message]
    assert [(problem.field, problem.line) for problem in found] == [
        ("groups.serve", line_of(text, "  serve:", 2)),
        ("tags.team", line_of(text, "team: b")),
    ]
    assert f"line {line_of(text, '  serve:')};" in found[0].message


def test_a_replica_that_fits_on_no_node_of_its_group_is_refused(tmp_path: Path) -> None:
    text = LAPTOP.read_text().replace("gpus_per_replica: 1", "gpus_per_replica: 2")
    (problem,) = problems(tmp_path, text)
    assert (problem.field, problem.line) == (
        "applications.intent-classifier.gpus_per_replica",
        line_of(text, "gpus_per_replica"),
    )


def test_two_applications_on_one_route_are_refused(tmp_path: Path) -> None:
    text = LAPTOP.read_text()
    app = text[text.index("  intent-classifier:\n    recipe") : text.index("tags:")]
    text = text.replace("tags:", app.replace("  intent-classifier:", "  second:", 1) + "\ntags:")
    (problem,) = problems(tmp_path, text)
    assert problem.field == "applications.second.route"
    assert "'intent-classifier'" in problem.message


def test_an_endpoint_that_an_embedded_store_would_ignore_is_refused(tmp_path: Path) -> None:
    text = LAPTOP.read_text().replace("bucket: heliostat", "bucket: heliostat\n  endpoint: https://s3.example")
    (problem,) = problems(tmp_path, text)
    assert problem.field == "store.endpoint"


def test_a_definition_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "name: &a {b: *a}\n")
    assert "refers to itself" in problem.message or "not YAML" in problem.message


def test_a_group_has_whole_nodes_to_give_or_parts_of_them(tmp_path: Path) -> None:
    text = """\
name: shares
groups:
  eight: {role: training, market: spot, cpus: 8, gpus: 8, nodes: 0..2}
  single: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..2}
store: {kind: embedded, bucket: heliostat}
jobs:
  part: {entrypoint: sleep 9, group: eight, publishes: m, gpus: 2}
  whole: {entrypoint: sleep 9, group: eight, publishes: m}
  one: {entrypoint: sleep 9, group: single, publishes: m, gpus: 1}
  another: {entrypoint: sleep 9, group: single, publishes: m}
tags: {team: demo, project: voice}
"""
    (problem,) = problems(tmp_path, text)
    assert (problem.field, problem.line) == ("jobs.part.gpus", line_of(text, "part:"))
    assert "'whole' has whole nodes of 'eight'" in problem.message
    (tmp_path / "cluster.yaml").write_text(text.replace("publishes: m}\n  one", "publishes: m, gpus: 8}\n  one"))
    assert load(tmp_path / "cluster.yaml").jobs["whole"].gpus == 8


def test_what_is_missing_or_wrong_is_shown_by_an_example(tmp_path: Path) -> None:
    text = LAPTOP.read_text().replace("route: /intent-classifier", "route: nope").replace("tags:", "observability:")
    text = text[: text.index("observability:")]
    told = {problem.field: problem.message for problem in problems(tmp_path, text)}
    assert told["tags"] == "is missing; add it, such as {team: speech, project: voice}"
    assert told["applications.intent-classifier.route"].endswith("such as /intent-classifier")
