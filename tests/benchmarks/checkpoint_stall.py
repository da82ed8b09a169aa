"""How long a training step waits for a checkpoint: asynchronous, synchronous, and torch.save to S3.

    python tests/benchmarks/checkpoint_stall.py [--mb 500] [--repeats 5]

A state of that size (model and Adam's two moments) goes to the embedded S3 server on this machine. *Asynchronous*:
what `CheckpointWriter.save` holds the step up; hashing and upload go on behind it. *Synchronous*: until the commit is
in the store. *torch.save*: pickled into memory and put, as one writes it by hand, with neither digest nor commit.
Also: how much slower steps are while an upload is under way (they share the cores with it and with the server here).

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform as machine
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import SecretStr

from heliostat.cluster import ports, store_server
from heliostat.settings import StoreSettings
from heliostat.store import Store
from heliostat.train.checkpoint import CheckpointWriter, Part

MB = 10**6


def state(megabytes: int) -> dict[str, torch.Tensor]:
    """Twelve layers of a model, each with its two moments."""
    count = megabytes * MB // 4 // 36
    return {f"{kind}.{layer}": torch.randn(count) for layer in range(12) for kind in ("model", "exp_avg", "exp_avg_sq")}


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def asynchronous(store: Store, tensors: dict[str, torch.Tensor], repeats: int) -> tuple[list[float], list[float]]:
    """(seconds that each save holds the step up, the first one with its allocation; seconds until each is committed)"""
    writer = CheckpointWriter(store, "async", generation=1, attempt="a")
    stalls, commits = [], []
    for step in range(repeats + 1):
        part = Part(tensors)
        begun = time.perf_counter()
        writer.save(step, part, {"world_size": 1})
        stalls.append(time.perf_counter() - begun)
        writer.wait()
        commits.append(time.perf_counter() - begun)
    return stalls, commits


def torch_save(store: Store, tensors: dict[str, torch.Tensor], number: int) -> None:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    store.put(f"torch/{number % 2}", buffer.getvalue())


def slowdown(store: Store, tensors: dict[str, torch.Tensor]) -> float:
    """Time of a step while an upload is under way, over the time of one alone. One core steps."""
    torch.set_num_threads(1)
    weight = torch.randn(512, 512)

    def step() -> None:
        for _ in range(40):
            torch.mm(weight, weight)

    alone = statistics.median(timed(step) for _ in range(30))
    writer = CheckpointWriter(store, "slow", generation=1, attempt="a")
    beside: list[float] = []
    for number in range(3):
        writer.save(number, Part(tensors), {"world_size": 1})
        while writer.busy:
            beside.append(timed(step))
        writer.wait()
    return statistics.median(beside) / alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = ports.choose("auto", preferred=None, field="benchmark", taken=set())
        log = Path(folder) / "logs" / "store.log"
        process = store_server.start(Path(folder), port=port, access_key="k", secret_key="benchmark", log=log)
        try:
            store_server.wait_ready(process, port=port, log=log)
            keys = {"access_key_id": "k", "secret_access_key": SecretStr("benchmark")}
            store = Store.connect(StoreSettings(endpoint=f"http://127.0.0.1:{port}", bucket="benchmark", **keys))
            store.ensure_bucket()
            tensors = state(options.mb)
            stalls, commits = asynchronous(store, tensors, options.repeats)
            saves = [timed(lambda n=n: torch_save(store, tensors, n)) for n in range(options.repeats)]
            slower = slowdown(store, tensors)
        finally:
            store_server.stop(process)
    rows = {"asynchronous": stalls[1:], "synchronous": commits[1:], "torch.save and put": saves}
    print(f"{'':24}{'median s':>10}{'best':>8}{'worst':>8}")
    for name, seconds in rows.items():
        print(f"{name:24}{statistics.median(seconds):10.3f}{min(seconds):8.3f}{max(seconds):8.3f}")
    print(f"the first asynchronous one, which allocates its buffer: {stalls[0]:.3f} s")
    median = {name: statistics.median(seconds) for name, seconds in rows.items()}
    print(
        json.dumps(
            {
                "mb": options.mb,
                "async_stall_s": round(median["asynchronous"], 4),
                "first_stall_s": round(stalls[0], 4),
                "sync_s": round(median["synchronous"], 3),
                "torch_save_s": round(median["torch.save and put"], 3),
                "async_vs_sync": round(median["asynchronous"] / median["synchronous"], 4),
                "async_vs_torch_save": round(median["asynchronous"] / median["torch.save and put"], 4),
                "steps_slower_during_upload": round(slower, 2),
                "machine": f"{os.cpu_count()} cores, {machine.machine()}",
            }
        )
    )


if __name__ == "__main__":
    main()
