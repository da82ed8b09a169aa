"""How often to save a checkpoint: the interval that loses the least time to saving and to computing again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from heliostat.errors import UsageError

PRIOR_RECLAIMS = 1.0
PRIOR_NODE_HOURS = 8.0
"""What is believed before anything was seen: a node lives 8 hours. Counts as one reclaim seen in that time."""


@dataclass(frozen=True)
class Interval:
    """The answer, and what it is expected to lose."""

    seconds: float
    """From the end of one save to the start of the next."""
    steps: int
    """The same in whole steps, at least 1."""
    lost_share: float
    """Of the time: saving, and computing again after reclaims without notice (to first order)."""


def reclaims_per_node_hour(
    reclaims: int,
    node_hours: float,
    *,
    prior_reclaims: float = PRIOR_RECLAIMS,
    prior_node_hours: float = PRIOR_NODE_HOURS,
) -> float:
    """The rate at which a node of a group is taken, from what was counted.

    The mean of a Gamma(prior_reclaims, prior_node_hours) belief after so many reclaims in so many node-hours: near the
    prior while little was seen, near the plain ratio later, never 0.
    """
    if reclaims < 0 or node_hours < 0 or prior_reclaims <= 0 or prior_node_hours <= 0:
        raise UsageError(
            f"{reclaims} reclaims in {node_hours:g} node-hours", do="counts and hours from 0, a prior above 0"
        )
    return (prior_reclaims + reclaims) / (prior_node_hours + node_hours)


def checkpoint_interval(
    *,
    stall_s: float,
    step_s: float,
    rate_per_node_hour: float,
    nodes: int = 1,
    unannounced: float = 1.0,
    least_s: float = 0.0,
) -> Interval:
    """The interval for a job on `nodes` nodes, any of which ends the attempt when it is taken.

    stall_s: what a checkpoint keeps the steps waiting, as measured (for an asynchronous one only the copy to host
    memory). unannounced: the share of reclaims that come without a notice long enough to save; the others lose nothing.
    least_s: no shorter than this, such as the time that the upload of one takes.

    With C = stall_s and M = the mean time between losses, Young (1974) has sqrt(2CM); Daly (2006), for C < 2M:
    sqrt(2CM) [1 + sqrt(C/2M)/3 + (C/2M)/9] - C, and M beyond. Rounded to steps; the expected share lost is
    C / (interval + C) + (interval + C) / 2M. Raises UsageError for values that cannot be.
    """
    if stall_s < 0 or step_s <= 0 or rate_per_node_hour < 0 or nodes < 1 or not 0 <= unannounced <= 1 or least_s < 0:
        raise UsageError(
            f"stall {stall_s:g}s, step {step_s:g}s, {rate_per_node_hour:g} reclaims per node-hour, {nodes} nodes, "
            f"{unannounced:g} unannounced",
            do="times and rates from 0, a step above 0, at least one node, a share from 0 to 1",
        )
    per_s = rate_per_node_hour * nodes * unannounced / 3600
    mean_s = 1 / per_s if per_s else math.inf
    wanted_s = max(_daly(stall_s, mean_s), least_s)
    if math.isinf(wanted_s):
        raise UsageError("no reclaim is ever without notice, so no interval is best", do="give a rate above 0")
    steps = max(1, round(wanted_s / step_s))
    seconds = steps * step_s
    lost = stall_s / (seconds + stall_s) + (seconds + stall_s) / 2 * per_s
    return Interval(seconds=seconds, steps=steps, lost_share=min(1.0, lost))


def _daly(stall_s: float, mean_s: float) -> float:
    if math.isinf(mean_s):
        return mean_s
    if stall_s >= 2 * mean_s:
        return mean_s
    part = stall_s / (2 * mean_s)
    return math.sqrt(2 * stall_s * mean_s) * (1 + math.sqrt(part) / 3 + part / 9) - stall_s
