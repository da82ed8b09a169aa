"""Training jobs: gangs that queue, start whole, save, are reclaimed and go on; with a deadline, on either market.

Who starts next is `plan.share`, asked at the controller's period while anybody waits. Where a job with a deadline runs
is `plan.policy.deadline` or `forecast`, asked at every poll. How often it saves is `plan.policy.checkpoint`, from the
reclaims seen so far in its group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from heliostat.plan import share
from heliostat.plan.policy.checkpoint import checkpoint_interval, reclaims_per_node_hour
from heliostat.plan.policy.deadline import (
    Deadline,
    Greedy,
    Market,
    Observation,
    OnDemandOnly,
    Spell,
    UniformProgress,
)
from heliostat.plan.policy.forecast import Forecast
from heliostat.simulate.engine import Engine, next_tick
from heliostat.simulate.nodes import Group, Node, Nodes, Want
from heliostat.simulate.scaling import CONTROLLER_S

POLICIES: dict[str, Any] = {one.name: one for one in (Forecast, UniformProgress, Greedy, OnDemandOnly)}
POLL_S = 300.0
"""Between two questions to a deadline policy."""
DEFAULT_SPOT_PRICE = 0.3
"""Of on-demand, where the prices are not known."""
ROUNDING_S = 1e-6
LOOK_S = 300.0
"""While somebody waits the queue is looked at when somebody comes or ends, spot changes or patience runs out, which is
when the answer can be another; and so often at least, since what teams were charged moves all the time."""


@dataclass(frozen=True)
class JobTerms:
    """One run: `work_s` of time on `nodes` whole nodes of `group`, or on `gpus` of one."""

    name: str
    group: str
    nodes: int
    work_s: float
    submitted_s: float = 0.0
    deadline_s: float | None = None
    """From the submission. The policy then decides on the market; without one it waits for its group."""
    policy: str = "forecast"
    fallback: str | None = None
    """The group that it may move to, for its deadline."""
    restart_s: float = 30.0
    stall_s: float = 1.0
    team: str = "all"
    priority: int = 0
    gpus: int | None = None
    """Of one node, where it needs a part; else all of its nodes'."""


@lru_cache(maxsize=256)
def _policy(name: str, terms: Deadline) -> Any:  # Any: policies differ in what they remember
    """Forecast's plan takes a second to compute, and jobs alike share it."""
    return POLICIES[name](terms)


@dataclass(eq=False)
class Job:
    """A run and its gang. Progress is settled whenever it begins or ceases to step."""

    terms: JobTerms
    jobs: Jobs
    done_s: float = 0.0
    saved_s: float = 0.0
    group: str = ""
    gang: dict[Node, float] = field(default_factory=dict)
    """Its nodes, and since when it has them."""
    loading: set[Node] = field(default_factory=set)
    """Those of them that do not step yet."""
    wants: list[Want] = field(default_factory=list)
    state: str = "waiting"  # gathering, restarting, stepping, finished
    asked_at: float = 0.0
    began_at: float | None = None
    finished_at: float | None = None
    stepping_since: float = 0.0
    interval_s: float = math.inf
    generation: int = 0
    recomputed_s: float = 0.0
    reclaims: int = 0
    starts: int = 0
    node_seconds: float = 0.0
    """Held, by nodes that it has given back or lost."""
    spent_s: float = 0.0
    """As the deadline policies count it: seconds of the whole gang, at the market's share of the on-demand price."""
    leaving: bool = False
    """Asked to leave at its next checkpoint."""
    runs: share.Running | None = None
    """Its request and when it was made, as the queue takes them."""
    policy: Any = None
    memory: Any = None
    spell_up: bool | None = None
    spell_began: float = 0.0

    @property
    def pace(self) -> float:
        """Progress a second: saving takes its share."""
        return self.interval_s / (self.interval_s + self.terms.stall_s) if math.isfinite(self.interval_s) else 1.0

    @property
    def gpus(self) -> float:
        """On each of its nodes."""
        return float(self.terms.gpus or self.jobs.nodes.groups[self.group or self.terms.group].gpus)

    def size_on(self, group: str) -> float:
        """In nodes of that group."""
        return self.terms.gpus / self.jobs.nodes.groups[group].gpus if self.terms.gpus else float(self.terms.nodes)

    @property
    def running(self) -> bool:
        return self.state not in ("waiting", "finished")

    # --- as holder of nodes

    def noticed(self, node: Node) -> None:
        """Another node is asked for while it goes on."""
        if node in self.gang:
            self.ask_node()

    def saves_in_time(self, node: Node) -> bool:
        """Whether the notice is long enough for a checkpoint: then it moves when the notice ends, and loses nothing."""
        notice_s = node.group.starts.notice.seconds
        return 0 < notice_s >= self.terms.stall_s

    def lost(self, node: Node) -> None:
        node.holders.pop(self)
        self.let_go(node)
        self.jobs.lost(self, node)

    def let_go(self, node: Node) -> None:
        """It has the node no longer."""
        seconds = self.jobs.engine.now - self.gang.pop(node)
        self.runs = None
        self.loading.discard(node)
        self.node_seconds += seconds
        spot = node.group.spec.market == "spot"
        self.spent_s += seconds / self.terms.nodes * (self.jobs.price_share(self.terms) if spot else 1.0)

    def ask_node(self) -> None:
        # A reclaim is charged where it happens; a replacement is of the same group.
        missing = self.terms.nodes - sum(not node.leaving for node in self.gang) - len(self.wants)
        for _ in range(missing):
            want = Want(self, self.gpus, (self.group,), self.take)
            self.wants.append(want)
            self.jobs.nodes.want(want)

    def take(self, node: Node) -> None:
        self.wants = [want for want in self.wants if want in self.jobs.nodes.wants]
        self.gang[node] = self.jobs.engine.now
        self.runs = None  # where a part is has changed
        self.loading.add(node)
        self.jobs.gathered(self)

    # --- progress

    def settle(self) -> None:
        if self.state != "stepping":
            return
        now = self.jobs.engine.now
        done = min(self.terms.work_s, self.done_s + (now - self.stepping_since) * self.pace)
        if math.isfinite(self.interval_s):
            whole = math.floor((done - self.saved_s + ROUNDING_S) / self.interval_s)
            self.saved_s += max(0, whole) * self.interval_s
        self.done_s, self.stepping_since = done, now


class Jobs:
    """All runs, and who waits for which nodes."""

    def __init__(
        self,
        engine: Engine,
        nodes: Nodes,
        terms: Sequence[JobTerms],
        *,
        shares: dict[str, float],
        spot_prices: dict[str, float],
    ) -> None:
        self.engine, self.nodes = engine, nodes
        self.all = [Job(one, self) for one in terms]
        self._waiting: dict[Job, None] = {}
        self._running: dict[Job, None] = {}
        self._policy = share.Policy(shares=shares)
        self._spot_prices = spot_prices
        self._usage: dict[str, float] = {}
        self._charged_at = 0.0
        self._looks_at = math.inf
        self.queue_calls = self.deadline_calls = 0
        self._groups = {one.group for one in terms} | {one.fallback for one in terms if one.fallback}
        nodes.watchers.append(self._changed)
        for job in self.all:
            engine.at(job.terms.submitted_s, self._submit, job)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    # --- the queue

    def _submit(self, job: Job) -> None:
        terms = job.terms
        if terms.deadline_s is None:
            self._enqueue(job, terms.group)
            return
        question = Deadline(
            work_s=terms.work_s,
            deadline_s=terms.deadline_s,
            changeover_s=terms.restart_s + self.nodes.groups[terms.group].starts.node.seconds,
            spot_price=self.price_share(terms),
            poll_s=POLL_S,
        )
        job.policy = _policy(terms.policy, question)
        job.memory = job.policy.begin()
        self._poll(job)

    def price_share(self, terms: JobTerms) -> float:
        """What spot costs of on-demand."""
        return self._spot_prices.get(terms.group, DEFAULT_SPOT_PRICE)

    def _enqueue(self, job: Job, group: str) -> None:
        job.group, job.state, job.asked_at = group, "waiting", self.engine.now
        job.runs = None
        self._waiting[job] = None
        self._look_soon()

    def _changed(self) -> None:
        if self._waiting:
            self._look_soon()

    def _look_soon(self, after_s: float = 0.0) -> None:
        at = next_tick(self.engine.now + after_s, CONTROLLER_S)
        if at < self._looks_at:
            self._looks_at = at
            self.engine.at(at, self._look, at)

    def _look(self, at: float) -> None:
        if at != self._looks_at:
            return
        self._looks_at = math.inf
        self._charge()
        if not self._waiting:
            return
        self.queue_calls += 1
        decision = share.decide(
            [_runs(job).request for job in self._waiting],
            [_runs(job) for job in self._running],
            {name: self._capacity(self.nodes.groups[name]) for name in self._groups},
            self._usage,
            self._policy,
            now=self.engine.now,
        )
        by_name = {job.terms.name: job for job in (*self._waiting, *self._running)}
        for name in decision.start:
            self._start(by_name[name])
        for name in decision.leave:
            self._leave(by_name[name])
        if self._waiting:
            due = (job.asked_at + self._policy.patience_s - self.engine.now for job in self._waiting)
            self._look_soon(min((after for after in due if after > 0), default=LOOK_S))

    def _capacity(self, group: Group) -> int:
        """Nodes that jobs may have now."""
        return group.may_have(self.engine.now)

    def _charge(self) -> None:
        now = self.engine.now
        if now > self._charged_at:
            running = [_runs(job) for job in self._running]
            seconds, half_life_s = now - self._charged_at, self._policy.half_life_s
            self._usage = share.charge(self._usage, running, seconds, half_life_s=half_life_s)
            self._charged_at = now

    def _start(self, job: Job) -> None:
        self._charge()
        del self._waiting[job]
        self._running[job] = None
        job.state = "gathering"
        job.starts += 1
        job.ask_node()

    def _leave(self, job: Job) -> None:
        """At its next checkpoint, as in production: a gang that does not step yet has that before it. If it left at
        once, a job that is first in the queue again could start and be asked to leave every second."""
        job.leaving, job.runs = True, None
        if job.state == "stepping":
            self._leave_soon(job)

    def _leave_soon(self, job: Job) -> None:
        job.settle()
        after_s = job.terms.stall_s
        if math.isfinite(job.interval_s):
            after_s += max(0.0, job.interval_s - (job.done_s - job.saved_s)) / job.pace
        self.engine.at(self.engine.now + after_s, self._left, job, job.generation)

    def _left(self, job: Job, generation: int) -> None:
        """It has saved, and waits again."""
        if generation != job.generation or job.state != "stepping":
            return
        job.settle()
        job.saved_s = job.done_s
        self._stop(job)
        self._enqueue(job, job.group)

    def _stop(self, job: Job) -> None:
        """Everything it has is given back."""
        self._charge()
        job.settle()
        job.generation += 1
        job.state = "waiting"
        job.leaving = False
        self._running.pop(job, None)
        self._waiting.pop(job, None)
        for want in job.wants:
            self.nodes.drop(want)
        job.wants = []
        for node in list(job.gang):
            loading = node in job.loading
            job.let_go(node)
            self.nodes.release(node, job, loading=loading)

    # --- a gang

    def gathered(self, job: Job) -> None:
        """One more node is there. When all are: processes start and the checkpoint is read."""
        if job.state == "gathering" and len(job.gang) == job.terms.nodes:
            job.state = "restarting"
            job.generation += 1
            self.engine.at(self.engine.now + job.terms.restart_s, self._step, job, job.generation)

    def _step(self, job: Job, generation: int) -> None:
        if generation != job.generation or job.state != "restarting":
            return
        now = self.engine.now
        job.state, job.stepping_since = "stepping", now
        job.began_at = now if job.began_at is None else job.began_at
        job.interval_s = self._interval_s(job)
        for node in job.loading:
            self.nodes.works(node, job)
        job.loading.clear()
        left_s = (job.terms.work_s - job.done_s) / job.pace
        self.engine.at(now + left_s, self._finish, job, job.generation)
        if job.leaving:
            self._leave_soon(job)

    def _interval_s(self, job: Job) -> float:
        group = self.nodes.groups[job.group]
        if group.spec.market != "spot":
            return math.inf
        hours = (group.use.held / group.gpus if group.gpus else 0.0) / 3600
        return checkpoint_interval(
            stall_s=job.terms.stall_s,
            step_s=1.0,
            rate_per_node_hour=reclaims_per_node_hour(group.reclaimed, hours),
            nodes=job.terms.nodes,
        ).seconds

    def lost(self, job: Job, node: Node) -> None:
        """A node is gone: what was not saved is lost, and the gang waits until it is whole again."""
        job.settle()
        job.reclaims += 1
        job.generation += 1
        if job.saves_in_time(node):
            job.saved_s = job.done_s
        else:
            job.recomputed_s += job.done_s - job.saved_s
            job.done_s = job.saved_s
        for other in job.gang.keys() - job.loading:
            self.nodes.works(other, job, loading=True)
        job.loading.update(job.gang)
        job.state = "gathering"
        if job.policy is not None:
            self._ask(job, reclaimed=True)
        if job.state == "gathering":
            job.ask_node()
            self.gathered(job)

    def _finish(self, job: Job, generation: int) -> None:
        if generation != job.generation or job.state != "stepping":
            return
        job.settle()
        job.done_s = job.saved_s = job.terms.work_s
        self._stop(job)
        job.state, job.finished_at = "finished", self.engine.now
        self._changed()

    # --- deadlines

    def _poll(self, job: Job) -> None:
        if job.state == "finished":
            return
        if self._market(job) != Market.SPOT:
            self._ask(job, reclaimed=False)
        self.engine.at(self.engine.now + POLL_S, self._poll, job)

    def _market(self, job: Job) -> Market:
        if not job.running and job not in self._waiting:
            return Market.NONE
        return Market.SPOT if self.nodes.groups[job.group].spec.market == "spot" else Market.ON_DEMAND

    def _ask(self, job: Job, *, reclaimed: bool) -> None:
        """The policy, and a move where it wants another market."""
        terms, now = job.terms, self.engine.now
        job.settle()
        up = self._capacity(self.nodes.groups[terms.group]) >= terms.nodes and self._room_for(job)
        if job.spell_up is None:
            job.spell_up, job.spell_began = up, now
        elif up != job.spell_up:
            job.memory = job.policy.learn(job.memory, Spell(job.spell_up, now - job.spell_began))
            job.spell_up, job.spell_began = up, now
        at = Market.NONE if reclaimed else self._market(job)
        self.deadline_calls += 1
        wanted = job.policy.decide(
            Observation(
                elapsed_s=now - terms.submitted_s,
                work_left_s=terms.work_s - job.done_s,
                market=at,
                starting_left_s=0.0 if job.state == "stepping" or at == Market.NONE else terms.restart_s,
                spot_up=up,
                spell_s=now - job.spell_began,
                spent_s=job.spent_s,  # of what it has given back
            ),
            job.memory,
        )
        if terms.fallback is None and wanted == Market.ON_DEMAND:
            wanted = Market.SPOT if up else Market.NONE  # there is nothing else to move to
        if wanted == self._market(job):
            return
        if job.running or job in self._waiting:
            job.saved_s = job.done_s
            self._stop(job)
        if wanted != Market.NONE:
            self._enqueue(job, terms.group if wanted == Market.SPOT else str(terms.fallback))

    def _room_for(self, job: Job) -> bool:
        group = job.terms.group
        used = sum(one.size_on(group) for one in self._running if one.group == group and one is not job)
        return self._capacity(self.nodes.groups[group]) - used >= job.size_on(group)

    def finish(self) -> None:
        for job in self._running:
            job.settle()


def _runs(job: Job) -> share.Running:
    """Made once for each time that it queues: the queue is asked tens of thousands of times."""
    if job.runs is None:
        on = next((node.name for node in job.gang), "") if job.terms.gpus else ""
        job.runs = share.Running(_request(job), job.asked_at, job.leaving, on)
    return job.runs


def _request(job: Job) -> share.Request:
    terms = job.terms
    return share.Request(
        job=terms.name,
        team=terms.team,
        group=job.group,
        nodes=terms.nodes,
        gpus_per_node=job.gpus,
        submitted_at=job.asked_at,
        priority=terms.priority,
        node_gpus=job.jobs.nodes.groups[job.group].gpus if terms.gpus else 0.0,
    )
