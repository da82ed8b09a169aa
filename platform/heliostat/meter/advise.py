"""What the measured use of each group says about how it is set up, and what another way would save. Pure.

From the ledger's rows, from what the devices said of themselves (`node_sample`), and from the catalogue's prices. Each
piece of advice says what was measured, over how long, and what it saves a month if the next one is like those days.
Nothing is advised from less than `LEAST_HOURS` of GPU time, nor where a price or a measure that it needs is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from heliostat.events import Event
from heliostat.meter.facts import Use
from heliostat.plan.catalogue import GIB, Accelerator, Catalogue, Instance, MigProfile

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["idle-group", "oversized", "mig", "to-spot", "to-on-demand", "reserve"]

MONTH_HOURS = 730.0
LEAST_HOURS = 1.0
IDLE_SHARE = 0.5
"""A group whose GPUs are free or held for nothing for this share of its time is kept too large."""
LOW_DUTY = 0.3
"""Devices that work for less than this share of the time they are held would do with less of a card."""
HEADROOM = 1.25
"""How much more memory and rate than was used a smaller card must have."""
WORTH_USD = 1.0
"""Savings a month below this are not worth a line."""
LOST_SHARE = 0.25
"""Of a spot group's time, beyond which losses cost more than they should."""
RESERVED_DISCOUNT = 0.40
"""Off the on-demand price for a year's commitment without payment up front. The order of what the clouds publish for
GPU machines (roughly 35 to 45 %); negotiated prices differ, so the break-even share is told with it."""


@dataclass(frozen=True)
class GroupMeasure:
    """What a group did in `hours` hours by the clock.

    `held`: GPUs held in each of them, on average, zeros included. `duty`: share of time in which its devices worked;
    `memory_bytes`: most that one of them used; both None where no device was seen.
    """

    group: str
    market: str
    instance: str
    hours: int
    gpu_seconds: Mapping[str, float]
    held: tuple[float, ...] = ()
    duty: float | None = None
    memory_bytes: float | None = None

    @property
    def gpu_hours(self) -> float:
        return sum(self.gpu_seconds.values()) / 3600

    def share(self, *uses: Use) -> float:
        total = sum(self.gpu_seconds.values())
        return sum(self.gpu_seconds.get(use.label, 0.0) for use in uses) / total if total else 0.0

    @property
    def monthly(self) -> float:
        """By how much what was measured is multiplied to make a month."""
        return MONTH_HOURS / self.hours


@dataclass(frozen=True)
class Advice:
    """`what` was measured, `why` it matters, what to `do`; `usd_per_month` saved, None where it has no price."""

    kind: Kind
    group: str
    what: str
    why: str
    do: str
    usd_per_month: float | None


def advise(
    groups: Sequence[GroupMeasure], catalogue: Catalogue, *, serving: frozenset[str] = frozenset()
) -> tuple[Advice, ...]:
    """The dearest first. `serving`: groups that serve, and so are not sent to spot."""
    found: list[Advice | None] = []
    for group in groups:
        if group.gpu_hours < LEAST_HOURS or group.hours < 1:
            continue
        offer = _Offer.of(group, catalogue)
        found.append(_idle(group, offer))
        if offer is not None:
            found += [
                _smaller(group, offer),
                _mig(group, offer),
                _market(group, offer, serving),
                _reserve(group, offer),
            ]
    kept = [one for one in found if one is not None and (one.usd_per_month is None or one.usd_per_month >= WORTH_USD)]
    return tuple(sorted(kept, key=lambda one: (-(one.usd_per_month or 0.0), one.group, one.kind)))


@dataclass(frozen=True)
class _Offer:
    """The group's machine and its card, with what a GPU-hour of it costs in each market."""

    catalogue: Catalogue
    instance: Instance
    card: Accelerator
    on_demand: float | None
    spot: float | None
    paid: float | None

    @classmethod
    def of(cls, group: GroupMeasure, catalogue: Catalogue) -> _Offer | None:
        instance = next((one for one in catalogue.instances if one.name == group.instance), None)
        if instance is None or instance.accelerators <= 0:
            return None
        card = catalogue.accelerators.get(instance.accelerator)
        if card is None:
            return None
        on_demand, spot = (_gpu_hour(catalogue, instance, market) for market in ("on-demand", "spot"))
        return cls(catalogue, instance, card, on_demand, spot, {"spot": spot, "on-demand": on_demand}.get(group.market))


def _gpu_hour(catalogue: Catalogue, instance: Instance, market: Any) -> float | None:  # Any: a Market
    price = catalogue.price(instance, market)
    return None if price is None else float(price.usd_per_hour) / instance.accelerators


def _idle(group: GroupMeasure, offer: _Offer | None) -> Advice | None:
    idle = group.share(Use.RESERVED, Use.UNALLOCATED)
    if idle < IDLE_SHARE:
        return None
    hours = idle * group.gpu_hours
    price = offer.paid if offer else None
    free, reserved = group.share(Use.UNALLOCATED), group.share(Use.RESERVED)
    do = (
        f"lower groups.{group.group}.nodes to 0.. and shorten its idle_timeout"
        if free >= reserved
        else "lower the applications' replicas, shorten their idle_timeout, or put two on a GPU (gpus_per_replica: 0.5)"
    )
    return Advice(
        "idle-group", group.group,
        f"{group.group}: {idle:.0%} of {group.gpu_hours:,.1f} GPU-hours did nothing",
        f"{free:.0%} free, {reserved:.0%} held by somebody who did nothing with it, in {_over(group)}",
        do, None if price is None else hours * price * group.monthly,
    )  # fmt: skip


def _smaller(group: GroupMeasure, offer: _Offer) -> Advice | None:
    """The cheapest card that holds what was used, and is fast enough for how little the devices worked."""
    if group.duty is None or group.memory_bytes is None or offer.paid is None or group.duty >= LOW_DUTY:
        return None
    market: Any = group.market
    candidates = [
        (price, instance, card)
        for instance in offer.catalogue.instances
        if instance.cloud == offer.instance.cloud and instance.accelerators >= 1
        if (card := offer.catalogue.accelerators.get(instance.accelerator)) and _suffices(card, offer.card, group)
        if (price := _gpu_hour(offer.catalogue, instance, market)) is not None and price < offer.paid
    ]
    if not candidates:
        return None
    price, instance, card = min(candidates, key=lambda found: (found[0], found[1].name))
    return Advice(
        "oversized", group.group,
        f"{group.group}: its {offer.card.name} work {group.duty:.0%} of the time and use "
        f"{group.memory_bytes / GIB:,.1f} of {offer.card.usable_gib:g} GiB",
        f"a {card.name} holds that with {HEADROOM - 1:.0%} to spare and is fast enough for it; {_over(group)}",
        f"set groups.{group.group}.instance to {instance.name} (${price:,.2f} a GPU-hour, now ${offer.paid:,.2f})",
        (offer.paid - price) * group.gpu_hours * group.monthly,
    )  # fmt: skip


def _suffices(card: Accelerator, now: Accelerator, group: GroupMeasure) -> bool:
    if not card.runs_torch or (card.lacks_bf16 and not now.lacks_bf16):
        return False
    rate, had = card.bf16_tflops or card.fp16_tflops, now.bf16_tflops or now.fp16_tflops
    if rate is None or had is None or group.duty is None or group.memory_bytes is None:
        return False
    return card.usable_bytes >= HEADROOM * group.memory_bytes and rate >= HEADROOM * group.duty * had


def _mig(group: GroupMeasure, offer: _Offer) -> Advice | None:
    """The smallest slice that holds what was used; the card then serves as many as it is cut into."""
    if group.duty is None or group.memory_bytes is None or group.duty >= LOW_DUTY:
        return None
    fitting = [
        profile
        for profile in offer.catalogue.mig_profiles
        if profile.accelerator == offer.card.name and profile.most > 1 and "+" not in profile.profile
        if _holds(profile, offer.card, group)
    ]
    if not fitting:
        return None
    slice_ = max(fitting, key=lambda profile: profile.most)
    saved = None if offer.paid is None else offer.paid * group.gpu_hours * (1 - 1 / slice_.most) * group.monthly
    return Advice(
        "mig", group.group,
        f"{group.group}: one job or replica to a {offer.card.name} uses {group.memory_bytes / GIB:,.1f} GiB and "
        f"{group.duty:.0%} of it",
        f"a {slice_.profile} slice holds that, and a card gives {slice_.most} of them; {_over(group)}",
        f"set groups.{group.group}.mig to {slice_.profile} and gpus to {slice_.most} per card, if there is that much "
        "work to share it",
        saved,
    )  # fmt: skip


def _holds(profile: MigProfile, card: Accelerator, group: GroupMeasure) -> bool:
    share = profile.compute_slices / profile.gpu_compute_slices
    memory, duty = group.memory_bytes or 0.0, group.duty or 0.0
    return profile.usable_bytes(card) >= HEADROOM * memory and share >= HEADROOM * duty


def _market(group: GroupMeasure, offer: _Offer, serving: frozenset[str]) -> Advice | None:
    """Spot is cheaper by the hour, and dearer once its losses eat the difference."""
    if offer.on_demand is None or offer.spot is None:
        return None
    lost = group.share(Use.RECOMPUTED, Use.LOADING, Use.STARTING)
    if group.market == "on-demand" and group.group not in serving and offer.spot < offer.on_demand:
        saved = (offer.on_demand - offer.spot / (1 - min(LOST_SHARE, 0.9))) * group.gpu_hours * group.monthly
        return Advice(
            "to-spot", group.group,
            f"{group.group}: training on demand for ${offer.on_demand:,.2f} a GPU-hour",
            f"spot is ${offer.spot:,.2f}; the saving reckons with a quarter of the time lost to reclaims",
            f"set groups.{group.group}.market to spot; runs survive reclaims from their checkpoints", saved,
        ) if saved > 0 else None  # fmt: skip
    worth = offer.spot / max(1e-9, 1 - lost)
    if group.market == "spot" and lost > LOST_SHARE and worth > offer.on_demand:
        saved = (worth - offer.on_demand) * group.gpu_hours * (1 - lost) * group.monthly
        return Advice(
            "to-on-demand", group.group,
            f"{group.group}: {lost:.0%} of its spot time went into loading, starting and steps done twice",
            f"a useful hour costs ${worth:,.2f} so, and ${offer.on_demand:,.2f} on demand; {_over(group)}",
            f"set groups.{group.group}.market to on-demand, or another instance or zone that is reclaimed less", saved,
        )  # fmt: skip
    return None


def _reserve(group: GroupMeasure, offer: _Offer) -> Advice | None:
    """So many GPUs are worth reserving as are held for more than the break-even share of all hours.

    A reserved GPU costs (1 - discount) of on-demand for every hour, used or not: it pays above that share of use.
    """
    if group.market != "on-demand" or offer.on_demand is None or group.hours < 24:
        return None
    held = np.array([*group.held, *([0.0] * (group.hours - len(group.held)))])
    even = 1 - RESERVED_DISCOUNT
    steps = int(np.ceil(held.max())) if len(held) else 0
    used = [float(np.clip(held - number, 0, 1).mean()) for number in range(steps)]
    count = sum(share > even for share in used)
    if not count:
        return None
    saved = sum(share - even for share in used[:count]) * MONTH_HOURS * offer.on_demand
    return Advice(
        "reserve", group.group,
        f"{group.group}: {count} GPU{'s' if count > 1 else ''} of it held {used[count - 1]:.0%} of {group.hours} hours "
        "or more",
        f"a year's reservation pays from {even:.0%} on, if it costs {RESERVED_DISCOUNT:.0%} less than on demand",
        f"ask for a price for {count} GPU{'s' if count > 1 else ''} of {offer.instance.name}, as a group of market "
        "reserved; the rest stays on demand", saved,
    )  # fmt: skip


def _over(group: GroupMeasure) -> str:
    return f"{group.hours} hours" if group.hours < 72 else f"{group.hours / 24:.0f} days"


# --- from what was measured


@dataclass(frozen=True)
class Devices:
    """Of a group, from the samples of its nodes."""

    duty: float | None = None
    memory_bytes: float | None = None


@dataclass
class _Sums:
    weight: float = 0.0
    duty: float = 0.0
    memory: float | None = None


def devices(events: Iterable[Event]) -> dict[str, Devices]:
    """By group. A node's GPUs count alike; GPUs that nobody held count as well, for they are paid for."""
    sums: dict[str, _Sums] = defaultdict(_Sums)
    for event in events:
        given = event.fields
        if event.kind != "node_sample" or given.get("duty") is None:
            continue
        found, gpus = sums[str(given.get("group", ""))], float(given.get("gpus") or 1)
        found.weight += gpus
        found.duty += gpus * float(given["duty"])
        if given.get("memory_bytes") is not None:
            found.memory = max(found.memory or 0.0, float(given["memory_bytes"]) / gpus)  # told for the node
    return {group: Devices(one.duty / one.weight if one.weight else None, one.memory) for group, one in sums.items()}


def measure(rows: pa.Table, seen: Mapping[str, Devices], *, hours: int) -> list[GroupMeasure]:
    """The groups of the ledger's rows (columns hour, group, market, instance, use, gpu_seconds), over so many hours."""
    totals: dict[tuple[str, str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    held: dict[tuple[str, str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    wanted = rows.group_by(["hour", "group", "market", "instance", "use"]).aggregate([("gpu_seconds", "sum")])
    for row in wanted.to_pylist():
        if row["use"] == Use.OVERLAP.label or not row["group"]:
            continue
        key = (row["group"], row["market"] or "", row["instance"] or "")
        totals[key][row["use"]] += row["gpu_seconds_sum"]
        held[key][row["hour"]] += row["gpu_seconds_sum"] / 3600
    made = []
    for key, uses in sorted(totals.items()):
        device = seen.get(key[0], Devices())
        made.append(GroupMeasure(*key, hours, dict(uses), tuple(held[key].values()), device.duty, device.memory_bytes))
    return made
