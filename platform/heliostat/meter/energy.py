"""Energy and CO2 of the GPU-seconds, where somebody asks for them. Pure.

Energy is the devices' own: what they drew where it was measured (NVML, by worker group), else a share of their rated
power that depends on what they did. Hosts, cooling and networks are not in it; `pue` multiplies it for a building
whose figure is known. CO2 is energy times the grid's intensity, which the caller gives: it differs tenfold by place and
hour, so that no default could be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heliostat.errors import UsageError
from heliostat.meter.facts import Use
from heliostat.meter.report import report
from heliostat.plan.catalogue import Catalogue, load

if TYPE_CHECKING:
    import pyarrow as pa

BUSY = (Use.SERVING, Use.TRAINING, Use.RECOMPUTED)
BUSY_SHARE, IDLE_SHARE = 0.75, 0.2
"""Of the rated power, assumed where nothing was measured; marked so in the result."""


@dataclass(frozen=True)
class Energy:
    """Of one row. `measured_share` of the GPU-seconds went by measured power; `unknown_gpu_hours` by none at all."""

    keys: tuple[str | None, ...]
    kwh: float
    co2_kg: float | None
    measured_share: float
    unknown_gpu_hours: float


def energy(
    rows: pa.Table,
    counts: pa.Table,
    *,
    by: Sequence[str] = ("team",),
    grams_per_kwh: float | None = None,
    pue: float = 1.0,
    catalogue: Catalogue | None = None,
) -> list[Energy]:
    """By those dimensions, the most first. Raises UsageError for figures that cannot be."""
    if pue < 1 or (grams_per_kwh is not None and grams_per_kwh < 0):
        raise UsageError(f"a PUE of {pue} and {grams_per_kwh} g/kWh cannot be", do="PUE is 1 or more, grams 0 or more")
    measured, rated = measured_watts(counts), rated_watts(catalogue or load())
    keys = [name for name in ("group", "instance") if name not in by]
    made = report(rows, by=[*by, *keys])
    sums: dict[tuple[str | None, ...], list[float]] = {}
    for line in made.lines:
        place = dict(zip(made.by, line.keys, strict=True))
        mine = sums.setdefault(line.keys[: len(by)], [0.0, 0.0, 0.0, 0.0])
        mean, top = measured.get(place["group"] or ""), rated.get(place["instance"] or "")
        for use, seconds in line.gpu_seconds.items():
            mine[3] += seconds
            if mean is not None:
                mine[0] += seconds * mean
                mine[1] += seconds
            elif top is not None:
                mine[0] += seconds * top * (BUSY_SHARE if use in {b.label for b in BUSY} else IDLE_SHARE)
            else:
                mine[2] += seconds
    found = [
        Energy(
            key,
            joules * pue / 3.6e6,
            None if grams_per_kwh is None else joules * pue / 3.6e6 * grams_per_kwh / 1000,
            by_meter / seconds if seconds else 0.0,
            unknown / 3600,
        )
        for key, (joules, by_meter, unknown, seconds) in sums.items()
    ]
    return sorted(found, key=lambda each: (-each.kwh, tuple(key or "" for key in each.keys)))


def measured_watts(counts: pa.Table) -> Mapping[str, float]:
    """Mean power of one GPU of each worker group, where it was measured."""
    sums: dict[str, dict[str, float]] = {}
    for row in counts.to_pylist():
        if row["kind"] == "group":
            mine = sums.setdefault(row["name"], {})
            mine[row["what"]] = mine.get(row["what"], 0.0) + row["amount"]
    return {
        group: mine["joules"] / mine["powered_gpu_seconds"]
        for group, mine in sums.items()
        if mine.get("powered_gpu_seconds") and "joules" in mine
    }


def rated_watts(catalogue: Catalogue) -> Mapping[str, float]:
    """Rated power of one GPU of each instance, where the catalogue has it."""
    cards = catalogue.accelerators
    return {
        instance.name: power
        for instance in catalogue.instances
        if instance.accelerator in cards and (power := cards[instance.accelerator].power_w)
    }
