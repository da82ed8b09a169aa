"""A step of load and a trace of it, with Heliostat's policy and with Ray Serve's own.

    python tests/benchmarks/scaling.py [--quick] [--only heliostat,ray] [--seed 0]

Two cores give a second replica nothing, so the accelerator is *declared*: a recipe that takes a fixed time for each
token, asleep. The time is what the 22 M-parameter encoder takes on one core in packed batches (9.5 ms for a text of 32
tokens). Everything else is as deployed: Serve's controller, nodes from the autoscaler, HAProxy. Between one and three
replicas.

- The step: from 0.4 of one replica's capacity to 1.6; seconds until a second replica answers.
- The trace: Poisson arrivals, seeded, whose rate changes every 15 s. Latency, and GPU-seconds: replicas times time.

Ray's own policy counts requests under way; it has its default target of 2 for each replica, and everything else alike.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

SECONDS_PER_TOKEN = 0.0095 / 32
TRACE = (0.5, 1.4, 2.4, 0.8, 2.0, 0.3)  # of one replica's capacity, for 15 s each
STEP_S = 15.0
RAYS_TARGET = 2


def bodies(seed: int) -> tuple[list[str], float]:
    """Texts of 4 to 256 words, geometric with a mean near 32, and the seconds that a mean one takes."""
    draw = random.Random(seed)
    lengths = [min(256, 4 + int(draw.expovariate(1 / 28))) for _ in range(500)]
    mean = sum(lengths) / len(lengths) * SECONDS_PER_TOKEN
    return [json.dumps({"text": "word " * length}) for length in lengths], mean


def rays_own_policy(platform: Any) -> None:
    """The same goal state without our policy, put once; our controller is ended, since it would put it back."""
    import signal

    from heliostat.cluster import embedded, processes
    from heliostat.serve.client import ServeClient
    from heliostat.serve.config import serve_config
    from heliostat.serve.desired import read_desired

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    ours = [p for p in processes.owned(embedded.mark(record)) if "heliostat.controller" in p.command]
    processes.kill(ours, signal.SIGKILL)
    apps = read_desired(platform.store)
    config = serve_config(
        apps, awake={app.name for app in apps}, port=int(platform.settings.serve_url.rsplit(":", 1)[1])
    )
    for app in config["applications"]:
        scaling = app["deployments"][0]["autoscaling_config"]
        del scaling["policy"]
        scaling["target_ongoing_requests"] = RAYS_TARGET
    ServeClient(platform.settings).put(config)


class Watch:
    """Replica processes over time, while a load runs."""

    def __init__(self, platform: Any) -> None:
        self.platform, self.seen = platform, []  # type: ignore[var-annotated]

    def until_done(self, sending: world.Sending) -> list[list[Any]]:
        import threading

        rows: list[list[Any]] = []
        reader = threading.Thread(target=lambda: rows.extend(sending.rows()))
        reader.start()
        begun = time.monotonic()
        while reader.is_alive():
            self.seen.append((time.monotonic() - begun, len(world.replicas(self.platform, "fixed"))))
            reader.join(0.5)
        return rows

    def gpu_seconds(self) -> float:
        return sum(count * (after - at) for (at, count), (after, _) in zip(self.seen, self.seen[1:], strict=False))


def spec(platform: Any, seed: int, *, seconds: float, rate: float, steps: list[list[float]]) -> dict[str, Any]:
    kind = {
        "name": "text", "url": platform.apps.url("fixed"), "share": 1.0, "bodies": bodies(seed)[0],
        "header": world.header(platform), "field": "pid",
    }  # fmt: skip
    return {
        "seed": seed, "rate": rate, "seconds": seconds, "steps": steps, "most": 2500, "limit_s": 60, "kinds": [kind],
    }  # fmt: skip


def run(system: str, seed: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hs") as name:
        folder = Path(name)
        app = world.App("fixed", "serve_apps.fixed:Fixed", {"none.txt": b"none"}, "1..3", max_queue="5s")
        recipes = {"fixed": world.FIXED.format(seconds_per_token=SECONDS_PER_TOKEN)}
        with world.cluster(folder, [app], recipes=recipes, name="scaling", nodes="0..3", idle="10s") as platform:
            world.wait_answered(platform, platform.apps.url("fixed"), {"text": "ready"})
            if system == "ray":
                rays_own_policy(platform)
                time.sleep(5)
                world.wait_answered(platform, platform.apps.url("fixed"), {"text": "ready"})
            one = 1 / bodies(seed)[1]
            step_at, seconds = 10.0, 40.0
            sending = world.Sending(
                folder, spec(platform, seed, seconds=seconds, rate=one, steps=[[0.0, 0.4], [step_at, 1.6]])
            )
            rows = Watch(platform).until_done(sending)
            found["step"] = step(rows, step_at)
            print(f"{system:<10} step: {found['step']}", flush=True)
            if not quick:
                world.until(lambda: len(world.replicas(platform, "fixed")) == 1, "one replica again")
                steps = [[i * STEP_S, factor] for i, factor in enumerate(TRACE)]
                watch = Watch(platform)
                load = spec(platform, seed + 1, seconds=STEP_S * len(TRACE), rate=one, steps=steps)
                rows = watch.until_done(world.Sending(folder, load))
                found["trace"] = {**latency(rows), "gpu_seconds": round(watch.gpu_seconds(), 1)}
                print(f"{system:<10} trace: {found['trace']}", flush=True)
    return found


def step(rows: list[list[Any]], step_at: float) -> dict[str, Any]:
    answered = sorted((row[0] + row[1], row[5]) for row in rows if row[2] == 200)
    first = answered[0][1]
    second = next((at for at, pid in answered if pid != first and at > step_at), None)
    late = [row for row in rows if row[0] >= (second or 1e9) + 5]
    return {
        "second_replica_answers_after_s": None if second is None else round(second - step_at, 1),
        "replicas_that_answered": len({pid for _, pid in answered}),
        "whole": latency(rows),
        "from_5_s_after_it": latency(late) if late else None,
    }


def latency(rows: list[list[Any]]) -> dict[str, Any]:
    took = [row[1] for row in rows if row[2] == 200]
    return {
        "answered": len(took),
        "refused": sum(row[2] == 429 for row in rows),
        "lost": sum(row[2] not in (200, 429) for row in rows),
        "p50_ms": round(1000 * world.percentile(took, 0.5)),
        "p99_ms": round(1000 * world.percentile(took, 0.99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the step alone, with Heliostat's policy alone")
    parser.add_argument("--only", default="heliostat,ray")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    systems = ["heliostat"] if arguments.quick else arguments.only.split(",")
    result: dict[str, Any] = {
        "benchmark": "scaling", "machine": world.this_machine(), "seconds_per_token": SECONDS_PER_TOKEN,
        "accelerator": "declared: asleep for a fixed time per token",
    }  # fmt: skip
    for system in systems:
        result[system] = run(system, arguments.seed, arguments.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
