"""Which nodes are no good: the evidence in, a verdict for each out. Pure.

unresponsive   Ray has declared the node dead, and its machine still runs: frozen, or cut off
gpu-errors     the driver reports what only a reset or a new card cures
straggler      a step's own work takes a multiple of what it takes the other members of the gang
loses-workers  workers were lost there again and again, and the node outlived them
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLOW = 2.0
"""Times the median of the others. Between equal machines it is 1.0 to 1.2."""
SLOW_FOR_S = 10.0
LEAST_STEP_S = 0.005
"""Below, it is the noise of the operating system that differs."""
LOSSES = 3
UNCORRECTABLE = 1
FATAL_XIDS: Mapping[int, str] = {
    48: "double-bit ECC error",
    62: "the GPU's own controller halted",
    64: "a failing row could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "the GPU's system processor does not answer",
}
"""Xids that NVIDIA's catalogue says to reset or replace the GPU for; those of programs (13, 31, 43) are not of them."""


@dataclass(frozen=True)
class Verdict:
    """`answers`: whether the node can still be drained; else it can only be killed."""

    node: str
    kind: str
    evidence: str
    answers: bool = True


@dataclass(frozen=True)
class GpuHealth:
    """One GPU as its driver tells. `uncorrectable`: ECC errors since the driver was loaded; None where not counted."""

    index: int
    pci: str
    uncorrectable: int | None = None
    remap_failed: bool = False
    lost: bool = False
    xids: tuple[int, ...] = ()


def gpu_trouble(gpu: GpuHealth) -> str | None:
    """The evidence, or None for a card that is well."""
    found = [f"Xid {xid}: {FATAL_XIDS[xid]}" for xid in gpu.xids if xid in FATAL_XIDS]
    if gpu.lost:
        found.append("it does not answer")
    if gpu.uncorrectable is not None and gpu.uncorrectable >= UNCORRECTABLE:
        found.append(f"{gpu.uncorrectable} uncorrectable ECC errors")
    if gpu.remap_failed:
        found.append("a failing row of its memory could not be remapped")
    return f"GPU {gpu.index} ({gpu.pci}): {'; '.join(found)}" if found else None


def straggler(step_s: Mapping[str, float]) -> tuple[str, float, float] | None:
    """(node, its seconds, the median of the others) of the slowest member, if it is far slower than the others."""
    if len(step_s) < 2:
        return None
    slowest = max(step_s, key=lambda node: (step_s[node], node))
    others = statistics.median(seconds for node, seconds in step_s.items() if node != slowest)
    took = step_s[slowest]
    return (slowest, took, others) if took >= max(SLOW * others, LEAST_STEP_S) else None


class Slowness:
    """Which nodes have been stragglers for long enough. Fed with what each gang says, at any rhythm."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, gangs: Sequence[Mapping[str, float]], now: float) -> list[Verdict]:
        found = {slow[0]: slow for gang in gangs if (slow := straggler(gang)) is not None}
        self._since = {node: self._since.get(node, now) for node in found}
        return [
            Verdict(
                node,
                "straggler",
                f"a step's own work takes {took:.3f} s there and {others:.3f} s on the others, for "
                f"{now - self._since[node]:.0f} s",
            )
            for node, (_, took, others) in found.items()
            if now - self._since[node] >= SLOW_FOR_S
        ]
