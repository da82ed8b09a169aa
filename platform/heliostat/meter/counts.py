"""What was done with the GPU-seconds: requests, items and tokens answered, steps trained, energy measured. Pure.

By hour and owner, from the events of a day alone: each event tells what came since the one before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from heliostat.events import Event
from heliostat.meter.cells import HOUR
from heliostat.meter.facts import SECOND, Owner, job_owner, replica_owner

Counts = dict[tuple[int, Owner, str], float]
"""By (hour since the epoch, owner, what)."""

ASKED = ("requests", "items", "tokens")
SAMPLE_LIMIT_S = 90.0
"""A sample of a node's power holds no longer than this."""


def counts_of(events: Iterable[Event], *, start: int, end: int) -> Counts:
    """Of the events in [start, end), in microseconds since the epoch; each counts once, however often it was told.

    `requests`, `items` and `tokens` of applications, `steps` and `trained_tokens` of jobs; of each worker group, under
    an owner of kind "group", `joules` and the `powered_gpu_seconds` in which they were measured.
    """
    sums: Counts = {}
    seen: set[str] = set()
    powers: dict[str, list[tuple[float, Event]]] = {}
    for event in events:
        if event.id in seen or event.kind not in ("replica_busy", "replica_ended", "step", "node_sample"):
            continue
        seen.add(event.id)
        if not start <= event.time_s * SECOND < end:
            continue
        try:
            if event.kind == "node_sample":
                if event.fields.get("power_w") is not None:
                    powers.setdefault(str(event.fields["node"]), []).append((event.time_s, event))
            elif event.kind == "step":
                _add(sums, event, job_owner(event), steps=1, trained_tokens=event.fields.get("tokens", 0))
            else:
                for team, asked in (event.fields.get("asked") or {}).items():
                    owner = replica_owner(event)
                    _add(sums, event, replace(owner, team=team or owner.team), **{k: asked.get(k, 0) for k in ASKED})
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # of another release: facts_of counts and tells those
    for samples in powers.values():
        _add_energy(sums, sorted(samples, key=lambda sample: sample[0]))
    return sums


def _add(sums: Counts, event: Event, owner: Owner, **amounts: float) -> None:
    hour = round(event.time_s * SECOND) // HOUR
    for what, amount in amounts.items():
        if amount:
            sums[hour, owner, what] = sums.get((hour, owner, what), 0.0) + float(amount)


def _add_energy(sums: Counts, samples: list[tuple[float, Event]]) -> None:
    """A sample's power is that of the time since the one before."""
    for (before, _), (at, event) in itertools.pairwise(samples):
        seconds = min(at - before, SAMPLE_LIMIT_S)
        owner = Owner("group", str(event.fields.get("group", "")))
        _add(
            sums,
            event,
            owner,
            joules=seconds * float(event.fields["power_w"]),
            powered_gpu_seconds=seconds * float(event.fields["gpus"]),
        )
