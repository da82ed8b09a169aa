"""Which groups' markets refuse nodes: written for the drivers, which place their gangs by it.

The driver decides for its gang (`heliostat.plan.fallback`): it alone knows which of its members live.
"""

from __future__ import annotations

from heliostat.cluster.embedded import definition_of
from heliostat.cluster.nodes import read_refusal
from heliostat.controller.duty import World
from heliostat.definition import ClusterDefinition
from heliostat.plan.fallback import DRY_LIFE_S, Supply
from heliostat.train.bounds import write_supply

AGAIN_S = DRY_LIFE_S / 4
"""A refusal that goes on is told again after so long."""


class Fallback:
    """On an embedded cluster, whose provider says why it refuses. On Kubernetes nobody here sees refusals yet."""

    period_s = 1.0

    def __init__(self) -> None:
        self._definition: ClusterDefinition | None = None
        self._told: dict[str, float] = {}

    def forget(self) -> None:
        self._told = {}

    def act(self, world: World, now: float) -> None:
        folder = world.settings.state_dir
        if folder is None:
            return
        self._definition = self._definition or definition_of(folder)
        for name, group in self._definition.groups.items():
            refusal = read_refusal(folder, name) if group.fallback else None
            if refusal is None or refusal.kind != "no-capacity":
                continue
            if refusal.at - self._told.get(name, 0.0) >= AGAIN_S and now - refusal.at < DRY_LIFE_S:
                write_supply(world.store, name, Supply(refusal.at, refusal.why))
                if now - refusal.first_at < AGAIN_S:
                    world.spool.emit("market_dry", group=name, why=refusal.why)
                self._told[name] = refusal.at
