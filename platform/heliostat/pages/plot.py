"""Plots as inline SVG that stretches with the page; their words are HTML beside it, so that they never shrink.

Each has a text for those who do not see it, and its figures in a table below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.pages.html import Html, Part, join, tag
from heliostat.pages.look import Family

FILLED = 0.72
"""Of a column's place, what its bar takes."""


@dataclass(frozen=True)
class Column:
    """One bar of a plot over time. `parts`: amounts by family, from the bottom up."""

    label: str
    full: str  # the label in a sentence
    parts: Sequence[tuple[Family, float]]

    @property
    def total(self) -> float:
        return sum(amount for _, amount in self.parts)


def stacked_columns(columns: Sequence[Column], *, unit: str, what: str) -> Html:
    """Bars over time, each stacked from the bottom up. `unit` such as "GPU-hours"."""
    top = nice(max((column.total for column in columns), default=0.0))
    count = max(1, len(columns))
    shapes: list[Html] = [tag("line", class_="grid", x1=0, x2=count, y1=1 - y, y2=1 - y) for y in (0.0, 0.5, 1.0)]
    for index, column in enumerate(columns):
        shapes.append(_column(index, column, top, unit))
    ticks = tag("div", *(tag("span", amount(top * share)) for share in (1.0, 0.5, 0.0)), class_="y", aria_hidden="true")
    every = max(1, math.ceil(count / 14))
    labels = [
        tag("span", column.label if index % every == 0 else "", class_="often" if _is_often(index, count) else None)
        for index, column in enumerate(columns)
    ]
    drawing = tag(
        "svg", *shapes, viewBox=f"0 0 {count} 1", preserveAspectRatio="none", role="img",
        aria_label=f"{what}: {_in_words(columns, unit)}",
    )  # fmt: skip
    plot = tag("div", ticks, drawing, tag("div", *labels, class_="x", aria_hidden="true"), class_="plot")
    return tag("figure", tag("figcaption", unit), plot)


def _is_often(index: int, count: int) -> bool:
    """Whether a narrow screen leaves the label out."""
    return count > 6 and index % math.ceil(count / 5) != 0


def _column(index: int, column: Column, top: float, unit: str) -> Html:
    base, shapes = 0.0, []
    for family, value in column.parts:
        if value > 0 and top > 0:
            height = value / top
            shapes.append(
                tag("rect", class_=f"c-{family.colour}", x=index + (1 - FILLED) / 2, width=FILLED,
                    y=f"{1 - base - height:.5f}", height=f"{height:.5f}")
            )  # fmt: skip
            base += height
    parts = ", ".join(f"{family.name.lower()} {amount(value)}" for family, value in column.parts if value > 0)
    return tag("g", tag("title", f"{column.full}: {amount(column.total)} {unit} ({parts or 'none'})"), *shapes)


def _in_words(columns: Sequence[Column], unit: str) -> str:
    if not columns:
        return "nothing yet"
    most = max(columns, key=lambda column: column.total)
    total = sum(column.total for column in columns)
    return f"{amount(total)} {unit} in all, most in {most.full} with {amount(most.total)}"


def share_bar(parts: Sequence[tuple[Family, float]], *, of: float | None = None, label: str) -> Html:
    """One bar, as wide as its share of `of` (its own sum, where none is given)."""
    total = of or sum(value for _, value in parts) or 1.0
    pieces = [
        tag("i", class_=f"c-{family.colour}", style=f"width:{100 * value / total:.3f}%")
        for family, value in parts
        if value > 0
    ]
    return tag("div", *pieces, class_="bar", role="img", aria_label=label)


def legend(parts: Sequence[tuple[Family, float]], *, total: float) -> Html:
    """The families with their shares."""
    items = [
        tag("li", tag("i", class_=f"c-{family.colour}"), tag("b", family.name), f" {percent(value, total)}")
        for family, value in parts
    ]
    return tag("ul", *items, class_="legend")


def spark(values: Sequence[float], *, label: str) -> Html | None:
    """A small line; None for fewer than two points."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = [
        f"{100 * i / (len(values) - 1):.2f},{20 - 20 * (value - low) / span:.2f}" for i, value in enumerate(values)
    ]
    return tag(
        "svg", tag("path", d="M" + " L".join(points)), class_="spark", viewBox="0 0 100 20", preserveAspectRatio="none",
        role="img", aria_label=label,
    )  # fmt: skip


def slots(used: int, free: int, starting: int, absent: int, *, label: str) -> Html:
    """One square for each GPU; a bar's worth of squares at most."""
    kinds = ["used"] * used + ["free"] * free + ["starting"] * starting + ["absent"] * absent
    return tag("div", *(tag("i", class_=kind) for kind in kinds[:48]), class_="slots", role="img", aria_label=label)


def table(
    head: Sequence[str], rows: Sequence[Sequence[Part]], *, caption: str, numbers: Sequence[int] = (),
    bars: Sequence[int] = (), foot: Sequence[Part] = (), plain: bool = False,
) -> Html:  # fmt: skip
    """`numbers`: columns set to the right; `bars`: columns of bars. The first column names its row.

    On a narrow screen a row becomes a block with a line for each cell, but for a `plain` table, which scrolls. The
    roles say what the blocks would no longer say by themselves.
    """

    def classes(index: int) -> str | None:
        return "n" if index in numbers else "b" if index in bars else None

    def cells(row: Sequence[Part]) -> list[Html]:
        first = tag("th", row[0], scope="row", role="rowheader", class_=classes(0))
        return [
            first,
            *(
                tag("td", _whole(cell), role="cell", class_=classes(i), data_label=head[i])
                for i, cell in enumerate(row)
                if i
            ),
        ]

    heads = (tag("th", text, scope="col", role="columnheader", class_=classes(i)) for i, text in enumerate(head))
    parts = [
        tag("thead", tag("tr", *heads, role="row"), role="rowgroup"),
        tag("tbody", *(tag("tr", *cells(row), role="row") for row in rows), role="rowgroup"),
    ]
    parts += [tag("tfoot", tag("tr", *cells(foot), role="row"), role="rowgroup")] if foot else []
    inner = tag("table", *parts, role="table", aria_label=caption, class_=None if plain else "stack")
    # A table that is wider than the screen is scrolled, by keyboard too.
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _whole(cell: Part) -> Part:
    """A cell's parts as one, so that they stay together beside its label."""
    return None if cell is None else tag("div", cell)


def folded(summary: str, content: Html) -> Html:
    return tag("details", tag("summary", summary), content)


def empty(what: str, do: str | None = None) -> Html:
    """What a section says that has nothing: and the command that changes it."""
    return tag("p", what, *([" ", tag("code", do)] if do else []), class_="empty")


def state(word: str, kind: str) -> Html:
    """A word with a dot before it; the word tells what the colour tells. `kind`: good, warn, bad, open."""
    return tag("span", word, class_=f"state {kind}")


def two_lines(first: Part, second: Part) -> Html:
    return join(first, tag("span", second, class_="sub")) if second else join(first)


# --- figures


def nice(most: float) -> float:
    """The top of an axis, at least `most`: a round number, and so is its half."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * power >= most * 0.9999)


def amount(value: float) -> str:
    """Three figures or so: 12,345; 123; 12.3; 1.23; 0.004."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}".removesuffix(".0")
    if size >= 0.01:
        return f"{value:.2f}".removesuffix("0").removesuffix(".0")
    return f"{value:.1g}"


def percent(part: float, whole: float) -> str:
    if not whole:
        return "-"
    share = part / whole
    if 0 < share < 0.01:
        return f"{share:.1%}" if share >= 0.001 else "<0.1%"
    return f"{share:.0%}"


def money(usd: float | None) -> str:
    if usd is None:
        return "-"
    return f"${usd:,.0f}" if abs(usd) >= 1000 else f"${usd:,.2f}"
