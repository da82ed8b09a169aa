"""Hands jobs to Ray when it is their turn, asks some to leave, and says why the others wait.

What runs and what waits is read anew each round: the queue's objects, Ray's own list of jobs, and what each gang says
that it holds. A job that this controller handed over and could not note is found running by the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.cluster.embedded import definition_of
from heliostat.controller.dashboard import ask
from heliostat.controller.duty import World
from heliostat.definition import ClusterDefinition
from heliostat.plan.share import Decision, Policy, Request, Running, charge, decide
from heliostat.settings import Settings
from heliostat.train import bounds, queued
from heliostat.train.bounds import Held
from heliostat.train.queued import QueuedJob, QueueState
from heliostat.train.submit import FINISHED

log = logging.getLogger(__name__)

LOST_S = 30.0
"""A job that was handed over and that Ray has not known for so long went with its head."""
KEEP_S = 10.0
"""What teams have used is written down as often."""
NAME = "queue"
GROWTH = "growth"


@dataclass(frozen=True)
class View:
    """The queue as one round sees it. `parked`: since when jobs that were asked to leave hold nothing."""

    waiting: tuple[QueuedJob, ...]
    running: tuple[QueuedJob, ...]
    held: Mapping[str, Held]
    leaving: frozenset[str] = frozenset()
    parked: Mapping[str, float] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    """Runs that may not grow."""


def requests(view: View) -> list[Request]:
    """Those that wait for a start, and those that were asked to leave, have left and wait for their return."""
    new = [_request(job, job.nodes, job.submitted_at) for job in view.waiting]
    back = [_request(job, job.nodes, view.parked[job.job_id]) for job in view.running if job.job_id in view.parked]
    return new + back


def running(view: View) -> list[Running]:
    """What holds nodes, or is about to: as many as the gang says, where it says so, and on the group where it is.

    A gang that nobody queued holds nodes too; it is nobody's team's, and cannot be asked to leave.
    """
    found = []
    for job in view.running:
        if job.job_id in view.parked:
            continue
        held = view.held.get(job.run)
        nodes = job.nodes if held is None else held.nodes or held.low
        request = _request(job, nodes, job.submitted_at, group=job.group if held is None else held.group)
        on = "" if held is None else held.node
        found.append(Running(request, job.started_at or job.submitted_at, job.job_id in view.leaving, on))
    return found


def capacity(definition: ClusterDefinition, view: View) -> dict[str, int]:
    """Nodes by group that the queue may give away: all that the group may have, less what unqueued gangs hold.

    The trials of a queued sweep hold what the sweep was given.
    """
    ours = {name for job in (*view.waiting, *view.running) for name in (job.run, job.job_id)}
    found = _most(definition)
    for run, held in view.held.items():
        if not ours & {run, held.job_id} and held.group in found:
            found[held.group] = max(0, found[held.group] - held.nodes)
    return found


def _most(definition: ClusterDefinition) -> dict[str, int]:
    return {name: group.nodes.high for name, group in definition.groups.items() if group.role == "training"}


def growth(view: View, waiting_for: Collection[str]) -> dict[str, int | None]:
    """What to change, by run: an elastic gang stays as large as it is while somebody waits for its group's nodes."""
    found: dict[str, int | None] = {}
    for run, held in view.held.items():
        keep = held.home in waiting_for and held.low < held.high
        if keep and run not in view.kept and held.nodes >= held.low:
            found[run] = held.nodes
        elif not keep and run in view.kept:
            found[run] = None
    return found


def policy(definition: ClusterDefinition) -> Policy:
    return Policy(dict(definition.sharing.shares), patience_s=definition.sharing.patience.seconds)


def _request(job: QueuedJob, nodes: int, since: float, *, group: str = "") -> Request:
    group = group or job.group
    whole = job.node_gpus.get(group, 0.0)
    return Request(job.job_id, job.team, group, nodes, job.gpus_per_node, since, job.priority, whole)


class Queue:
    """One writer of `queue/state.json`."""

    period_s = 1.0

    def __init__(self) -> None:
        self._definition: ClusterDefinition | None = None
        self._state: QueueState | None = None
        self._written_at = 0.0
        self._unknown_since: dict[str, float] = {}
        self._parked: dict[str, float] = {}

    def forget(self) -> None:
        self._state = None

    def act(self, world: World, now: float) -> None:
        folder = world.settings.state_dir
        if folder is None:
            return  # on Kubernetes Kueue does this
        jobs = queued.read_queue(world.store)
        if not jobs and (self._state is None or not self._state.waits):
            return  # nothing waits, and nothing was told to wait
        self._definition = self._definition or definition_of(folder)
        state = self._state or queued.read_state(world.store)
        ray = {row["submission_id"]: row for row in _ray_jobs(world.settings) if row.get("submission_id")}
        view = self._view(world, self._sort_out(world, jobs, ray, now), now)
        held = running(view)
        usage = charge(state.usage, held, min(now - state.at, KEEP_S), half_life_s=policy(self._definition).half_life_s)
        room, most = capacity(self._definition, view), _most(self._definition)
        made = decide(requests(view), held, room, usage, policy(self._definition), now=now, most=most)
        self._start(world, view, made, now)
        self._ask_to_leave(world, view, made)
        waiting_for = {job.group for job in view.waiting if job.job_id not in made.start}
        for run, nodes in growth(view, waiting_for).items():
            bounds.bind(world.store, run, GROWTH, nodes, "jobs wait for the group's nodes")
        self._note(world, QueueState(at=now, usage=usage, waits={wait.job: wait.why for wait in made.waits}))

    def _sort_out(
        self, world: World, jobs: Sequence[QueuedJob], ray: Mapping[str, Mapping[str, Any]], now: float
    ) -> list[QueuedJob]:
        """Without those that have ended, or went with a head that is gone."""
        kept = []
        for job in jobs:
            row = ray.get(job.job_id)
            if row is not None and row.get("status") in FINISHED:
                self._drop(world, job)
            elif row is not None or job.started_at is None:
                self._unknown_since.pop(job.job_id, None)
                if row is not None and job.started_at is None:  # handed over by one that could not note it
                    queued.mark_started(world.store, job.job_id, now)
                    job = job.model_copy(update={"started_at": now})
                kept.append(job)
            elif now - self._unknown_since.setdefault(job.job_id, now) > LOST_S:
                world.spool.emit("job_lost", job=job.job_id, run=job.run, team=job.team)
                log.warning("job %s is not known to Ray: submit it again with --run %s", job.job_id, job.run)
                self._drop(world, job)
            else:
                kept.append(job)
        return kept

    def _drop(self, world: World, job: QueuedJob) -> None:
        queued.remove(world.store, job.job_id)
        bounds.forget(world.store, job.run)
        self._parked.pop(job.job_id, None)

    def _view(self, world: World, jobs: Sequence[QueuedJob], now: float) -> View:
        held = bounds.read_held(world.store, now)
        started = tuple(job for job in jobs if job.started_at is not None)
        known = {run: bounds.read_bounds(world.store, run) for run in {*held, *(job.run for job in started)}}
        leaving = {job.job_id for job in started if NAME in known[job.run]}
        for job in started:
            if job.job_id in leaving and job.run in held and held[job.run].nodes == 0:
                self._parked.setdefault(job.job_id, now)
            else:
                self._parked.pop(job.job_id, None)
        waiting = tuple(job for job in jobs if job.started_at is None)
        kept = frozenset(run for run, set_by in known.items() if GROWTH in set_by)
        return View(waiting, started, held, frozenset(leaving), dict(self._parked), kept)

    def _start(self, world: World, view: View, made: Decision, now: float) -> None:
        by_id = {job.job_id: job for job in (*view.waiting, *view.running)}
        for job_id in made.start:
            job = by_id[job_id]
            if job_id in view.parked:
                bounds.bind(world.store, job.run, NAME, None)
                world.spool.emit("job_returns", job=job_id, run=job.run, team=job.team)
                continue
            if queued.read_job(world.store, job_id) is None:
                continue  # withdrawn a moment ago
            _hand_over(world.settings, job)
            queued.mark_started(world.store, job_id, now)
            waited = round(now - job.submitted_at, 1)
            world.spool.emit("job_admitted", job=job_id, run=job.run, team=job.team, nodes=job.nodes, waited_s=waited)
            log.info("started %s of %s after %.1f s", job_id, job.team, waited)

    def _ask_to_leave(self, world: World, view: View, made: Decision) -> None:
        by_id = {job.job_id: job for job in view.running}
        for job_id in made.leave:
            job = by_id.get(job_id)
            if job is not None:
                bounds.bind(world.store, job.run, NAME, 0, "another team is below its share of the GPUs")
                world.spool.emit("job_asked_to_leave", job=job_id, run=job.run, team=job.team)

    def _note(self, world: World, state: QueueState) -> None:
        """What waits is told when it changes; what was used, now and then."""
        before, self._state = self._state, state
        told = {} if before is None else {job: _plain(why) for job, why in before.waits.items()}
        if {job: _plain(why) for job, why in state.waits.items()} != told or state.at - self._written_at > KEEP_S:
            queued.write_state(world.store, state)
            self._written_at = state.at


def _plain(why: str) -> str:
    """Without for how long it has waited, which changes every second."""
    return why.partition("; waits ")[0]


def _ray_jobs(settings: Settings) -> list[dict[str, Any]]:  # Any: JSON
    return list(ask(settings, "GET", "/api/jobs/"))


def _hand_over(settings: Settings, job: QueuedJob) -> None:
    ask(settings, "POST", "/api/jobs/", job.for_ray())
