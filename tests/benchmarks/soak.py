"""A soak: load, jobs in a row, releases, and reclaims by a real spot trace; what grows, and how fast.

    python tests/benchmarks/soak.py --minutes 60 [--trace FILE.json] [--out FOLDER] [--seed 0]

The cluster of tests/benchmarks/faults.py. Requests come at a fixed rate, one training follows another, versions are
published and released, and a training node is taken with ten seconds' notice wherever the trace (one of its ticks is
one TICK_S here) says that the market has none. Every ten seconds: memory, file descriptors, threads and number of the
cluster's processes, by kind; disk below the cluster's folders; objects in the store; and the latency of requests.

A slope is that of a least-squares line through the second half of the samples, where everything has been warm once,
an hour's worth; `share` is that of the mean. What is kept on purpose (events, records, versions that a retention has
not swept) grows with work and is told apart. Writes soak.json and soak.svg to FOLDER, prints a table and one line of
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import faults
import world

TICK_S = 20.0
EVERY_S = 10.0
KEPT = frozenset({"store objects", "disk MB", "spool MB"})
"""Grows with work by design."""
KINDS = (
    ("gcs_server", "gcs"), ("raylet", "raylet"), ("heliostat.controller", "controller"),
    ("heliostat.serve.hold", "hold"),
    ("dashboard.py", "dashboard"), ("ServeReplica", "replica"), ("ServeController", "serve controller"),
    ("haproxy", "haproxy"), ("agent", "agents"), ("log_monitor", "log monitors"), ("monitor", "autoscaler"),
)  # fmt: skip
LASTING = frozenset({"gcs", "controller", "hold", "dashboard", "serve controller", "autoscaler"})
"""Processes that live as long as the cluster: those that could leak for ever."""


def sample(bench: faults.Bench, begun: float) -> dict[str, float]:
    """One look at everything, in MB and counts."""
    from heliostat.cluster import embedded, processes

    found: dict[str, float] = defaultdict(float, at_s=time.time() - begun)
    for process in processes.owned(bench.mark):
        kind = next((name for part, name in KINDS if part in process.command), "")
        try:
            status = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if ":" in line
            )
            fds = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        except OSError:
            continue
        found["processes"] += 1
        found["fds"] += fds
        found["threads"] += int(status["Threads"])
        rss = int(status.get("VmRSS", "0 kB").split()[0]) / 1024
        found["memory MB"] += rss
        if kind in LASTING:
            found[f"{kind} MB"] += rss
            found[f"{kind} fds"] += fds
    record = embedded.read_record(bench.platform.settings.cluster)
    assert record is not None
    found["disk MB"] = sum(map(_size, (bench.platform.settings.state_dir, Path(record.temp_dir)))) / 2**20
    found["spool MB"] = _size(bench.platform.settings.spool) / 2**20
    found["store objects"] = len(bench.direct.list(""))
    return dict(found)


def _size(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return float(total)


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(change an hour, mean) of a least-squares line through the second half."""
    half = points[len(points) // 2 :]
    if len(half) < 3:
        return float("nan"), float("nan")
    mean_x, mean_y = (sum(values) / len(half) for values in zip(*half, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in half)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in half) / spread, mean_y


def _reclaim_by(bench: faults.Bench, counts: Sequence[int], done: list[float]) -> None:
    from heliostat.cluster.reclaim import reclaim
    from heliostat.errors import HeliostatError

    for index in range(1, 10**9):
        if bench.stop.wait(TICK_S):
            return
        if counts[index % len(counts)] < counts[(index - 1) % len(counts)]:
            with contextlib.suppress(HeliostatError):
                reclaim(bench.platform.settings, "train", notice_s=10)
                done.append(time.time())


def _jobs_in_a_row(bench: faults.Bench, done: list[float]) -> None:
    def one() -> None:
        job = bench.platform.jobs.submit(faults.JOB, arguments=["--workers", "1", "--steps", "150", "--pause", "0.1"])
        for _ in range(900):
            if bench.stop.wait(1):
                return
            row = next((row for row in bench.platform.jobs.list() if row.job_id == job.job_id), None)
            if row is not None and row.status in ("SUCCEEDED", "FAILED", "STOPPED"):
                done.append(time.time())
                return

    while not bench.stop.is_set():
        faults._guard(bench, one)


def busy_part(counts: Sequence[int]) -> list[int]:
    """From where the trace first has nodes: hours without any would be a soak of nothing."""
    first = next((index for index, count in enumerate(counts) if count), 0)
    return [int(count) for count in counts[first:]]


def draw(series: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Small multiples, one for each series."""
    wide, high, across = 300, 110, 3
    parts = []
    for number, (name, points) in enumerate(sorted(series.items())):
        left, top = (number % across) * wide, (number // across) * high
        xs, ys = [x for x, _ in points], [y for _, y in points]
        most, end = max(*ys, 1e-9), max(*xs, 1e-9)
        line = " ".join(f"{left + 10 + (wide - 30) * x / end:.1f},{top + high - 15 - (high - 40) * y / most:.1f}"
                        for x, y in points)  # fmt: skip
        parts.append(f'<text x="{left + 10}" y="{top + 15}">{name}: {ys[-1]:.4g} (most {most:.4g})</text>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="#2563eb"/>')
    size = f'width="{wide * across}" height="{high * (len(series) // across + 1)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    path.write_text(f"{head}{''.join(parts)}</svg>\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--trace", type=Path, help="a spot trace; without one, a node is taken every three minutes")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    if parsed.trace:
        from heliostat.plan.policy.traces import read_trace

        counts, trace = busy_part(read_trace(parsed.trace).counts.tolist()), parsed.trace.name
    else:
        counts, trace = [1] * 8 + [0], "made up"
    samples: list[dict[str, float]] = []
    rows: list[list[Any]] = []
    reclaims: list[float] = []
    jobs: list[float] = []
    broken: dict[str, list[str]] = {invariant: [] for invariant in faults.INVARIANTS}
    with tempfile.TemporaryDirectory(prefix="hl") as name, faults.standing(Path(name), parsed.seed) as bench:
        for act, done in ((_jobs_in_a_row, jobs),):
            threading.Thread(target=act, args=(bench, done), daemon=True).start()
        threading.Thread(target=_reclaim_by, args=(bench, counts, reclaims), daemon=True).start()
        begun = time.time()
        while (left := parsed.minutes * 60 - (time.time() - begun)) > 5:
            spec = {
                "seed": random.Random(len(samples)).randrange(2**31), "rate": faults.RATE,
                "seconds": min(left, EVERY_S), "most": 500, "limit_s": 60,
                "kinds": [{"name": "echo", "url": bench.platform.apps.url(faults.APP), "share": 1.0,
                           "bodies": [{"text": 500}], "header": world.header(bench.platform),
                           "field": "version"}],
            }  # fmt: skip
            sent_at = time.time()
            found = world.Sending(Path(name), spec).rows()
            faults.judge_requests(bench, sent_at, found, broken)
            rows += found
            took = [row[1] for row in found if row[2] == 200]
            one = sample(bench, begun)
            one |= {"p50 ms": 1000 * world.percentile(took, 0.5), "p99 ms": 1000 * world.percentile(took, 0.99)}
            samples.append(one)
            print(f"  {one['at_s']:.0f} s: {one['memory MB']:.0f} MB, {one['fds']:.0f} fds, "
                  f"{one['store objects']:.0f} objects, p50 {one['p50 ms']:.0f} ms", file=sys.stderr)  # fmt: skip
        faults.judge_store(bench, broken)
        faults.judge_release(bench, broken)
        bench.stop.set()
        bench.platform.down()
        sums = faults.judge_end(bench, broken)
        released, crashes = dict(bench.released), bench.crashes
    names = sorted({name for one in samples for name in one} - {"at_s"})
    series = {name: [(one["at_s"], one[name]) for one in samples if name in one] for name in names}
    parsed.out.mkdir(parents=True, exist_ok=True)
    (parsed.out / "soak.json").write_text(json.dumps(samples))
    draw(series, parsed.out / "soak.svg")
    slopes = {}
    print(f"{'what':<24} {'first':>9} {'last':>9} {'an hour':>9} {'share':>7}")
    for name, points in series.items():
        change, mean = slope(points)
        slopes[name] = {"per_hour": round(change, 2), "share": round(change / mean, 3) if mean else 0.0}
        kept = "  kept on purpose" if name in KEPT else ""
        print(
            f"{name:<24} {points[0][1]:>9.1f} {points[-1][1]:>9.1f} {change:>9.1f} {slopes[name]['share']:>7.1%}{kept}"
        )
    violations = {invariant: found[:3] for invariant, found in broken.items() if found}
    line = {
        "benchmark": "soak", "machine": world.this_machine(), "minutes": parsed.minutes, "trace": trace,
        "samples": len(samples), "requests": len(rows), "jobs": len(jobs), "reclaims": len(reclaims),
        "releases": released, "violations": violations, "crashes": crashes[:3], "slopes": slopes, **sums,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(json.dumps(line))
    return 1 if violations or crashes else 0


if __name__ == "__main__":
    sys.exit(main())
