"""What can be rented: accelerators, their MIG slices, instances of three clouds, quotas, prices.

The tables lie in `data/`, each row with its source and date. Hardware is a default that a definition may override;
prices age and are sometimes filler, so `load` judges each one: usable, doubtful or refused, with the reason. Refused
prices stay in the catalogue to be shown, and are never chosen.

Not here: what a model needs (vram.py), which cluster to choose.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources
from typing import Literal, TypeVar

from heliostat.errors import UsageError

Market = Literal["on-demand", "spot"]
Verdict = Literal["usable", "doubtful", "refused"]

STALE_DAYS = 90
"""Prices older than this are shown with a warning."""

GIB = 2**30

FILLERS = (Decimal(700),)
"""Amounts that price tables write where they know none."""

NO_SPARE_SHARE = Decimal("0.98")
"""A spot price from this share of on-demand says that there is no spare capacity; it is not a bargain."""

LOW_SHARE = Decimal("0.5")
"""A price under this share of the median of the type's other regions is taken for another product's."""

DISAGREE_SHARE = Decimal("0.05")

MIG_SHARE = 0.96
"""Of its share of the card's memory, what a MIG slice offers: 9.5 GiB of an eighth of an 80 GB card."""

_CUDA_VENDORS = ("nvidia", "amd")


def since(date: str) -> dt.date:
    """The earliest day that "2026", "2026-11" or "2026-11-25" may mean."""
    year, month, day = (*map(int, date.split("-")), 1, 1)[:3]
    return dt.date(year, month, day)


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator. `usable_gib` is what a program sees of `memory_gib`; rates are dense, without sparsity.

    `kubernetes_products` are the spellings of the node label nvidia.com/gpu.product; 0 or None: not known or not there.
    """

    name: str
    vendor: str
    memory_gib: float
    usable_gib: float
    bandwidth_gb_s: float | None
    bf16_tflops: float | None
    fp16_tflops: float | None
    fp8_tflops: float | None
    nvlink_gb_s: float | None
    mig_instances: int
    compute_capability: str
    power_w: float | None
    use: str
    ray_type: str
    kubernetes_products: tuple[str, ...]
    source: str
    date: str
    note: str

    @property
    def usable_bytes(self) -> int:
        return round(self.usable_gib * GIB)

    @property
    def lacks_bf16(self) -> bool:
        """Older than Ampere: fp16 takes its place, in as many bytes. False where its rates are not known."""
        return self.vendor == "nvidia" and self.fp16_tflops is not None and self.bf16_tflops is None

    @property
    def runs_torch(self) -> bool:
        """Whether the arithmetic of vram.py holds for it: PyTorch on CUDA or ROCm. Neuron and XLA devices differ."""
        return self.vendor in _CUDA_VENDORS


@dataclass(frozen=True)
class MigProfile:
    """A slice of a card. It takes `memory_slices` from a slice in `starts` on; slices must not overlap, and the compute
    slices in use may not exceed the card's `gpu_compute_slices`."""

    accelerator: str
    profile: str
    memory_gb: float
    compute_slices: int
    memory_slices: int
    most: int
    starts: tuple[int, ...]
    gpu_compute_slices: int
    gpu_memory_slices: int
    kubernetes_resource: str
    source: str
    date: str

    def usable_bytes(self, card: Accelerator) -> int:
        """What a program sees of it."""
        share = self.memory_slices / self.gpu_memory_slices
        return round(card.usable_bytes * share * (1 if share == 1 else MIG_SHARE))


@dataclass(frozen=True)
class Instance:
    """A machine that can be rented. `accelerators` below 1: a share of a card. Quotas name rows of that table."""

    cloud: str
    name: str
    accelerator: str
    accelerators: float
    vcpus: int | None
    memory_gib: float | None
    nvme_gb: float | None
    network_gbps: float | None
    fabric: str
    efa_interfaces: int
    placement: str
    quota_on_demand: str
    quota_spot: str
    source: str
    date: str
    note: str


@dataclass(frozen=True)
class Quota:
    """A limit of an account, in vCPUs of whole instances or in GPUs."""

    cloud: str
    market: Market
    name: str
    code: str
    unit: Literal["vCPU", "GPU"]
    source: str
    date: str
    note: str


@dataclass(frozen=True)
class Price:
    """USD an hour for the whole instance. Where `date` is a year or a month, its first day counts."""

    cloud: str
    instance: str
    region: str
    market: Market
    usd_per_hour: Decimal
    source: str
    date: str
    confirmed_by: str = ""
    note: str = ""
    verdict: Verdict = "usable"
    reason: str = ""

    @property
    def since(self) -> dt.date:
        """The earliest day the price may be from."""
        return since(self.date)

    def age_days(self, today: dt.date) -> int:
        """Days since the price was seen, at most."""
        return max(0, (today - self.since).days)

    def is_stale(self, today: dt.date) -> bool:
        return self.age_days(today) > STALE_DAYS


@dataclass(frozen=True)
class Catalogue:
    """All tables. Mappings are keyed by name."""

    accelerators: Mapping[str, Accelerator]
    instances: tuple[Instance, ...]
    mig_profiles: tuple[MigProfile, ...]
    quotas: tuple[Quota, ...]
    prices: tuple[Price, ...]

    def accelerator(self, name: str) -> Accelerator:
        """By the catalogue's name or Ray's. Raises UsageError with what there is."""
        if name in self.accelerators:
            return self.accelerators[name]
        same = [
            card for card in self.accelerators.values() if name.lower() in (card.name.lower(), card.ray_type.lower())
        ]
        if len(same) == 1:
            return same[0]
        known = ", ".join(card.name for card in same) or ", ".join(self.accelerators)
        raise UsageError(f"accelerator {name!r} is {'ambiguous' if same else 'not known'}", do=f"one of: {known}")

    def slices(self, accelerator: str) -> tuple[MigProfile, ...]:
        """Of the accelerator, smallest first; without the media-engine variants, which hold the same."""
        found = [p for p in self.mig_profiles if p.accelerator == accelerator and "+" not in p.profile]
        return tuple(sorted(found, key=lambda profile: (profile.memory_slices, profile.compute_slices)))

    def instances_of(self, accelerator: str) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.accelerator == accelerator)

    def price(self, instance: Instance, market: Market = "on-demand") -> Price | None:
        """The price to reckon with: usable before doubtful, then the newest; None where none is left."""
        found = [
            price
            for price in self.prices
            if (price.cloud, price.instance, price.market) == (instance.cloud, instance.name, market)
            and price.verdict != "refused"
        ]
        return max(found, key=_trust, default=None)

    def prices_by_region(self, instance: Instance, market: Market = "on-demand") -> tuple[Price, ...]:
        """In each region the price to reckon with, as `price` chooses it; the cheapest region first."""
        best: dict[str, Price] = {}
        for price in self.prices:
            same = (price.cloud, price.instance, price.market) == (instance.cloud, instance.name, market)
            if not same or price.verdict == "refused":
                continue
            known = best.get(price.region)
            if known is None or _trust(price) > _trust(known):
                best[price.region] = price
        return tuple(sorted(best.values(), key=lambda price: (price.usd_per_hour, price.region)))

    def quota(self, instance: Instance, market: Market) -> Quota | None:
        """The limit that machines of the kind count against; None where it is not known."""
        name = instance.quota_spot if market == "spot" else instance.quota_on_demand
        return next((q for q in self.quotas if (q.cloud, q.market, q.name) == (instance.cloud, market, name)), None)

    def cheapest(self, accelerator: str, market: Market, *, count: int = 1) -> Offer | None:
        """What holds `count` whole cards of the kind for the least an hour: one instance, where one is large enough,
        for cards that share a model talk much; else several equal ones of the largest.
        """
        priced = [
            (instance, price)
            for instance in self.instances_of(accelerator)
            if instance.accelerators >= 1 and (price := self.price(instance, market)) is not None
        ]
        least = min(count, max((instance.accelerators for instance, _ in priced), default=0))
        offers = [
            Offer(instance, price, math.ceil(count / instance.accelerators))
            for instance, price in priced
            if instance.accelerators >= least
        ]
        return min(offers, key=lambda offer: offer.usd_per_hour, default=None)


def _trust(price: Price) -> tuple[bool, dt.date]:
    return price.verdict == "usable", price.since


@dataclass(frozen=True)
class Offer:
    """Equal instances and their price."""

    instance: Instance
    price: Price
    instances: int

    @property
    def usd_per_hour(self) -> Decimal:
        """Of all the instances, whole: what is paid, used or not."""
        return self.price.usd_per_hour * self.instances


@cache
def load() -> Catalogue:
    """The tables of the package, prices judged. Raises UsageError that names file and line of a bad row."""
    instances = tuple(read_table("instances.csv", _instance))
    cards = {card.name: card for card in read_table("accelerators.csv", _accelerator)}
    return Catalogue(
        accelerators=cards,
        instances=instances,
        mig_profiles=tuple(read_table("mig_profiles.csv", _mig_profile)),
        quotas=tuple(read_table("quotas.csv", _quota)),
        prices=judge_prices(read_table("prices.csv", read_price), instances),
    )


# --- judging prices


def judge_prices(prices: Iterable[Price], instances: Iterable[Instance]) -> tuple[Price, ...]:
    """Each price with its verdict. A row that an earlier rule refused takes no part in the later ones' comparisons."""
    judged = tuple(prices)
    counts = {(i.cloud, i.name): (i.accelerator, i.accelerators) for i in instances}
    for rule in _RULES:
        standing = [price for price in judged if price.verdict != "refused"]
        judged = tuple(_apply(rule, price, standing, counts) for price in judged)
    return judged


_Counts = Mapping[tuple[str, str], tuple[str, float]]
_Rule = Callable[[Price, Sequence[Price], _Counts], "tuple[Verdict, str] | None"]


def _apply(rule: _Rule, price: Price, standing: Sequence[Price], counts: _Counts) -> Price:
    if price.verdict == "refused":
        return price
    found = rule(price, standing, counts)
    return price if found is None else replace(price, verdict=found[0], reason=found[1])


def _no_amount(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    if not price.usd_per_hour.is_finite() or price.usd_per_hour <= 0:
        return "refused", f"{price.usd_per_hour} is no price"
    if price.usd_per_hour in FILLERS:
        return "refused", f"{price.usd_per_hour} is what tables write where they know none"
    return None


def _no_region(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    return None if price.region else ("refused", "its region is not known")


def _same_for_more(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    """One card cannot cost what eight cost: one of the two is wrong, and nothing tells which."""
    kind = counts.get((price.cloud, price.instance))
    for other in standing:
        other_kind = counts.get((other.cloud, other.instance))
        if kind is None or other_kind is None or kind[0] != other_kind[0] or kind[1] == other_kind[1]:
            continue
        if _place(price) == _place(other) and price.usd_per_hour == other.usd_per_hour:
            return "refused", f"the same as {other.instance}, which has {other_kind[1]:g} cards and not {kind[1]:g}"
    return None


def _place(price: Price) -> tuple[str, str, Market]:
    return price.cloud, price.region, price.market


def _far_below_other_regions(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    elsewhere = [
        other.usd_per_hour for other in standing if _type(other) == _type(price) and other.region != price.region
    ]
    if not elsewhere:
        return None
    median = statistics.median(elsewhere)
    if price.usd_per_hour < median * LOW_SHARE:
        return "refused", f"under half of {median:g}, the median of other regions"
    return None


def _type(price: Price) -> tuple[str, str, Market]:
    return price.cloud, price.instance, price.market


def _no_spare_capacity(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    if price.market != "spot":
        return None
    same = [p for p in standing if (p.cloud, p.instance, p.market) == (price.cloud, price.instance, "on-demand")]
    here = [p.usd_per_hour for p in same if p.region == price.region] or [p.usd_per_hour for p in same]
    if here and price.usd_per_hour >= NO_SPARE_SHARE * min(here):
        return "refused", f"{price.usd_per_hour / min(here):.0%} of on-demand: no spare capacity, not a price"
    return None


def _sources_disagree(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    """Of one market and region, a confirmed price wins over one that stands alone; else the newer one."""
    for other in standing:
        same = _type(other) == _type(price) and other.region == price.region and other is not price
        if not same or price.market == "spot":  # spot moves by the hour: two sources need not agree
            continue
        apart = abs(other.usd_per_hour - price.usd_per_hour) / max(other.usd_per_hour, price.usd_per_hour)
        weaker = (bool(price.confirmed_by), price.since) < (bool(other.confirmed_by), other.since)
        if apart > DISAGREE_SHARE and weaker:
            return "refused", f"{other.source} says {other.usd_per_hour:g}"
    return None


def _indicative(price: Price, standing: Sequence[Price], counts: _Counts) -> tuple[Verdict, str] | None:
    for mark in ("indicative", "suspect", "recalled", "other public figures"):
        if mark in price.note or mark in price.source:
            return "doubtful", price.note or price.source
    return None


_RULES: tuple[_Rule, ...] = (
    _no_amount,
    _no_region,
    _same_for_more,
    _far_below_other_regions,
    _no_spare_capacity,
    _sources_disagree,
    _indicative,
)


# --- reading tables

_Row = Mapping[str, str]
_T = TypeVar("_T")


def read_table(name: str, make: Callable[[_Row], _T]) -> list[_T]:
    text = resources.files("heliostat.plan").joinpath("data", name).read_text(encoding="utf-8")
    rows = []
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        try:
            rows.append(make(row))
        except (ValueError, KeyError, TypeError, InvalidOperation) as error:
            raise UsageError(f"a row that cannot be read: {error}", where=f"plan/data/{name}, line {line}") from error
    return rows


def _optional(text: str) -> float | None:
    return float(text) if text else None


def dated(row: _Row) -> str:
    if not row["source"]:
        raise ValueError("no source")
    if not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", row["date"]):
        raise ValueError(f"date {row['date']!r} is not YYYY, YYYY-MM or YYYY-MM-DD")
    return row["date"]


def _accelerator(row: _Row) -> Accelerator:
    return Accelerator(
        name=row["name"],
        vendor=row["vendor"],
        memory_gib=float(row["memory_gib"]),
        usable_gib=float(row["usable_gib"]),
        bandwidth_gb_s=_optional(row["bandwidth_gb_s"]),
        bf16_tflops=_optional(row["bf16_tflops"]),
        fp16_tflops=_optional(row["fp16_tflops"]),
        fp8_tflops=_optional(row["fp8_tflops"]),
        nvlink_gb_s=_optional(row["nvlink_gb_s"]),
        mig_instances=int(row["mig_instances"] or 0),
        compute_capability=row["compute_capability"],
        power_w=_optional(row["power_w"]),
        use=row["use"],
        ray_type=row["ray_type"],
        kubernetes_products=tuple(filter(None, row["kubernetes_products"].split("|"))),
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )


def _mig_profile(row: _Row) -> MigProfile:
    return MigProfile(
        accelerator=row["accelerator"],
        profile=row["profile"],
        memory_gb=float(row["memory_gb"]),
        compute_slices=int(row["compute_slices"]),
        memory_slices=int(row["memory_slices"]),
        most=int(row["most"]),
        starts=tuple(map(int, row["starts"].split())),
        gpu_compute_slices=int(row["gpu_compute_slices"]),
        gpu_memory_slices=int(row["gpu_memory_slices"]),
        kubernetes_resource=row["kubernetes_resource"],
        source=row["source"],
        date=dated(row),
    )


def _instance(row: _Row) -> Instance:
    return Instance(
        cloud=row["cloud"],
        name=row["instance"],
        accelerator=row["accelerator"],
        accelerators=float(row["accelerators"]),
        vcpus=int(row["vcpus"]) if row["vcpus"] else None,
        memory_gib=_optional(row["memory_gib"]),
        nvme_gb=_optional(row["nvme_gb"]),
        network_gbps=_optional(row["network_gbps"]),
        fabric=row["fabric"],
        efa_interfaces=int(row["efa_interfaces"] or 0),
        placement=row["placement"],
        quota_on_demand=row["quota_on_demand"],
        quota_spot=row["quota_spot"],
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )


def _quota(row: _Row) -> Quota:
    return Quota(
        cloud=row["cloud"],
        market=_market(row["market"]),
        name=row["name"],
        code=row["code"],
        unit="vCPU" if row["unit"] == "vCPU" else "GPU",
        source=row["source"],
        date=dated(row),
        note=row["note"],
    )


def read_price(row: _Row) -> Price:
    """From the columns of prices.csv, not yet judged."""
    return Price(
        cloud=row["cloud"],
        instance=row["instance"],
        region=row["region"],
        market=_market(row["market"]),
        usd_per_hour=Decimal(row["usd_per_hour"]),
        source=row["source"],
        date=dated(row),
        confirmed_by=row.get("confirmed_by", ""),
        note=row.get("note", ""),
    )


def _market(text: str) -> Market:
    if text not in ("on-demand", "spot"):
        raise ValueError(f"market {text!r} is neither on-demand nor spot")
    return "spot" if text == "spot" else "on-demand"
