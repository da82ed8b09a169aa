"""A job that must end by a deadline, moving between spot and on-demand: the question, and three simple answers.

A policy is asked at every poll (`Deadline.poll_s`) and when spot is taken away, and answers with the market to be in.
It is not asked while it runs on spot: to leave a node that works for the dearer market never pays. The answer is a
function of its arguments alone; what a policy learns from the past it returns as a value (`learn`), which the one who
asks keeps. So the same policy serves a rehearsal on a recorded trace and the controller.

How time and money are counted, here and in `rehearse` and `optimum`:

- Work is measured in seconds on one gang of nodes; it proceeds at the same speed on either market.
- Every start of a gang, the first one included, loses `changeover_s`: paid for, no progress. It stands for starting the
  nodes, loading the checkpoint and computing again what was done since. A reclaim ends a changeover as it ends work.
- Waiting costs nothing. Money is in seconds of on-demand: a second on spot costs `spot_price`.
- On-demand only therefore costs work_s + changeover_s: the yardstick of "cost against on-demand".

The deadline is never missed if it can be met at the start: a policy waits only while the work that is left and one
changeover still fit in after the next poll, and goes to spot only while two changeovers fit (the one to spot, and the
one back should spot be taken at the worst moment). `can_wait` and `can_try_spot` are these two rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from heliostat.errors import UsageError


class Market(StrEnum):
    """Where the job's nodes are. NONE: it waits, and pays nothing."""

    NONE = "none"
    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True)
class Spell:
    """A stretch of time through which spot could be had (`up`) or could not."""

    up: bool
    seconds: float


@dataclass(frozen=True)
class Deadline:
    """What is asked: so much work, in so much time, at these terms. Raises UsageError where that is no question."""

    work_s: float
    deadline_s: float
    """From the start of the job."""
    changeover_s: float = 600.0
    spot_price: float = 0.3
    """Of a second of on-demand."""
    poll_s: float = 300.0
    """Seconds from one decision to the next, at most."""

    def __post_init__(self) -> None:
        if self.work_s <= 0 or self.poll_s <= 0 or self.changeover_s < 0:
            raise UsageError(
                f"work {self.work_s:g}s, poll {self.poll_s:g}s, changeover {self.changeover_s:g}s",
                do="work and poll must be above 0, a changeover 0 or more",
            )
        if not 0 <= self.spot_price <= 1:
            raise UsageError(f"a spot price of {self.spot_price:g}", do="give it as a share of on-demand, from 0 to 1")
        if self.slack_s < self.changeover_s:
            need_s = self.work_s + self.changeover_s
            raise UsageError(
                f"a deadline of {self.deadline_s / 3600:.2f}h is too near: on-demand alone takes {need_s / 3600:.2f}h",
                do="give it more time, or less work",
            )

    @property
    def slack_s(self) -> float:
        """Time that need not be worked."""
        return self.deadline_s - self.work_s

    @property
    def on_demand_cost_s(self) -> float:
        """What on-demand alone costs, in seconds of it."""
        return self.work_s + self.changeover_s


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known at the moment of a decision."""

    elapsed_s: float
    work_left_s: float
    market: Market
    starting_left_s: float
    """What is left of the changeover that runs; 0 when working or waiting."""
    spot_up: bool
    spell_s: float
    """For how long spot has been up, or down."""
    spent_s: float
    """Money spent, in seconds of on-demand."""


Memory = TypeVar("Memory")


class Policy(Protocol[Memory]):
    """Decides for one `Deadline`. All three methods are pure."""

    name: str

    def begin(self) -> Memory:
        """What is remembered before anything was seen."""

    def learn(self, memory: Memory, spell: Spell) -> Memory:
        """The memory after one more spell has ended."""

    def decide(self, now: Observation, memory: Memory) -> Market:
        """The market to be in until the next decision."""


def slack_left_s(job: Deadline, now: Observation) -> float:
    """Time that is left beyond the work that is left."""
    return job.deadline_s - now.elapsed_s - now.work_left_s


def can_wait(job: Deadline, now: Observation) -> bool:
    """Whether on-demand can still be reached in time if nothing runs until the next poll."""
    return slack_left_s(job, now) - job.poll_s >= job.changeover_s


def can_try_spot(job: Deadline, now: Observation) -> bool:
    """Whether spot is there, and may be taken away at the worst moment without the deadline being missed."""
    return now.spot_up and slack_left_s(job, now) >= 2 * job.changeover_s


class Forgetful:
    """The memory of the policies that have none."""

    def begin(self) -> None:
        return None

    def learn(self, memory: None, spell: Spell) -> None:
        return None


class OnDemandOnly(Forgetful):
    """The yardstick: on-demand from the first second."""

    name = "on-demand only"

    def __init__(self, job: Deadline) -> None:
        self.job = job

    def decide(self, now: Observation, memory: None) -> Market:
        return Market.ON_DEMAND


class Greedy(Forgetful):
    """Spot whenever it is there, restarting after each reclaim; else wait; on-demand to the end when time is short."""

    name = "greedy spot"

    def __init__(self, job: Deadline) -> None:
        self.job = job

    def decide(self, now: Observation, memory: None) -> Market:
        if now.market == Market.ON_DEMAND:
            return Market.ON_DEMAND
        if can_try_spot(self.job, now):
            return Market.SPOT
        return Market.NONE if can_wait(self.job, now) else Market.ON_DEMAND


class UniformProgress(Forgetful):
    """Keep to the straight line from no work at the start to all of it at the deadline.

    A plain reading of Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines" (NSDI 2024): spot
    whenever it is there; without it, on-demand while behind the line, waiting while ahead; on-demand, once started, is
    kept until the work is where the line will be two changeovers later.
    """

    name = "uniform progress"

    def __init__(self, job: Deadline) -> None:
        self.job = job

    def decide(self, now: Observation, memory: None) -> Market:
        job = self.job
        on_demand = now.market == Market.ON_DEMAND
        ahead_s = 2 * job.changeover_s if on_demand else 0.0
        line_s = job.work_s * min(1.0, (now.elapsed_s + ahead_s) / job.deadline_s)
        behind = job.work_s - now.work_left_s < line_s
        if can_try_spot(job, now) and not (on_demand and behind):
            return Market.SPOT
        return Market.ON_DEMAND if behind or not can_wait(job, now) else Market.NONE
