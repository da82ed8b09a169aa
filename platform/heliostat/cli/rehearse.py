"""`heliostat job rehearse`: what a deadline job would have cost on recorded spot, policy by policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.plan.policy.traces import Trace


def job_rehearse(
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Replay spot traces against each deadline policy on a simulated clock: cost, missed deadlines, when it ends."""
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
    print_progress(f"{name}: {len(windows)} windows of {deadline} from {len(traces)} traces, {work} of work in each")
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
