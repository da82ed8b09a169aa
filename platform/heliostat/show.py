"""How results look: tables for people, `--json` for machines, progress and errors on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliostat.errors import HeliostatError
    from heliostat.meter.report import Line, Report


def print_json(value: Any) -> None:  # Any: whatever a command returns
    print(json.dumps(plain(value), indent=1))  # noqa: T201  # stdout is where results go


def plain(value: Any) -> Any:
    """Dataclasses, pydantic models and paths as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        whole = all(
            " " not in _cell(row[index]) for row in rows
        )  # names and figures, which nobody can copy in two parts
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    least = console.measure(table, options=console.options.update(max_width=10_000)).minimum
    if not console.is_terminal:
        console.width = max(140, least)  # a file or a pipe has no width; 80 would fold the figures
    elif least > console.width:  # rather in two parts than cut off
        for made in table.columns:
            made.no_wrap = False
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return "-" if value is None else str(value)


def print_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def write_page(path: Path, page: str) -> None:
    """Raises UsageError where the file cannot be written."""
    from heliostat.errors import UsageError

    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the page cannot be written: {error.strerror}", where=str(path), do="name a file in a folder that exists"
        ) from error
    print_progress(f"written to {path}; open it in a browser")


def print_error(error: HeliostatError) -> None:
    print(f"error: {error.what}", file=sys.stderr)  # noqa: T201
    if error.where:
        print(f"  where: {error.where}", file=sys.stderr)  # noqa: T201
    if error.do:
        print(f"  do:    {error.do}", file=sys.stderr)  # noqa: T201


def print_report(made: Report) -> None:
    """GPU-seconds, or GPU-hours where there are many; warnings on stderr."""
    from heliostat.meter.report import columns

    hours = made.total.held >= 100 * 3600
    unit = 3600 if hours else 1
    used = columns(made)

    def cells(line: Line, keys: tuple[str | None, ...]) -> tuple[object, ...]:
        usd = f"{line.usd:,.2f}" if line.held - line.unpriced_gpu_seconds > 1e-6 or line.usd else None
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
