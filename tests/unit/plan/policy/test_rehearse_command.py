"""`heliostat job rehearse`, run in this process: it needs no cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError
from heliostat.plan.policy.traces import generate, write_trace

RUN = CliRunner()


def test_it_replays_a_trace_and_prints_a_row_per_policy(tmp_path: Path) -> None:
    write_trace(generate(4), tmp_path / "zone.json")
    shown = RUN.invoke(app, ["job", "rehearse", "friday", "--trace", str(tmp_path / "zone.json"), "--stride", "48h"])
    assert shown.exit_code == 0, shown.output
    for policy in ("on-demand only", "greedy spot", "uniform progress", "forecast"):
        assert policy in shown.stdout


def test_json_is_for_programs_and_a_folder_s_broken_files_are_told(tmp_path: Path) -> None:
    write_trace(generate(4), tmp_path / "zone.json")
    (tmp_path / "broken.json").write_text("{")
    arguments = ["job", "rehearse", "friday", "--trace", str(tmp_path), "--stride", "96h", "--work", "20h", "--json"]
    shown = RUN.invoke(app, [*arguments, "--deadline", "40h"])
    value = json.loads(shown.stdout)
    assert "skipped broken.json" in shown.stderr
    assert (value["job"], value["traces"]) == ("friday", ["zone"])
    assert value["question"]["work_s"] == 20 * 3600
    assert [row["missed"] for row in value["policies"]] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["friday"], "either traces or a seed"),
        (["friday", "--generate", "1", "--work", "59h55m"], "too near"),
        (["friday", "--generate", "1", "--nodes", "9"], "asks for 9"),
        (["friday", "--generate", "1", "--deadline", "40d"], "the job has 960"),
        (["Friday", "--generate", "1"], "not a valid job name"),
        (["friday", "--trace", "nowhere.json"], "not a readable"),
    ],
)
def test_what_cannot_be_rehearsed_is_told(arguments: list[str], what: str) -> None:
    shown = RUN.invoke(app, ["job", "rehearse", *arguments])
    assert isinstance(shown.exception, UsageError)
    assert what in str(shown.exception)
