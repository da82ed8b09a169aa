"""Policies side by side on the windows of spot traces: the rows that `heliostat job rehearse` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heliostat.errors import UsageError
from heliostat.plan.policy.deadline import Deadline, Greedy, OnDemandOnly, UniformProgress
from heliostat.plan.policy.forecast import Forecast
from heliostat.plan.policy.optimum import optimum
from heliostat.plan.policy.rehearse import rehearse
from heliostat.plan.policy.traces import Trace, Window, cut

POLICIES: tuple[Callable[[Deadline], Any], ...] = (OnDemandOnly, Greedy, UniformProgress, Forecast)
"""Any: policies differ in what they remember."""


@dataclass(frozen=True)
class Row:
    """One policy over all windows. Costs are shares; times are hours from the start of the job."""

    policy: str
    windows: int
    vs_on_demand: float
    vs_optimum: float
    worst_vs_optimum: float
    above_on_demand: int
    """Windows that cost more than on-demand only."""
    missed: int
    starts: float
    """Of a gang, per job; the mean."""
    reclaims: float
    median_finish_h: float
    p95_finish_h: float
    latest_finish_h: float


def cut_all(traces: Sequence[Trace], *, deadline_s: float, stride_s: float, nodes: int) -> list[Window]:
    """The windows of all traces. Raises UsageError where a trace is too short or never had so many nodes."""
    windows: list[Window] = []
    for trace in traces:
        if trace.seconds < deadline_s:
            raise UsageError(
                f"the trace covers {trace.seconds / 3600:.1f}h, the job has {deadline_s / 3600:.1f}h",
                where=trace.name,
                do="give a longer trace or an earlier deadline",
            )
        if nodes > trace.nodes:
            raise UsageError(
                f"the trace is of {trace.nodes} nodes, the job asks for {nodes}",
                where=trace.name,
                do="ask for fewer nodes, or give a trace of more",
            )
        windows += cut(trace, seconds=deadline_s, stride_s=stride_s, nodes=nodes)
    return windows


def compare(job: Deadline, windows: Sequence[Window], *, progress: Callable[[str], None] | None = None) -> list[Row]:
    """A row per policy. Each window is rehearsed with the trace's tick as the poll, and what was before it learnt."""
    costs = {policy(job).name: np.empty(len(windows)) for policy in POLICIES}
    outcomes: dict[str, list[Any]] = {name: [] for name in costs}
    least = np.empty(len(windows))
    for number, window in enumerate(windows):
        asked = dataclasses.replace(job, poll_s=window.tick_s)
        least[number] = optimum(asked, window.up, tick_s=window.tick_s)
        for make in POLICIES:
            policy = make(asked)
            outcomes[policy.name].append(rehearse(policy, asked, window))
        if progress and number % 100 == 99:
            progress(f"{number + 1} of {len(windows)} windows")
    return [_row(job, name, results, least) for name, results in outcomes.items()]


def _row(job: Deadline, name: str, outcomes: Sequence[Any], least: np.ndarray[Any, np.dtype[np.float64]]) -> Row:
    costs = np.array([outcome.cost_s for outcome in outcomes])
    finish_h = np.array([outcome.finish_s for outcome in outcomes]) / 3600
    # At a spot price of 0 the optimum may cost nothing.
    ratios = np.divide(costs, least, out=np.where(costs > 0, np.inf, 1.0), where=least > 0)
    return Row(
        policy=name,
        windows=len(outcomes),
        vs_on_demand=float(costs.mean() / job.on_demand_cost_s),
        vs_optimum=float(ratios.mean()),
        worst_vs_optimum=float(ratios.max()),
        above_on_demand=int((costs > job.on_demand_cost_s * (1 + 1e-9)).sum()),
        missed=sum(outcome.missed for outcome in outcomes),
        starts=float(np.mean([outcome.changes for outcome in outcomes])),
        reclaims=float(np.mean([outcome.reclaims for outcome in outcomes])),
        median_finish_h=float(np.median(finish_h)),
        p95_finish_h=float(np.quantile(finish_h, 0.95)),
        latest_finish_h=float(finish_h.max()),
    )
