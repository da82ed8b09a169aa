"""The planner's commands: what they print, what they refuse, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot, no credentials."""
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path / "home"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def test_the_verb_may_be_left_out_where_cards_are_named() -> None:
    short = run("--by", "friday", "8xA100", "--for", "3d", "--today", "2026-11-25", "--json")
    long = run("need", "8xA100", "--by", "friday", "--for", "3d", "--today", "2026-11-25", "--json")
    assert short.exit_code == 0
    assert json.loads(short.stdout) == json.loads(long.stdout)
    assert json.loads(short.stdout)["plan"]["day"] == "2026-11-27"


def test_an_unknown_verb_is_still_one() -> None:
    result = run("szie", "7B")
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_the_screen_says_what_to_do_first() -> None:
    result = run("--by", "friday", "8xA100", "--for", "3d", "--today", "2026-11-25")
    assert "to do, 2 days before 2026-11-27:" in result.stdout
    assert " 1. by Wed 25 Nov: " in result.stdout
    assert len(result.stdout.splitlines()) < 50  # one screen


def test_a_definition_over_its_quota_ends_with_1_and_the_request(tmp_path: Path) -> None:
    limits = tmp_path / "limits.csv"
    rows = "".join(
        f"aws,us-east-1,{code},{market},0,0\n"
        for code, market in (("L-DB2E81BA", "on-demand"), ("L-7212CCBC", "spot"), ("L-417A185B", "on-demand"))
    )
    limits.write_text("cloud,region,code,market,limit,used\n" + rows)
    result = run("quota", str(ROOT / "cluster" / "aws.yaml"), "--limits", str(limits))
    assert result.exit_code == 1, result.output
    assert "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code" in result.stdout
    assert run("quota", str(ROOT / "cluster" / "aws.yaml")).exit_code == 0  # not known is not short


def test_refresh_without_credentials_says_so_and_keeps_an_empty_answer() -> None:
    result = run("refresh", "--region", "us-east-1")
    assert result.exit_code == 0
    assert "no credentials" in result.output
    after = run("16xL4", "--for", "30d", "--role", "serving")
    assert after.exit_code == 0
    assert "no credentials" in after.output


def test_a_measurement_moves_the_count_of_machines(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"accelerator": "L40S", "requests_per_s": 2.0}')
    words = ("serve", "7B", "--requests", "50", "--cloud", "aws", "--json")
    plain = json.loads(run(*words).stdout)["choices"][0]
    slow = json.loads(run(*words, "--calibrate", str(tmp_path / "bench.json")).stdout)
    first = next(choice for choice in slow["choices"] if choice["instance"].startswith("g6e"))
    assert plain["machines"] < first["machines"] == 36  # 50 / (2.0 x 70 %)
    assert any("2 requests/s on L40S measured" in words for words in first["assumptions"])


def test_packing_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "models.csv").write_text("name,memory,compute,isolation\na,5GiB,0.1,slice\nb,9GiB,,shared\n")
    result = run("pack", str(tmp_path / "models.csv"), "--on", "1xA100-80GB", "--json")
    made = json.loads(result.stdout)
    assert made["packing"]["optimal"] is True
    assert {name for card in made["packing"]["cards"] for place in card["places"] for name in place["tenants"]} == {
        "a",
        "b",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("need", "A100"),
        ("need", "8xA100", "--role", "hosting"),
        ("need", "8xA100", "--by", "someday"),
        ("need", "8xA100", "--cloud", "ibm"),
        ("need", "8xA100", "--data", "500GB"),
        ("serve", "7B", "--requests", "0"),
        ("serve", "7B", "--requests", "1", "--calibrate", "nothing.json"),
        ("pack", "20x100MB", "--isolation", "none"),
        ("pack", "nothing.csv"),
    ],
)
def test_nonsense_is_refused_with_what_to_write(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert isinstance(result.exception, UsageError)
    assert result.exception.do
