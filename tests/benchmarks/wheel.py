"""The wheel in an empty virtual environment, outside the repository: a cluster comes up from a definition of one's own.

    python tests/benchmarks/wheel.py

Builds wheel and sdist, installs the wheel with its `laptop` extra, and runs `heliostat up`, `status`, `doctor` and
`down` on a definition in a folder of its own. Prints sizes, the time of the import and of `--help`. The last line is
JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFINITION = """
name: wheel
groups:
  train: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..1}
store: {kind: embedded, bucket: wheel}
tags: {team: demo, project: wheel}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)])
        (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
        run([sys.executable, "-m", "venv", str(folder / "venv")])
        python = folder / "venv" / "bin" / "python"
        begun = time.monotonic()
        lock = str(ROOT / "constraints.txt")
        run([str(python), "-m", "pip", "install", "--quiet", "-c", lock, f"{wheel}[laptop]"])
        installed_s = time.monotonic() - begun
        figures = {
            "wheel_kib": round(wheel.stat().st_size / 1024),
            "sdist_kib": round(sdist.stat().st_size / 1024),
            "install_s": round(installed_s, 1),
            **use(python, folder / "work"),
        }
    for key, value in figures.items():
        print(f"{key:>20} {value}")
    print(json.dumps(figures))


def use(python: Path, folder: Path) -> dict[str, object]:
    folder.mkdir()
    (folder / "own.yaml").write_text(DEFINITION)
    env = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "HELIOSTAT_HOME": str(folder / "home"),
    }
    tool = str(python.parent / "heliostat")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tool, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)

    imports = median(lambda: subprocess.run([python, "-c", "import heliostat"], cwd=folder, env=env, check=True))
    helps = median(lambda: call("--help"))
    begun = time.monotonic()
    up = call("up", "own.yaml")
    took = time.monotonic() - begun
    try:
        assert up.returncode == 0, up.stderr
        status = json.loads(call("status", "--json").stdout)
        time.sleep(3)  # the controller's first round
        doctor = call("doctor")
    finally:
        down = call("down")
    return {
        "import_s": imports,
        "help_s": helps,
        "up_s": round(took, 1),
        "up": status["up"],
        "doctor": doctor.returncode,
        "down": down.stderr.strip().splitlines()[-1],
    }


def median(call) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return round(sorted(times)[2], 3)


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
