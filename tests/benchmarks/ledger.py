"""A year of 1,000 GPUs through the ledger's fold: time, memory, and whether the classes add up to the nodes' lives.

    python tests/benchmarks/ledger.py [--events 100000000] [--seed 1]

125 nodes of 8 GPUs in three groups, 274,000 events a day, so that 100 million are a year; fewer events are fewer days.
Three kinds of nodes: spot nodes that train in gangs of four, lose one now and then and do steps again; on-demand nodes
with replicas of 8, 1 and 1/2 GPUs that serve three teams; nodes that are mostly free, some of them held by somebody
of whom nothing is known. Every node is sampled once a minute. Events arrive in random order, 1 % of them twice.

Events are made in columns, day by day, outside the time that counts. What counts is the fold of the day (duplicates
dropped, sorted, classed, parted), the rows as Parquet and the state as JSON, all on disk, as the ledger keeps them in
the store. The columns are what `facts_of` makes of JSON lines; how many events a second it makes is told apart.

`sum_error` compares the entries, as read back, with the nodes' lives as the generator drew them. `fold_cpu_s` is the
processor time of the fold, which other work on the machine does not stretch. `query_s` reads the whole ledger from
disk, groups it by team and prices every hour; `query_again_s` has it in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from heliostat.events import Event
from heliostat.meter.cells import HOUR
from heliostat.meter.facts import (
    SECOND,
    Facts,
    Marks,
    NodeFact,
    Owner,
    Place,
    Samples,
    SeatFact,
    Use,
    facts_of,
)
from heliostat.meter.fold import fold
from heliostat.meter.ledger import dump_state, from_parquet, load_state, table_of, to_parquet
from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import Report, columns_of, report
from heliostat.meter.state import State
from heliostat.show import print_table

DAY = 24 * HOUR
START = 1_767_225_600 * SECOND  # 2026-01-01
EVENTS_A_DAY = 274_000
GPUS = 8.0
GANGS, GANG = 20, 4
SERVING, FREE = 40, 5
SAMPLE_S = 60
WINDOWS_A_DAY = 48  # of each of 80 replicas, four marks each
# What is left for steps, a hundredth of all being duplicates.
STEPS_A_DAY = (EVENTS_A_DAY * 100 // 101 - (GANGS * GANG + SERVING + FREE) * 1440 - 80 * 4 * WINDOWS_A_DAY) // GANGS
TEAMS = ("search", "support", "ads")
PLACES = {
    "train": Place("train", "spot", "p4d.24xlarge", "a"),
    "serve": Place("serve", "on-demand", "g5.48xlarge", "b"),
    "lab": Place("lab", "on-demand", "g6.48xlarge", "b"),
}
PRICES = [GpuPrice(place.instance, place.market, 2.0 + n, "benchmark", "2026-01-01") for n, place in
          enumerate(PLACES.values())]  # fmt: skip


@dataclass
class Truth:
    """What the generator drew."""

    gpu_us: float = 0.0
    events: int = 0
    fresh: int = 0
    started: dict[str, int] = field(default_factory=dict)
    numbers: np.random.Generator = field(default_factory=np.random.default_rng)

    def start(self, name: str, at: int) -> None:
        self.started[name] = at

    def end(self, name: str, at: int) -> None:
        self.gpu_us += (at - self.started.pop(name)) * GPUS

    def id(self) -> int:
        self.fresh += 1
        return self.fresh


def node_starts(name: str, group: str, at: int, ready_s: int, truth: Truth) -> list[NodeFact]:
    truth.start(name, at)
    return [
        NodeFact(at, "started", name, PLACES[group], GPUS),
        NodeFact(at + ready_s * SECOND, "ready", name, PLACES[group], GPUS),
    ]


class World:
    """Goes on from day to day."""

    def __init__(self, seed: int, days: int) -> None:
        self.seed, self.days = seed, days
        self.truth = Truth()
        self.spot = [[f"spot-{gang}-{seat}" for seat in range(GANG)] for gang in range(GANGS)]
        self.attempt = [0] * GANGS
        self.step = [0] * GANGS
        self.open: set[str] = set()

    def day(self, number: int) -> Facts:
        draw = np.random.default_rng([self.seed, number])
        self.nodes: list[NodeFact] = []
        self.seats: list[SeatFact] = []
        self.columns: list[tuple[np.ndarray, ...]] = []
        self.units: list[str] = []
        begin = START + number * DAY
        if number == 0:
            self._first(begin)
        for gang in range(GANGS):
            self._train(gang, begin, STEPS_A_DAY, draw)
        for node in range(SERVING):
            for replica, _ in replicas(node):
                self._serve(replica, begin, WINDOWS_A_DAY, draw)
        samples = self._samples(begin, draw)
        if number == self.days - 1:
            for name in list(self.truth.started):
                self.nodes.append(NodeFact(begin + DAY - 1, "ended", name, Place(), GPUS))
                self.truth.end(name, begin + DAY - 1)
        return self._arrive(samples, draw)

    def _first(self, begin: int) -> None:
        for gang in range(GANGS):
            for name in self.spot[gang]:
                self.nodes += node_starts(name, "train", begin + gang * SECOND, 200, self.truth)
        for group, count in (("serve", SERVING), ("lab", FREE)):
            for node in range(count):
                self.nodes += node_starts(f"{group}-{node}", group, begin + node * SECOND, 150, self.truth)
        for node in range(SERVING):
            for replica, gpus in replicas(node):
                owner = Owner("app", f"app-{node % 10}", TEAMS[node % 3], "shop", "v1")
                at = begin + 200 * SECOND
                self.seats.append(SeatFact(self.truth.id(), at, "open", replica, f"serve-{node}", replica, gpus, owner))

    def _train(self, gang: int, begin: int, count: int, draw: np.random.Generator) -> None:
        """Two attempts a day; the first one loses a node, which is replaced."""
        lost = begin + int(draw.integers(8 * HOUR, 16 * HOUR))
        first = begin + (300 * SECOND if self.attempt[gang] == 0 else 60 * SECOND)
        self._attempt(gang, first, lost, count // 2, draw, "lost")
        gone = self.spot[gang][0]
        self.nodes.append(NodeFact(lost, "ended", gone, Place(), GPUS))
        self.truth.end(gone, lost)
        fresh = f"spot-{gang}-{self.attempt[gang]}-{begin}"
        self.spot[gang][0] = fresh
        self.nodes += node_starts(fresh, "train", lost + 30 * SECOND, 180, self.truth)
        self._attempt(gang, lost + 240 * SECOND, begin + DAY - 60 * SECOND, count - count // 2, draw, "left")

    def _attempt(self, gang: int, start: int, end: int, count: int, draw: np.random.Generator, outcome: str) -> None:
        self.attempt[gang] += 1
        unit = f"run-{gang}/{self.attempt[gang]}"
        owner = Owner("job", f"job-{gang % 7}", TEAMS[gang % 3], "models", f"run-{gang}", f"user-{gang % 9}")
        for rank, name in enumerate(self.spot[gang]):
            slot = f"run-{gang}#{rank}@{name}"
            self.seats.append(SeatFact(self.truth.id(), start, "open", unit, name, slot, GPUS, owner))
        self.seats.append(SeatFact(self.truth.id(), end, "end", unit))
        loaded = start + 90 * SECOND
        pace = (end - loaded) / count
        times = (loaded + pace * (np.arange(count) + 0.5 * draw.random(count))).astype(np.int64) + 1
        kinds = np.where(np.arange(count) % 50 == 49, int(Use.CHECKPOINT), int(Use.TRAINING))
        steps = np.cumsum(kinds == Use.TRAINING) + max(0, self.step[gang] - 20)
        self.step[gang] = int(steps[-1])
        training = kinds == Use.TRAINING
        span = np.where(training, -1, draw.integers(SECOND // 10, SECOND // 2, count))
        last = Use.RECOMPUTED if outcome == "lost" else Use.CHECKPOINT
        self._add(
            unit,
            np.concatenate([[loaded], times, [end]]),
            np.concatenate([[Use.LOADING], kinds, [last]]),
            np.concatenate([[-1], span, [-1]]),
            np.concatenate([[-1], np.where(training, steps, -1), [-1]]),
            np.full(count + 2, -1),
        )

    def _serve(self, unit: str, begin: int, windows: int, draw: np.random.Generator) -> None:
        """Busy seconds of three teams, window by window; its last window ends after midnight."""
        length = DAY // windows
        at = begin + np.arange(1, windows + 1) * length - 1 - int(draw.integers(0, length // 4))
        busy = [(draw.random(windows) * length * 0.1).astype(np.int64) for _ in TEAMS]
        self._add(
            unit,
            np.concatenate([at] * 4),
            np.repeat([Use.SERVING] * 3 + [Use.RESERVED], windows),
            np.concatenate([*busy, np.full(windows, -1)]),
            np.full(4 * windows, -1),
            np.concatenate([np.repeat(np.arange(3), windows), np.full(windows, -1)]),
        )

    def _add(
        self, unit: str, at: np.ndarray, use: np.ndarray, span: np.ndarray, step: np.ndarray, team: np.ndarray
    ) -> None:
        self.columns.append((np.full(len(at), len(self.units)), at, use, span, step, team))
        self.units.append(unit)

    def _samples(self, begin: int, draw: np.random.Generator) -> list[np.ndarray]:
        names = sorted(self.truth.started)
        self.sampled = names
        times = np.arange(0, DAY, SAMPLE_S * SECOND)
        at = np.concatenate([begin + times + int(draw.integers(0, 50 * SECOND)) for _ in names])
        free = np.array([free_of(name) for name in names])
        return [at, np.repeat(np.arange(len(names)), len(times)), np.repeat(free, len(times))]

    def _arrive(self, samples: list[np.ndarray], draw: np.random.Generator) -> Facts:
        unit, at, use, span, step, team = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        ids = np.arange(len(at), dtype=np.uint64) + np.uint64(self.truth.fresh + 1)
        self.truth.fresh += len(at)

        def order(count: int) -> np.ndarray:
            some = draw.integers(0, count, count // 100)
            return draw.permutation(np.concatenate([np.arange(count), some]))

        way, other = order(len(at)), order(len(samples[0]))
        self.truth.events += len(way) + len(other) + len(self.nodes) + len(self.seats)
        marks = Marks(
            ids[way],
            at[way].astype(np.int64),
            unit[way].astype(np.int32),
            use[way].astype(np.int8),
            span[way].astype(np.int64),
            step[way].astype(np.int64),
            team[way].astype(np.int32),
            tuple(self.units),
            TEAMS,
        )
        times, node, free = (column[other] for column in samples)
        return Facts(
            tuple(self.nodes),
            tuple(self.seats),
            marks,
            Samples(times.astype(np.int64), node.astype(np.int32), free, tuple(self.sampled)),
        )


def replicas(node: int) -> list[tuple[str, float]]:
    """Replicas of a serving node: one of all GPUs, or several, one of which has half a GPU."""
    if node % 2:
        return [(f"app-{node % 10}/{node}-a", GPUS)]
    return [(f"app-{node % 10}/{node}-{part}", gpus) for part, gpus in (("a", 1.0), ("b", 1.0), ("c", 0.5))]


def free_of(name: str) -> float:
    """What Ray would say: of the lab's nodes one has two GPUs taken by nobody knows whom."""
    if name.startswith("lab"):
        return 6.0 if name == "lab-0" else 8.0
    return GPUS - sum(gpus for _, gpus in replicas(int(name[6:]))) if name.startswith("serve") else 0.0


def run(events: int, seed: int, folder: Path) -> dict[str, float]:
    days = max(2, round(events / EVENTS_A_DAY))
    world, state = World(seed, days), State()
    fold_s, cpu_s, overlap, worst, began = 0.0, 0.0, 0.0, 0.0, time.perf_counter()
    before_mb = peak_mb()
    for number in range(days):
        facts = world.day(number)
        begun, cpu = time.perf_counter(), time.process_time()
        entries, state = fold(state, facts, until=START + (number + 1) * DAY)
        (folder / f"{number:05d}.parquet").write_bytes(to_parquet(table_of(entries)))
        kept = dump_state(state)
        (folder / f"{number:05d}.json").write_bytes(kept)
        took = time.perf_counter() - begun
        cpu_s += time.process_time() - cpu
        state = load_state(kept)
        fold_s, worst = fold_s + took, max(worst, took)
        overlap += float(entries.gpu_seconds[entries.use == Use.OVERLAP].sum())
        if number % 20 == 19 or number == days - 1:
            print(
                f"{number + 1} of {days} days, {world.truth.events:,} events, {fold_s:.1f} s folding, "
                f"{time.perf_counter() - began - fold_s:.1f} s making them",
                file=sys.stderr,
            )
    begun = time.perf_counter()
    columns = columns_of(["team"])
    with ThreadPoolExecutor(2) as pool:  # as heliostat.meter.ledger.read does
        files = sorted(folder.glob("*.parquet"))
        rows = pa.concat_tables(pool.map(lambda path: from_parquet(path.read_bytes(), columns), files))
    rows = rows.unify_dictionaries()
    made = report(rows, by=["team"], prices=PRICES)
    query_s = time.perf_counter() - begun
    begun = time.perf_counter()
    report(rows, by=["team"], prices=PRICES)
    query_again_s = time.perf_counter() - begun
    print_lines(made)
    lived = world.truth.gpu_us / SECOND
    return {
        "sum_error": abs(made.total.held - lived) / lived,
        "unexplained_share": made.total.gpu_seconds.get("unexplained", 0.0) / made.total.held,
        "overlap_gpu_seconds": overlap,
        "fold_events": world.truth.events,
        "fold_s": round(fold_s, 2),
        "fold_cpu_s": round(cpu_s, 2),
        "events_per_s": round(world.truth.events / fold_s),
        "worst_day_s": round(worst, 3),
        "days": days,
        "rows": rows.num_rows,
        "ledger_mb": round(sum(path.stat().st_size for path in folder.glob("*.parquet")) / 1e6, 1),
        "peak_rss_mb": peak_mb(),
        "rss_before_mb": before_mb,
        "query_s": round(query_s, 3),
        "query_again_s": round(query_again_s, 3),
    }


def translate_rate() -> float:
    """Events a second from JSON lines to facts, on one core."""
    lines = [
        json.dumps({"id": f"{n:032x}", "kind": "step", "source": "train-a-0", "time_s": 1e9 + n, "monotonic_s": n,
                    "run": "a", "attempt": "000001-abcdef", "step": n, "total": 9, "loss": 0.5, "tokens": 10,
                    "world": 8, "team": "search"})
        for n in range(50_000)
    ]  # fmt: skip
    begun = time.perf_counter()
    events = []
    for line in lines:
        record = json.loads(line)
        envelope = {key: record.pop(key) for key in ("id", "kind", "source", "time_s", "monotonic_s")}
        events.append(Event(**envelope, fields=record))
    facts_of(events)
    return len(lines) / (time.perf_counter() - begun)


def print_lines(made: Report) -> None:
    uses = list(made.total.gpu_seconds)
    print_table(
        ("team", *uses, "GPU-h", "USD"),
        [
            (line.keys[0], *(line.gpu_seconds.get(use, 0.0) / 3600 for use in uses), line.held / 3600, line.usd)
            for line in made.lines
        ],
        title="GPU-hours by team",
    )


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=lambda text: int(float(text)), default=100_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{given.events:,} events wanted, seed {given.seed}; {machine}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(given.events, given.seed, Path(folder))
    print(json.dumps({**figures, "translate_events_per_s": round(translate_rate()), "machine": machine}))


if __name__ == "__main__":
    main()
