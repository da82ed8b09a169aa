from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.definition import load
from heliostat.errors import DefinitionError

LAPTOP = Path(__file__).parents[3] / "cluster" / "laptop.yaml"


def mistakes(tmp_path: Path, *changes: tuple[str, str]) -> list[str]:
    text = LAPTOP.read_text()
    for old, new in changes:
        assert old in text, f"the example no longer has {old!r}"
        text = text.replace(old, new, 1)
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as raised:
        load(path)
    return [str(problem) for problem in raised.value.problems]


def test_the_example_is_valid() -> None:
    definition = load(LAPTOP)
    assert definition.groups["train"].market == "spot"
    assert definition.applications["intent-classifier"].replicas.low == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  cpus: 2", "  cpu: 2", "head.cpu: unknown key; did you mean cpus?"),
        ("gpus: 1", "gpus: lots", "groups.serve.gpus: input should be a valid integer"),
        ("gpus: 1", "gpus: -1", "groups.serve.gpus: input should be greater than or equal to 0"),
        ("nodes: 0..2", "nodes: -1..2", "groups.serve.nodes:"),
        ("nodes: 0..2", "nodes: 2..0", "groups.serve.nodes: 2..0 is reversed; write 0..2"),
        ("market: on-demand", "market: spot", "groups.serve.market: serving on spot alone loses requests"),
        ("market: on-demand", "market: cheap", "'cheap' is not allowed; write 'on-demand', 'spot' or 'reserved'"),
        ("  train:\n", "  serve:\n", 'found duplicate key "serve"'),
        ("group: serve", "group: nowhere", "there is no group 'nowhere'; one of: serve"),
        ("group: train", "group: serve", "group 'serve' has role serving, not training; one of: train"),
        ("route: /intent-classifier", "route: intents", "'intents' does not match"),
        ("name: laptop", "name: My Laptop", "such as my-laptop"),
        ("tags:\n  team: demo\n  project: voice\n", "", "tags: is missing; add it"),
    ],
)
def test_a_mistake_is_named_with_its_field_and_the_cure(tmp_path: Path, old: str, new: str, expected: str) -> None:
    found = mistakes(tmp_path, (old, new))
    assert any(expected in mistake for mistake in found), found


def test_a_serving_group_on_spot_with_a_fallback_is_fine(tmp_path: Path) -> None:
    text = LAPTOP.read_text().replace(
        "  train:\n",
        "  cheap:\n    role: serving\n    market: spot\n    cpus: 1\n    gpus: 1\n    nodes: 0..2\n"
        "    fallback: serve\n  train:\n",
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    assert load(path).groups["cheap"].fallback == "serve"


def test_five_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    changes = (
        ("  cpus: 2", "  cpu: 2"),
        ("market: on-demand", "market: cheap"),
        ("nodes: 0..3", "nodes: 3..0"),
        ("kind: embedded", "kind: disk"),
        ("max_drop", "max_dorp"),
    )
    found = mistakes(tmp_path, *changes)
    assert len(found) == 5
    lines = (tmp_path / "cluster.yaml").read_text().splitlines()
    for mistake, (_, new) in zip(found, changes, strict=True):
        number = int(mistake.rsplit("line ", 1)[1].rstrip(")"))
        assert new.strip() in lines[number - 1]


@pytest.mark.parametrize("text", ["", "- a\n", "a: [1\n", "a: &x [*x]\n", "!!python/object/apply:os.system ['true']\n"])
def test_what_is_not_a_definition_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError):
        load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="there is no such file"):
        load(tmp_path / "none.yaml")


DUE = (
    "    publishes: language\n",
    "    publishes: language\n    deadline: 2h\n    work: 1h\n    on_demand: train-on-demand\n",
)


def test_a_job_with_a_deadline_says_where_it_goes_and_how_long_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "laptop.yaml"
    path.write_text(LAPTOP.read_text().replace(*DUE))
    job = load(path).jobs["language-model"]
    assert job.groups == ("train", "train-on-demand")
    assert job.environment() == {
        "HELIOSTAT_GROUP": "train",
        "HELIOSTAT_DEADLINE": '{"deadline_s": 7200.0, "on_demand": "train-on-demand", "work_s": 3600.0}',
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("    work: 1h\n", ""), "deadline, work and on_demand go together; add work"),
        (("    deadline: 2h\n", "    deadline: 1h\n"), "leaves no time"),
        (("on_demand: train-on-demand", "on_demand: train\n"), "is spot as well"),
        (("on_demand: train-on-demand", "on_demand: serve\n"), "has role serving"),
        (("    market: spot\n", "    market: on-demand\n"), "not spot, so there is nothing to move to"),
    ],
)
def test_a_deadline_that_cannot_be_kept_to_is_refused(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    assert any(what in mistake for mistake in mistakes(tmp_path, DUE, change))
