"""What deadline jobs cost on real spot traces: four policies beside the optimum that knows the future, in one run.

    python tests/benchmarks/deadline.py FOLDER [--stride-h 12] [--processes 2] [--tune]

FOLDER holds one JSON file per zone (the form is in heliostat/plan/policy/traces.py). What is fixed:

- windows of 60 h, one each 12 h of each trace; work of 0.5 and of 0.8 of the window; spot at 0.3 of on-demand;
- 10 minutes lost per start, the first one included, so that on-demand only costs the work and 10 minutes;
- a gang of half the trace's nodes (1 of 1, 8 of 16): spot is up when that many can be had;
- one decision per tick of the trace; ticks below a minute are merged, up when all of them are.

`availability` traces make the figures. `preemption` traces count running nodes, and are scored apart, unless the folder
holds no others. Files that hold no trace, or one shorter than a window, are listed as skipped. Windows overlap and each
counts the same: longer traces weigh more, and the windows of one trace are no independent witnesses.

The constants that the forecast ships with are round values, kept after all of the source's nine availability traces
had been looked at. What that is worth --tune tells: it chooses from a grid of 24 on half A (HALF_A) alone and scores
the choice on half B, all other files, and the reverse; those two scores owe nothing to the files they are of. Files
that are not of that source owe nothing to any choice. The headline has a policy that knows nothing of the time before
its window; "with history" is the same policy after learning from all of the trace before it.

Zones: traces of one clock (the same start in the metadata, or a date in SHARED_CLOCK), tick and length. The forecast
may use any of them, at a changeover per move; beside it the optimum of the cheapest single zone, picked per window with
the future known, and the mean of the single zones' optima.

Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from heliostat.errors import UsageError
from heliostat.plan.policy.deadline import Deadline, Greedy, OnDemandOnly, UniformProgress
from heliostat.plan.policy.forecast import DEFAULTS, Forecast, Settings
from heliostat.plan.policy.optimum import optimum
from heliostat.plan.policy.rehearse import Outcome, rehearse, rehearse_zones
from heliostat.plan.policy.traces import PREEMPTION, Skipped, Trace, Window, cut, read_folder

T = TypeVar("T")
S = TypeVar("S")

HOUR_S = 3600
WINDOW_H = 60
STRIDE_H = 12
CHANGEOVER_S = 600
SPOT_PRICE = 0.3
WORK = (0.5, 0.8)
SHARED_CLOCK = ("02-15-2023",)
"""Start dates whose traces share a clock by their source's word; a date alone does not say so."""

HALF_A = (
    "availability_1-node_aws-02-15-2023_us-east-1d_v100_1",
    "availability_1-node_aws-02-15-2023_us-west-2b_v100_1",
    "availability_1-node_aws-10-26-2022_us-west-2a_v100_8",
    "availability_16-node_aws-08-27-2023_us-west-2a_v100_1",
)
TUNE_STRIDE_H = 72
GRID = [
    Settings(means_h=tuple(shortest * 3**k for k in range(5)), stay=stay, forget_s=forget_h * HOUR_S)
    for shortest, stay, forget_h in itertools.product((0.1, 0.2, 0.4), (0.8, 0.9, 0.95, 1.0), (24, 96))
]

FORECAST, HISTORY = "forecast", "forecast, with history"
SIMPLE: dict[str, Callable[[Deadline], Any]] = {  # Any: policies differ in what they remember
    "on-demand only": OnDemandOnly,
    "greedy spot, restarts": Greedy,
    "uniform progress": UniformProgress,
}
POLICIES = (*SIMPLE, FORECAST, HISTORY)


@dataclass(frozen=True)
class Score:
    """One window at one tightness: the optimum and what became of each policy."""

    trace: str
    work: float
    on_demand_s: float
    optimum_s: float
    outcomes: dict[str, Outcome]

    def vs_optimum(self, policy: str) -> float:
        return self.outcomes[policy].cost_s / self.optimum_s

    def vs_on_demand(self, policy: str) -> float:
        return self.outcomes[policy].cost_s / self.on_demand_s


@dataclass(frozen=True)
class ZoneScore:
    """The same window of several zones, the forecast free to choose among them."""

    work: float
    outcome: Outcome
    on_demand_s: float
    optima_s: tuple[float, ...]
    """Each zone's own."""


def main() -> None:
    """Run the comparison that the command line asks for."""
    options = read_arguments()
    try:
        traces, skipped = read_folder(options.folder)
    except UsageError as error:
        sys.exit(f"error: {error}")
    fit, short = long_enough(traces)
    print_traces(fit, [*skipped, *short], options.stride_h)
    scored = [t for t in fit if t.kind != PREEMPTION] or fit
    if not scored:
        sys.exit(f"error: {options.folder} holds no trace of {WINDOW_H} h or more")
    separate = [t for t in fit if t not in scored]
    began = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        scores = run(pool, score, tasks(scored, options.stride_h), "windows")
        apart = run(pool, score, tasks(separate, options.stride_h), "preemption windows")
        zones = run(pool, score_zones, zone_tasks(scored, options.stride_h), "windows with zones")
        print_policies(scores, f"{len(scored)} traces")
        print_by_trace(scores)
        print_split(scores)
        if apart:
            print_policies(apart, "preemption traces, apart from the figures")
        print_zones(zones)
        if options.tune:
            print_tuning(pool, scored)
    took_s = time.perf_counter() - began
    print(f"\n{machine()}, {options.processes} processes, {took_s:.0f} s")
    print(f"the forecast alone, in one process: {speed(scored):,.0f} windows a minute")
    print(json.dumps(summary(scores, zones, skipped=len(skipped) + len(short))))


def read_arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path, nargs="?", help="a folder of traces")
    arguments.add_argument("--traces", type=Path, help="the same as FOLDER")
    arguments.add_argument(
        "--stride-h", type=float, default=STRIDE_H, help=f"from window to window (default {STRIDE_H})"
    )
    arguments.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core")
    arguments.add_argument("--tune", action="store_true", help="repeat the choice of constants, on either half")
    options = arguments.parse_args()
    options.folder = options.folder or options.traces
    if options.folder is None:
        arguments.error("give a folder of traces")
    return options


def long_enough(traces: Iterable[Trace]) -> tuple[list[Trace], list[Skipped]]:
    fit = [t for t in traces if t.seconds >= WINDOW_H * HOUR_S]
    short = [t for t in traces if t.seconds < WINDOW_H * HOUR_S]
    return fit, [Skipped(t.name, f"{t.seconds / HOUR_S:.0f} h are less than a window") for t in short]


def gang(trace: Trace) -> int:
    return max(1, trace.nodes // 2)


def windows(trace: Trace, stride_h: float) -> list[Window]:
    return list(cut(trace, seconds=WINDOW_H * HOUR_S, stride_s=stride_h * HOUR_S, nodes=gang(trace)))


def question(window: Window, work: float) -> Deadline:
    deadline_s = WINDOW_H * HOUR_S
    return Deadline(work * deadline_s, deadline_s, CHANGEOVER_S, SPOT_PRICE, poll_s=window.tick_s)


def tasks(traces: Iterable[Trace], stride_h: float) -> list[tuple[Window, float]]:
    return [(window, work) for trace in traces for window in windows(trace, stride_h) for work in WORK]


def zone_tasks(traces: Sequence[Trace], stride_h: float) -> list[tuple[tuple[Window, ...], float]]:
    clocks: dict[tuple[str, int, int, int], list[Trace]] = {}
    for trace in traces:
        if trace.start and (trace.start in SHARED_CLOCK or "T" in trace.start):
            clocks.setdefault((trace.start, trace.tick_s, len(trace.counts), trace.nodes), []).append(trace)
    groups = [group for group in clocks.values() if len(group) > 1]
    return [
        (zones, work)
        for group in groups
        for zones in zip(*(windows(trace, stride_h) for trace in group), strict=True)
        for work in WORK
    ]


def run(pool: ProcessPoolExecutor, work: Callable[[T], S], items: Sequence[T], what: str) -> list[S]:
    """All results in order, with a line of progress on stderr."""
    done = []
    for result in pool.map(work, items, chunksize=16):
        done.append(result)
        if len(done) % 100 == 0 or len(done) == len(items):
            print(f"\r{what}: {len(done)} of {len(items)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return done


def score(task: tuple[Window, float]) -> Score:
    """Every policy and the optimum on one window."""
    window, work = task
    job = question(window, work)
    blank = window.forgotten()
    outcomes = {name: rehearse(make(job), job, blank) for name, make in SIMPLE.items()}
    outcomes[FORECAST] = rehearse(Forecast(job), job, blank)
    outcomes[HISTORY] = rehearse(Forecast(job), job, window)
    return Score(window.trace, work, job.on_demand_cost_s, optimum(job, window.up, tick_s=window.tick_s), outcomes)


def score_zones(task: tuple[tuple[Window, ...], float]) -> ZoneScore:
    """The forecast over all zones, and each zone's optimum."""
    zones, work = task
    job = question(zones[0], work)
    outcome = rehearse_zones(Forecast(job), job, [zone.forgotten() for zone in zones])
    optima_s = tuple(optimum(job, zone.up, tick_s=zone.tick_s) for zone in zones)
    return ZoneScore(work, outcome, job.on_demand_cost_s, optima_s)


def print_traces(traces: Sequence[Trace], skipped: Sequence[Skipped], stride_h: float) -> None:
    print(f"{'trace':<56}{'days':>6}{'tick s':>8}{'gang':>6}{'up':>6}{'windows':>9}  half")
    for t in traces:
        up, count = t.up(gang(t)).mean(), len(windows(t, stride_h))
        half = "A" if t.name in HALF_A else "B"
        print(f"{t.name:<56}{t.seconds / 86400:>6.1f}{t.tick_s:>8}{gang(t):>6}{up:>6.2f}{count:>9}  {half}")
    for skip in skipped:
        print(f"skipped {skip.name}: {skip.why}")


def print_policies(scores: Sequence[Score], title: str) -> None:
    print(f"\n{title}: cost against the optimum and against on-demand only")
    head = ("mean", "p95", "worst", "vs o-d", "worst", "above", "missed", "starts")
    print(f"{'work':<6}{'policy':<24}" + "".join(f"{h:>8}" for h in head) + f"{'ends h':>8}")
    for work in WORK:
        part = [s for s in scores if s.work == work]
        floor = np.mean([s.optimum_s / s.on_demand_s for s in part])
        print(f"{work:<6}{'optimum':<24}{1:>8.3f}{1:>8.3f}{1:>8.3f}{floor:>8.3f}")
        for policy in POLICIES:
            ratios, shares = [s.vs_optimum(policy) for s in part], [s.vs_on_demand(policy) for s in part]
            ran = [s.outcomes[policy] for s in part]
            print(
                f"{work:<6}{policy:<24}{np.mean(ratios):>8.3f}{np.quantile(ratios, 0.95):>8.3f}{max(ratios):>8.3f}"
                f"{np.mean(shares):>8.3f}{max(shares):>8.3f}{above(shares):>8}{sum(o.missed for o in ran):>8}"
                f"{np.mean([o.changes for o in ran]):>8.1f}{np.mean([o.finish_s for o in ran]) / HOUR_S:>8.1f}"
            )


def above(shares: Iterable[float]) -> int:
    """How many windows cost more than on-demand only."""
    return sum(share > 1 + 1e-9 for share in shares)


def print_by_trace(scores: Sequence[Score]) -> None:
    print(f"\n{'forecast by trace: mean and worst':<56}" + "".join(f"{f'work {w}':>16}" for w in WORK))
    for name in dict.fromkeys(s.trace for s in scores):
        cells = ([s.vs_optimum(FORECAST) for s in scores if s.trace == name and s.work == w] for w in WORK)
        print(f"{name:<56}" + "".join(f"{np.mean(cell):>9.3f}{max(cell):>7.2f}" for cell in cells))


def print_split(scores: Sequence[Score]) -> None:
    print("\nforecast, over both tightnesses, by half of the files")
    for title, part in (
        ("half A", [s for s in scores if s.trace in HALF_A]),
        ("half B", [s for s in scores if s.trace not in HALF_A]),
    ):
        if part:
            ratios = [s.vs_optimum(FORECAST) for s in part]
            spread = f"p95 {np.quantile(ratios, 0.95):.3f}  worst {max(ratios):.3f}"
            print(f"{title:<10}{len({s.trace for s in part}):>3} traces  mean {np.mean(ratios):.3f}  {spread}")


def print_zones(scores: Sequence[ZoneScore]) -> None:
    if not scores:
        print("\nzones: no two traces share a clock")
        return
    print(f"\nthe forecast, free to choose among {len(scores[0].optima_s)} zones, against single zones' optima")
    print(f"{'work':<6}{'windows':>8}{'vs mean zone':>14}{'vs best zone':>14}{'worst':>8}{'vs o-d':>8}{'missed':>8}")
    for work in WORK:
        part = [s for s in scores if s.work == work]
        best = [s.outcome.cost_s / min(s.optima_s) for s in part]
        mean = [s.outcome.cost_s / np.mean(s.optima_s) for s in part]
        vs = np.mean([s.outcome.cost_s / s.on_demand_s for s in part])
        missed = sum(s.outcome.missed for s in part)
        print(
            f"{work:<6}{len(part):>8}{np.mean(mean):>14.3f}{np.mean(best):>14.3f}{max(best):>8.3f}{vs:>8.3f}{missed:>8}"
        )


def print_tuning(pool: ProcessPoolExecutor, traces: Sequence[Trace]) -> None:
    """Choose the constants on one half of the files, score them on the other, and the reverse."""
    halves = {
        "half A": [t for t in traces if t.name in HALF_A],
        "half B": [t for t in traces if t.name not in HALF_A],
    }
    if not all(halves.values()):
        print("\ntuning: the folder does not hold both halves")
        return
    means = {name: tune_on(pool, half) for name, half in halves.items()}
    print(f"\n{len(GRID)} settings, windows each {TUNE_STRIDE_H} h, mean against the optimum over both tightnesses")
    for name, other in itertools.permutations(halves):
        pick = min(range(len(GRID)), key=lambda i: means[name][i])
        spread = f"{min(means[other]):.3f} to {max(means[other]):.3f}"
        print(f"chosen on {name}: {describe(GRID[pick])}: {means[name][pick]:.3f} there")
        print(f"   on {other}: {means[other][pick]:.3f} (all settings: {spread})")


def describe(settings: Settings) -> str:
    means = ", ".join(f"{m:.3g}" for m in settings.means_h)
    return f"means {means} h, stay {settings.stay:g}, forget {settings.forget_s / HOUR_S:g} h"


def tune_on(pool: ProcessPoolExecutor, traces: Sequence[Trace]) -> list[float]:
    """The mean of every setting of the grid on these traces."""
    chosen = tasks(traces, TUNE_STRIDE_H)
    optima = list(pool.map(optimum_of, chosen, chunksize=16))
    found = []
    for number, settings in enumerate(GRID, 1):
        costs = pool.map(cost_with, [(task, settings) for task in chosen], chunksize=16)
        found.append(float(np.mean([cost / least for cost, least in zip(costs, optima, strict=True)])))
        print(f"\rsettings: {number} of {len(GRID)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def optimum_of(task: tuple[Window, float]) -> float:
    window, work = task
    return optimum(question(window, work), window.up, tick_s=window.tick_s)


def cost_with(task: tuple[tuple[Window, float], Settings]) -> float:
    (window, work), settings = task
    job = question(window, work)
    return rehearse(Forecast(job, settings), job, window.forgotten()).cost_s


def speed(traces: Sequence[Trace], count: int = 60) -> float:
    """Windows that the forecast replays in a minute in one process, its plan being made."""
    chosen = tasks(traces, STRIDE_H)
    chosen = chosen[:: max(1, len(chosen) // count)]
    for work in WORK:
        cost_with(((chosen[0][0], work), DEFAULTS))
    began = time.perf_counter()
    for task in chosen:
        cost_with((task, DEFAULTS))
    return 60 * len(chosen) / (time.perf_counter() - began)


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"


def summary(scores: Sequence[Score], zones: Sequence[ZoneScore], *, skipped: int) -> dict[str, Any]:
    """The line of JSON; means are over all windows and both tightnesses."""

    def figures(policy: str, part: Sequence[Score]) -> dict[str, float]:
        ratios, shares = [s.vs_optimum(policy) for s in part], [s.vs_on_demand(policy) for s in part]
        return {
            "cost_vs_optimum": round(float(np.mean(ratios)), 4),
            "p95_vs_optimum": round(float(np.quantile(ratios, 0.95)), 4),
            "worst_vs_optimum": round(max(ratios), 4),
            "cost_vs_on_demand": round(float(np.mean(shares)), 4),
            "worst_vs_on_demand": round(max(shares), 4),
            "above_on_demand": above(shares),
            "missed": sum(s.outcomes[policy].missed for s in part),
        }

    mine = figures(FORECAST, scores)
    halves = {
        "a": [s for s in scores if s.trace in HALF_A],
        "b": [s for s in scores if s.trace not in HALF_A],
    }
    return {
        "traces": len({s.trace for s in scores}),
        "windows": len(scores),
        "skipped": skipped,
        **mine,
        "never_above_on_demand": mine["above_on_demand"] == 0,
        "by_work": {str(w): figures(FORECAST, [s for s in scores if s.work == w]) for w in WORK},
        "halves": {name: figures(FORECAST, part) for name, part in halves.items() if part},
        "policies": {name: figures(name, scores) for name in (*SIMPLE, HISTORY)},
        "zones": zone_summary(zones) if zones else None,
        "settings": asdict(DEFAULTS),
    }


def zone_summary(zones: Sequence[ZoneScore]) -> dict[str, float]:
    return {
        "windows": len(zones),
        "missed": sum(z.outcome.missed for z in zones),
        "cost_vs_on_demand": round(float(np.mean([z.outcome.cost_s / z.on_demand_s for z in zones])), 4),
        "vs_best_single_zone_optimum": round(float(np.mean([z.outcome.cost_s / min(z.optima_s) for z in zones])), 4),
        "vs_mean_single_zone_optimum": round(
            float(np.mean([z.outcome.cost_s / np.mean(z.optima_s) for z in zones])), 4
        ),
    }


if __name__ == "__main__":
    main()
