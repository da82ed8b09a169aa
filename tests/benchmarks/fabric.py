"""The check of the network before a training, on a link as it is and on one slowed by `tc`: figures, and the refusal.

    python tests/benchmarks/fabric.py [--ranks 3]

Each case runs in a network namespace of its own (`unshare -n`), whose loopback alone is slowed: nothing else on the
machine notices. Ends with one line of JSON. Without the right to make namespaces, only the plain loopback is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = {
    "loopback": None,
    "1 Gbit/s": "tbf rate 1gbit burst 256kb latency 100ms",
    "100 Mbit/s": "tbf rate 100mbit burst 256kb latency 400ms",
}


def rank(number: int, count: int, folder: str, gbytes_per_s: float, policy: Any) -> None:
    """One rank, with no store: what is known of nodes stays in memory."""
    import torch
    import torch.distributed as dist

    from heliostat.errors import FabricTooSlow, ObjectMissing
    from heliostat.plan.fabric import Expectation
    from heliostat.train.fabric import check

    class Nothing:
        def get_json(self, key: str) -> Any:
            raise ObjectMissing("none")

        def put(self, key: str, data: bytes) -> None: ...

    os.environ["HELIOSTAT_NODE_ID"] = f"node-{number}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=count)
    try:
        found = check(Nothing(), "run", Expectation(gbytes_per_s, policy), number, torch.device("cpu"))  # type: ignore[arg-type]
        assert found is not None
        pairs = [[p.a, p.b, round(p.latency_s * 1e6, 1), round(p.gbytes_per_s, 4)] for p in found.pairs]
        answer = {"pairs": pairs, "all_reduce": round(found.all_reduce_gbytes_per_s, 4), "seconds": found.seconds}
    except FabricTooSlow as error:
        answer = {"refused": str(error)}
    if number == 0:
        Path(folder, "answer.json").write_text(json.dumps(answer))
    dist.barrier()


def run(slowed: str | None, ranks: int, gbytes_per_s: float, policy: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        one = f"{sys.executable} {__file__} --folder {folder} --ranks {ranks} --expect {gbytes_per_s} --policy {policy}"
        lines = ["set -e", "export GLOO_SOCKET_IFNAME=lo"]
        if can_slow():
            lines.append("ip link set lo up")
        if slowed is not None:
            lines.append(f"tc qdisc add dev lo root {slowed}")
        lines += [f"{one} --rank {number} &" for number in range(ranks)]
        command = ["bash", "-c", "\n".join([*lines, "wait"])]
        subprocess.run(["unshare", "-n", *command] if can_slow() else command, check=True, timeout=240)
        answer: dict[str, Any] = json.loads(Path(folder, "answer.json").read_text())
        return answer


def can_slow() -> bool:
    script = "ip link set lo up && tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 100ms"
    try:
        return subprocess.run(["unshare", "-n", "bash", "-c", script], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--folder", default="")
    parser.add_argument("--expect", type=float, default=0.0)
    parser.add_argument("--policy", default="warn")
    told = parser.parse_args()
    if told.rank is not None:
        rank(told.rank, told.ranks, told.folder, told.expect, told.policy)
        return 0
    plain = run(None, told.ranks, 1e-6, "refuse")
    should = min(pair[3] for pair in plain["pairs"])
    result: dict[str, Any] = {"ranks": told.ranks, "should_give_gbytes_per_s": should, "loopback": plain}
    for name, slowed in CASES.items():
        if slowed is None or not can_slow():
            continue
        result[name] = {"warns": run(slowed, told.ranks, should, "warn")}
        result[name]["refuses"] = run(slowed, told.ranks, should, "refuse").get("refused", "it did not")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
