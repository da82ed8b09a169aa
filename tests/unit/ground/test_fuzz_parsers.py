"""A sample of what tests/benchmarks/fuzz_parsers.py does at length, and that it can find something."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from heliostat.errors import UsageError
from tests.benchmarks import fuzz_parsers


def test_broken_bytes_are_refused_and_nothing_else() -> None:
    # In a process of its own: the limit on memory would else hold for all that this one has mapped already.
    command = [sys.executable, fuzz_parsers.__file__, "--inputs", "1200", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["crashes"] == 0
    assert told["refused"] > 200


def test_a_crash_a_refusal_and_a_hang_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with fuzz_parsers.time_limit():
        for data in (b"crash", b"refuse", b"hang", b"good"):
            fuzz_parsers.try_one(target, data, tally)
    assert (tally.inputs, tally.taken, tally.refused, tally.crashed) == (4, 1, 1, 2)
    assert {name.split(" ")[0] for name in tally.crashes} == {"KeyError", "Hang"}
