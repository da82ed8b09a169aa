"""A burst at zero replicas and zero nodes: everybody is answered, and where the time goes; then back to zero.

    python tests/benchmarks/from_zero.py [--quick] [--bursts 3] [--burst 50]

The phases are read from the platform's events: the node (asked for until its Ray process is ready), the process
(placing the replica, its interpreter and imports), the recipe's import, its weights, loading them, warming up, and what
is left until the first answer. They must add up to the first answer's time. The model is the 22 M-parameter encoder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import httpx
import overload
import world

IDLE = "8s"
CALM_S = 10.0


def ask(url: str, headers: dict[str, str], number: int) -> tuple[float, int]:
    """(when it was answered, status)"""
    try:
        status = httpx.post(url, json={"text": f"turn on light {number}"}, headers=headers, timeout=120).status_code
    except httpx.TransportError:
        status = 0
    return time.time(), status


def burst(platform: Any, count: int) -> dict[str, Any]:
    url, headers = platform.apps.url("intents"), dict([world.header(platform).split(": ", 1)])
    assert world.replicas(platform, "intents") == []
    assert platform.nodes() == []
    begun = time.time()
    # A caller without a key must not wake it: nothing starts for these.
    refused = [ask(url, {}, i)[1] for i in range(5)]
    asleep = platform.nodes() == [] and world.replicas(platform, "intents") == []
    begun = time.time()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda i: ask(url, headers, i), range(count)))
    first, last = (pick(at for at, _ in answers) - begun for pick in (min, max))
    nodes = len(platform.nodes())
    found = {
        "without_a_key": dict(Counter(map(str, refused))),
        "still_asleep_after_them": asleep,
        "statuses": dict(Counter(str(status) for _, status in answers)),
        "first_answer_s": round(first, 2),
        "last_answer_s": round(last, 2),
        "nodes_started": nodes,
        "phases": phases(platform, begun, begun + first),
    }
    found["phases_sum_s"] = round(sum(found["phases"].values()), 2)
    ended = time.time()
    world.until(lambda: world.replicas(platform, "intents") == [], "zero replicas", limit_s=90)
    found["zero_replicas_s"] = round(time.time() - ended, 1)
    world.until(lambda: platform.nodes() == [], "zero nodes", limit_s=90)
    found["zero_nodes_s"] = round(time.time() - ended, 1)
    return found


def wait_for_calm(platform: Any) -> None:
    """Zero for a while: the holding server reads the applications every few seconds, and a new one may start."""
    busy_at = time.monotonic()

    def calm() -> bool:
        nonlocal busy_at
        if platform.nodes() != [] or world.replicas(platform, "intents"):
            busy_at = time.monotonic()
        return time.monotonic() - busy_at > CALM_S

    world.until(calm, "zero")


def phases(platform: Any, begun: float, answered: float) -> dict[str, float]:
    from heliostat.events import read_spool

    events = [event for event in read_spool(platform.settings.spool) if event.time_s >= begun]
    started = next(event for event in events if event.kind == "node_started")
    ready = next(event for event in events if event.kind == "node_ready")
    replica = next(event for event in events if event.kind == "replica_ready")
    inside = replica.fields["phases"]
    node_ready = float(ready.fields["ready_at"])
    found = {
        "until_a_node_was_asked_for": float(started.fields["started_at"]) - begun,
        "node": node_ready - float(started.fields["started_at"]),
        "process": float(replica.fields["began_at"]) - node_ready,
        **{name: float(seconds) for name, seconds in inside.items()},
    }
    known = sum(found.values())
    return {
        name: round(value, 2) for name, value in {**found, "until_the_first_answer": answered - begun - known}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one burst")
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--burst", type=int, default=50)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "from_zero", "machine": world.this_machine(), "burst": arguments.burst}
    with tempfile.TemporaryDirectory(prefix="hz") as name:
        folder = Path(name)
        model = overload.make_model(folder / "model")
        files = {path.name: path.read_bytes() for path in model.iterdir()}
        app = world.App(
            "intents", "serve_apps.intent_classifier:IntentClassifierApp", files, idle=IDLE, max_queue="30s"
        )
        with world.cluster(folder, [app], recipes={}, name="from-zero", nodes="0..2", idle=IDLE) as platform:
            world.until(lambda: any(one.name == "intents" for one in platform.apps.list()), "the application is known")
            wait_for_calm(platform)
            result["bursts"] = []
            for _ in range(1 if arguments.quick else arguments.bursts):
                result["bursts"].append(burst(platform, arguments.burst))
                print(json.dumps(result["bursts"][-1]), flush=True)
    answered = sum(one["statuses"].get("200", 0) for one in result["bursts"])
    result["answered"], result["asked"] = answered, arguments.burst * len(result["bursts"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
