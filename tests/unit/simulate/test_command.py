"""`heliostat simulate`, run in this process: it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError

RUN = CliRunner()
LAPTOP = str(Path(__file__).parents[3] / "cluster" / "laptop.yaml")
HOUR = str(1 / 24)


def test_two_definitions_stand_side_by_side_with_a_page_of_plots(tmp_path: Path) -> None:
    other = tmp_path / "small.yaml"
    other.write_text(f"extends: {LAPTOP}\napplications: {{intent-classifier: {{replicas: 1..1}}}}\n", encoding="utf-8")
    page = tmp_path / "page.html"
    words = [LAPTOP, "--against", str(other), "--rate", "2", "--days", HOUR, "--spot", "synthetic", "--plot", str(page)]
    shown = RUN.invoke(app, ["simulate", *words])
    assert shown.exit_code == 0, shown.output
    assert "small.yaml" in shown.stdout.replace("\n", "")
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "http" not in text.replace('xmlns="http', "")


def test_the_same_seed_prints_the_same_json(tmp_path: Path) -> None:
    requests = tmp_path / "r.csv"
    requests.write_text("at_s,app\n" + "".join(f"{100 + n},intent-classifier\n" for n in range(50)))
    words = ["simulate", LAPTOP, "--requests", str(requests), "--days", HOUR, "--json"]
    one, same = (json.loads(RUN.invoke(app, words).stdout)[0] for _ in range(2))
    assert one["apps"][0]["offered"] == 50
    assert {**one, "wall_s": 0, "peak_mib": 0} == {**same, "wall_s": 0, "peak_mib": 0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--days", "1"], "how many requests intent-classifier has is not known"),
        (["--requests", "none.csv"], "cannot be read"),
        (["--requests", "none.csv", "--rate", "1"], "--rate is of drawn requests"),
        (["--rate", "1", "--spot", "serve=synthetic"], "no spot group"),
        (["--rate", "1", "--level", "both"], "--level both"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(words: list[str], says: str) -> None:
    shown = RUN.invoke(app, ["simulate", LAPTOP, *words])
    assert isinstance(shown.exception, UsageError)
    assert says in str(shown.exception)
