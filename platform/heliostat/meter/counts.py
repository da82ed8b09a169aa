"""What was done with the GPU-seconds: requests, items and tokens answered, steps trained, energy measured. Pure.

By hour and owner, from the events alone: each event tells what came since the one before it.
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

COUNTED = ("replica_busy", "replica_ended", "step", "node_sample")
"""The kinds of events that are counted from."""

ASKED = ("requests", "items", "tokens")
SAMPLE_LIMIT_S = 90.0
"""A sample of a node's power holds no longer than this."""


def counts_of(events: Iterable[Event], *, start: int, end: int) -> Counts:
    """Of the events in [start, end), in microseconds since the epoch; each counts once, however often it was told. Of
    those before, the last samples of power are looked at alone.

    `requests`, `items` and `tokens` of applications, `steps` and `trained_tokens` of jobs; of each worker group, under
    an owner of kind "group", `joules` and the `powered_gpu_seconds` in which they were measured.
    """
    sums: Counts = {}
    seen: set[str] = set()
    powers: dict[str, list[tuple[float, Event]]] = {}
    for event in events:
        if event.id in seen or event.kind not in COUNTED or event.time_s * SECOND >= end:
            continue
        seen.add(event.id)
        try:
            if event.kind == "node_sample":
                if event.fields.get("power_w") is not None:
                    powers.setdefault(str(event.fields["node"]), []).append((event.time_s, event))
            elif event.time_s * SECOND < start:
                continue
            elif event.kind == "step":
                _add(sums, event, job_owner(event), steps=1, trained_tokens=event.fields.get("tokens", 0))
            else:
                for team, asked in (event.fields.get("asked") or {}).items():
                    owner = replica_owner(event)
                    _add(sums, event, replace(owner, team=team or owner.team), **{k: asked.get(k, 0) for k in ASKED})
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # of another release: facts_of counts and tells those
    for samples in powers.values():
        _add_energy(sums, sorted(samples, key=lambda sample: sample[0]), start)
    return sums


def _add(sums: Counts, event: Event, owner: Owner, **amounts: float) -> None:
    hour = round(event.time_s * SECOND) // HOUR
    for what, amount in amounts.items():
        if amount:
            sums[hour, owner, what] = sums.get((hour, owner, what), 0.0) + float(amount)


def _add_energy(sums: Counts, samples: list[tuple[float, Event]], start: int) -> None:
    """A sample's power is that of the time since the one before, which may have come before the start."""
    for (before, _), (at, event) in itertools.pairwise(samples):
        if at * SECOND < start:
            continue
        seconds = min(at - before, SAMPLE_LIMIT_S)
        owner = Owner("group", str(event.fields.get("group", "")))
        _add(
            sums,
            event,
            owner,
            joules=seconds * float(event.fields["power_w"]),
            powered_gpu_seconds=seconds * float(event.fields["gpus"]),
        )
