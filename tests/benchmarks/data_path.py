"""Samples from the object store to a training loop: Heliostat's stream beside Ray Data, in one run.

    python tests/benchmarks/data_path.py [--samples 40000] [--bytes 2048] [--step-ms 4] [--rounds 3]

A real S3 server on this machine holds the same samples twice: as Heliostat's shards, and as Parquet files. Each side
streams them shuffled, as a training would read them: once as fast as it can, and once with a step of some milliseconds
between batches, in which the loop sleeps as it does while a device works. Printed for each: seconds to the first batch,
samples a second, the share of the loop that waited for data, and whether a loop that was stopped in the middle goes on
with exactly the samples that it has not seen. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from heliostat.cluster import ports, store_server
from heliostat.settings import StoreSettings
from heliostat.store import Store
from heliostat.train.data import Stream, write_samples
from heliostat.train.ray_train import filesystem

BATCH = 64
SHARD = 2048


def ours(store: Store) -> Iterator[list[bytes]]:
    stream = Stream(store, "data/samples", batch_size=BATCH, seed=0)
    for _ in range(stream.batches_per_epoch):
        yield stream.next_batch()


def ray_data(settings: StoreSettings) -> Iterator[list[bytes]]:
    import ray

    found = ray.data.read_parquet(f"{settings.bucket}/parquet", filesystem=filesystem(settings), shuffle="files")
    batches = found.iter_batches(
        batch_size=BATCH, prefetch_batches=2, local_shuffle_buffer_size=4 * SHARD, local_shuffle_seed=0
    )
    for batch in batches:
        yield list(batch["sample"])


def measure(batches: Callable[[], Iterator[list[bytes]]], step_s: float) -> dict[str, float]:
    begun = time.perf_counter()
    first, waited, count = 0.0, 0.0, 0
    source = batches()
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        now = time.perf_counter()
        if batch is None:
            break
        if not count:
            first = now - begun
        else:
            waited += now - asked
        count += len(batch)
        if step_s:
            time.sleep(step_s)
    took = time.perf_counter() - begun
    return {"first_s": first, "per_s": count / took, "wait_share": waited / (took - first), "count": count}


def write_parquet(settings: StoreSettings, samples: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = filesystem(settings)
    for number, at in enumerate(range(0, len(samples), SHARD)):
        table = pa.table({"sample": samples[at : at + SHARD]})
        pq.write_table(table, f"{settings.bucket}/parquet/part-{number:05d}.parquet", filesystem=files)


def resumes_exactly(store: Store) -> bool:
    whole = Stream(store, "data/samples", batch_size=BATCH, seed=0)
    every = [whole.next_batch() for _ in range(whole.batches_per_epoch)]
    half = len(every) // 2
    first = Stream(store, "data/samples", batch_size=BATCH, seed=0)
    seen = [first.next_batch() for _ in range(half)]
    second = Stream(store, "data/samples", batch_size=BATCH, seed=0)
    second.load_state_dict(first.state_dict())
    return seen + [second.next_batch() for _ in range(len(every) - half)] == every


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--bytes", type=int, default=2048)
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(0)
    samples = [rng.randbytes(options.bytes) for _ in range(options.samples)]
    with tempfile.TemporaryDirectory(prefix="heliostat-data-") as text:
        folder = Path(text)
        port = ports.choose("auto", preferred=None, field="benchmark", taken=set())
        process = store_server.start(folder, port=port, access_key="key", secret_key="secret", log=folder / "store.log")
        try:
            store_server.wait_ready(process, port=port, log=folder / "store.log")
            settings = StoreSettings(
                endpoint=f"http://127.0.0.1:{port}",
                bucket="samples",
                access_key_id="key",
                secret_access_key=SecretStr("secret"),
            )
            result = run(settings, samples, options)
        finally:
            store_server.stop(process)
    print(json.dumps(result))
    return 0 if result["resumes_exactly"] and result["same_count"] else 1


def run(settings: StoreSettings, samples: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    import ray

    store = Store.connect(settings)
    store.ensure_bucket()
    write_samples(store, "data/samples", samples, shard_samples=SHARD)
    write_parquet(settings, samples)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    sides = {"heliostat": lambda: ours(store), "ray data": lambda: ray_data(settings)}
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {"fast": [], "paced": []} for name in sides}
    for _ in range(options.rounds):
        for name, batches in sides.items():  # interleaved: what the machine does else hits both
            found[name]["fast"].append(measure(batches, 0.0))
            found[name]["paced"].append(measure(batches, options.step_ms / 1000))
    ray.shutdown()
    rows = {name: summary(parts) for name, parts in found.items()}
    print(f"{'':12}{'first batch s':>15}{'samples/s':>12}{'(spread)':>18}{'wait share':>12}")
    for name, row in rows.items():
        spread = f"{row['per_s_low']:.0f}..{row['per_s_high']:.0f}"
        print(f"{name:12}{row['first_s']:15.2f}{row['per_s']:12.0f}{spread:>18}{row['wait_share']:12.2%}")
    counts = {part["count"] for parts in found.values() for runs in parts.values() for part in runs}
    return {
        "vs_ray_data": round(rows["heliostat"]["per_s"] / rows["ray data"]["per_s"], 2),
        "wait_share": round(rows["heliostat"]["wait_share"], 5),
        "wait_share_ray_data": round(rows["ray data"]["wait_share"], 5),
        "resumes_exactly": resumes_exactly(store),
        "same_count": counts == {len(samples)},
        "sides": rows,
        "samples": len(samples),
        "bytes": options.bytes,
        "step_ms": options.step_ms,
        "machine": f"{os.cpu_count()} cores, {machine.machine()}",
    }


def summary(parts: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    fast = [part["per_s"] for part in parts["fast"]]
    return {
        "first_s": round(statistics.median(part["first_s"] for part in parts["fast"]), 3),
        "per_s": round(statistics.median(fast), 1),
        "per_s_low": round(min(fast), 1),
        "per_s_high": round(max(fast), 1),
        "wait_share": round(statistics.median(part["wait_share"] for part in parts["paced"]), 6),
    }


if __name__ == "__main__":
    sys.exit(main())
