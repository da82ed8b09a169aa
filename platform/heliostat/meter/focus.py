"""The ledger as a FOCUS data set (FinOps Open Cost and Usage Specification 1.2), for FinOps tools. Pure.

One row per hour, place, owner and class: the charge of GPU time as Heliostat reckons it, for charging back within a
company. It is no invoice: billed, effective, contracted and list cost are the same price, and invoice ids are null.
Columns that speak of commitments and of capacity reservations are null, as none is known. Tags that Heliostat sets
carry its prefix.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from heliostat.meter.facts import Use
from heliostat.meter.ledger import OWNER_COLUMNS, PLACE_COLUMNS
from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import with_money

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "1.2"
PROVIDER = "Heliostat"
UNIT = "GPU-Hours"
COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType",
    "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "CapacityReservationId",
    "CapacityReservationStatus", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId",
    "CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice",
    "EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory",
    "PricingCurrency", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId",
    "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName",
    "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName",
    "SubAccountType", "Tags",
)  # fmt: skip
"""Every column of the version, in its order."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CATEGORY = {"on-demand": "Standard", "spot": "Dynamic", "reserved": "Committed"}
_RESOURCE = {"job": "Training job", "app": "Application"}
_NOTHING = 1e-6


def focus_rows(
    rows: pa.Table, *, cluster: str, prices: Sequence[GpuPrice] = ()
) -> Iterator[dict[str, Any]]:  # Any: texts, numbers, None
    """Of every hour that has a price. A charge without one is left out, for a cost must not be null, nor be made up."""
    import pyarrow.compute as pc

    rows = rows.filter(pc.not_equal(rows["use"].cast("string"), Use.OVERLAP.label))
    priced = with_money(rows, prices)
    keys = ["hour", *PLACE_COLUMNS, *OWNER_COLUMNS, "use"]
    names = ("gpu_seconds", "usd", "unpriced")
    summed = priced.group_by(keys).aggregate([(name, "sum") for name in names])
    for row in sorted(summed.to_pylist(), key=lambda row: [row[key] for key in keys]):
        # What a later entry moved elsewhere has come to nothing here.
        if row["gpu_seconds_sum"] > _NOTHING and abs(row["unpriced_sum"]) <= _NOTHING:
            yield _row(row, cluster)


def unpriced_gpu_hours(rows: pa.Table, prices: Sequence[GpuPrice]) -> float:
    """What `focus_rows` leaves out."""
    import pyarrow.compute as pc

    rows = rows.filter(pc.not_equal(rows["use"].cast("string"), Use.OVERLAP.label))
    return float(pc.sum(with_money(rows, prices)["unpriced"]).as_py() or 0.0) / 3600


def _row(row: dict[str, Any], cluster: str) -> dict[str, Any]:  # Any: as above
    start = _EPOCH + timedelta(hours=row["hour"])
    month = start.replace(day=1, hour=0)
    after = (month + timedelta(days=32)).replace(day=1)
    hours, usd = row["gpu_seconds_sum"] / 3600, row["usd_sum"]
    price = usd / hours
    kind, name = row["kind"], row["name"]
    resource = f"{kind}/{name}" if kind else f"group/{row['group']}"
    sku = f"{row['instance']}/{row['market']}"
    what = row["use"].replace("_", " ")
    known: dict[str, Any] = {
        "AvailabilityZone": row["zone"] or None,
        "BillingAccountId": cluster,
        "BillingAccountName": cluster,
        "BillingAccountType": "Cluster",
        "BillingCurrency": "USD",
        "BillingPeriodStart": _time(month),
        "BillingPeriodEnd": _time(after),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"GPU time, {what}: {resource}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(start),
        "ChargePeriodEnd": _time(start + timedelta(hours=1)),
        "ConsumedUnit": UNIT,
        "ConsumedQuantity": hours,
        "InvoiceIssuerName": PROVIDER,
        "PricingCategory": _CATEGORY.get(row["market"], "Other"),
        "PricingCurrency": "USD",
        "PricingQuantity": hours,
        "PricingUnit": UNIT,
        "ProviderName": PROVIDER,
        "PublisherName": PROVIDER,
        "RegionId": _region(row["zone"]),
        "RegionName": _region(row["zone"]),
        "ResourceId": resource,
        "ResourceName": name or row["group"],
        "ResourceType": _RESOURCE.get(kind, "Worker group"),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "AI Platforms",
        "ServiceName": "GPU platform",
        "SkuId": sku,
        "SkuMeter": "GPU time",
        "SkuPriceId": f"{sku}/{price:.6f}",
        "SubAccountId": row["team"] or None,
        "SubAccountName": row["team"] or None,
        "SubAccountType": "Team" if row["team"] else None,
        "Tags": _tags(row),
    }
    costs = ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost", "PricingCurrencyEffectiveCost")
    prices = (
        "ContractedUnitPrice", "ListUnitPrice", "PricingCurrencyContractedUnitPrice", "PricingCurrencyListUnitPrice",
    )  # fmt: skip
    return dict.fromkeys(COLUMNS) | known | dict.fromkeys(costs, usd) | dict.fromkeys(prices, price)


def _tags(row: dict[str, Any]) -> str:  # Any: as above
    told = {name: row[name] for name in ("project", "version", "user", "group", "market", "instance") if row[name]}
    return json.dumps({"heliostat/class": row["use"], **{f"heliostat/{name}": value for name, value in told.items()}})


def _region(zone: str) -> str | None:
    """Of us-east-1a or us-central1-a: the zone without its letter."""
    return re.sub(r"-?[a-z]$", "", zone) or None


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def to_focus_csv(rows: Iterator[dict[str, Any]]) -> str:  # Any: as above
    """With the header; null is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.10f}" if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()
