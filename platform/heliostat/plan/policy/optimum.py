"""The least that a job with a deadline can cost when all of the future is known: the yardstick of every policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from heliostat.plan.policy.deadline import Deadline


def optimum(job: Deadline, up: Sequence[bool], *, tick_s: int) -> float:
    """Seconds of on-demand that the cheapest schedule costs; up[i] tells whether spot is there in tick i.

    Schedules change market at ticks, as policies do, and count time and money as `deadline` says. Forward dynamic
    programming over ticks; the state is the market and the slack lost so far, [L] in units of gcd(tick, changeover):
    running on either market leaves the slack as it is. Only waiting (a tick) and starting (a changeover) cost
    slack. A start is charged its whole changeover at once: one that is cut short is never worth its money, so no
    schedule that matters is charged too much. Work left = time left - slack left; changeover_s must be whole seconds.
    """
    unit = math.gcd(tick_s, round(job.changeover_s))
    size = int(job.slack_s // unit) + 1  # L
    wait, start = tick_s // unit, round(job.changeover_s) // unit
    slack_s = job.slack_s - unit * np.arange(size)  # [L] what is left of it
    none, spot, on_demand = (np.full(size, np.inf) for _ in range(3))
    none[0] = 0.0
    best = math.inf
    for tick, there in enumerate(up):
        left_s = job.deadline_s - tick * tick_s
        if left_s <= 0:
            break
        stopped = np.minimum(np.minimum(none, spot), on_demand)  # stopping is free
        started = _later(stopped, start)
        spot = np.minimum(spot, started) if there else np.full(size, np.inf)
        on_demand = np.minimum(on_demand, started)
        none = _later(stopped, wait)
        ends = int(np.searchsorted(-slack_s, tick_s - left_s, side="right"))  # those whose work ends within this tick
        if ends:
            remaining_s = np.maximum(left_s - slack_s[:ends], 0.0)
            for costs, price in ((spot, job.spot_price), (on_demand, 1.0)):
                best = min(best, float((costs[:ends] + price * remaining_s).min()))
                costs[:ends] = np.inf
        spot = spot + job.spot_price * tick_s
        on_demand = on_demand + tick_s
    return best


def _later(
    costs: np.ndarray[tuple[int], np.dtype[np.float64]], units: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The costs [L] after so many more units of slack were lost."""
    moved = np.full_like(costs, np.inf)
    if units < len(costs):
        moved[units:] = costs[: len(costs) - units]
    return moved
