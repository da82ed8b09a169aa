"""The figures of one simulation. Plain values: seconds, GPU-hours, USD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heliostat.simulate.apps import App
from heliostat.simulate.jobs import Job, Jobs
from heliostat.simulate.nodes import Group
from heliostat.simulate.prices import NodePrice


@dataclass(frozen=True)
class AppFigures:
    app: str
    offered: float
    """Requests; of a flow the counts may be fractions."""
    answered: float
    refused: float
    gave_up: float
    """Held for a start that took longer than requests are held."""
    left: float
    """Neither, when the time was over."""
    latency_p50_s: float | None
    latency_p99_s: float | None
    wait_mean_s: float | None
    """Queue delay: from the arrival to the pass that answers."""
    wait_p99_s: float | None
    cold_starts: int
    """From zero replicas, by a request that waited for it."""
    starts: int
    """Of replicas, all together."""
    replica_hours: float
    """While ready."""
    busy: float | None
    """Of that time, the share in which the model ran."""
    goodput: float | None
    """Answered, of what was offered."""


@dataclass(frozen=True)
class GroupFigures:
    group: str
    market: str
    nodes_started: int
    reclaimed: int
    starting_gpu_h: float
    loading_gpu_h: float
    working_gpu_h: float
    idle_gpu_h: float
    held_gpu_h: float
    """The sum of the four, and of all nodes' lifetimes."""
    usd: float | None
    price_source: str


@dataclass(frozen=True)
class JobFigures:
    """Of all runs together; delays of those that have begun."""

    submitted: int
    finished: int
    missed: int
    """Deadlines that passed without the work being done."""
    reclaims: int
    queue_mean_s: float | None
    """From the submission to the first step."""
    queue_p95_s: float | None
    useful_gpu_h: float
    recomputed_gpu_h: float
    held_gpu_h: float
    goodput: float | None
    """Useful of held, by the jobs' nodes, waiting and starting included."""


@dataclass(frozen=True)
class Point:
    """One moment of a plot."""

    at_s: float
    nodes: Mapping[str, int]
    replicas: Mapping[str, int]
    waiting_jobs: int
    running_jobs: int


@dataclass(frozen=True)
class Result:
    name: str
    level: str
    days: float
    seed: int
    apps: tuple[AppFigures, ...]
    groups: tuple[GroupFigures, ...]
    jobs: JobFigures
    usd: float
    """Of the groups that have a price."""
    events: int
    scaling_calls: int
    """How often each policy was asked."""
    queue_calls: int
    deadline_calls: int
    points: tuple[Point, ...]
    wall_s: float
    peak_mib: float

    def figures(self) -> dict[str, Any]:
        """Without what differs from run to run and without the plot."""
        left_out = ("wall_s", "peak_mib", "points")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def make_result(
    name: str,
    *,
    days: float,
    level: str,
    seed: int,
    groups: Sequence[Group],
    apps: Sequence[App],
    jobs: Jobs,
    prices: Mapping[str, NodePrice],
    points: Sequence[Point],
    events: int,
    wall_s: float,
    peak_mib: float,
) -> Result:
    found = tuple(_group(group, prices.get(group.name)) for group in groups)
    return Result(
        name=name,
        level=level,
        days=days,
        seed=seed,
        apps=tuple(map(_app, apps)),
        groups=found,
        jobs=_jobs(jobs, days * 86400),
        usd=sum(group.usd or 0.0 for group in found),
        events=events,
        scaling_calls=sum(app.rules.calls for app in apps),
        queue_calls=jobs.queue_calls,
        deadline_calls=jobs.deadline_calls,
        points=tuple(points),
        wall_s=wall_s,
        peak_mib=peak_mib,
    )


def _app(app: App) -> AppFigures:
    tally = app.tally
    return AppFigures(
        app=app.name,
        offered=tally.offered,
        answered=tally.answered,
        refused=tally.refused,
        gave_up=tally.gave_up,
        left=tally.left,
        latency_p50_s=tally.latency.quantile(0.5),
        latency_p99_s=tally.latency.quantile(0.99),
        wait_mean_s=tally.wait.mean_s,
        wait_p99_s=tally.wait.quantile(0.99),
        cold_starts=app.cold_starts,
        starts=app.starts,
        replica_hours=app.ready_seconds / 3600,
        busy=app.busy_s / app.ready_seconds if app.ready_seconds else None,
        goodput=tally.answered / tally.offered if tally.offered else None,
    )


def _group(group: Group, price: NodePrice | None) -> GroupFigures:
    use = group.use
    return GroupFigures(
        group=group.name,
        market=group.spec.market,
        nodes_started=group.started,
        reclaimed=group.reclaimed,
        starting_gpu_h=use.starting / 3600,
        loading_gpu_h=use.loading / 3600,
        working_gpu_h=use.working / 3600,
        idle_gpu_h=use.idle / 3600,
        held_gpu_h=use.held / 3600,
        usd=None if price is None else group.node_seconds / 3600 * price.usd,
        price_source="" if price is None else price.source,
    )


def _jobs(jobs: Jobs, end_s: float) -> JobFigures:
    begun = [job for job in jobs.all if job.began_at is not None]
    delays = [job.began_at - job.terms.submitted_s for job in begun if job.began_at is not None]
    useful = sum(job.done_s * job.terms.nodes * _gpus(job) for job in jobs.all) / 3600
    lost = sum(job.recomputed_s * job.terms.nodes * _gpus(job) for job in jobs.all) / 3600
    held = sum((job.node_seconds + _still_held_s(job, end_s)) * _gpus(job) for job in jobs.all) / 3600
    return JobFigures(
        submitted=sum(job.terms.submitted_s < end_s for job in jobs.all),
        finished=sum(job.finished_at is not None for job in jobs.all),
        missed=sum(_missed(job, end_s) for job in jobs.all),
        reclaims=sum(job.reclaims for job in jobs.all),
        queue_mean_s=float(np.mean(delays)) if delays else None,
        queue_p95_s=float(np.quantile(delays, 0.95)) if delays else None,
        useful_gpu_h=useful,
        recomputed_gpu_h=lost,
        held_gpu_h=held,
        goodput=useful / held if held else None,
    )


def _gpus(job: Job) -> float:
    return job.terms.gpus or job.jobs.nodes.groups[job.terms.group].gpus


def _still_held_s(job: Job, end_s: float) -> float:
    return sum(end_s - since for since in job.gang.values())


def _missed(job: Job, end_s: float) -> bool:
    if job.terms.deadline_s is None:
        return False
    due = job.terms.submitted_s + job.terms.deadline_s
    return (end_s if job.finished_at is None else job.finished_at) > due + 1.0
