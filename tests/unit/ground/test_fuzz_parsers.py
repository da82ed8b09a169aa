"""A sample of what tests/benchmarks/fuzz_parsers.py does at length, and that it can find something."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.errors import UsageError
from tests.benchmarks import fuzz_parsers


@pytest.mark.timeout(120)
def test_broken_bytes_are_refused_and_nothing_else() -> None:
    found = fuzz_parsers.fuzz(1200, seed=1)
    assert {name: tally.crashes for name, tally in found.items() if tally.crashes} == {}
    assert sum(tally.refused for tally in found.values()) > 200


def test_a_crash_a_refusal_and_a_hang_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(data: bytes) -> object:
        if data == b"crash":
            raise KeyError(data)
        if data == b"refuse":
            raise UsageError("no")
        while data == b"hang":
            pass
        return data

    monkeypatch.setattr(fuzz_parsers, "LIMIT_S", 0.05)
    target = fuzz_parsers.Target("t", read, [], 1, "binary")
    tally = fuzz_parsers.Tally()
    with fuzz_parsers.limits():
        for data in (b"crash", b"refuse", b"hang", b"good"):
            fuzz_parsers.try_one(target, data, tally)
    assert (tally.inputs, tally.taken, tally.refused, tally.crashed) == (4, 1, 1, 2)
    assert {name.split(" ")[0] for name in tally.crashes} == {"KeyError", "Hang"}
