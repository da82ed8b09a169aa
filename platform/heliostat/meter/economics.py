"""What the GPU-seconds came to: cost of a request, a token, a run; a month's use, savings and forecast. Pure."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import Line, check_dimensions, keys_of, report, with_keys

if TYPE_CHECKING:
    import pyarrow as pa

SPOT, ON_DEMAND = "spot", "on-demand"
FORECAST_DAYS = 7
"""The forecast goes by the last whole days, so many at most."""


@dataclass(frozen=True)
class UnitCost:
    """What one application, job or run did, and for how much. Costs are None where nothing was done or is priced."""

    keys: tuple[str | None, ...]
    gpu_hours: float
    usd: float | None
    requests: float = 0.0
    tokens: float = 0.0  # asked for and answered by an application, or trained on by a job
    steps: float = 0.0

    @property
    def usd_per_1000_requests(self) -> float | None:
        return None if self.usd is None or not self.requests else self.usd / self.requests * 1000

    @property
    def usd_per_million_tokens(self) -> float | None:
        return None if self.usd is None or not self.tokens else self.usd / self.tokens * 1e6

    @property
    def gpu_seconds_per_1000_requests(self) -> float | None:
        return None if not self.requests else self.gpu_hours * 3600 / self.requests * 1000


def unit_costs(
    rows: pa.Table, counts: pa.Table, *, by: Sequence[str] = ("app",), prices: Sequence[GpuPrice] = ()
) -> list[UnitCost]:
    """Of each application, job or run: all GPU time that it held, by what it did with it; the dearest first.

    By team, an application's time is that of answering the team alone: what it stood ready is nobody's.
    """
    made = report(rows, by=by, prices=prices)
    done: dict[tuple[str | None, ...], dict[str, float]] = {}
    for row in _counted(counts, by):
        sums = done.setdefault(keys_of(by, row), {})
        sums[row["what"]] = sums.get(row["what"], 0.0) + row["amount_sum"]
    costs = [_unit_cost(line, done.get(line.keys, {})) for line in made.lines if _named(by, line)]
    return sorted(costs, key=lambda cost: (-(cost.usd or 0.0), -cost.gpu_hours, cost.keys))


def _named(by: Sequence[str], line: Line) -> bool:
    """What is nobody's has no unit cost."""
    subjects = [key for name, key in zip(by, line.keys, strict=True) if name in ("app", "job", "run")]
    return any(subjects) or (not subjects and any(line.keys))


def _unit_cost(line: Line, done: dict[str, float]) -> UnitCost:
    priced = line.unpriced_gpu_seconds < line.held
    return UnitCost(
        line.keys,
        line.held / 3600,
        line.usd if priced else None,
        requests=done.get("requests", 0.0),
        tokens=done.get("tokens", 0.0) + done.get("trained_tokens", 0.0),
        steps=done.get("steps", 0.0),
    )


def _counted(counts: pa.Table, by: Sequence[str]) -> list[dict[str, Any]]:  # Any: texts and numbers
    check_dimensions(by)
    table = with_keys(counts, by)
    known = [name for name in by if name in table.column_names]
    rows: list[dict[str, Any]] = table.group_by([*known, "what"]).aggregate([("amount", "sum")]).to_pylist()
    return [{**dict.fromkeys(by), **row} for row in rows]


@dataclass(frozen=True)
class Forecast:
    """To the end of the month, at the pace of the last whole days; low and high at the pace of the least and the most
    of them."""

    usd: float
    gpu_hours: float
    low_usd: float
    high_usd: float
    low_gpu_hours: float
    high_gpu_hours: float
    days: int  # whole days that it goes by; 0: the hours of this one


@dataclass(frozen=True)
class Month:
    """One calendar month in UTC, so far."""

    month: str  # 2026-11
    gpu_hours: float
    usd: float
    unpriced_gpu_hours: float
    utilisation: float | None
    """Serving and useful training, of all that was held."""
    goodput: float | None
    """Useful training, of all that jobs held."""
    saved_by_spot_usd: float
    """Against the same GPUs' on-demand price, where both are known."""
    forecast: Forecast


def month(rows: pa.Table, *, now: float, prices: Sequence[GpuPrice] = (), unpriced_spot: float = 0.0) -> Month:
    """Of the month of `now`; `rows` may hold more."""
    today = datetime.fromtimestamp(now, UTC).date()
    rows = _of_month(rows, today)
    made = report(rows, by=["day"], prices=prices)
    total = made.total
    jobs = [line for line in report(rows, by=["job"]).lines if line.keys[0]]
    held = sum(line.held for line in jobs)
    trained = sum(line.gpu_seconds.get("training", 0.0) for line in jobs)
    return Month(
        f"{today:%Y-%m}",
        total.held / 3600,
        total.usd,
        total.unpriced_gpu_seconds / 3600,
        total.useful / total.held if total.held else None,
        trained / held if held else None,
        saved_by_spot(rows, prices),
        forecast(made.lines, now),
    )


def saved_by_spot(rows: pa.Table, prices: Sequence[GpuPrice]) -> float:
    """USD by which spot GPUs were cheaper than the same ones on demand, in the hours that both have a price."""
    spot = [line for line in report(rows, by=["market", "instance"], prices=prices).lines if line.keys[0] == SPOT]
    as_if = [replace(price, market=SPOT) for price in prices if price.market == ON_DEMAND]
    known = {price.instance for price in as_if} & {price.instance for price in prices if price.market == SPOT}
    dear = {line.keys: line for line in report(rows, by=["market", "instance"], prices=as_if).lines}
    return sum(dear[line.keys].usd - line.usd for line in spot if line.keys[1] in known)


def forecast(days: Sequence[Line], now: float) -> Forecast:
    """From a report by day of this month; a day without a line had nothing."""
    at = datetime.fromtimestamp(now, UTC)
    today = at.date()
    by_day = {str(line.keys[0]): line for line in days}
    whole = [
        today - timedelta(days=n) for n in range(1, FORECAST_DAYS + 1) if (today - timedelta(days=n)).day < today.day
    ]
    first = min((date.fromisoformat(day) for day in by_day), default=today)
    whole = [day for day in whole if day >= first]  # before the first day there was no cluster
    passed = (at - datetime.combine(today, datetime.min.time(), UTC)) / timedelta(days=1)
    left = calendar.monthrange(today.year, today.month)[1] - today.day + 1 - passed

    def ends(value: Any) -> tuple[float, float, float]:  # Any: a function of a line
        so_far = sum(value(line) for line in days)
        paces = [value(by_day[str(day)]) if str(day) in by_day else 0.0 for day in whole]
        if not paces and str(today) in by_day and passed > 0:
            paces = [value(by_day[str(today)]) / passed]
        paces = paces or [0.0]
        middle = sum(paces) / len(paces)
        return so_far + middle * left, so_far + min(paces) * left, so_far + max(paces) * left

    usd, low, high = ends(lambda line: line.usd)
    hours, low_hours, high_hours = ends(lambda line: line.held / 3600)
    return Forecast(usd, hours, low, high, low_hours, high_hours, len(whole))


def _of_month(rows: pa.Table, today: date) -> pa.Table:
    import pyarrow.compute as pc

    first = (today.replace(day=1) - date(1970, 1, 1)).days * 24
    return rows.filter(pc.greater_equal(rows["hour"], first))
