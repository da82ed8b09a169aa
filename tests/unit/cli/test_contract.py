"""What every command promises: exit codes, where its words go, and JSON that programs can read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer

from heliostat.cli import main
from heliostat.cli.app import app
from heliostat.cli.examples import ALONE, EXAMPLES, EXIT_CODES, KUBERNETES, leaves

ROOT = Path(__file__).parents[3]
LEAVES = leaves(typer.main.get_command(app))
OF_A_CLUSTER = sorted(set(LEAVES) - ALONE - KUBERNETES)
LOCAL = {
    "use": "use",
    "check": "check cluster/laptop.yaml",
    "simulate": "simulate cluster/laptop.yaml --requests steady --rate 0.1 --days 0.01",
    "plan need": "plan need 1xL4 --for 1d --no-live",
    "plan serve": "plan serve 7B --requests 1 --no-live --cloud aws",
    "plan train": "plan train 7B --method lora --tokens 1M --no-live --cloud aws",
    "plan pack": "plan pack 2x100MB --on 1xL4 --no-live",
    "plan quota": "plan quota cluster/aws.yaml --no-live",
    "plan size": "plan size 1B",
    "render": "render cluster/onprem.yaml",
    "preview": "preview cluster/aws.yaml cluster/aws-staging.yaml",
    "job rehearse": "job rehearse friday --generate 1 --work 2h --deadline 4h --stride 48h",
}
"""Commands with --json that need nothing from outside, small enough for a test."""
OUTSIDE = {"plan refresh", "doctor"}
"""They ask the account, or this machine: tests/real/ and the planner's tests read their JSON."""


def run(
    words: str | list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr), as the program gives them."""
    given = shlex.split(words) if isinstance(words, str) else words
    monkeypatch.setattr("sys.argv", ["heliostat", *given])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _nobody_is_at_home(heliostat_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(ROOT)


def test_what_is_said_of_commands_is_said_of_those_that_there_are() -> None:
    assert set(LEAVES) >= {*ALONE, *KUBERNETES, *EXIT_CODES, *LOCAL, *OUTSIDE}


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_an_unknown_option_is_wrong_input(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if LEAVES[path].context_settings.get("ignore_unknown_options"):
        pytest.skip("it hands unknown options on")
    code, out, err = run([*path.split(), "--no-such-option"], monkeypatch, capsys)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert "no such option" in err.lower()


@pytest.mark.parametrize("path", OF_A_CLUSTER)
def test_without_a_cluster_it_ends_with_1_and_says_how_to_get_one(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    example = EXAMPLES[path][0].replace("./folder", str(ROOT / "docs")).replace("./weights", str(tmp_path / "w"))
    code, out, err = run(example, monkeypatch, capsys)
    assert code == 1
    assert out == ""
    assert "error: " in err
    assert "heliostat up" in err


def test_every_command_with_json_is_tried_somewhere() -> None:
    speaking = {p for p, command in LEAVES.items() if any("--json" in option.opts for option in command.params)}
    assert speaking - set(OF_A_CLUSTER) - KUBERNETES == set(LOCAL) | OUTSIDE


@pytest.mark.parametrize("path", sorted(LOCAL))
def test_json_of_what_needs_no_cluster_can_be_parsed(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(f"{LOCAL[path]} --json", monkeypatch, capsys)
    assert code in ((0, 1, 3, 4) if path in EXIT_CODES else (0,)), err
    assert isinstance(json.loads(out), dict | list)
