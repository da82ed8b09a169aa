"""The page of where the GPU time went, and for how much: the report as plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from heliostat.meter.advise import Advice
from heliostat.meter.facts import CLASSES
from heliostat.meter.report import Line, Report
from heliostat.meter.waste import Finding
from heliostat.pages.html import Html, join
from heliostat.pages.look import Family, family_sums, page
from heliostat.pages.plot import (
    Column,
    amount,
    empty,
    folded,
    legend,
    money,
    percent,
    share_bar,
    stacked_columns,
    table,
    two_lines,
)
from heliostat.pages.status import waste_list

_NOBODY = {"team": "nobody's", "project": "nobody's", "job": "no job", "app": "no application", "user": "nobody's"}
_MEANING = {
    "serving": "answering requests",
    "training": "steps that the result is made of",
    "recomputed": "steps done a second time, and what a loss took",
    "checkpoint": "steps that waited for a checkpoint",
    "loading": "from the start of a worker or replica until it could work",
    "waiting": "for data, or for other workers",
    "reserved": "held by somebody who did nothing with it",
    "unallocated": "free to be given away",
    "starting": "nodes that started or stopped",
    "unexplained": "nothing tells",
}


def cost_page(
    made: Report,
    days: Report,
    *,
    cluster: str,
    since: date | None = None,
    until: date | None = None,
    waste: Sequence[Finding] = (),
    advice: Sequence[Advice] = (),
) -> str:
    """The document. `made` by the dimensions that were asked for, `days` by day and over the same time."""
    total = made.total
    first, last = _range(days, since, until)
    sections = [
        ("days", "By day", _days(days)),
        ("by", f"By {' and '.join(made.by)}", _by(made)),
        ("classes", "By class", _classes(total)),
        ("idle", "Idle and waste", waste_list(waste)),
        ("advice", "Advice", _advice(advice)),
        ("prices", "Prices", _prices(made)),
    ]
    priced = total.held - total.unpriced_gpu_seconds > 1e-6
    return page(
        "Where the GPU time went",
        f"Cluster {cluster}, {first}" + (f" to {last}." if last != first else "."),
        sections,
        figures=[
            (amount(total.held / 3600), "GPU-hours held"),
            (percent(total.useful, total.held), "of them useful"),
            (money(total.usd if priced else None), "spent"),
            (percent(total.gpu_seconds.get("unexplained", 0.0), total.held), "unexplained"),
        ],
        foot="Made by heliostat cost report --html. Every GPU-second is in exactly one class; days are in UTC.",
    )


def _range(days: Report, since: date | None, until: date | None) -> tuple[str, str]:
    keys = sorted(line.keys[0] or "" for line in days.lines)
    first = since.isoformat() if since else (keys[0] if keys else "")
    last = until.isoformat() if until else (keys[-1] if keys else "")
    return (_day(first), _day(last)) if first and last else ("no day yet", "no day yet")


def _day(text: str) -> str:
    day = date.fromisoformat(text)
    return f"{day.day} {day:%B %Y}"


def _in_hours(line: Line) -> list[tuple[Family, float]]:
    return [(family, seconds / 3600) for family, seconds in family_sums(line.gpu_seconds)]


def _days(days: Report) -> Html:
    if not days.total.held:
        return empty("No GPU time was counted in these days. It is once a group has nodes; start work with",
                     "heliostat job submit NAME")  # fmt: skip
    columns = []
    for line in days.lines:
        day = date.fromisoformat(line.keys[0] or "1970-01-01")
        columns.append(Column(f"{day.day} {day:%b}", _day(day.isoformat()), _in_hours(line)))
    names = [family.name for family, _ in _in_hours(days.total)]
    rows = [
        (column.full, *(amount(value) for _, value in column.parts), amount(column.total), money(line.usd or None))
        for column, line in zip(columns, days.lines, strict=True)
    ]
    head = ("Day", *names, "All", "Money")
    return join(
        stacked_columns(columns, unit="GPU-hours", what="GPU time by day"),
        legend(_in_hours(days.total), total=days.total.held / 3600),
        folded("The figures", table(head, rows, caption="GPU-hours by day", numbers=range(1, len(head)), plain=True)),
    )


def _by(made: Report) -> Html:
    if not made.lines:
        return empty("Nothing to divide yet.")
    most = max(line.held for line in made.lines)
    rows = [
        (_keys(made.by, line), _line_bar(line, most), amount(line.held / 3600),
         percent(line.useful, line.held), money(line.usd if line.usd or not line.unpriced_gpu_seconds else None))
        for line in made.lines
    ]  # fmt: skip
    total = made.total
    foot = ("All", None, amount(total.held / 3600), percent(total.useful, total.held), money(total.usd or None))
    what = f"GPU-hours by {' and '.join(made.by)}, the largest first"
    return table(
        (" and ".join(made.by).capitalize(), "", "GPU-hours", "Useful", "Money"), rows, caption=what,
        numbers=(2, 3, 4), bars=(1,), foot=foot,
    )  # fmt: skip


def _keys(by: Sequence[str], line: Line) -> Html:
    if not any(line.keys):
        return join("Nobody's")
    texts = [key or _NOBODY.get(name, "unknown") for name, key in zip(by, line.keys, strict=True)]
    return two_lines(texts[0], ", ".join(texts[1:]) or None)


def _line_bar(line: Line, most: float) -> Html:
    parts = [part for part in _in_hours(line) if part[1] > 0]
    said = ", ".join(f"{family.name.lower()} {percent(hours * 3600, line.held)}" for family, hours in parts)
    return share_bar(parts, of=most / 3600, label=said or "nothing")


def _classes(total: Line) -> Html:
    if not total.held:
        return empty("No GPU-second was counted yet.")
    colour = {use.label: family for family, _ in family_sums({}) for use in family.uses}
    rows = []
    for use in CLASSES:
        seconds = total.gpu_seconds.get(use.label, 0.0)
        if seconds > 0:
            bar = share_bar([(colour[use.label], seconds)], of=total.held, label=percent(seconds, total.held))
            rows.append((two_lines(use.label.capitalize(), _MEANING[use.label]), bar, amount(seconds / 3600),
                         percent(seconds, total.held)))  # fmt: skip
    return table(("Class", "", "GPU-hours", "Share"), rows, caption="GPU-hours by class", numbers=(2, 3), bars=(1,))


def _advice(advice: Sequence[Advice]) -> Html:
    if not advice:
        return empty(
            "Nothing to advise from what was measured. What is looked at is listed by", "heliostat cost advise"
        )
    rows = [
        (two_lines(each.what, each.why), each.do, two_lines(money(each.usd_per_month), "a month")) for each in advice
    ]
    return table(("What was measured", "What to do", "Saves"), rows, caption="Advice", numbers=(2,))


def _prices(made: Report) -> Html:
    notes: list[Html] = []
    if made.total.unpriced_gpu_seconds > 1e-6:
        hours = amount(made.total.unpriced_gpu_seconds / 3600)
        notes.append(empty(f"{hours} GPU-hours have no price: name the group's instance in the definition, or give",
                           "--prices FILE"))  # fmt: skip
    if made.prices:
        rows = [
            (two_lines(price.instance, price.market), f"${price.usd_per_gpu_hour:,.4g}",
             two_lines(price.date, price.source))
            for price in made.prices
        ]  # fmt: skip
        notes.append(table(("Machine", "A GPU-hour", "Known since, and from"), rows, caption="Prices", numbers=(1,)))
    return join(*notes) if notes else empty("No price was needed.")
