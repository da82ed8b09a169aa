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


def test_a_training_process_does_not_build_the_models_of_the_definition() -> None:
    """A tenth of a second of CPU in each worker, at each restart."""
    code = "import sys, heliostat.train.child, heliostat.train.job; print('heliostat.definition' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
