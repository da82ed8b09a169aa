"""`--json` of every command that reads from a cluster, parsed, and the table beside it."""

from __future__ import annotations

import json

import pytest

from heliostat.sdk import Platform
from tests.unit.cli.test_contract import run

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
READING = (
    "status", "why", "job list", "model list", "key list", "cost report", "cost report --by day", "cost idle",
    "cost advise", "use", "model sweep", "app status intent-classifier",
)  # fmt: skip


@pytest.mark.parametrize("words", READING)
def test_what_it_tells_programs_can_be_parsed(
    platform: Platform, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(f"{words} --json", monkeypatch, capsys)
    assert code == 0, err
    assert isinstance(json.loads(out), dict | list)
    code, out, _ = run(words, monkeypatch, capsys)
    assert code == 0
    assert not out.startswith("{")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("job submit intent-classifier --run typo", 2, "there is no run 'typo' to resume"),
        ("job show typo", 1, "there is no run 'typo'"),
        ("model publish intent-classifier typo", 1, "there is no run 'typo'"),
        ("chaos reclaim typo", 2, "the definition has no group 'typo'"),
    ],
)
def test_a_name_that_is_none_is_told_before_anything_is_done(
    platform: Platform, words: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    got, _, err = run(words, monkeypatch, capsys)
    assert (got, told in err) == (code, True), err
