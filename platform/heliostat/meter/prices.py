"""What a GPU costs an hour: by instance, market, zone and hour. Prices are passed in, each with source and date."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np

from heliostat.errors import UsageError
from heliostat.meter.facts import Floats, Ints, Place
from heliostat.plan.catalogue import Catalogue, load

COLUMNS = ("instance", "market", "zone", "since", "usd_per_gpu_hour", "source", "date")


@dataclass(frozen=True)
class GpuPrice:
    """USD for one GPU of the instance an hour, from an hour on. An empty zone: wherever no other price is given."""

    instance: str
    market: str
    usd_per_gpu_hour: float
    source: str
    date: str
    zone: str = ""
    since: int = 0  # hours since the epoch


def hourly(prices: Sequence[GpuPrice], place: Place, hours: Ints) -> Floats:
    """The price in force in each hour, NaN where none is known. Hours before the first price have the first."""
    same = [price for price in prices if (price.instance, price.market) == (place.instance, place.market)]
    there = [price for price in same if price.zone == place.zone] or [price for price in same if not price.zone]
    if not there:
        return np.full(len(hours), np.nan)
    there = sorted(there, key=lambda price: price.since)
    index = np.searchsorted(np.array([price.since for price in there]), hours, side="right") - 1
    return np.array([price.usd_per_gpu_hour for price in there])[np.maximum(index, 0)]


def from_catalogue(places: Iterable[Place], catalogue: Catalogue | None = None) -> list[GpuPrice]:
    """The catalogue's price of each instance and market, as far as it has one; reserved machines have none there.

    Of a spot machine its price on demand as well: what it saves is told by it.
    """
    catalogue = catalogue or load()
    known = {instance.name: instance for instance in catalogue.instances}
    found = []
    wanted = {(place.instance, place.market) for place in places}
    wanted |= {(name, "on-demand") for name, market in wanted if market == "spot"}
    for name, market in sorted(wanted):
        instance = known.get(name)
        if instance is None or market not in ("on-demand", "spot"):
            continue
        price = catalogue.price(instance, "spot" if market == "spot" else "on-demand")
        if price is not None and instance.accelerators > 0:
            usd = float(price.usd_per_hour) / instance.accelerators
            found.append(GpuPrice(name, market, usd, price.source, price.date))
    return found


def read_prices(path: Path) -> list[GpuPrice]:
    """A CSV file with the columns of COLUMNS; `since` is a day or a time in UTC, may be empty, and zone too.

    Raises UsageError that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the prices cannot be read: {error.strerror}", where=str(path)) from error
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(
            f"no column {missing[0]!r}", where=f"{path}, line 1", do=f"write the header {','.join(COLUMNS)}"
        )
    prices = []
    for line, row in enumerate(reader, start=2):
        try:
            prices.append(_price(row))
        except (ValueError, TypeError) as error:
            raise UsageError(f"a price that cannot be read: {error}", where=f"{path}, line {line}") from error
    return prices


def _price(row: dict[str, str]) -> GpuPrice:
    usd = float(row["usd_per_gpu_hour"])
    if not 0 <= usd < 1e6:
        raise ValueError(f"{row['usd_per_gpu_hour']} USD is no price")
    if not row["source"] or not row["date"]:
        raise ValueError("no source or no date")
    date.fromisoformat(row["date"])
    return GpuPrice(row["instance"], row["market"], usd, row["source"], row["date"], row["zone"], _hour(row["since"]))


def _hour(text: str) -> int:
    if not text:
        return 0
    at = datetime.fromisoformat(text) if len(text) > 10 else datetime.combine(date.fromisoformat(text), time())
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() // 3600)
