"""The simulator against theory, against itself, and on a month of 10,000 GPUs.

    python tests/benchmarks/simulate.py [--quick] [--seed 0] [--only theory,agree,month,engine]

- theory: M/M/c and M/G/1 on the very queue, batcher and replicas of the per-request simulator; the mean wait of
  independent runs, its 99 % confidence interval, and what Erlang C and Pollaczek-Khinchine say.
- agree: a small cluster over a day, with starts, spot reclaims and jobs: flow beside per-request, figure by figure.
- month: 10,000 GPUs for 30 days, one core: nodes, replicas and jobs as events, requests as a flow a minute.
- engine: events a second of our heap and of SimPy, where that is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import world

from heliostat.definition.model import ClusterDefinition
from heliostat.plan.policy.traces import Climate, Trace, generate
from heliostat.simulate import Level, Scenario, simulate
from heliostat.simulate.engine import Engine
from heliostat.simulate.front import Front
from heliostat.simulate.jobs import JobTerms
from heliostat.simulate.measured import AppWork, Measured
from heliostat.simulate.queues import mg1_wait_s, mmc_wait_s
from heliostat.simulate.result import Result
from heliostat.simulate.tally import Tally
from heliostat.simulate.traffic import Traffic, draw

T_99 = {10: 3.250, 20: 2.861}
"""Student's t, two-sided 99 %, for that many runs less one."""


# --- theory


def mean_wait(servers: int, busy: float, variation: float, seed: int, requests: int) -> float:
    """Of one run from empty, the first fifth left out."""
    work = AppWork(seconds_per_item=1.0, variation=variation, batch_seconds=0.0)
    random, engine = np.random.default_rng(seed), Engine()
    front = Front(engine, work, max_queue_s=math.inf, random=random, shared=True, admit=False)
    for _ in range(servers):
        front.add()
    at, warm = 0.0, requests // 5
    for number, gap in enumerate(random.exponential(1 / (busy * servers), requests).tolist()):
        at += gap
        engine.run(at)
        if number == warm:
            front.tally = Tally()
        front.arrive()
    return front.tally.wait.mean_s or 0.0


def theory(seed: int, quick: bool) -> list[dict[str, Any]]:
    runs, requests = 10, 20_000 if quick else 60_000
    cases = [("M/M/1", 1, 0.7, 1.0), ("M/M/4", 4, 0.8, 1.0), ("M/M/16", 16, 0.9, 1.0)]
    cases += [("M/D/1", 1, 0.8, 0.0), ("M/G/1, variation 0.5", 1, 0.8, 0.5), ("M/G/1, variation 2", 1, 0.6, 2.0)]
    found = []
    for name, servers, busy, variation in cases:
        waits = np.array([mean_wait(servers, busy, variation, seed * 1000 + n, requests) for n in range(runs)])
        said = mg1_wait_s(busy, 1.0, variation) if servers == 1 else mmc_wait_s(servers, busy * servers, 1.0)
        half = T_99[runs] * float(waits.std(ddof=1)) / math.sqrt(runs)
        inside = abs(float(waits.mean()) - said) <= half
        found.append(
            {
                "queue": name,
                "busy": busy,
                "theory_s": round(said, 4),
                "simulated_s": round(float(waits.mean()), 4),
                "ci99_s": round(half, 4),
                "inside": inside,
            }
        )
        print(f"{name:<22} busy {busy}: theory {said:.4f}, simulated {waits.mean():.4f} +- {half:.4f}, {inside}")
    return found


# --- flow beside per-request


@dataclass(frozen=True)
class Case:
    """A small cluster under a load that differs with the seed."""

    definition: ClusterDefinition
    measured: Measured
    hours: float
    traffic: Callable[[int], dict[str, Traffic]]
    jobs: Sequence[JobTerms] = ()
    spot: Callable[[int], dict[str, Trace]] = lambda seed: {}

    @property
    def days(self) -> float:
        return self.hours / 24


def cases(quick: bool) -> dict[str, Case]:
    hours = 0.7 if quick else 2.0
    return {"steady": _steady_case(hours), "bursty": _bursty_case(hours), "overload": _overload_case(hours)}


def _steady_case(hours: float) -> Case:
    """Two applications with room, and jobs on spot that is reclaimed."""
    works = {
        "day": {"seconds_per_item": 0.1, "variation": 0.5, "batch_seconds": 0.3},
        "night": {"seconds_per_item": 0.2, "variation": 1.0, "batch_seconds": 0.0},
    }
    return Case(
        _small({"day": _app("serve", "1..12", "5m"), "night": _app("serve", "0..6", "5m")}),
        _works(works),
        hours,
        lambda seed: {
            "day": draw("diurnal", requests_per_s=50, days=hours / 24, seed=seed),
            "night": draw("steady", requests_per_s=4, days=hours / 24, seed=seed + 1000),
        },
        [
            JobTerms(f"job-{n}", "train", 1 + n % 3, 900.0 * (1 + n % 4), submitted_s=1200.0 * n)
            for n in range(int(hours * 2))
        ],
        lambda seed: {"train": generate(seed, days=hours / 24, nodes=6)},
    )


def _bursty_case(hours: float) -> Case:
    """Asleep for most of the time: 12 minutes of work, 18 minutes of nothing, in bursts of three times as much."""

    def traffic(seed: int) -> dict[str, Traffic]:
        random, minutes = np.random.default_rng(seed), np.arange(round(hours * 60))
        rate = np.where(minutes % 30 < 12, 600.0, 0.0) * np.where(minutes % 6 >= 4, 3.0, 1.0)
        return {"burst": Traffic(random.poisson(rate))}

    works = {"burst": {"seconds_per_item": 0.1, "variation": 0.5, "batch_seconds": 0.2}}
    return Case(_small({"burst": _app("serve", "0..8", "2m")}), _works(works), hours, traffic)


def _overload_case(hours: float) -> Case:
    """More than the largest number of replicas can do, for a third of the time: requests of a tenth of a second, whose
    queue `max_queue` bounds, and of a fiftieth, whose queue is cut as soon as it stands."""

    def traffic(seed: int) -> dict[str, Traffic]:
        random, minutes = np.random.default_rng(seed), np.arange(round(hours * 60))
        full = np.where(minutes % 15 < 5, 40.0, 20.0) * 60
        short = np.where(minutes % 15 >= 10, 140.0, 60.0) * 60
        return {"full": Traffic(random.poisson(full)), "short": Traffic(random.poisson(short))}

    works = {
        "full": {"seconds_per_item": 0.1, "variation": 1.0, "batch_seconds": 0.2},
        "short": {"seconds_per_item": 0.02, "variation": 0.5, "batch_seconds": 0.1},
    }
    applications = {"full": _app("serve", "1..3", "5m"), "short": _app("serve", "1..2", "5m")}
    return Case(_small(applications), _works(works), hours, traffic)


def _small(applications: dict[str, Any]) -> ClusterDefinition:
    return ClusterDefinition.model_validate(
        {
            "name": "small",
            "groups": {
                "serve": _group("serving", "on-demand", 1, "0..20", idle_timeout="2m"),
                "train": _group("training", "spot", 1, "0..6", idle_timeout="2m"),
                "train-od": _group("training", "on-demand", 1, "0..6", idle_timeout="2m"),
            },
            "applications": applications,
            **_REST,
        }
    )


def _works(applications: dict[str, Any]) -> Measured:
    return Measured.model_validate(
        {
            "starts": {"node": "60s", "replica": "20s"},
            "usd_per_node_hour": {"serve": 1.0, "train": 0.3, "train-od": 1.0},
            "applications": applications,
        }
    )


_REST: dict[str, Any] = {
    "store": {"kind": "embedded", "bucket": "bench"},
    "tags": {"team": "bench", "project": "bench"},
}


def _group(role: str, market: str, gpus: int, nodes: str, **more: Any) -> dict[str, Any]:
    fallback = {} if role == "training" or market != "spot" else {"fallback": "serve"}
    return {"role": role, "market": market, "cpus": 8, "gpus": gpus, "nodes": nodes, **fallback, **more}


def _app(group: str, replicas: str, idle: str) -> dict[str, Any]:
    name = f"{group}-{replicas.replace('.', '-')}"
    return {
        "recipe": "serve_apps.some:Some", "model": "some@production", "group": group, "route": f"/{name}",
        "replicas": replicas, "idle_timeout": idle,
    }  # fmt: skip


COMPARED = (
    "answered", "refused", "gave_up", "latency_p50_s", "latency_p99_s", "wait_mean_s", "replica_hours", "busy",
    "starts",
)  # fmt: skip


def run_case(case: Case, level: Level, seed: int) -> Result:
    scenario = Scenario(
        case.days, case.traffic(seed), case.spot(seed), case.jobs, case.measured, level=level, seed=seed
    )
    return simulate(case.definition, scenario)


def figures(result: Result) -> dict[str, float]:
    """What is compared; what did not happen is 0."""
    found = {f"{app.app}.{name}": float(getattr(app, name) or 0.0) for app in result.apps for name in COMPARED}
    found |= {f"{group.group}.held_gpu_h": group.held_gpu_h for group in result.groups}
    return {**found, "jobs.goodput": result.jobs.goodput or 0.0, "usd": result.usd}


def agree(seed: int, quick: bool) -> dict[str, Any]:
    runs = 3 if quick else 8
    found: dict[str, Any] = {}
    for name, case in cases(quick).items():
        cpu = {}
        both: dict[Level, list[dict[str, float]]] = {}
        levels: tuple[Level, ...] = ("requests", "flow")
        for level in levels:
            before = time.process_time()
            both[level] = [figures(run_case(case, level, seed + n)) for n in range(runs)]
            cpu[level] = round(time.process_time() - before, 1)
        rows = compare(both["requests"], both["flow"])
        show(f"{name}, {case.hours:g} h, {runs} seeds", rows)
        print(f"CPU: {cpu} s")
        found[name] = {"hours": case.hours, "runs": runs, "figures": rows, "cpu_s": cpu}
    return found


def compare(exact: list[dict[str, float]], flow: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Means over the seeds; `noise` is the standard error of the per-request mean over that mean: so much a mean of
    other seeds would be apart from it."""
    found: dict[str, dict[str, float | None]] = {}
    for name in exact[0]:
        values = np.array([run[name] for run in exact])
        mean, other = float(values.mean()), float(np.mean([run[name] for run in flow]))
        if mean == other == 0.0:
            continue
        noise = float(values.std(ddof=1)) / math.sqrt(len(values)) / mean if mean else math.inf
        found[name] = {
            "requests": _short(mean),
            "flow": _short(other),
            "apart": _short((other - mean) / mean if mean else math.inf),
            "noise": _short(noise),
        }
    return found


def show(title: str, rows: dict[str, dict[str, float | None]]) -> None:
    print(f"{title:<28} {'per request':>12} {'flow':>12} {'apart':>8} {'noise':>8}")
    for name, row in rows.items():
        print(f"  {name:<26} {row['requests']!s:>12} {row['flow']!s:>12} {row['apart']:>8.1%} {row['noise']:>8.1%}")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# --- the month


def large(gpus: int) -> ClusterDefinition:
    """Half of the GPUs serve in 25 applications, one GPU a replica; half train on spot. 8 to a node."""
    nodes, apps = gpus // 8, 25
    serving = nodes * 2 // 5
    return ClusterDefinition.model_validate(
        {
            "name": "large",
            "groups": {
                "serve": _group("serving", "on-demand", 8, f"0..{serving}", idle_timeout="5m"),
                "train": _group("training", "spot", 8, f"0..{nodes - serving - nodes // 10}", idle_timeout="5m"),
                "train-od": _group("training", "on-demand", 8, f"0..{nodes // 10}", idle_timeout="5m"),
            },
            "applications": {
                f"app-{n:02}": {**_app("serve", f"1..{serving * 8 // apps}", "10m"), "route": f"/app-{n}"}
                for n in range(apps)
            },
            **_REST,
        }
    )


def month(seed: int, quick: bool) -> dict[str, Any]:
    gpus, days = (1000, 3.0) if quick else (10_000, 30.0)
    definition = large(gpus)
    serving, training = definition.groups["serve"], definition.groups["train"]
    work = {"seconds_per_item": 0.05, "variation": 0.5, "batch_seconds": 0.2}
    measured = Measured.model_validate(
        {
            "usd_per_node_hour": {"serve": 32.0, "train": 12.0, "train-od": 32.0},
            "applications": dict.fromkeys(definition.applications, work),
            "shares": {"team-0": 2.0},
        }
    )
    before = time.perf_counter()
    each = serving.nodes.high * serving.gpus / len(definition.applications) * 0.55 / work["seconds_per_item"]
    shapes = ("diurnal", "bursty", "diurnal", "steady", "diurnal")
    traffic = {
        name: draw(shapes[n % len(shapes)], requests_per_s=each, days=days, seed=seed * 100 + n, burst=1.8)  # type: ignore[arg-type]
        for n, name in enumerate(definition.applications)
    }
    jobs = month_jobs(training.nodes.high, days, seed)
    spot = {"train": supply(training.nodes.high, days, seed)}
    scenario = Scenario(days, traffic, spot, jobs, measured, level="flow", seed=seed)
    drawn_s, cpu_before = time.perf_counter() - before, time.process_time()
    result = simulate(definition, scenario, progress=lambda line: print(line, file=sys.stderr, flush=True))
    nodes_started = sum(group.nodes_started for group in result.groups)
    found = {
        "gpus": gpus,
        "days": days,
        "wall_s": round(result.wall_s, 1),
        "cpu_s": round(time.process_time() - cpu_before, 1),
        "drawing_s": round(drawn_s, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "events": result.events,
        "scaling_calls": result.scaling_calls,
        "queue_calls": result.queue_calls,
        "deadline_calls": result.deadline_calls,
        "requests": sum(round(app.offered) for app in result.apps),
        "answered": round(sum(app.answered for app in result.apps) / sum(app.offered for app in result.apps), 5),
        "app_minutes": round(days * 1440 * len(result.apps)),
        "replicas_started": sum(app.starts for app in result.apps),
        "nodes_started": nodes_started,
        "reclaimed": sum(group.reclaimed for group in result.groups),
        "jobs": result.jobs.submitted,
        "jobs_finished": result.jobs.finished,
        "jobs_missed": result.jobs.missed,
        "job_reclaims": result.jobs.reclaims,
        "job_goodput": _short(result.jobs.goodput),
        "held_gpu_h": round(sum(group.held_gpu_h for group in result.groups)),
        "most_nodes": max(sum(point.nodes.values()) for point in result.points),
        "usd": round(result.usd),
    }
    for name, value in found.items():
        print(f"{name:<18} {value:>20,}" if isinstance(value, int | float) else f"{name:<18} {value!s:>20}")
    return found


def month_jobs(nodes: int, days: float, seed: int) -> list[JobTerms]:
    """Poisson; 1 to 32 nodes, log-normal lengths around 6 hours; a tenth with a deadline. 0.9 of the group's time."""
    random = np.random.default_rng(seed + 7)
    found, at, work = [], 0.0, 0.0
    while True:
        size = int(random.choice([1, 2, 4, 8, 16, 32], p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]))
        length_s = float(min(86400 * 3, random.lognormal(math.log(6 * 3600), 0.8)))
        at = work / (0.8 * nodes)
        work += size * length_s
        if at >= days * 86400:
            return found
        number = len(found)
        found.append(
            JobTerms(
                f"job-{number}", "train", size, length_s, submitted_s=at, team=f"team-{number % 6}",
                deadline_s=3 * length_s + 7200 if number % 10 == 0 else None, policy="uniform progress",
                fallback="train-od", restart_s=60.0, stall_s=2.0,
            )
        )  # fmt: skip


def supply(nodes: int, days: float, seed: int) -> Trace:
    """Spot of many zones: the sum of 40 that come and go on their own."""
    zones = [
        generate(seed * 50 + n, days=days, nodes=1, climate=Climate(mean_up_h=30, mean_down_h=2)) for n in range(40)
    ]
    counts = np.sum([zone.counts for zone in zones], axis=0)
    return Trace("supply", "availability", 40, zones[0].tick_s, np.minimum(40, counts + 1))


# --- the engine


def engine(quick: bool) -> dict[str, Any]:
    """M/M/1, the queue and nothing else, on both."""
    requests = 50_000 if quick else 200_000
    random = np.random.default_rng(0)
    gaps, works = random.exponential(1.25, requests).tolist(), random.exponential(1.0, requests).tolist()
    found = {"own_requests_per_s": round(requests / _own(gaps, works))}
    try:
        import simpy  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        found["simpy_requests_per_s"] = None
    else:
        found["simpy_requests_per_s"] = round(requests / _simpy(simpy, gaps, works))
    print(found)
    return found


def _own(gaps: list[float], works: list[float]) -> float:
    from collections import deque

    clock, queue, busy = Engine(), deque[float](), [False]

    def arrive(number: int) -> None:
        queue.append(works[number])
        if not busy[0]:
            serve()
        if number + 1 < len(gaps):
            clock.at(clock.now + gaps[number + 1], arrive, number + 1)

    def serve() -> None:
        busy[0] = bool(queue)
        if queue:
            clock.at(clock.now + queue.popleft(), serve)

    began = time.perf_counter()
    clock.at(gaps[0], arrive, 0)
    clock.run(1e12)
    return time.perf_counter() - began


def _simpy(simpy: Any, gaps: list[float], works: list[float]) -> float:
    environment = simpy.Environment()
    server = simpy.Resource(environment)

    def request(work: float) -> Any:
        with server.request() as turn:
            yield turn
            yield environment.timeout(work)

    def source() -> Any:
        for gap, work in zip(gaps, works, strict=True):
            yield environment.timeout(gap)
            environment.process(request(work))

    environment.process(source())
    began = time.perf_counter()
    environment.run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs, a cluster of 1,000 GPUs for 3 days")
    parser.add_argument("--only", default="theory,agree,month,engine")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    result: dict[str, Any] = {"benchmark": "simulate", "machine": world.this_machine(), "seed": arguments.seed}
    if "month" in only:  # first, so that its peak of memory is its own
        result["month"] = month(arguments.seed, arguments.quick)
    if "theory" in only:
        result["theory"] = theory(arguments.seed, arguments.quick)
    if "agree" in only:
        result["agree"] = agree(arguments.seed, arguments.quick)
    if "engine" in only:
        result["engine"] = engine(arguments.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
