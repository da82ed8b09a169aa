"""What the network between two nodes of a group should give, and whether what was measured is near it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a training process reads this file, and has no need of the definition's models
    from heliostat.definition import WorkerGroup

# GB/s of one interface: EFA has 100 Gbit/s (p4d, p5, trn1), InfiniBand from HDR (200 Gbit/s) on.
PER_INTERFACE = {"efa": 12.5, "infiniband": 25.0}
FAR_BELOW = 0.5
"""Of what should be reached. Between zones TCP gives a tenth; a fabric that is busy or badly placed gives 0.7."""
VARIABLE = "HELIOSTAT_FABRIC"
Policy = Literal["refuse", "warn", "off"]


@dataclass(frozen=True)
class Expectation:
    """GB/s that a pair of ranks on two nodes should reach (None: nothing is known), and what follows if not."""

    gbytes_per_s: float | None
    policy: Policy = "warn"


@dataclass(frozen=True)
class Pair:
    """Two ranks, as measured: seconds one way for a small message, GB/s one way for a large one."""

    a: int
    b: int
    latency_s: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Verdict:
    """`slow`: the pairs far below what they should reach, the slowest first."""

    expected: float | None
    slow: tuple[Pair, ...]

    @property
    def ok(self) -> bool:
        return not self.slow


def expectation(group: WorkerGroup, *, embedded: bool = False) -> Expectation | None:
    """Of a pair of ranks with a GPU each: the node's interfaces, divided by its GPUs. None without a fabric.

    An embedded cluster has no interfaces: there only what is written as gbytes_per_s is expected.
    """
    fabric = group.fabric
    if fabric is None:
        return None
    node = fabric.gbytes_per_s or (None if embedded else PER_INTERFACE[fabric.kind] * fabric.interfaces)
    return Expectation(None if node is None else node / max(1, group.gpus), fabric.check)


def environment(group: WorkerGroup, *, embedded: bool = False) -> dict[str, str]:
    """What the workers of a job on this group have to know, as variables."""
    found = expectation(group, embedded=embedded)
    return {} if found is None else {VARIABLE: json.dumps(asdict(found))}


def from_environment(variables: Mapping[str, str]) -> Expectation | None:
    """None where nothing is said, or nothing that is understood."""
    try:
        return Expectation(**json.loads(variables[VARIABLE]))
    except (KeyError, ValueError, TypeError):
        return None


def judge(pairs: Sequence[Pair], expected: Expectation) -> Verdict:
    floor = (expected.gbytes_per_s or 0.0) * FAR_BELOW
    slow = sorted((pair for pair in pairs if pair.gbytes_per_s < floor), key=lambda pair: (pair.gbytes_per_s, pair.a))
    return Verdict(expected.gbytes_per_s, tuple(slow))


def rounds(ranks: int) -> list[list[tuple[int, int]]]:
    """Every pair once, in rounds of pairs that share no rank: the circle method of round-robin tournaments."""
    circle: list[int | None] = list(range(ranks))
    if ranks % 2:
        circle.append(None)
    made = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]), strict=True)
        made.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return made
