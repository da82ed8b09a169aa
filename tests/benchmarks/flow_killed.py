"""`heliostat app flow` from an empty store to live, killed at random moments and run again: each step is done once.

    python tests/benchmarks/flow_killed.py [--kills 3] [--seed 0]

The digits of cluster/laptop-apps.yaml, trained for some epochs by their job. The command is killed by SIGKILL at
moments drawn between one second after it begins and `--longest`; what is killed is the process that drives, as a laptop
that is closed: job, store and controller go on. Counted afterwards: jobs of the flow's run, versions, verdicts by the
flow, moves of the alias, and lines of the release's history.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

APP = "digits"
COMMAND = [sys.executable, "-m", "heliostat.cli", "app", "flow", APP, "--why", "killed", "--", "--epochs", "12"]


def run_once(kill_after_s: float | None, log: Path) -> tuple[int, float]:
    """Exit status of the command, and its seconds."""
    begun = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(COMMAND, stdout=out, stderr=out, cwd=world.ROOT)
        try:
            process.wait(kill_after_s if kill_after_s is not None else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return process.returncode, time.monotonic() - begun


def count(platform: Any) -> dict[str, Any]:
    from heliostat.flow import read_flow

    found = read_flow(platform.store, APP)
    assert found is not None
    flow = found[0]
    alias = platform.models.alias(APP)
    verdicts = [
        json.loads(platform.store.get(info.key).data)["by"] for info in platform.store.list(f"models/{APP}/verdicts")
    ]
    return {
        "state": flow.state,
        "steps": dict(Counter(line.step for line in flow.done)),
        "jobs": sum(row.run == flow.run for row in platform.jobs.list()),
        "versions": len(platform.models.versions(APP)),
        "verdicts_by_the_flow": verdicts.count(flow.id),
        "alias_moves": 0 if alias is None else len(alias.history),
        "release": [] if flow.release is None else [entry.state for entry in platform.apps.history(APP)],
        "production": None if alias is None else alias.version,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    from heliostat import sdk

    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HELIOSTAT_HOME"] = str(Path(name) / "home")
        log = Path(name) / "flow.log"
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that nothing of it is left
        platform = sdk.up(
            world.ROOT / "cluster" / "laptop-apps.yaml",
            name="flow-killed",
            progress=lambda line: print(f"  {line}", file=sys.stderr),
        )
        try:
            kills: list[dict[str, Any]] = []
            for _ in range(options.kills):
                after_s = draw.uniform(1.0, options.longest)
                status, took = run_once(after_s, log)
                done = _done(platform)
                kills.append({"after_s": round(took, 1), "killed": status == -signal.SIGKILL, "done_before": done})
                print(f"  {kills[-1]}", file=sys.stderr)
            status, took = run_once(None, log)
            if status != 0:
                print(log.read_text()[-3000:], file=sys.stderr)
            return {
                "machine": world.this_machine(), "kills": kills, "last_run": {"status": status, "s": round(took, 1)},
                **count(platform),
            }  # fmt: skip
        finally:
            platform.down()


def _done(platform: Any) -> list[str]:
    from heliostat.flow import read_flow

    found = read_flow(platform.store, APP)
    return [] if found is None else [line.step for line in found[0].done]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0)
    found = run(parser.parse_args())
    print(json.dumps(found))
    once = found["state"] == "done" and set(found["steps"].values()) == {1} and found["jobs"] == found["versions"] == 1
    return 0 if once and found["verdicts_by_the_flow"] == found["alias_moves"] == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
