"""The reference is what the code is, and the site builds without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heliostat.events import KINDS
from tests.docs import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_page_made_from_the_code_is_up_to_date(page: str) -> None:
    assert (reference.FOLDER / page).read_text() == reference.PAGES[page](), "run python -m tests.docs.reference"


def test_every_kind_of_event_is_described_and_every_described_one_is_emitted() -> None:
    assert set(reference.emitted()) == set(KINDS)


def test_every_page_of_the_site_is_in_its_menu_and_no_link_is_broken(tmp_path: Path) -> None:
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "reference" / "commands" / "index.html").exists()
