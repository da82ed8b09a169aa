"""One scenario, from the definition to the figures."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from heliostat.definition import ClusterDefinition
from heliostat.errors import UsageError
from heliostat.plan.policy.traces import Trace
from heliostat.serve.desired import DesiredApp
from heliostat.simulate.apps import App
from heliostat.simulate.engine import Engine
from heliostat.simulate.flows import FlowApp
from heliostat.simulate.jobs import Jobs, JobTerms
from heliostat.simulate.measured import Measured, check_names
from heliostat.simulate.nodes import Group, Nodes
from heliostat.simulate.prices import node_prices, spot_shares
from heliostat.simulate.requests import RequestApp
from heliostat.simulate.result import Point, Result, make_result
from heliostat.simulate.traffic import Traffic

Level = Literal["requests", "flow"]
POINTS = 720
"""Of a plot."""


@dataclass(frozen=True)
class Scenario:
    """What happens to a definition. Times are in seconds from the start, which is midnight."""

    days: float
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    spot: Mapping[str, Trace] = field(default_factory=dict)
    """By group; a spot group without a trace always has what it asks for."""
    jobs: Sequence[JobTerms] | None = None
    """None: as `measured` says."""
    measured: Measured = field(default_factory=Measured)
    level: Level = "requests"
    seed: int = 0


def simulate(
    definition: ClusterDefinition, scenario: Scenario, *, progress: Callable[[str], None] | None = None
) -> Result:
    """Runs it. The same arguments give the same result. Raises UsageError for names that the definition has not."""
    measured, began = scenario.measured, time.perf_counter()
    check_names(
        measured,
        groups=set(definition.groups),
        applications=set(definition.applications),
        jobs=set(definition.jobs),
    )
    _check_gpus(definition, scenario)
    seeds = np.random.SeedSequence(scenario.seed)
    spot_random, *app_randoms = map(np.random.default_rng, seeds.spawn(1 + len(definition.applications)))
    engine = Engine()
    groups = [
        Group(name, spec, measured.starts_of(name), scenario.spot.get(name)) for name, spec in definition.groups.items()
    ]
    nodes = Nodes(engine, groups, period_s=measured.autoscaler.seconds, random=spot_random)
    prices = node_prices(definition, measured)
    terms = job_terms(definition, measured, scenario.days) if scenario.jobs is None else scenario.jobs
    jobs = Jobs(engine, nodes, terms, shares=dict(measured.shares), spot_prices=spot_shares(definition, prices))
    apps = _apps(definition, scenario, engine, nodes, app_randoms)
    points = _run(engine, scenario.days, nodes, apps, jobs, progress)
    for app in apps:
        app.finish()
    jobs.finish()
    nodes.finish()
    return make_result(
        definition.name,
        days=scenario.days,
        level=scenario.level,
        seed=scenario.seed,
        groups=groups,
        apps=apps,
        jobs=jobs,
        prices=prices,
        points=points,
        events=engine.events,
        wall_s=time.perf_counter() - began,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _check_gpus(definition: ClusterDefinition, scenario: Scenario) -> None:
    for name, app in definition.applications.items():
        if app.gpus_per_replica == 0 or definition.groups[app.group].gpus == 0:
            raise UsageError(
                f"application {name} has no GPU, and GPUs are what is simulated",
                where=f"applications.{name}.gpus_per_replica",
                do="give it a share of one, and its group some",
            )
    for job in scenario.jobs or ():
        if definition.groups[job.group].gpus == 0:
            raise UsageError(f"job {job.name}'s group {job.group} has no GPU", do="name a group with GPUs")


def _apps(
    definition: ClusterDefinition,
    scenario: Scenario,
    engine: Engine,
    nodes: Nodes,
    randoms: Sequence[np.random.Generator],
) -> list[App]:
    starts = {name: scenario.measured.starts_of(name) for name in definition.groups}
    apps: list[App] = []
    minutes = max(1, round(scenario.days * 1440))
    for (name, spec), random in zip(definition.applications.items(), randoms, strict=True):
        desired = DesiredApp(name=name, spec=spec, package="", groups=definition.serving_groups(spec))
        work = scenario.measured.work_of(name)
        traffic = scenario.traffic.get(name, Traffic(np.zeros(minutes, dtype=np.int64)))
        app = (RequestApp if scenario.level == "requests" else FlowApp)(engine, nodes, desired, work, starts)
        app.begin(traffic, random)
        apps.append(app)
    return apps


def _run(
    engine: Engine,
    days: float,
    nodes: Nodes,
    apps: Sequence[App],
    jobs: Jobs,
    progress: Callable[[str], None] | None,
) -> list[Point]:
    end_s, points, told = days * 86400, [], time.monotonic()
    for number in range(1, POINTS + 1):
        engine.run(end_s * number / POINTS)
        points.append(_point(engine.now, nodes, apps, jobs))
        if progress and time.monotonic() - told > 2:
            told = time.monotonic()
            progress(f"day {engine.now / 86400:.1f} of {days:g}, {engine.events:,} events")
    return points


def _point(now: float, nodes: Nodes, apps: Sequence[App], jobs: Jobs) -> Point:
    return Point(
        at_s=now,
        nodes={name: len(group.nodes) for name, group in nodes.groups.items()},
        replicas={app.name: app.ready for app in apps},
        waiting_jobs=jobs.waiting,
        running_jobs=jobs.running,
    )


def job_terms(definition: ClusterDefinition, measured: Measured, days: float) -> list[JobTerms]:
    """The runs that `measured` tells of, in the order of their submission."""
    found: list[JobTerms] = []
    for name, job in measured.jobs.items():
        group = definition.jobs[name].group
        if definition.jobs[name].gpus is not None and job.nodes > 1:
            raise UsageError(
                f"job {name} asks for {definition.jobs[name].gpus} GPUs of one node, and its runs are on {job.nodes}",
                where=f"jobs.{name}.nodes",
                do="write nodes: 1 in the measurements, or remove gpus from the definition",
            )
        every_s = job.every.seconds if job.every else days * 86400
        found += [
            JobTerms(
                name=f"{name}-{number}",
                group=group,
                nodes=job.nodes,
                work_s=job.work.seconds,
                submitted_s=number * every_s,
                deadline_s=job.deadline.seconds if job.deadline else None,
                policy=job.policy,
                fallback=_fallback(definition, group),
                restart_s=job.restart.seconds,
                stall_s=job.stall,
                team=job.team or definition.tags.team,
                priority=job.priority,
                gpus=definition.jobs[name].gpus,
            )
            for number in range(max(1, int(-(-days * 86400 // every_s))))
        ]
    return sorted(found, key=lambda one: (one.submitted_s, one.name))


def _fallback(definition: ClusterDefinition, name: str) -> str | None:
    """A group that a job of a spot group may move to: for training, not spot, with the same accelerators."""
    group = definition.groups[name]
    if group.market != "spot":
        return None
    for other, spec in definition.groups.items():
        alike = (spec.role, spec.accelerator, spec.gpus) == (group.role, group.accelerator, group.gpus)
        if alike and spec.market != "spot":
            return other
    return None
