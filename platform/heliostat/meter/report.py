"""Reports over the ledger's rows: who had how much of what, and for how much money. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from heliostat.errors import UsageError
from heliostat.meter.facts import CLASSES, Place, Use
from heliostat.meter.ledger import PLACE_COLUMNS
from heliostat.meter.prices import GpuPrice, hourly

if TYPE_CHECKING:
    import pyarrow as pa

BY = ("team", "project", "job", "app", "group", "market", "instance", "zone", "day", "version", "user", "run", "class")
USEFUL = (Use.SERVING, Use.TRAINING)


@dataclass(frozen=True)
class Line:
    """One row of a report. `usd` counts the hours that have a price; `unpriced_gpu_seconds` tells of the others.

    `keys` are in the order of `Report.by`; None for what does not apply, such as the team of an unallocated GPU.
    """

    keys: tuple[str | None, ...]
    gpu_seconds: dict[str, float]  # by class, in the order of the classes; zero ones are left out
    usd: float = 0.0
    unpriced_gpu_seconds: float = 0.0
    overlap_gpu_seconds: float = 0.0

    @property
    def held(self) -> float:
        return sum(self.gpu_seconds.values())

    @property
    def useful(self) -> float:
        return sum(self.gpu_seconds.get(use.label, 0.0) for use in USEFUL)


@dataclass(frozen=True)
class Report:
    by: tuple[str, ...]
    lines: tuple[Line, ...]
    total: Line
    prices: tuple[GpuPrice, ...] = field(default=())

    def to_frame(self) -> Any:  # Any: pandas ships no types here
        """A pandas DataFrame: the keys, GPU-seconds by class, held, useful, USD. A row per line, without the total."""
        import pandas as pd

        return pd.DataFrame([_flat(self, line) for line in self.lines])

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        frame = self.to_frame()
        return str(frame.to_html(index=False, float_format="{:,.2f}".format, na_rep="", border=0))


def report(rows: pa.Table, *, by: Sequence[str] = ("group", "market"), prices: Sequence[GpuPrice] = ()) -> Report:
    """The rows by those dimensions, the largest first (days in order). Raises UsageError for an unknown dimension."""
    check_dimensions(by)
    table = with_money(with_keys(rows, by), prices)
    sums = table.group_by([*by, "use"]).aggregate([(name, "sum") for name in ("gpu_seconds", "usd", "unpriced")])
    lines = _lines(sums.to_pylist(), by)
    used = {(place.instance, place.market) for place in places(rows)}
    return Report(
        tuple(by),
        tuple(sorted(lines, key=lambda line: _place_in_report(by, line))),
        _sum(lines),
        tuple(price for price in prices if (price.instance, price.market) in used),
    )


def check_dimensions(by: Sequence[str]) -> None:
    """Raises UsageError with those that there are."""
    unknown = [name for name in by if name not in BY]
    if unknown or len(set(by)) < len(by) or not by:
        raise UsageError(
            f"cannot report by {', '.join(unknown or by) or 'nothing'}", do=f"each once of: {', '.join(BY)}"
        )


def columns_of(by: Sequence[str]) -> tuple[str, ...]:
    """The ledger's columns that a report by those dimensions needs."""
    own = {"job": ("kind", "name"), "app": ("kind", "name"), "run": ("kind", "version"), "day": (), "class": ()}
    needed = [column for name in by for column in own.get(name, (name,))]
    return tuple(dict.fromkeys(["hour", *PLACE_COLUMNS, *needed, "use", "gpu_seconds"]))


def places(rows: pa.Table) -> list[Place]:
    """All that occur in the rows."""
    distinct = rows.group_by(list(PLACE_COLUMNS)).aggregate([]).to_pylist()
    return [Place(**{name: row[name] for name in PLACE_COLUMNS}) for row in distinct]


def name_instances(rows: pa.Table, by_group: Mapping[str, str]) -> pa.Table:
    """With the instance of its group where a row does not name one, for nodes whose events did not know it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows["instance"].cast(pa.string())
    if not by_group or not pc.any(pc.equal(column, "")).as_py():
        return rows
    known = pa.array([by_group.get(group, "") for group in rows["group"].to_pylist()], type=pa.string())
    named = pc.if_else(pc.equal(column, ""), known, column).cast(pa.string())
    encoded = pc.dictionary_encode(named.combine_chunks() if isinstance(named, pa.ChunkedArray) else named)
    return rows.set_column(rows.column_names.index("instance"), "instance", encoded)


def _place_in_report(by: Sequence[str], line: Line) -> tuple[Any, ...]:  # Any: texts, then a number
    days = [key or "" for name, key in zip(by, line.keys, strict=True) if name == "day"]
    nobody = not any(line.keys)
    return (*days, nobody, -line.held, tuple(key or "" for key in line.keys))


def with_keys(rows: pa.Table, by: Sequence[str]) -> pa.Table:
    """With a column of each dimension."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in by:
        if name == "day":
            day = rows["hour"].combine_chunks() if rows.num_rows else pa.array([], type=pa.int64())
            rows = rows.append_column("day", pc.divide(day, 24))
        elif name in ("job", "app"):
            mine = pc.equal(rows["kind"].cast(pa.string()), name)
            rows = rows.append_column(name, pc.if_else(mine, rows["name"].cast(pa.string()), ""))
        elif name == "run":
            mine = pc.equal(rows["kind"].cast(pa.string()), "job")
            rows = rows.append_column(name, pc.if_else(mine, rows["version"].cast(pa.string()), ""))
        elif name == "class" and "use" in rows.column_names:
            rows = rows.append_column(name, rows["use"])
    return rows


def with_money(rows: pa.Table, prices: Sequence[GpuPrice]) -> pa.Table:
    """With `usd`, 0 where there is no price, and `unpriced`, the GPU-seconds of those."""
    import pyarrow as pa

    usd = np.full(rows.num_rows, np.nan)
    hours = rows["hour"].to_numpy()
    seconds = rows["gpu_seconds"].to_numpy()
    codes = np.zeros(rows.num_rows, dtype=np.int64)
    values: list[list[str]] = []
    for name in PLACE_COLUMNS:
        column = rows[name].combine_chunks()
        column = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
        values.append(column.dictionary.to_pylist())
        codes = codes * max(1, len(values[-1])) + column.indices.to_numpy(zero_copy_only=False)
    for code in np.unique(codes).tolist():
        which, rest, texts = np.flatnonzero(codes == code), code, []
        for names in reversed(values):
            rest, index = divmod(rest, max(1, len(names)))
            texts.append(names[index])
        usd[which] = hourly(prices, Place(*reversed(texts)), hours[which])
    priced = ~np.isnan(usd)
    rows = rows.append_column("usd", pa.array(np.where(priced, usd, 0.0) * seconds / 3600))
    return rows.append_column("unpriced", pa.array(np.where(priced, 0.0, seconds)))


def _lines(sums: list[dict[str, Any]], by: Sequence[str]) -> list[Line]:  # Any: texts and numbers
    grouped: dict[tuple[str | None, ...], list[dict[str, Any]]] = {}
    for row in sums:
        grouped.setdefault(keys_of(by, row), []).append(row)
    return [_line(keys, rows) for keys, rows in grouped.items()]


def keys_of(by: Sequence[str], row: dict[str, Any]) -> tuple[str | None, ...]:  # Any: as below
    """A row's keys as a line has them."""
    return tuple(_key(name, row[name]) for name in by)


def _key(name: str, value: Any) -> str | None:  # Any: a text, or a day since the epoch
    if name == "day":
        return f"{datetime.fromtimestamp(value * 86400, UTC):%Y-%m-%d}"
    return value or None


def _line(keys: tuple[str | None, ...], rows: list[dict[str, Any]]) -> Line:
    classed = [row for row in rows if row["use"] != Use.OVERLAP.label]
    seconds = {row["use"]: row["gpu_seconds_sum"] for row in classed}
    return Line(
        keys,
        {use.label: seconds[use.label] for use in CLASSES if abs(seconds.get(use.label, 0.0)) > 1e-6},
        sum(row["usd_sum"] for row in classed),
        sum(row["unpriced_sum"] for row in classed),
        sum(row["gpu_seconds_sum"] for row in rows if row["use"] == Use.OVERLAP.label),
    )


def _sum(lines: Sequence[Line]) -> Line:
    def seconds(use: Use) -> float:
        return sum(line.gpu_seconds.get(use.label, 0.0) for line in lines)

    return Line(
        (),
        {use.label: seconds(use) for use in CLASSES if abs(seconds(use)) > 1e-6},
        sum(line.usd for line in lines),
        sum(line.unpriced_gpu_seconds for line in lines),
        sum(line.overlap_gpu_seconds for line in lines),
    )


# --- forms


def _flat(made: Report, line: Line) -> dict[str, Any]:  # Any: texts and numbers
    return {
        **dict(zip(made.by, line.keys, strict=True)),
        **{use: line.gpu_seconds.get(use, 0.0) for use in columns(made)},
        "held": line.held,
        "useful": line.useful,
        "usd": line.usd,
        "unpriced": line.unpriced_gpu_seconds,
    }


def columns(made: Report) -> list[str]:
    """The classes that occur, in order."""
    return list(made.total.gpu_seconds)


def to_json(made: Report) -> dict[str, Any]:  # Any: JSON
    def line(each: Line) -> dict[str, Any]:
        return {
            **dict(zip(made.by, each.keys, strict=False)),
            "gpu_seconds": each.gpu_seconds,
            "held_gpu_seconds": each.held,
            "useful_share": each.useful / each.held if each.held else None,
            "usd": each.usd,
            "unpriced_gpu_seconds": each.unpriced_gpu_seconds,
            "overlap_gpu_seconds": each.overlap_gpu_seconds,
        }

    return {
        "by": list(made.by),
        "lines": [line(each) for each in made.lines],
        "total": line(made.total),
        "prices": list(made.prices),
    }


def to_csv(made: Report) -> str:
    """One line per row, GPU-seconds by class; the total is not in it, so that columns can be added up."""
    used = columns(made)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*made.by, "held_gpu_seconds", *(f"{use}_gpu_seconds" for use in used), "usd", "unpriced_gpu_seconds"]
    )
    for line in made.lines:
        figures = [line.held, *(line.gpu_seconds.get(use, 0.0) for use in used), line.usd, line.unpriced_gpu_seconds]
        writer.writerow([*(key or "" for key in line.keys), *(f"{figure:.6f}" for figure in figures)])
    return text.getvalue()
