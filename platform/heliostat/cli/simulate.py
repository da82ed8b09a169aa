"""heliostat simulate: what a definition would have cost, and how long people would have waited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliostat.cli.options import Json
from heliostat.show import plain, print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.definition import ClusterDefinition
    from heliostat.plan.policy.traces import Trace
    from heliostat.simulate.measured import Measured
    from heliostat.simulate.result import Result
    from heliostat.simulate.traffic import Traffic

SYNTHETIC = ("synthetic", "diurnal", "bursty", "steady")
MOST_SINGLE = 2_000_000
"""Requests that are simulated one by one where no level is asked for: some minutes."""


def simulate(
    definition: Annotated[Path, typer.Argument(help="A cluster definition, such as cluster/aws.yaml")],
    requests: Annotated[
        str,
        typer.Option(help="A CSV file (at_s,app[,work_s] or minute,app,requests), or diurnal, bursty, steady: drawn."),
    ] = "synthetic",
    rate: Annotated[
        float | None, typer.Option(help="Drawn requests/s of each application, the mean; as measured if not given.")
    ] = None,
    spot: Annotated[
        list[str] | None,
        typer.Option("--spot", help="A spot trace for all spot groups, or group=FILE; synthetic: drawn. Repeatable."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.001, max=3660, help="For how long.")] = 30.0,
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Another definition under the same load. Repeatable.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="How long work and starts take, and the jobs (docs/simulate.md).")
    ] = None,
    level: Annotated[str, typer.Option(help="requests: one by one. flow: by the minute. auto: by their number.")] = (
        "auto"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write an HTML page with plots, which needs nothing else.")] = None,
    json: Json = False,
) -> None:
    """Replay requests and spot on a definition: cost, latency, queues, cold starts, GPU-hours. Nothing is started."""
    from heliostat.definition import load
    from heliostat.errors import UsageError
    from heliostat.simulate import Scenario, run
    from heliostat.simulate.measured import Measured, load_measured

    if level not in ("auto", "requests", "flow"):
        raise UsageError(f"--level {level} is not known", do="one of: auto, requests, flow")
    known = load_measured(measured) if measured else Measured()
    loaded = [(path, load(path)) for path in (definition, *(against or ()))]
    results = []
    for path, one in loaded:
        traffic = _traffic(requests, one, known, rate=rate, days=days, seed=seed)
        many = sum(stream.requests for stream in traffic.values())
        chosen = ("requests" if many <= MOST_SINGLE else "flow") if level == "auto" else level
        print_progress(
            f"{path}: {many:,} requests in {days:g} days, {'one by one' if chosen == 'requests' else chosen}"
        )
        scenario = Scenario(
            days=days,
            traffic=traffic,
            spot=_spot(spot or [], one, days=days, seed=seed),
            measured=known,
            level="requests" if chosen == "requests" else "flow",
            seed=seed,
        )
        results.append(run.simulate(one, scenario, progress=print_progress))
    names = [str(path) for path, _ in loaded]
    if plot:
        from heliostat.simulate.page import write_page

        write_page(plot, dict(zip(names, results, strict=True)))
        print_progress(f"plots: {plot}")
    if json:
        print_json([{"definition": name, **_json(result)} for name, result in zip(names, results, strict=True)])
    else:
        _print(names, results)


def _traffic(
    requests: str, definition: ClusterDefinition, measured: Measured, *, rate: float | None, days: float, seed: int
) -> dict[str, Traffic]:
    from heliostat.errors import UsageError
    from heliostat.simulate.traffic import draw, read_traffic

    apps = definition.applications
    if requests not in SYNTHETIC:
        if rate is not None:
            raise UsageError("--rate is of drawn requests", do="leave it out, or write --requests diurnal")
        return read_traffic(Path(requests), days=days, apps=set(apps))
    drawn = {}
    for number, name in enumerate(sorted(apps)):
        mean = rate or measured.work_of(name).requests_per_second
        if mean is None:
            raise UsageError(
                f"how many requests {name} has is not known",
                do="give --rate 20, a file with --requests, or requests_per_second of each application in --measured",
            )
        shape: Any = "diurnal" if requests == "synthetic" else requests
        drawn[name] = draw(shape, requests_per_s=mean, days=days, seed=seed * 1000 + number)
    return drawn


def _spot(given: list[str], definition: ClusterDefinition, *, days: float, seed: int) -> dict[str, Trace]:
    """By group. A name without a group is for all spot groups."""
    from heliostat.errors import UsageError
    from heliostat.plan.policy.traces import generate, read_trace

    groups = [name for name, group in definition.groups.items() if group.market == "spot"]
    found: dict[str, Trace] = {}
    for text in given:
        group, _, source = text.rpartition("=")
        if group and group not in groups:
            raise UsageError(f"--spot {text}: {group!r} is no spot group", do=f"one of: {', '.join(groups) or 'none'}")
        for number, name in enumerate(groups):
            if group in ("", name):
                drawn = source == "synthetic"
                trace = generate(seed * 1000 + number, days=days) if drawn else read_trace(Path(source))
                if trace.seconds < days * 86400 and not drawn:
                    print_progress(
                        f"warning: {trace.name} covers {trace.seconds / 86400:.1f} of {days:g} days; its last tick "
                        "holds for the rest"
                    )
                found[name] = trace
    return found


def _json(result: Result) -> dict[str, Any]:  # Any: JSON
    return {**plain(result.figures()), "wall_s": result.wall_s, "peak_mib": result.peak_mib}


def _print(names: list[str], results: list[Result]) -> None:
    """Definitions side by side."""
    several = len(results) > 1
    short = [Path(name).name for name in names]
    names = short if len(set(short)) == len(names) else names  # a table is narrow

    def rows(make: Any) -> list[tuple[object, ...]]:  # Any: from a result to its rows
        return [
            (*((name,) if several else ()), *row)
            for name, result in zip(names, results, strict=True)
            for row in make(result)
        ]

    first = ("definition",) if several else ()
    print_table(
        (*first, "group", "market", "nodes", "reclaimed", "starting", "loading", "working", "idle", "GPU-hours", "USD"),
        rows(_group_rows),
        title=f"GPU-hours, {results[0].days:g} days",
    )
    if any(result.apps for result in results):
        print_table(
            (*first, "application", "requests", "answered", "refused", "gave up", "p50 ms", "p99 ms", "queue ms",
             "queue p99", "cold starts", "replica-h", "busy"),
            rows(_app_rows),
        )  # fmt: skip
    if any(result.jobs.submitted for result in results):
        print_table(
            (*first, "jobs", "finished", "late", "reclaims", "queue mean", "queue p95", "goodput"), rows(_job_rows)
        )
    for name, result in zip(names, results, strict=True):
        unpriced = [group.group for group in result.groups if group.usd is None and group.held_gpu_h > 0]
        if unpriced:
            print_progress(
                f"warning: {name}: {', '.join(unpriced)} have no price; name the group's instance, or give "
                "usd_per_node_hour in --measured"
            )
        print_progress(
            f"{name}: {result.usd:,.2f} USD; {result.events:,} events in {result.wall_s:.1f} s, "
            f"{result.peak_mib:.0f} MiB"
        )


def _group_rows(result: Result) -> list[tuple[object, ...]]:
    return [
        (
            one.group, one.market, one.nodes_started, one.reclaimed, one.starting_gpu_h, one.loading_gpu_h,
            one.working_gpu_h, one.idle_gpu_h, one.held_gpu_h, None if one.usd is None else f"{one.usd:,.2f}",
        )
        for one in result.groups
    ]  # fmt: skip


def _app_rows(result: Result) -> list[tuple[object, ...]]:
    return [
        (
            one.app, f"{one.offered:,.0f}", None if one.goodput is None else f"{one.goodput:.3%}",
            f"{one.refused:,.0f}", f"{one.gave_up:,.0f}", _ms(one.latency_p50_s), _ms(one.latency_p99_s),
            _ms(one.wait_mean_s), _ms(one.wait_p99_s), one.cold_starts, one.replica_hours,
            None if one.busy is None else f"{one.busy:.0%}",
        )
        for one in result.apps
    ]  # fmt: skip


def _job_rows(result: Result) -> list[tuple[object, ...]]:
    from heliostat.units import Duration

    def time(seconds: float | None) -> str | None:
        return None if seconds is None else str(Duration(round(seconds) * 1000))

    jobs = result.jobs
    goodput = None if jobs.goodput is None else f"{jobs.goodput:.1%}"
    return [
        (
            jobs.submitted,
            jobs.finished,
            jobs.missed,
            jobs.reclaims,
            time(jobs.queue_mean_s),
            time(jobs.queue_p95_s),
            goodput,
        )
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
