"""Write the locks: what is installed, to the byte. `make lock`, after pyproject.toml or constraints.txt has changed.

- `requirements.lock`: all that `make setup` installs, with the hashes of every file that may be taken for it.
- `requirements-cpu.lock`: torch without CUDA, taken instead where pip has been told of an index that has such builds.
- `requirements-cuda.lock`: what torch asks for besides, where its build is one for CUDA, and what reads real GPUs.
- `constraints.txt` and `constraints-cuda.txt`: the same versions without hashes, for whoever installs a part: pip
  takes no project of one's own where hashes are asked for.

What constraints.txt pins stays as it is: to upgrade a package, change or remove its line there first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("laptop", "recipes", "gpu", "dev")
PYTHON = "3.11.7"
CUDA = re.compile(r"nvidia-|cuda-|triton\b")
CPU_TORCH = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
"""Of torch 2.13.0+cpu for Python 3.11 on Linux x86-64, which the index that uv reads does not have: `pip hash FILE`."""
HEADS = {
    "constraints.txt": "# Written by `make lock`; requirements.lock has the hashes.",
    "constraints-cuda.txt": "# What torch brings with CUDA, on top of constraints.txt: "
    "pip install -c constraints.txt -c constraints-cuda.txt ...",
    "requirements.lock": "# Written by `make lock`: pip install --require-hashes --no-deps -r requirements.lock",
    "requirements-cpu.lock": "# Written by `make lock`, before requirements.lock where the index has it.",
    "requirements-cuda.lock": "# Written by `make lock`, on top of requirements.lock where torch is a build for CUDA.",
}


def compiled() -> str:
    """The requirements with their hashes, for every platform, as uv finds them."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    command = [
        "uv", "pip", "compile", "pyproject.toml", *extras, "-c", "constraints.txt", "-c", "constraints-cuda.txt",
        "--universal", "--python-version", PYTHON, "--generate-hashes", "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def entries(lock: str) -> list[str]:
    """One text for each package: `name==version ; marker` and its hashes."""
    return [entry.rstrip() for entry in re.split(r"\n(?=\S)", lock) if re.match(r"[A-Za-z0-9]", entry)]


def files(found: list[str]) -> dict[str, str]:
    """Name of a file -> what it is to hold."""
    made: dict[str, str] = {}
    for part, cuda in (("", False), ("-cuda", True)):
        these = [entry for entry in found if bool(CUDA.match(entry)) is cuda]
        pins = [entry.split()[0] for entry in these]
        made[f"requirements{part}.lock"] = "\n".join(these)
        made[f"constraints{part}.txt"] = "\n".join(pins)
    [torch] = [entry.split()[0] for entry in found if entry.startswith("torch==")]
    made["requirements-cpu.lock"] = f"{torch}+cpu --hash=sha256:{CPU_TORCH}"
    return {name: f"{HEADS[name]}\n{text}\n" for name, text in made.items()}


def main() -> int:
    for name, text in files(entries(compiled())).items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
