"""heliostat cost: where the GPU-seconds went, and for how much."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import plain, print_json, print_progress, print_report, print_table, write_page

Since = Annotated[dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")]
Until = Annotated[dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day, in UTC.")]
Prices = Annotated[Path | None, typer.Option(help="A CSV file of prices by hour; the catalogue's if not given.")]

cost = typer.Typer(help="Where the GPU-seconds went.", no_args_is_help=True)


@cost.callback()
def root() -> None:
    """Where the GPU-seconds went."""


@cost.command("report")
def cost_report(
    by: Annotated[
        str, typer.Option(help="Dimensions, with commas: team, project, job, app, group, market, day and others.")
    ] = "group,market",
    since: Since = None,
    until: Until = None,
    prices: Prices = None,
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


@cost.command("unit")
def cost_unit(
    by: Annotated[
        str, typer.Option(help="app, job or run, with commas and with team or version beside, as app,team.")
    ] = "app",
    since: Since = None,
    until: Until = None,
    prices: Prices = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """What 1,000 requests, a million tokens, or a training run cost."""
    from heliostat.sdk import Platform

    names = [name.strip() for name in by.split(",")]
    found = Platform.connect(cluster).unit_costs(names, since=_day(since), until=_day(until), prices=prices)
    if json:
        derived = ("usd_per_1000_requests", "usd_per_million_tokens", "gpu_seconds_per_1000_requests")
        print_json([{**plain(cost), **{name: getattr(cost, name) for name in derived}} for cost in found])
        return
    rows = [
        (
            *(key or "-" for key in cost.keys),
            f"{cost.gpu_hours:,.2f}",
            _money(cost.usd),
            int(cost.requests),
            int(cost.tokens),
            int(cost.steps),
            _money(cost.usd_per_1000_requests, 4),
            _money(cost.usd_per_million_tokens, 4),
        )
        for cost in found
    ]
    print_table((*names, "GPU-hours", "USD", "requests", "tokens", "steps", "USD/1,000 req.", "USD/M tokens"), rows)


@cost.command("month")
def cost_month(prices: Prices = None, cluster: Cluster = None, json: Json = False) -> None:
    """This month so far: use, utilisation, goodput, what spot saved, and where it will end."""
    from heliostat.sdk import Platform

    made = Platform.connect(cluster).month(prices=prices)
    if json:
        print_json(made)
        return
    ahead = made.forecast
    basis = f"at the pace of {ahead.days} whole days" if ahead.days else "at the pace of today, its first day"
    rows = [
        ("held", f"{made.gpu_hours:,.2f} GPU-hours, {made.usd:,.2f} USD"),
        ("utilisation", _share(made.utilisation, "serving and useful training, of all that was held")),
        ("goodput", _share(made.goodput, "useful training, of what jobs held")),
        ("saved by spot", f"{made.saved_by_spot_usd:,.2f} USD against the on-demand price"),
        ("by the month's end", f"{ahead.gpu_hours:,.2f} GPU-hours, {ahead.usd:,.2f} USD {basis}"),
        ("  between", f"{ahead.low_usd:,.2f} and {ahead.high_usd:,.2f} USD"),
    ]
    print_table(("", made.month), rows)
    if made.unpriced_gpu_hours > 1e-6:
        print_progress(f"{made.unpriced_gpu_hours:,.2f} GPU-hours have no price, and are in no sum of money")


@cost.command("energy")
def cost_energy(
    by: Annotated[str, typer.Option(help="Dimensions, as of the report.")] = "team",
    grams: Annotated[float | None, typer.Option("--g-per-kwh", help="The grid's CO2, in grams a kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the building.")] = 1.0,
    since: Since = None,
    until: Until = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Energy of the devices, measured where it is, and CO2 if the grid's figure is given."""
    from heliostat.sdk import Platform

    names = [name.strip() for name in by.split(",")]
    found = Platform.connect(cluster).energy(names, since=_day(since), until=_day(until), grams_per_kwh=grams, pue=pue)
    if json:
        print_json(found)
        return
    rows = [
        (
            *(key or "-" for key in each.keys),
            each.kwh,
            each.co2_kg,
            f"{each.measured_share:.0%}",
            each.unknown_gpu_hours,
        )
        for each in found
    ]
    print_table((*names, "kWh", "kg CO2", "measured", "GPU-hours of unknown power"), rows)


@cost.command("focus")
def cost_focus(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; stdout if none.")] = None,
    since: Since = None,
    until: Until = None,
    prices: Prices = None,
    cluster: Cluster = None,
) -> None:
    """Export as FOCUS 1.2 (CSV), for FinOps tools: one row per hour, place, owner and class."""
    from heliostat.sdk import Platform

    text, unpriced = Platform.connect(cluster).focus(since=_day(since), until=_day(until), prices=prices)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        print_progress(f"{text.count(chr(10)) - 1} rows in {output}")
    if unpriced > 1e-6:
        print_progress(f"left out: {unpriced:,.2f} GPU-hours that have no price")


budget = typer.Typer(help="What a team or a project may spend in a month.", no_args_is_help=True)
cost.add_typer(budget, name="budget")


@budget.command("list")
def budget_list(prices: Prices = None, cluster: Cluster = None, json: Json = False) -> None:
    """Every budget, how much of it is used, and what it stops."""
    from heliostat.sdk import Platform

    found = Platform.connect(cluster).budgets(prices=prices)
    if json:
        print_json(found)
        return
    if not found:
        print_progress("no budget limits anybody; heliostat cost budget set team/NAME --gpu-hours N --why REASON")
        return
    rows = [
        (
            each.key,
            _of(each.gpu_hours, each.granted.budget.gpu_hours),
            _of(each.usd, each.granted.budget.usd),
            f"{each.share:.0%}",
            f"{each.forecast_share:.0%}" if each.forecast_share else None,
            each.granted.budget.at_limit if each.spent else f"({each.granted.budget.at_limit} at 100%)",
            each.granted.who,
            each.granted.why,
        )
        for each in found
    ]
    print_table(("budget", "GPU-hours", "USD", "used", "month's end", "stops", "granted by", "why"), rows)


def _of(used: float, limit: float | None) -> str | None:
    """Nothing, where this is not what the budget limits. A small limit keeps its digits."""
    if limit is None:
        return None
    return f"{used:,.{2 if limit >= 1 else 4}f} of {limit:,.10g}"


@budget.command("set")
def budget_set(
    name: Annotated[str, typer.Argument(help="team/NAME or project/NAME")],
    why: Annotated[str, typer.Option(help="The reason, kept with it.")],
    gpu_hours: Annotated[float | None, typer.Option(help="Of a calendar month.")] = None,
    usd: Annotated[float | None, typer.Option(help="Of a calendar month.")] = None,
    at_limit: Annotated[
        str | None, typer.Option(help="tell, refuse (new jobs) or pause (trainings too); as before if not given.")
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Set or raise a budget. It holds until it is set again, or the definition changes it."""
    from heliostat.controller.budgets import PERIOD_S
    from heliostat.sdk import Platform

    made = Platform.connect(cluster).set_budget(name, gpu_hours=gpu_hours, usd=usd, at_limit=at_limit, why=why)
    limits = ((made.budget.gpu_hours, "GPU-hours"), (made.budget.usd, "USD"))
    told = " and ".join(f"{limit:,.10g} {unit}" for limit, unit in limits if limit is not None)
    print_progress(f"{made.key}: {told} a month; at the limit: {made.budget.at_limit}; in force within {PERIOD_S:g} s")


@budget.command("withdraw")
def budget_withdraw(name: str, cluster: Cluster = None) -> None:
    """Remove a budget: nothing is limited by it any more."""
    from heliostat.meter.budget import withdraw
    from heliostat.sdk import Platform

    withdraw(Platform.connect(cluster).store, name)
    print_progress(f"{name} has no budget any more")


@budget.command("apply")
def budget_apply(
    definition: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], cluster: Cluster = None
) -> None:
    """Grant what a definition's `budgets` say; on an embedded cluster `up` does it."""
    import getpass
    import time

    from heliostat.definition import load
    from heliostat.meter.budget import apply_definition
    from heliostat.sdk import Platform

    store = Platform.connect(cluster).store
    changed = apply_definition(store, load(definition).budgets, who=getpass.getuser(), now=time.time())
    print_progress(f"granted: {', '.join(granted.key for granted in changed) or 'nothing new'}")


def _day(given: dt.datetime | None) -> dt.date | None:
    return given and given.date()


def _money(usd: float | None, digits: int = 2) -> str | None:
    return None if usd is None else f"{usd:,.{digits}f}"


def _share(share: float | None, of: str) -> str:
    return "-" if share is None else f"{share:.0%}: {of}"
