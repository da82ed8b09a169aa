"""`extends:`: one file laid over another, and mistakes told where they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.definition import definition_files, load
from heliostat.errors import DefinitionError, Problem

CLUSTER = Path(__file__).parents[3] / "cluster"
LAPTOP = (CLUSTER / "laptop.yaml").read_text()


def laid_over(tmp_path: Path, text: str, base: str = LAPTOP) -> Path:
    (tmp_path / "base.yaml").write_text(base)
    path = tmp_path / "over.yaml"
    path.write_text("extends: base.yaml\n" + text)
    return path


def problems(path: Path) -> list[tuple[str, str, int | None]]:
    with pytest.raises(DefinitionError) as caught:
        load(path)
    return [(problem.field, Path(problem.file or "").name, problem.line) for problem in caught.value.problems]


def line_of(text: str, fragment: str, nth: int = 1) -> int:
    return [number for number, line in enumerate(text.splitlines(), 1) if fragment in line][nth - 1]


def test_the_example_takes_over_what_it_does_not_say() -> None:
    production, staging = load(CLUSTER / "aws.yaml"), load(CLUSTER / "aws-staging.yaml")
    assert staging.groups["serve"].nodes.high == 2
    assert staging.groups["serve"].accelerator == production.groups["serve"].accelerator
    assert staging.groups["train-h100"].volumes["cache"].mount == "/cache"
    assert str(staging.groups["train-h100"].volumes["cache"].size) == "2TiB"
    assert set(production.groups) - set(staging.groups) == {"train-neuron"}
    assert set(production.jobs) - set(staging.jobs) == {"nightly"}
    assert staging.head.state is None


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    assert load(laid_over(tmp_path, "")) == load(CLUSTER / "laptop.yaml")


def test_a_list_is_replaced_whole(tmp_path: Path) -> None:
    base = LAPTOP + "network:\n  clients: [a, b]\n"
    assert load(laid_over(tmp_path, "network:\n  clients: [c]\n", base)).network.clients == ("c",)


def test_mistakes_are_told_in_the_file_that_makes_them(tmp_path: Path) -> None:
    base = LAPTOP.replace("kind: embedded", "kind: disk")
    over = "groups:\n  serve:\n    nodes: 4..2\n  train:\n    gpu: 1\n"
    assert problems(laid_over(tmp_path, over, base)) == [
        ("store.kind", "base.yaml", line_of(base, "kind: disk")),
        ("groups.serve.nodes", "over.yaml", 4),
        ("groups.train.gpu", "over.yaml", 6),
    ]


def test_a_rule_between_both_files_is_told_where_the_field_was_written(tmp_path: Path) -> None:
    found = problems(
        laid_over(
            tmp_path,
            "groups:\n  serve: null\n  other:\n    role: training\n    market: spot\n"
            "    cpus: 1\n    gpus: 1\n    nodes: 0\n",
        )
    )
    assert found == [("applications.intent-classifier.group", "base.yaml", line_of(LAPTOP, "group: serve"))]


def test_a_field_taken_away_that_has_to_be_there_is_missing(tmp_path: Path) -> None:
    ((field, _, _),) = problems(laid_over(tmp_path, "store:\n  bucket: null\n"))
    assert field == "store.bucket"


def test_overlays_can_be_laid_over_overlays(tmp_path: Path) -> None:
    middle = laid_over(tmp_path, "groups:\n  serve:\n    nodes: 0..5\n")
    top = tmp_path / "top.yaml"
    top.write_text(f"extends: {middle.name}\ngroups:\n  serve:\n    cpus: 3\n")
    group = load(top).groups["serve"]
    assert (group.nodes.high, group.cpus) == (5, 3)
    top.write_text(f"extends: {middle.name}\ngroups:\n  serve:\n    cpus: none\nstore:\n  kind: disk\n")
    assert [name for _, name, _ in problems(top)] == ["top.yaml", "top.yaml"]


@pytest.mark.parametrize(
    ("first", "expected"),
    [("extends: over.yaml", "in turn"), ("extends: none.yaml", "there is no file"), ("extends: 3", "not the path")],
)
def test_a_base_that_cannot_be_read_is_told(tmp_path: Path, first: str, expected: str) -> None:
    path = tmp_path / "over.yaml"
    path.write_text(f"# one\n{first}\n")
    with pytest.raises(DefinitionError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert expected in problem.message
    assert isinstance(problem, Problem)
    assert problem.line == 2


def test_a_definition_is_all_its_files_the_base_first(tmp_path: Path) -> None:
    path = laid_over(tmp_path, "head:\n  cpus: 3\n")
    assert [file.name for file in definition_files(path)] == ["base.yaml", "over.yaml"]
