"""`heliostat render`, `schema` and `preview`, as they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "heliostat.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_render_writes_one_file_for_each_object(tmp_path: Path) -> None:
    done = call("render", "cluster/gcp.yaml", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"raycluster-voice.yaml", "computeclass-voice-train-tpu.yaml", "deployment-voice-controller.yaml"} <= names
    assert YAML(typ="safe").load(tmp_path / "raycluster-voice.yaml")["kind"] == "RayCluster"


def test_render_prints_one_kind_as_json() -> None:
    done = call("render", "cluster/aws.yaml", "--kind", "rayjob", "--json")
    assert [item["kind"] for item in json.loads(done.stdout)] == ["RayJob", "RayJob"]


def test_what_cannot_be_rendered_is_told_on_stderr_with_exit_code_2() -> None:
    for arguments in (("cluster/laptop.yaml",), ("cluster/aws.yaml", "--kind", "pod"), ("cluster/none.yaml",)):
        done = call("render", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_schema_prints_what_is_checked_in() -> None:
    assert call("schema").stdout == (ROOT / "cluster" / "schema.json").read_text()


def test_preview_says_what_a_change_takes() -> None:
    done = call("preview", "cluster/aws.yaml", "cluster/aws-staging.yaml", "--json")
    found = json.loads(done.stdout)
    assert found["effect"] == "needs a new cluster"
    assert {"field", "before", "after", "effect", "groups", "more_gpus", "why"} == set(found["changes"][0])
    shown = call("preview", "cluster/aws.yaml", "cluster/aws-staging.yaml")
    assert "  groups.train-h100.cpus: 180 -> 14 (train-h100; a running pod keeps its template" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("together: needs a new cluster")
