"""The command line answers in a blink only as long as nobody imports the heavy libraries at the top."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "boto3", "kubernetes", "obstore", "transformers")


@pytest.mark.parametrize("module", ["heliostat", "heliostat.cli.app", "heliostat.definition", "heliostat.sdk"])
def test_importing_pulls_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
