"""What a node costs an hour: as measured, or from the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.definition import ClusterDefinition
from heliostat.plan.catalogue import load
from heliostat.simulate.measured import Measured


@dataclass(frozen=True)
class NodePrice:
    """USD for one node an hour, and where that is from."""

    usd: float
    source: str


def node_prices(definition: ClusterDefinition, measured: Measured) -> dict[str, NodePrice]:
    """By group; groups without a price are left out, and their cost is not known."""
    catalogue, found = load(), {}
    instances = {instance.name: instance for instance in catalogue.instances}
    for name, group in definition.groups.items():
        if name in measured.usd_per_node_hour:
            found[name] = NodePrice(measured.usd_per_node_hour[name], "given")
            continue
        instance = instances.get(group.instance or "")
        # Reserved machines are paid for by contract; on-demand is what they are taken for here.
        price = catalogue.price(instance, "spot" if group.market == "spot" else "on-demand") if instance else None
        if price is not None:
            found[name] = NodePrice(float(price.usd_per_hour) * group.hosts, f"{price.source}, {price.date}")
    return found


def spot_shares(definition: ClusterDefinition, prices: dict[str, NodePrice]) -> dict[str, float]:
    """By spot group: its price as a share of a group's with the same accelerators that is not spot, if there is one."""
    found = {}
    for name, group in definition.groups.items():
        for other, spec in definition.groups.items():
            alike = (spec.accelerator, spec.gpus) == (group.accelerator, group.gpus) and spec.market != "spot"
            if group.market == "spot" and alike and {name, other} <= prices.keys() and prices[other].usd > 0:
                found[name] = min(1.0, prices[name].usd / prices[other].usd)
    return found
