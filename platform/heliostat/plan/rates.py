"""What renting costs besides the hour: risk of spot, commitments, capacity blocks, lead times, storage and transfer.

The tables lie in `data/`, each row with its source and date, as those of catalogue.py. Live sources (live.py) put
better rows in front of them.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Literal

from heliostat.plan.catalogue import Price, dated, read_table, since

Kind = Literal["reserved-1y", "reserved-3y", "capacity-block"]

HOURS_A_MONTH = 730.0
TERM_DAYS: Mapping[str, int] = {"reserved-1y": 365, "reserved-3y": 1095}
BLOCK_AHEAD_DAYS = 56
"""A capacity block can be bought for a start up to eight weeks ahead (EC2 user guide)."""
BLOCK_INSTANCES = 64
"""Of one block (EC2 user guide)."""


@dataclass(frozen=True)
class SpotRisk:
    """The share of an instance type's spot machines that is reclaimed in a month: between `low` and `high`."""

    cloud: str
    instance: str
    region: str
    low: float
    high: float
    source: str
    date: str
    note: str = ""

    @property
    def per_hour(self) -> float:
        """Reclaims of one machine an hour, at the upper end: 1 - exp(-rate x month) = share."""
        return -math.log1p(-self.high) / HOURS_A_MONTH


@dataclass(frozen=True)
class Commitment:
    """What is paid for a term or a block, used or not: USD an hour of one machine, or a share of its on-demand price.

    `instance` and `region` empty: any of the cloud. A block may name its dates; then it is one that is on offer.
    """

    cloud: str
    kind: Kind
    instance: str
    region: str
    usd_per_hour: Decimal | None
    share_of_on_demand: Decimal | None
    source: str
    date: str
    note: str = ""
    zone: str = ""
    start: str = ""
    end: str = ""
    offering: str = ""

    @property
    def is_indicative(self) -> bool:
        return "indicative" in self.note

    def price(self, on_demand: Price | None) -> Decimal | None:
        """USD an hour of one machine; None where it hangs on an on-demand price that is not known."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        if on_demand is None or self.share_of_on_demand is None:
            return None
        return on_demand.usd_per_hour * self.share_of_on_demand

    def age_days(self, today: dt.date) -> int:
        return max(0, (today - since(self.date)).days)


@dataclass(frozen=True)
class LeadTime:
    """Days that something takes once it was asked for, usually."""

    cloud: str
    what: str
    low_days: int
    high_days: int
    source: str
    date: str
    note: str = ""


@dataclass(frozen=True)
class Transfer:
    """USD a GB (10**9 bytes): moved between regions or to the internet, or stored for a month."""

    cloud: str
    what: Literal["between-regions", "to-internet", "storage"]
    usd: Decimal
    source: str
    date: str
    note: str = ""


@dataclass(frozen=True)
class Rates:
    """All tables; the first row that suits wins."""

    risks: tuple[SpotRisk, ...]
    commitments: tuple[Commitment, ...]
    lead_times: tuple[LeadTime, ...]
    transfers: tuple[Transfer, ...]

    def risk(self, cloud: str, instance: str, region: str) -> SpotRisk | None:
        """Of the region, else of another one of the cloud; None where nothing is known."""
        same = [risk for risk in self.risks if (risk.cloud, risk.instance) == (cloud, instance)]
        return next((risk for risk in same if risk.region == region), same[0] if same else None)

    def committed(self, cloud: str, instance: str, region: str) -> tuple[Commitment, ...]:
        """Of each kind the first that names the instance and the region, else the first that names neither.

        Capacity blocks with dates are all kept: each is another one.
        """
        found: dict[tuple[str, str], Commitment] = {}
        for row in sorted(self.commitments, key=lambda row: (not row.instance, not row.region)):
            if row.cloud == cloud and row.instance in ("", instance) and row.region in ("", region):
                found.setdefault((row.kind, row.start), row)
        dated_blocks = any(start for kind, start in found if kind == "capacity-block")
        return tuple(
            row for (kind, start), row in found.items() if kind != "capacity-block" or start or not dated_blocks
        )

    def lead(self, cloud: str, what: str) -> LeadTime | None:
        return next((row for row in self.lead_times if (row.cloud, row.what) == (cloud, what)), None)

    def transfer(self, cloud: str, what: str) -> Transfer | None:
        return next((row for row in self.transfers if (row.cloud, row.what) == (cloud, what)), None)

    def with_commitments(self, rows: Iterable[Commitment]) -> Rates:
        """With rows in front of the table's: what an account was told beats what was read."""
        return replace(self, commitments=(*rows, *self.commitments))


@cache
def load_rates() -> Rates:
    """The tables of the package. Raises UsageError that names file and line of a bad row."""
    return Rates(
        risks=tuple(read_table("spot_risk.csv", _risk)),
        commitments=tuple(read_table("commitments.csv", _commitment)),
        lead_times=tuple(read_table("lead_times.csv", _lead_time)),
        transfers=tuple(read_table("transfer.csv", _transfer)),
    )


def break_even(committed: Decimal, on_demand: Decimal) -> Decimal:
    """The share of the term that a machine must be in use for the commitment to cost no more than on-demand.

    committed / on-demand: the commitment is paid all the time, on-demand only while in use. Above 1 it never pays.
    """
    return committed / on_demand


@dataclass(frozen=True)
class Move:
    """What it costs to work in another place than where the data lies. USD; the copy is paid once."""

    copy: Decimal
    storage_a_month: Decimal
    how: str

    @property
    def first_month(self) -> Decimal:
        return self.copy + self.storage_a_month


def move(rates: Rates, *, gigabytes: float, home: tuple[str, str], to: tuple[str, str]) -> Move | None:
    """Of a dataset from (cloud, region) `home` to another: egress of the sender and a second copy's storage.

    Nothing within a region. None where the tables have no price for it.
    """
    if home == to:
        return Move(Decimal(0), Decimal(0), "it lies there")
    how: Literal["between-regions", "to-internet"] = "between-regions" if home[0] == to[0] else "to-internet"
    egress, storage = rates.transfer(home[0], how), rates.transfer(to[0], "storage")
    if egress is None or storage is None:
        return None
    size = Decimal(str(gigabytes))
    words = f"{gigabytes:g} GB x {egress.usd:g} out of {home[1]}, {storage.usd:g} a GB-month in {to[1]}"
    return Move(size * egress.usd, size * storage.usd, words)


_Row = Mapping[str, str]


def _risk(row: _Row) -> SpotRisk:
    return SpotRisk(
        cloud=row["cloud"],
        instance=row["instance"],
        region=row["region"],
        low=float(row["low"]),
        high=float(row["high"]),
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )


def _commitment(row: _Row) -> Commitment:
    kinds: dict[str, Kind] = {kind: kind for kind in ("reserved-1y", "reserved-3y", "capacity-block")}
    return Commitment(
        cloud=row["cloud"],
        kind=kinds[row["kind"]],
        instance=row["instance"],
        region=row["region"],
        usd_per_hour=Decimal(row["usd_per_hour"]) if row["usd_per_hour"] else None,
        share_of_on_demand=Decimal(row["share_of_on_demand"]) if row["share_of_on_demand"] else None,
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )


def _lead_time(row: _Row) -> LeadTime:
    return LeadTime(
        row["cloud"],
        row["what"],
        int(row["low_days"]),
        int(row["high_days"]),
        row["source"],
        dated(row),
        row["note"],
    )


def _transfer(row: _Row) -> Transfer:
    whats: dict[str, Literal["between-regions", "to-internet", "storage"]] = {
        "between-regions": "between-regions",
        "to-internet": "to-internet",
        "storage": "storage",
    }
    return Transfer(
        cloud=row["cloud"],
        what=whats[row["what"]],
        usd=Decimal(row["usd"]),
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )
