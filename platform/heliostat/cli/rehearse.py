"""`heliostat job rehearse`: what a deadline job would have cost on recorded spot, policy by policy, or does for real.

`heliostat job record` writes such a trace of one's own reclaims.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.plan.policy.deadline import Deadline
    from heliostat.plan.policy.traces import Trace, Window
    from heliostat.train.rehearsal import RealOutcome

REAL_CHANGEOVER_S = 15.0
"""What a changeover takes on the embedded cluster: nodes, a checkpoint loaded, and the interval computed again."""


def job_rehearse(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="JOB", help="The job that is rehearsed; a name for the output.")],
    trace: Annotated[
        list[Path] | None, typer.Option("--trace", help="A spot trace, or a folder of them. May be repeated.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option("--generate", help="Without a trace: draw 14 days of spot with this seed.")
    ] = None,
    work: Annotated[str, typer.Option(help="Work to be done, as time on one gang of nodes.")] = "30h",
    deadline: Annotated[str, typer.Option(help="Time from the start to the deadline.")] = "60h",
    changeover: Annotated[str, typer.Option(help="Time lost per start of a gang.")] = "10m",
    spot_price: Annotated[float, typer.Option(help="Price of spot as a share of on-demand.")] = 0.3,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the gang; spot is up when all can be had.")] = 1,
    stride: Annotated[str, typer.Option(help="From the start of one rehearsal to the next.")] = "12h",
    real: Annotated[
        bool,
        typer.Option("--real", help="Run the job itself, on the embedded cluster, with the trace's clock sped up."),
    ] = False,
    speed: Annotated[
        float | None, typer.Option(min=1, help="With --real: how much faster. Else so that a changeover takes 15 s.")
    ] = None,
    window: Annotated[int, typer.Option(min=0, help="With --real: which of the windows, from 0.")] = 0,
    on_demand: Annotated[
        str | None, typer.Option(help="With --real: the group to go to, if the job names none.")
    ] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Replay spot traces against each deadline policy on a simulated clock: cost, missed deadlines, when it ends.

    With --real one window is played to the job itself: what stands after -- goes to it, as with job submit.
    """
    from heliostat.errors import UsageError
    from heliostat.names import check_name
    from heliostat.plan.policy.compare import compare, cut_all
    from heliostat.plan.policy.deadline import Deadline
    from heliostat.units import Duration

    check_name(name, what="job name")
    job = Deadline(
        work_s=Duration.parse(work).seconds,
        deadline_s=Duration.parse(deadline).seconds,
        changeover_s=Duration.parse(changeover).seconds,
        spot_price=spot_price,
    )
    traces = _traces(trace or [], generate)
    stride_s = Duration.parse(stride).seconds
    windows = cut_all(traces, deadline_s=job.deadline_s, stride_s=stride_s, nodes=nodes)
    replayed = f"{len(windows)} windows of {deadline} from {len(traces)} trace{'s' * (len(traces) != 1)}"
    print_progress(f"{name}: {replayed}, {work} of work in each")
    if real:
        if window >= len(windows):
            raise UsageError(f"there is no window {window}", where="--window", do=f"0 to {len(windows) - 1}")
        arguments = [a for a in context.args if a != "--"]
        _real(name, job, windows[window], speed, on_demand=on_demand, arguments=arguments, cluster=cluster, json=json)
        return
    rows = compare(job, windows, progress=print_progress)
    if json:
        print_json({"job": name, "traces": [t.name for t in traces], "question": job, "policies": rows})
        return
    columns = (
        "policy",
        "vs on-demand",
        "vs optimum",
        "worst",
        "above o-d",
        "missed",
        "starts",
        "reclaims",
        "ends (median, p95, latest)",
    )
    print_table(
        columns,
        [
            (
                row.policy,
                f"{row.vs_on_demand:.3f}",
                f"{row.vs_optimum:.3f}",
                f"{row.worst_vs_optimum:.3f}",
                row.above_on_demand,
                row.missed,
                row.starts,
                row.reclaims,
                f"{row.median_finish_h:.1f}h  {row.p95_finish_h:.1f}h  {row.latest_finish_h:.1f}h",
            )
            for row in rows
        ],
        title=f"{name}: {len(windows)} rehearsals",
    )


def job_record(
    group: Annotated[str, typer.Argument(help="A spot group.")],
    into: Annotated[Path, typer.Option(help="The file to write.")],
    tick: Annotated[str, typer.Option(help="From one count to the next.")] = "5m",
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Write one's own reclaims as a trace that `job rehearse` reads: the group's spot nodes, tick by tick."""
    from heliostat.plan.policy.traces import record, write_trace
    from heliostat.sdk import Platform
    from heliostat.units import Duration

    trace = record(
        Platform.connect(cluster).events(), group=group, tick_s=round(Duration.parse(tick).seconds), until=time.time()
    )
    write_trace(trace, into)
    if json:
        print_json({"file": str(into), "nodes": trace.nodes, "ticks": len(trace.counts), "start": trace.start})
    else:
        print_progress(f"{into}: {trace.seconds / 3600:.1f} h of up to {trace.nodes} nodes, from {trace.start}")


def _real(
    name: str,
    job: Deadline,
    window: Window,
    speed: float | None,
    *,
    on_demand: str | None,
    arguments: list[str],
    cluster: str | None,
    json: bool,
) -> None:
    from heliostat.errors import UsageError
    from heliostat.sdk import Platform
    from heliostat.train.market import Terms

    platform = Platform.connect(cluster)
    definition = platform.definition
    others = [g for g, spec in definition.groups.items() if spec.role == "training" and spec.market != "spot"]
    given = on_demand or (definition.jobs[name].on_demand if name in definition.jobs else None)
    target = given or (others[0] if len(others) == 1 else None)
    if target not in others:
        raise UsageError(
            f"the job needs a training group that is not of spot, and {target!r} is none",
            where="--on-demand",
            do=f"one of: {', '.join(others) or 'add one to the definition'}",
        )
    terms = Terms(
        deadline_s=job.deadline_s,
        work_s=job.work_s,
        on_demand=target,
        changeover_s=job.changeover_s,
        poll_s=min(job.poll_s, window.tick_s),
        spot_price=job.spot_price,
        speed=speed or max(1.0, job.changeover_s / REAL_CHANGEOVER_S),
    )
    made = platform.jobs.rehearse(name, terms, window, arguments=arguments, progress=print_progress)
    if json:
        print_json(made)
        return
    print_table(
        ("", "vs on-demand", "deadline", "to spare", "spot", "on-demand", "starts", "reclaims", "steps again"),
        [_real_row(made), _simulated_row(made, job)],
        title=f"{name}: run {made.run}, {made.speed:g} times faster than the trace",
    )


def _real_row(made: RealOutcome) -> tuple[object, ...]:
    return (
        "for real",
        f"{made.cost_s / made.on_demand_cost_s:.3f}",
        "missed" if made.missed else "kept",
        f"{made.spare_s / 3600:.2f}h",
        f"{made.spot_s / 3600:.2f}h",
        f"{made.on_demand_s / 3600:.2f}h",
        made.moves,
        made.reclaims,
        made.steps_again,
    )


def _simulated_row(made: RealOutcome, job: Deadline) -> tuple[object, ...]:
    simulated = made.simulated
    return (
        "simulated",
        f"{simulated.cost_s / made.on_demand_cost_s:.3f}",
        "missed" if simulated.missed else "kept",
        f"{(job.deadline_s - simulated.finish_s) / 3600:.2f}h",
        f"{simulated.spot_s / 3600:.2f}h",
        f"{simulated.on_demand_s / 3600:.2f}h",
        simulated.changes,
        simulated.reclaims,
        "-",
    )


def _traces(paths: list[Path], seed: int | None) -> list[Trace]:
    """What the options name; files of a folder that hold no trace are told on stderr."""
    from heliostat.errors import UsageError
    from heliostat.plan.policy.traces import generate, read_folder, read_trace

    if bool(paths) == (seed is not None):
        raise UsageError("give either traces or a seed", do="write --trace FILE, or --generate 1")
    if seed is not None:
        return [generate(seed)]
    traces = []
    for path in paths:
        if not path.is_dir():
            traces.append(read_trace(path))
            continue
        found, skipped = read_folder(path)
        traces += found
        for skip in skipped:
            print_progress(f"skipped {skip.name}: {skip.why}")
        if not found:
            raise UsageError(f"{path} holds no spot trace", do="give a folder of traces, one JSON file per zone")
    return traces
