"""What is lost when a replica, its node, or a drained node goes, under constant load and HAProxy, as deployed.

    python tests/benchmarks/losing_nothing.py [--quick] [--times 5] [--only SYSTEM,...] [--replicas 1,2] [--seed 0]

Two systems in the same harness: Heliostat as it comes, and the same deployment behind Ray Serve's own HAProxy with
Ray's defaults. About 40 requests per second: bodies of 1 KiB, 100 KiB and 5 MiB, and streamed completions. Faults come
at seeded random moments: SIGKILL of a replica, SIGKILL of every process of its node, a drain with 20 s of notice that
ends in SIGKILL. A unary request is failed when it gets no 200, or one with another body than was sent for; a stream
that was cut must say so itself with an error event.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

NOTICE_S = 20.0
FAULTS = ("replica", "node", "drain")
RATE = 40.0
HIT = ("echo", "generate")
"""Whose replica, or whose node, is hit, in turns."""


@contextlib.contextmanager
def rays_own_front() -> Iterator[None]:
    """Ray's HAProxy as Ray configures it, but for loopback: no holding server, Ray's retries and buffer."""
    from heliostat.cluster import haproxy, ray_env

    kept = ray_env.serve_front_environment, haproxy.write_wrapper
    ray_env.serve_front_environment = lambda: {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    haproxy.write_wrapper = lambda path, *, hold_port=None: kept[1](path)  # type: ignore[assignment]
    try:
        yield
    finally:
        ray_env.serve_front_environment, haproxy.write_wrapper = kept


def load_of(platform: Any, seconds: float, seed: int) -> dict[str, Any]:
    echo, generate = platform.apps.url("echo"), platform.apps.url("generate") + "/v1/completions"
    stream = {"model": "generate", "prompt": "hello", "max_tokens": 150, "stream": True, "temperature": 0}
    kind = {"header": world.header(platform)}
    return {
        "seed": seed, "rate": RATE, "seconds": seconds, "most": 2000, "limit_s": 100,
        "kinds": [
            {**kind, "name": "1 KiB", "url": echo, "share": 0.86, "bodies": [{"text": 1000}]},
            {**kind, "name": "100 KiB", "url": echo, "share": 0.08, "bodies": [{"text": 102_000}]},
            {**kind, "name": "5 MiB", "url": echo, "share": 0.02, "bodies": [{"text": 5 * 2**20}]},
            {**kind, "name": "stream", "url": generate, "share": 0.04, "bodies": [json.dumps(stream)], "stream": True},
        ],
    }  # fmt: skip


def hit(platform: Any, fault: str, app: str, draw: random.Random) -> None:
    """End one of the application's replicas, or the node that it is on."""
    replica = draw.choice(world.replicas(platform, app))
    if fault == "replica":
        world.kill(replica)
    else:
        from heliostat.cluster.reclaim import reclaim

        notice_s = NOTICE_S if fault == "drain" else 0
        reclaim(platform.settings, "serve", notice_s=notice_s, node_id=replica.node_id)


def one_fault(platform: Any, fault: str, app: str, count: int, folder: Path, draw: random.Random) -> dict[str, Any]:
    """One fault under load. Until all replicas are back, and a little longer."""
    seconds = {"replica": 16.0, "node": 28.0, "drain": NOTICE_S + 14.0}[fault]
    sending = world.Sending(folder, load_of(platform, seconds, draw.randrange(2**31)))
    time.sleep(2 + 2 * draw.random())
    hit(platform, fault, app, draw)
    rows = sending.rows()
    unary = [row for row in rows if row[4] != "stream"]
    streams = [row for row in rows if row[4] == "stream"]
    failed = [row for row in unary if row[2] != 200]
    for name in HIT:
        world.until(lambda name=name: len(world.replicas(platform, name)) == count, f"{count} replicas of {name}")  # type: ignore[misc]
    time.sleep(3)
    return {
        "sent": len(unary),
        "failed": len(failed),
        "how": dict(Counter(f"{row[4]}: {row[2] or row[3]}" for row in failed)),
        "streams": len(streams),
        "cut and told": sum(row[2] == 1 for row in streams),
        "cut in silence": sum(row[2] not in (1, 200) for row in streams),
        "longest_s": round(max(row[1] for row in rows), 1),
    }


def run(system: str, count: int, faults: list[str], times: int, seed: int) -> dict[str, Any]:
    from tests.tiny_apps import language_files

    front = rays_own_front() if system == "ray" else contextlib.nullcontext()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hl") as name, front:
        folder, draw = Path(name), random.Random(f"{seed} {count}")
        replicas = f"{count}..{count}"
        apps = [
            world.App("echo", "serve_apps.echo:Echo", {"none.txt": b"none"}, replicas),
            world.App("generate", "serve_apps.generate:GenerateApp", language_files(), replicas),
        ]
        nodes = f"0..{2 * count + 1}"
        with world.cluster(folder, apps, recipes={"echo": world.ECHO}, name="losing-nothing", nodes=nodes) as platform:
            world.wait_answered(platform, platform.apps.url("echo"), {"text": "ready"})
            body = {"model": "generate", "prompt": "ready", "max_tokens": 2}
            world.wait_answered(platform, platform.apps.url("generate") + "/v1/completions", body)
            for app in ("echo", "generate"):
                world.until(lambda app=app: len(world.replicas(platform, app)) == count, "all replicas")  # type: ignore[misc]
            time.sleep(3)
            for fault in faults:
                runs = [one_fault(platform, fault, HIT[i % 2], count, folder, draw) for i in range(times)]
                total = {
                    key: sum(one[key] for one in runs)
                    for key in ("sent", "failed", "streams", "cut and told", "cut in silence")
                }
                how = dict(sum((Counter(one["how"]) for one in runs), Counter()))
                longest = max(one["longest_s"] for one in runs)
                found[fault] = {**total, "how": how, "longest_s": longest}
                print(
                    f"{system:<10} {count} replica(s)  {fault:<8} x{times}: "
                    f"{total['failed']} of {total['sent']} failed {how}; "
                    f"streams cut and told {total['cut and told']}, in silence {total['cut in silence']}, "
                    f"of {total['streams']}; longest {longest} s",
                    flush=True,
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each fault once, one replica, Heliostat alone")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--only", default="heliostat,ray")
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.times, arguments.only, arguments.replicas, arguments.faults = 1, "heliostat", "1", "replica,node"
    result: dict[str, Any] = {"benchmark": "losing_nothing", "machine": world.this_machine(), "times": arguments.times}
    for system in arguments.only.split(","):
        for count in map(int, arguments.replicas.split(",")):
            found = run(system, count, arguments.faults.split(","), arguments.times, arguments.seed)
            result[f"{system}_{count}"] = found
    for system in arguments.only.split(","):
        mine = [fault for key, found in result.items() if key.startswith(f"{system}_") for fault in found.values()]
        result[f"{system}_failed"] = sum(fault["failed"] for fault in mine)
        result[f"{system}_cut_in_silence"] = sum(fault["cut in silence"] for fault in mine)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
