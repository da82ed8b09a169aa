"""The command line as a program: exit codes, errors, help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def heliostat(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HELIOSTAT_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "heliostat.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=60,
        check=False,
    )


def test_help_lists_the_verbs_and_nouns(tmp_path: Path) -> None:
    shown = heliostat("--help", home=tmp_path)
    assert shown.returncode == 0
    for word in ("up", "down", "status", "job", "model", "app", "cost", "chaos"):
        assert word in shown.stdout


def test_a_bad_definition_is_told_on_stderr_with_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nnonsense: 1\n")
    shown = heliostat("up", str(bad), home=tmp_path)
    assert shown.returncode == 2
    assert "nonsense: unknown key" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stdout == ""


def test_a_capacity_that_is_no_number_is_refused(tmp_path: Path) -> None:
    shown = heliostat("chaos", "capacity", "train", "none", home=tmp_path)
    assert shown.returncode == 2
    assert "'none' is not a number of nodes" in shown.stderr
    assert "write 0, 1, 2, ..., or all" in shown.stderr


@pytest.mark.parametrize("command", [("status",), ("job", "list"), ("model", "list"), ("cost", "report"), ("down",)])
def test_without_a_cluster_every_command_says_how_to_get_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    shown = heliostat(*command, home=tmp_path)
    assert shown.returncode == 1
    assert "heliostat up" in shown.stderr
    assert "Traceback" not in shown.stderr
