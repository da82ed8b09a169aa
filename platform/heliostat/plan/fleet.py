"""Many small models on machines to be rented: each kind of card packed alone, and the cheapest machines for it.

Pure; the packing itself is mig.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from heliostat.plan.catalogue import Instance, Price
from heliostat.plan.choose import Known
from heliostat.plan.mig import WHOLE, Card, Packing, Tenant, groups_of, pack


@dataclass(frozen=True)
class Fleet:
    """Machines of one type that hold all the models; `price` of one of them."""

    accelerator: str
    cards: int
    instance: str
    machines: int
    region: str
    usd_per_hour: Decimal
    price: Price
    packing: Packing
    how: str
    definition: str

    @property
    def optimal(self) -> bool:
        return self.packing.optimal

    @property
    def bound(self) -> int:
        return self.packing.bound

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        return {
            "accelerator": self.accelerator, "cards": self.cards, "instance": self.instance, "machines": self.machines,
            "region": self.region, "usd_per_hour": float(self.usd_per_hour), "price_source": self.price.source,
            "price_date": self.price.date, "packing": self.packing,
        }  # fmt: skip


def cheapest_packing(tenants: Sequence[Tenant], known: Known) -> tuple[Fleet, ...]:
    """Of every inference-class or MIG-capable kind of card that is for sale on demand; the cheapest first."""
    found = []
    for card in known.catalogue.accelerators.values():
        if card.vendor != "nvidia" or not ("inference" in card.use or card.mig_instances):
            continue
        sold = _sold(card.name, known)
        if not sold or not tenants:
            continue
        most = math.ceil(sum(t.memory for t in tenants) / card.usable_bytes) * 2 + 2
        packing = pack(tenants, [Card(card.name)] * min(len(tenants), max(most, 8)), known.catalogue)
        if packing.unplaced or packing.refused:
            continue
        found.append(_fleet(card.name, packing, sold, known))
    return tuple(sorted(found, key=lambda fleet: (fleet.usd_per_hour, fleet.cards, fleet.accelerator)))


def _sold(accelerator: str, known: Known) -> list[tuple[Instance, Price]]:
    return [
        (instance, price)
        for instance in known.catalogue.instances_of(accelerator)
        if instance.accelerators >= 1 and (not known.clouds or instance.cloud in known.clouds)
        for price in known.catalogue.prices_by_region(instance)
        if known.wants(instance.cloud, price.region)
    ]


def _fleet(accelerator: str, packing: Packing, sold: Sequence[tuple[Instance, Price]], known: Known) -> Fleet:
    def cost(offer: tuple[Instance, Price]) -> tuple[Decimal, int, str, str]:
        machines = math.ceil(packing.used / offer[0].accelerators)
        return offer[1].usd_per_hour * machines, machines, offer[0].name, offer[1].region

    instance, price = min(sold, key=cost)
    usd, machines, *_ = cost((instance, price))
    slices = sorted({place.profile for card in packing.cards for place in card.places})
    how = "whole cards, shared" if slices == [WHOLE] else ", ".join(slices)
    note = known.catalogue.accelerators[accelerator].note
    how += f" ({note})" if "Arm" in note else ""
    lines = [
        f"  {name}: {group}" for name, group in groups_of(packing, known.catalogue, instance=instance.name).items()
    ]
    definition = "\n".join(["groups:", *lines])
    return Fleet(accelerator, packing.used, instance.name, machines, price.region, usd, price, packing, how, definition)
