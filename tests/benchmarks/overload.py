"""Accepted requests keep their latency at four times the capacity; the others are told so at once.

    python tests/benchmarks/overload.py [--quick] [--seconds 60] [--only heliostat,serve.batch] [--seed 0]

Open loop: Poisson arrivals, seeded, of single texts (the corpus of tests/benchmarks/serving.py) to a 22 M-parameter
encoder with a classifier. The capacity of each server is measured first, by 32 connections that always have a request
under way. Then 0.8 of it, then 4 times, latency from the moment a request was due. The replica has core 0 alone; the
client, HAProxy and the rest of Ray share core 1. `serve.batch` with 16 a batch is the other server, behind the same
HAProxy, with 1,000 requests of its own accord, as Ray's documentation sets it up for throughput.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import serving
import world
from corpus import texts

LIMIT_S = 30.0


def make_model(folder: Path) -> Path:
    """The pretrained encoder under a classifier of random weights: what it says does not matter here, its cost does."""
    import torch
    from safetensors.torch import save_file

    from heliostat.inference.encoder import IntentClassifier, load_pretrained, pretrained_folder

    torch.manual_seed(0)
    encoder = load_pretrained(pretrained_folder())
    model = IntentClassifier(encoder, classes=50)
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    shutil.copy(pretrained_folder() / "tokenizer.json", folder)
    (folder / "labels.json").write_text(json.dumps([f"intent-{i}" for i in range(50)]))
    (folder / "config.json").write_text(json.dumps({"encoder": dataclasses.asdict(encoder.config)}))
    return folder


@contextlib.contextmanager
def heliostat(folder: Path, model: Path) -> Iterator[serving.Server]:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    app = world.App("intents", "serve_apps.intent_classifier:IntentClassifierApp", files, max_queue="5s")
    with world.cluster(folder, [app], recipes={}, name="overload", nodes="0..1") as platform:
        url = platform.apps.url("intents")
        world.wait_answered(platform, url, {"text": "ready"})
        model_pids, front = serving.pin_ray(platform)
        yield serving.Server(url, model_pids, front, world.header(platform))


@contextlib.contextmanager
def serve_batch(folder: Path, model: Path) -> Iterator[serving.Server]:
    env = {
        **os.environ, "BENCH_MODEL": str(model), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(serving.PEERS), str(world.ROOT / "platform")]),
    }  # fmt: skip
    with serving.ray_server("batch:16", "haproxy", env, port=18900, log=folder / "batch.log") as server:
        yield server


SYSTEMS = {"heliostat": heliostat, "serve.batch": serve_batch}


def capacity(server: serving.Server, seconds: float) -> float:
    return float(serving.measure(server, shape="single", seconds=seconds)["per_s"])


def open_loop(server: serving.Server, folder: Path, *, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    bodies = [json.dumps({"text": text}) for text in texts()[:4000]]
    kind = {"name": "text", "url": server.url, "share": 1.0, "bodies": bodies, "header": server.header or "X-None: 1"}
    spec = {"seed": seed, "rate": rate, "seconds": seconds, "most": 2500, "limit_s": LIMIT_S, "kinds": [kind]}
    path = folder / "load.json"
    path.write_text(json.dumps(spec))
    command = ["taskset", "-c", str(serving.OTHER_CORE), sys.executable, str(world.HERE / "open_load.py"), str(path)]
    rows = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 3 * LIMIT_S).stdout)
    accepted = [row[1] for row in rows if row[2] == 200]
    refused = [row for row in rows if row[2] == 429]
    others = Counter(str(row[2]) for row in rows if row[2] not in (200, 429, -2))
    return {
        "rate": round(rate, 1),
        "sent": sum(row[2] != -2 for row in rows),
        "not_sent": sum(row[2] == -2 for row in rows),  # the client's bound of requests under way was reached
        "accepted_per_s": round(len(accepted) / seconds, 1),
        "p50_ms": round(1000 * world.percentile(accepted, 0.5), 1),
        "p99_ms": round(1000 * world.percentile(accepted, 0.99), 1),
        "refused": len(refused),
        "refused_with_retry_after": sum(row[3] is not None for row in refused),
        "refused_p99_ms": round(1000 * world.percentile([row[1] for row in refused], 0.99), 1) if refused else None,
        "lost": sum(others.values()),
        "lost_how": dict(others),
    }


def run(name: str, folder: Path, model: Path, seconds: float, seed: int) -> dict[str, Any]:
    with SYSTEMS[name](folder, model) as server:
        most = capacity(server, min(10.0, seconds))
        calm = open_loop(server, folder, rate=0.8 * most, seconds=seconds, seed=seed)
        time.sleep(2)
        flood = open_loop(server, folder, rate=4 * most, seconds=seconds, seed=seed + 1)
    ratio = flood["p99_ms"] / calm["p99_ms"]
    for load, found in (("0.8", calm), ("4.0", flood)):
        print(
            f"{name:<12} x{load} of {most:.0f}/s: accepted {found['accepted_per_s']}/s p50 {found['p50_ms']} p99 "
            f"{found['p99_ms']} ms; refused {found['refused']} (p99 {found['refused_p99_ms']} ms, Retry-After "
            f"{found['refused_with_retry_after']}); lost {found['lost']} {found['lost_how']}; "
            f"not sent {found['not_sent']}",
            flush=True,
        )
    return {"capacity_per_s": round(most, 1), "calm": calm, "flood": flood, "p99_ratio": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15 s, Heliostat alone")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.only = 15.0, "heliostat"
    result: dict[str, Any] = {"benchmark": "overload", "machine": world.this_machine(), "seconds": arguments.seconds}
    with tempfile.TemporaryDirectory(prefix="ho") as name:
        model = make_model(Path(name) / "model")
        for system in arguments.only.split(","):
            result[system] = run(system, Path(name), model, arguments.seconds, arguments.seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
