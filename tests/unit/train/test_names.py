from __future__ import annotations

import sys
from pathlib import Path

import heliostat

PACKAGE = Path(heliostat.__file__).parent


def test_no_file_that_lies_beside_a_script_hides_a_module_of_python() -> None:
    """Scripts that are run by their path have their folder before the standard library on sys.path."""
    for folder in ("train", "cluster"):
        hidden = {path.stem for path in (PACKAGE / folder).glob("*.py")} & sys.stdlib_module_names
        assert hidden == set()
