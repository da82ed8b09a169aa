"""Requests over time: read from a CSV file, or drawn with a seed.

Two forms of file, told apart by the header. `at_s,app` with an optional `work_s` (model time of the request) has one
line per request; `minute,app,requests` has one line per minute and application, those without requests may be left
out. Times count from the start of the simulation.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import UsageError

Shape = Literal["steady", "diurnal", "bursty"]
MINUTE_S = 60.0
DAY_MINUTES = 1440


@dataclass(frozen=True, eq=False)
class Traffic:
    """One application's requests."""

    per_minute: NDArray[np.int64]
    """[minutes]"""
    at_s: NDArray[np.float64] | None = None
    """[requests], in order, where single ones are known."""
    work_s: NDArray[np.float64] | None = None
    """[requests] model time of each; NaN where it is to be drawn."""

    @property
    def requests(self) -> int:
        return int(self.per_minute.sum())


def arrivals(traffic: Traffic, random: np.random.Generator) -> Iterator[tuple[float, float]]:
    """(when, work in seconds or NaN) of each request, in order. Counts of a minute are spread over it at random, which
    is what a Poisson stream given its count is."""
    if traffic.at_s is not None:
        work = traffic.work_s if traffic.work_s is not None else np.full(len(traffic.at_s), np.nan)
        yield from zip(traffic.at_s.tolist(), work.tolist(), strict=True)
        return
    for minute, requests in enumerate(traffic.per_minute.tolist()):
        for at in np.sort(random.random(requests)).tolist():
            yield (minute + at) * MINUTE_S, math.nan


def draw(
    shape: Shape, *, requests_per_s: float, days: float, seed: int, swing: float = 0.6, burst: float = 4.0
) -> Traffic:
    """Poisson counts whose rate is `shape`: steady; diurnal, a sine with its top at 15:00 that swings by that share;
    bursty, the same and now and then, for some 10 minutes, `burst` times as much. The same arguments draw the same.
    """
    if requests_per_s <= 0 or days <= 0:
        raise UsageError(f"{requests_per_s:g} requests/s for {days:g} days", do="give numbers above 0")
    random = np.random.default_rng(seed)
    minutes = np.arange(max(1, math.ceil(days * DAY_MINUTES)))
    rate = np.full(len(minutes), requests_per_s * MINUTE_S)
    if shape != "steady":
        rate *= 1 + swing * np.sin(2 * np.pi * (minutes / DAY_MINUTES - 0.375))
    if shape == "bursty":
        rate *= np.where(_bursts(len(minutes), random), burst, 1.0)
    return Traffic(random.poisson(rate))


def _bursts(minutes: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """[minutes] whether in a burst: one in four hours, 10 minutes long, both exponential."""
    inside, at = np.zeros(minutes, dtype=bool), 0.0
    while at < minutes:
        at += random.exponential(240)
        length = 1 + random.exponential(9)
        inside[int(at) : int(at + length)] = True
        at += length
    return inside


_MOST = 10**12


def read_traffic(path: Path, *, days: float, apps: set[str]) -> dict[str, Traffic]:
    """By application; those that the file does not name have no requests. Raises UsageError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the requests cannot be read: {error}", where=str(path)) from error
    reader = csv.DictReader(lines)
    columns = set(reader.fieldnames or ())
    single = {"at_s", "app"} <= columns
    if not single and not {"minute", "app", "requests"} <= columns:
        raise UsageError(
            f"the header is {','.join(reader.fieldnames or ()) or 'missing'}",
            where=f"{path}, line 1",
            do="write at_s,app or at_s,app,work_s for single requests, or minute,app,requests for counts",
        )
    rows: dict[str, list[tuple[float, float]]] = {app: [] for app in apps}
    for row in reader:
        try:
            name = row["app"]
            if name not in rows:
                raise ValueError(f"application {name!r} is not in the definition; it has {', '.join(sorted(apps))}")
            rows[name].append(_single(row) if single else _count(row))
        except (ValueError, TypeError) as error:
            raise UsageError(f"a line that cannot be read: {error}", where=f"{path}, line {reader.line_num}") from error
    minutes = max(1, math.ceil(days * DAY_MINUTES))
    return {name: (_of_singles if single else _of_counts)(found, minutes, days) for name, found in rows.items()}


def _single(row: Mapping[str, str]) -> tuple[float, float]:
    work = float(row["work_s"]) if row.get("work_s") else math.nan
    if not float(row["at_s"]) >= 0 or not math.isfinite(float(row["at_s"])) or work <= 0 or math.isinf(work):
        raise ValueError(f"at_s {row['at_s']}, work_s {row.get('work_s')}: times from 0, work above 0")
    return float(row["at_s"]), work


def _count(row: Mapping[str, str]) -> tuple[float, float]:
    minute, requests = int(row["minute"]), int(row["requests"])
    if not (0 <= minute < _MOST and 0 <= requests < _MOST):
        raise ValueError(f"minute {minute}, requests {requests}: both from 0, and below {_MOST:.0e}")
    return minute, requests


def _of_singles(rows: list[tuple[float, float]], minutes: int, days: float) -> Traffic:
    found = np.array(sorted(row for row in rows if row[0] < days * 86400), dtype=np.float64).reshape(-1, 2)
    per_minute = np.bincount((found[:, 0] // MINUTE_S).astype(np.int64), minlength=minutes)
    return Traffic(per_minute, found[:, 0], found[:, 1])


def _of_counts(rows: list[tuple[float, float]], minutes: int, days: float) -> Traffic:
    per_minute = np.zeros(minutes, dtype=np.int64)
    for minute, requests in rows:
        if minute < minutes:
            per_minute[int(minute)] += int(requests)
    return Traffic(per_minute)
