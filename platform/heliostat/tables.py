"""Rows as notebooks show them: a list stays a list, and draws itself as a table where somebody looks at it."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Rows(list[T]):
    """A list of records of one kind; as HTML a table with a column for each of their fields."""

    def _repr_html_(self) -> str:
        if not self:
            return "<i>none</i>"
        names = [field.name for field in dataclasses.fields(cast("Any", self[0]))]
        return table(names, ([_shown(name, getattr(row, name)) for name in names] for row in self))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """An HTML table; every text is escaped, None is an empty cell, and numbers stand to the right."""
    head = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    about = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{about}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f'<td style="text-align: right">{shown}</td>'
    return f'<td style="text-align: left">{html.escape("" if value is None else str(value))}</td>'


def _shown(name: str, value: object) -> object:
    """Times as people read them."""
    if name.endswith("_at") and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
