"""heliostat cost idle and cost advise: GPUs that do no useful work, and what another set-up would save."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.meter.waste import Finding, Told


def cost_idle(
    after: Annotated[str | None, typer.Option(help="Another window than the definition's, such as 20m.")] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """What is held and does no useful work: evidence, GPU-hours and money so far, and what is done about it."""
    from heliostat.sdk import Platform

    found = Platform.connect(cluster).idle(after=after)
    if json:
        print_json(found)
        return
    rules = found.rules
    if not found.findings:
        print_progress(f"no GPU that is held has been without useful work for {rules.after}")
        return
    print_table(
        ("what", "name", "group", "GPUs", "GPU-h", "USD", "evidence", "done about it"),
        [
            (f.kind, f.name, f.group, f.gpus, f"{f.gpu_hours:,.2f}", _usd(f.usd), f.evidence,
             _done(f, found.told.get(f.id), dry=rules.dry_run))
            for f in found.findings
        ],
    )  # fmt: skip
    print_progress(
        f"{found.gpu_hours:,.2f} GPU-hours{_money(found.usd)} so far. The rules are in the definition, under `waste`: "
        f"after {rules.after}, {rules.act}{' (dry run)' if rules.dry_run else ''}"
    )


def cost_advise(
    days: Annotated[int, typer.Option(min=1, max=400, help="So many days back.")] = 30,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """What the measured use says about each group: too large, too idle, the wrong market, worth reserving."""
    from heliostat.sdk import Platform

    found = Platform.connect(cluster).advice(days=days, progress=print_progress)
    if json:
        print_json(found)
        return
    if not found:
        print_progress(
            "nothing to advise: looked for idle groups, cards too large, MIG, the wrong market and reservations"
        )
        return
    print_table(
        ("what was measured", "why", "do", "USD a month"),
        [(each.what, each.why, each.do, _usd(each.usd_per_month)) for each in found],
    )


def _usd(usd: float | None) -> str | None:
    return None if usd is None else f"{usd:,.2f}"


def _money(usd: float | None) -> str:
    return "" if usd is None else f", {usd:,.2f} USD"


def _done(finding: Finding, told: Told | None, *, dry: bool) -> str:
    if finding.exempt_until is not None:
        return f"left alone until {finding.exempt_until}"
    if told is None:
        return "nothing yet"
    would = "would be " if dry else ""
    if told.acted_at is not None:
        word = "at zero" if finding.act == "scale to zero" else "stopped"
        return f"{would}{word} since {_clock(told.acted_at)}"
    if told.warned_at is not None:
        return f"warned at {_clock(told.warned_at)}"
    return f"told at {_clock(told.found_at)}"


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"
