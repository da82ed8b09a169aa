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
