"""`heliostat check` as a command: exit codes, formats, and no import that a look at a file does not need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError

ROOT = Path(__file__).parents[4]
MANIFESTS = ROOT / "tests" / "manifests"
runner = CliRunner()


@pytest.mark.parametrize(("name", "code"), [("good-mixed-eks", 0), ("bad-training-nodes", 3), ("bad-first-cluster", 4)])
def test_the_exit_code_is_the_worst_severity(name: str, code: int) -> None:
    result = runner.invoke(app, ["check", str(MANIFESTS / f"{name}.yaml")])
    assert result.exit_code == code


def test_several_files_have_one_exit_code_and_one_list() -> None:
    files = [str(MANIFESTS / f"{name}.yaml") for name in ("good-mixed-eks", "bad-first-cluster", "bad-70b-on-l4")]
    result = runner.invoke(app, ["check", *files, "--json"])
    found = json.loads(result.stdout)["findings"]
    assert result.exit_code == 4
    assert {finding["file"] for finding in found} == set(files[1:])
    assert all({"rule", "severity", "what", "do", "line", "at"} <= set(finding) for finding in found)


def test_a_folder_is_what_of_its_files_can_be_checked(tmp_path: Path) -> None:
    (tmp_path / "a-service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    (tmp_path / "words.txt").write_text("no YAML: [")
    nothing = runner.invoke(app, ["check", str(tmp_path)])
    assert isinstance(nothing.exception, UsageError)
    for name in ("bad-first-cluster", "good-mixed-eks"):
        shutil.copy(MANIFESTS / f"{name}.yaml", tmp_path)
    result = runner.invoke(app, ["check", str(tmp_path), "--json"])
    assert result.exit_code == 4
    assert {finding["file"] for finding in json.loads(result.stdout)["findings"]} == {
        str(tmp_path / "bad-first-cluster.yaml")
    }


def test_sarif_is_json_with_a_place_for_each_finding() -> None:
    result = runner.invoke(app, ["check", str(MANIFESTS / "bad-first-cluster.yaml"), "--sarif"])
    log = json.loads(result.stdout)
    assert log["version"] == "2.1.0"
    assert len(log["runs"][0]["results"]) == 6


def test_a_model_given_by_hand_is_checked_against_its_group() -> None:
    clean = ["check", str(ROOT / "cluster" / "onprem.yaml")]
    result = runner.invoke(app, [*clean, "--model", "intent-classifier=7B", "--json"])
    assert [finding["rule"] for finding in json.loads(result.stdout)["findings"]] == ["model-too-large"]
    assert runner.invoke(app, [*clean, "--model", "intent-classifier=22M"]).exit_code == 0


def test_explain_prints_a_rule_and_needs_no_file() -> None:
    result = runner.invoke(app, ["check", "--explain", "idle-gpus"])
    assert result.exit_code == 0
    assert result.stdout.startswith("## idle-gpus")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no file is given"),
        (["a.yaml", "--json", "--sarif"], "two formats"),
        (["a.yaml", "--model", "chat"], "names no size"),
        (["nothing.yaml"], "no such file"),
        (["--explain", "nothing"], "no rule 'nothing'"),
    ],
)
def test_wrong_words_are_told(words: list[str], message: str) -> None:
    result = runner.invoke(app, ["check", *words])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_a_check_imports_neither_ray_nor_torch_nor_kubernetes() -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom heliostat.plan.check import check_file\n"
        f"check_file(Path({str(MANIFESTS / 'bad-70b-on-l4.yaml')!r}))\n"
        "print(sorted({'ray', 'torch', 'boto3', 'kubernetes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
