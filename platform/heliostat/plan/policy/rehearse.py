"""Replay a policy on a stretch of a spot trace, on a simulated clock: what it would have cost, and when it would have
ended. Time and money are counted as `deadline` says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from heliostat.plan.policy.deadline import Deadline, Market, Observation, Policy, Spell
from heliostat.plan.policy.forecast import Belief, Forecast
from heliostat.plan.policy.traces import Window

Memory = TypeVar("Memory")

ROUNDING_S = 1e-6
"""Work left below this is none: sums of seconds are not exact."""


@dataclass(frozen=True)
class Outcome:
    """How one rehearsal went."""

    cost_s: float
    """In seconds of on-demand."""
    finish_s: float
    """From the start; the deadline if the work was not done by then."""
    missed: bool
    changes: int
    """Starts of a gang, the first one included."""
    reclaims: int
    spot_s: float
    on_demand_s: float


class Run:
    """The job's own state while it is rehearsed: where it runs, what is left, what was spent."""

    def __init__(self, job: Deadline) -> None:
        self.job = job
        self.market = Market.NONE
        self.work_left_s = job.work_s
        self.starting_left_s = 0.0
        self.changes = self.reclaims = 0
        self.held_s = {Market.SPOT: 0.0, Market.ON_DEMAND: 0.0}

    @property
    def spent_s(self) -> float:
        return self.job.spot_price * self.held_s[Market.SPOT] + self.held_s[Market.ON_DEMAND]

    def reclaim(self) -> None:
        self.reclaims += 1
        self.market, self.starting_left_s = Market.NONE, 0.0

    def move(self, market: Market) -> None:
        if market != self.market:
            self.market = market
            self.changes += market != Market.NONE
            self.starting_left_s = 0.0 if market == Market.NONE else self.job.changeover_s

    def pass_time(self, seconds: float) -> float:
        """Runs for so long, or until the work is done; returns how long that was."""
        if self.market == Market.NONE:
            return seconds
        took_s = min(seconds, self.starting_left_s + self.work_left_s)
        starting_s = min(took_s, self.starting_left_s)
        self.starting_left_s -= starting_s
        self.work_left_s -= took_s - starting_s
        if self.work_left_s < ROUNDING_S:
            self.work_left_s = 0.0
        self.held_s[self.market] += took_s
        return took_s

    def outcome(self, finish_s: float, *, missed: bool) -> Outcome:
        return Outcome(
            cost_s=self.spent_s,
            finish_s=finish_s,
            missed=missed,
            changes=self.changes,
            reclaims=self.reclaims,
            spot_s=self.held_s[Market.SPOT],
            on_demand_s=self.held_s[Market.ON_DEMAND],
        )


class Watch(Generic[Memory]):
    """What a policy has seen of one zone: its memory and the age of the present spell, at a tick."""

    def __init__(self, policy: Policy[Memory], up: Sequence[bool], before: Sequence[Spell], tick_s: int) -> None:
        self._policy, self._up, self._tick_s = policy, up, tick_s
        self.memory = policy.begin()
        for spell in before[:-1]:
            self.memory = policy.learn(self.memory, spell)
        self._state = before[-1].up if before else up[0]
        self._began = -before[-1].seconds / tick_s if before else 0.0
        self._seen = 0

    def look(self, tick: int) -> None:
        """Take in all ticks up to this one."""
        up, state = self._up, self._state
        for i in range(self._seen, tick + 1):
            if up[i] != state:
                spell = Spell(state, (i - self._began) * self._tick_s)
                if spell.seconds > 0:
                    self.memory = self._policy.learn(self.memory, spell)
                state, self._began = up[i], float(i)
        self._state, self._seen = state, tick + 1

    def spell_s(self, tick: int) -> float:
        return (tick - self._began) * self._tick_s


def rehearse(policy: Policy[Memory], job: Deadline, window: Window) -> Outcome:
    """One job on one zone, from the window's first tick to its end; what the window knows of before is learnt first."""
    up, tick_s = window.up, window.tick_s
    watch = Watch(policy, up, window.before, tick_s)
    run = Run(job)
    for tick, there in enumerate(up):
        now_s = float(tick * tick_s)
        if now_s >= job.deadline_s:
            break
        if run.market == Market.SPOT and not there:
            run.reclaim()
        if run.market != Market.SPOT:
            watch.look(tick)
            run.move(_ask(policy, run, watch.memory, now_s, up=there, spell_s=watch.spell_s(tick)))
        length_s = min(float(tick_s), job.deadline_s - now_s)
        took_s = run.pass_time(length_s)
        if run.work_left_s <= 0:
            return run.outcome(now_s + took_s, missed=False)
    return run.outcome(job.deadline_s, missed=True)


def rehearse_zones(policy: Forecast, job: Deadline, zones: Sequence[Window]) -> Outcome:
    """One job that may use spot in any of several zones whose traces share a clock.

    Spot counts as up when any zone has it. Of those the zone is taken whose spell is expected to last longest, and its
    up spells are what the decision believes in; the down spells are those in which no zone had spot. A move to another
    zone costs a changeover like any start.
    """
    tick_s = zones[0].tick_s
    any_up = [any(there) for there in zip(*(zone.up for zone in zones), strict=True)]
    watches = [Watch(policy, zone.up, zone.before, tick_s) for zone in zones]
    whole = Watch(policy, any_up, (), tick_s)
    run, zone = Run(job), 0
    for tick, there in enumerate(any_up):
        now_s = float(tick * tick_s)
        if now_s >= job.deadline_s:
            break
        if run.market == Market.SPOT and not zones[zone].up[tick]:
            run.reclaim()
        if run.market != Market.SPOT:
            for watch in (whole, *watches):
                watch.look(tick)
            open_zones = [z for z, window in enumerate(zones) if window.up[tick]]
            zone = max(open_zones, key=lambda z: policy.lasts_s(watches[z].memory, watches[z].spell_s(tick)), default=0)
            memory = Belief(watches[zone].memory.up, whole.memory.down)
            spell_s = watches[zone].spell_s(tick) if there else whole.spell_s(tick)
            run.move(_ask(policy, run, memory, now_s, up=there, spell_s=spell_s))
        took_s = run.pass_time(min(float(tick_s), job.deadline_s - now_s))
        if run.work_left_s <= 0:
            return run.outcome(now_s + took_s, missed=False)
    return run.outcome(job.deadline_s, missed=True)


def _ask(policy: Policy[Memory], run: Run, memory: Memory, now_s: float, *, up: bool, spell_s: float) -> Market:
    now = Observation(
        elapsed_s=now_s,
        work_left_s=run.work_left_s,
        market=run.market,
        starting_left_s=run.starting_left_s,
        spot_up=up,
        spell_s=spell_s,
        spent_s=run.spent_s,
    )
    return policy.decide(now, memory)
