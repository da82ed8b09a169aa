"""heliostat cost: where the GPU-seconds went, and for how much."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table, write_page

if TYPE_CHECKING:
    from heliostat.meter.report import Line, Report

cost = typer.Typer(help="Where the GPU-seconds went.", no_args_is_help=True)


@cost.callback()
def root() -> None:
    """Where the GPU-seconds went."""


@cost.command("report")
def cost_report(
    by: Annotated[
        str, typer.Option(help="Dimensions, with commas: team, project, job, app, group, market, day and others.")
    ] = "group,market",
    since: Annotated[dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")] = None,
    until: Annotated[dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day, in UTC.")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="A CSV file of prices by hour; the catalogue's if not given.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page to read in a browser instead.", dir_okay=False)
    ] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """GPU-seconds by class, with their price: each second of each GPU in exactly one class."""
    from heliostat.errors import UsageError
    from heliostat.meter.report import to_csv, to_json
    from heliostat.sdk import Platform

    if csv + json + (html is not None) > 1:
        raise UsageError("--csv, --json and --html exclude one another", do="give one of them")
    dimensions = [name.strip() for name in by.split(",")]
    if html is not None:
        page = Platform.connect(cluster).cost_page(
            dimensions, since=since and since.date(), until=until and until.date(), prices=prices,
            progress=print_progress,
        )  # fmt: skip
        write_page(html, page)
        return
    made = Platform.connect(cluster).cost_report(
        dimensions,
        since=since and since.date(),
        until=until and until.date(),
        prices=prices,
        progress=print_progress,
    )
    if json:
        print_json(to_json(made))
    elif csv:
        typer.echo(to_csv(made), nl=False)
    else:
        print_report(made)


def print_report(made: Report) -> None:
    """GPU-seconds, or GPU-hours where there are many; warnings on stderr."""
    from heliostat.meter.report import columns

    hours = made.total.held >= 100 * 3600
    unit = 3600 if hours else 1
    used = columns(made)

    def cells(line: Line, keys: tuple[str | None, ...]) -> tuple[object, ...]:
        usd = f"{line.usd:,.2f}" if line.unpriced_gpu_seconds < line.held or line.usd else None
        useful = f"{line.useful / line.held:.0%}" if line.held else None
        return (*keys, *(line.gpu_seconds.get(use, 0.0) / unit for use in used), line.held / unit, useful, usd)

    rows = [cells(line, line.keys) for line in made.lines]
    rows.append(cells(made.total, ("total", *[""] * (len(made.by) - 1))))
    names = [use.replace("_", " ") for use in used]
    print_table((*made.by, *names, "held", "useful", "USD"), rows, title="GPU-hours" if hours else "GPU-seconds")
    if made.total.unpriced_gpu_seconds > 1e-6:
        print_progress(
            f"{made.total.unpriced_gpu_seconds / 3600:,.2f} GPU-hours have no price: name the group's instance in the "
            "definition, or give --prices FILE"
        )
    if made.total.overlap_gpu_seconds > 1e-6:
        print_progress(f"warning: {made.total.overlap_gpu_seconds:,.1f} GPU-seconds were told twice; they count once")
    for price in made.prices:
        print_progress(
            f"{price.instance} {price.market}: {price.usd_per_gpu_hour:.4g} USD a GPU-hour "
            f"({price.source}, {price.date})"
        )
