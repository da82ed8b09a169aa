"""The policy that Heliostat uses for deadlines: plan ahead under what was seen of spot so far.

Three parts:

1. *What spot may be like.* A pair of means, how long spot stays up and how long it stays away, each one of `MEANS_H`:
   25 worlds. Spells end at random at these rates, and when one ends the world may change (`STAY`).
2. *What it seems to be like* (`Belief`): one probability per mean, updated by Bayes' rule with each spell, forgetting
   slowly (`FORGET_S`). A spell that lasts speaks for long means before it has ended.
3. *What to do about it* (`Plan`): for each world the least expected cost to go, from every amount of slack and work
   left, by stochastic dynamic programming, once per job. A decision compares the actions' costs, averaged over the
   belief: the QMDP approximation (Littman, Cassandra and Kaelbling, 1995), which does not value learning for itself.

Around it stand the two rules that keep the deadline (`deadline`) and one that bounds the cost (`WASTE`).

Shapes: I slack levels, J work levels, U means of up spells, D means of down spells, W = U x D worlds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from heliostat.plan.policy.deadline import Deadline, Market, Observation, Spell, can_try_spot, can_wait, slack_left_s

Floats = NDArray[np.float64]

MEANS_H = (0.2, 0.6, 1.8, 5.4, 16.2)
"""A factor of three apart, from a reclaim at every other poll to hardly one in a job of days."""
STAY = 0.95
"""The chance that the world after a spell is the one before it; else any of the others, all alike."""
FORGET_S = 96 * 3600.0
"""What was learnt fades towards knowing nothing, by a factor of e in this time."""
WASTE = 6.0
"""A job never costs more than on-demand only and this many changeovers."""
STEPS = 360
"""Steps from start to deadline in the plan, about: 10 minutes for 60 hours."""
NEVER = 1e9
"""Seconds: the cost of what must not be done."""


@dataclass(frozen=True)
class Belief:
    """How likely each mean is: `up` [U], `down` [D]; each sums to 1. A plain value, to be kept by who asks."""

    up: tuple[float, ...]
    down: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """What can be set; the defaults are what `docs/decisions` justifies."""

    means_h: tuple[float, ...] = MEANS_H
    stay: float = STAY
    forget_s: float = FORGET_S
    waste: float = WASTE
    steps: int = STEPS


DEFAULTS = Settings()


class Forecast:
    """The policy. Its plan is computed at the first decision (about a second) and depends on the job alone."""

    name = "forecast"

    def __init__(self, job: Deadline, settings: Settings = DEFAULTS) -> None:
        self.job = job
        self.settings = settings
        self._means_s = np.array(settings.means_h) * 3600.0
        self._flat = np.full(len(self._means_s), 1 / len(self._means_s))
        self._end = -np.expm1(-job.poll_s / self._means_s)  # chance that a spell ends within a poll

    @cached_property
    def plan(self) -> Plan:
        # The plan does not depend on how often one looks.
        return _solved(replace(self.job, poll_s=1.0), self.settings)

    def begin(self) -> Belief:
        """All means alike."""
        return Belief(tuple(self._flat), tuple(self._flat))

    def learn(self, memory: Belief, spell: Spell) -> Belief:
        """Bayes' rule for the kind of spell that ended, then forgetting for both."""
        keep = math.exp(-spell.seconds / self.settings.forget_s)
        up, down = np.array(memory.up), np.array(memory.down)
        if spell.up:
            up = self._seen(up, max(0.0, spell.seconds - self.job.poll_s)) * self._end
        else:
            down = self._seen(down, max(0.0, spell.seconds - self.job.poll_s)) * self._end
        up, down = (keep * part / part.sum() + (1 - keep) * self._flat for part in (up, down))
        return Belief(tuple(up.tolist()), tuple(down.tolist()))

    def decide(self, now: Observation, memory: Belief) -> Market:
        """The cheapest of the markets that the rules allow."""
        on_demand = now.market == Market.ON_DEMAND
        if now.market == Market.SPOT and now.spot_up:
            return Market.SPOT
        may_waste = self._spare_s(now) >= self.job.spot_price * self.job.changeover_s
        may_try = can_try_spot(self.job, now) and may_waste
        may_wait = can_wait(self.job, now) and (may_waste or not on_demand)
        if not may_try and not may_wait:
            return Market.ON_DEMAND
        costs = self.plan.costs(slack_left_s(self.job, now), now.work_left_s, self._worlds(memory, now))
        run = costs.stay_on_demand[now.spot_up] + now.starting_left_s if on_demand else costs.on_demand[now.spot_up]
        choices = [(run, Market.ON_DEMAND)]
        if may_wait:
            choices.append((costs.wait[now.spot_up], Market.NONE))
        if may_try:
            choices.append((costs.spot, Market.SPOT))
        return min(choices, key=lambda choice: choice[0])[1]

    def lasts_s(self, memory: Belief, spell_s: float) -> float:
        """How long an up spell of this age is expected to last yet; to choose among zones."""
        seen = self._seen(np.array(memory.up), spell_s)
        return float(seen @ self._means_s / seen.sum())

    def _spare_s(self, now: Observation) -> float:
        """What may be wasted yet, in seconds of on-demand: the cost's bound, less starting on-demand and staying there.

        To leave on-demand is worth it for spot alone, so it is left only while a try that fails can be afforded.
        """
        return self.most_s - now.spent_s - now.work_left_s - self.job.changeover_s

    @property
    def most_s(self) -> float:
        """The most that the job can cost, in seconds of on-demand, whatever spot does."""
        return self.job.on_demand_cost_s + self.settings.waste * self.job.changeover_s

    def _seen(self, belief: Floats, spell_s: float) -> Floats:
        """The belief weighed by the chance of a spell this long, up to a factor. [U] or [D]."""
        rates = 1 / self._means_s
        return np.asarray(belief * np.exp(-spell_s * (rates - rates.min())))  # a year of silence is no 0 / 0

    def _worlds(self, memory: Belief, now: Observation) -> Floats:
        """[W] probabilities, U slow and D fast, with the present spell's age taken in."""
        up, down = np.array(memory.up), np.array(memory.down)
        if now.spot_up:
            up = self._seen(up, now.spell_s)
        else:
            down = self._seen(down, now.spell_s)
        worlds = np.outer(up, down).ravel()
        return np.asarray(worlds / worlds.sum())


@dataclass(frozen=True, slots=True)
class Costs:
    """Expected seconds of on-demand until the work is done, by first action; pairs are for spot (down, up)."""

    wait: tuple[float, float]
    on_demand: tuple[float, float]
    """Started now."""
    stay_on_demand: tuple[float, float]
    """Already running."""
    spot: float


@dataclass(frozen=True)
class Plan:
    """Costs to go of every action, in every world, on a grid of slack and work left."""

    step_s: float
    table: NDArray[np.float32]
    """[I, J, 7, W], actions in the order wait down, wait up, on-demand down, up, stay on-demand down, up, spot."""

    def costs(self, slack_s: float, work_s: float, worlds: Floats) -> Costs:
        """Bilinear between the grid's points, averaged over `worlds` [W]."""
        i, f = self._place(slack_s, self.table.shape[0])
        j, g = self._place(work_s, self.table.shape[1])
        corner = self.table[i : i + 2, j : j + 2]  # [2, 2, 7, W]
        mixed = (1 - f) * ((1 - g) * corner[0, 0] + g * corner[0, 1]) + f * ((1 - g) * corner[1, 0] + g * corner[1, 1])
        c = (mixed @ worlds).tolist()
        return Costs((c[0], c[1]), (c[2], c[3]), (c[4], c[5]), c[6])

    def _place(self, value_s: float, levels: int) -> tuple[int, float]:
        at = min(max(value_s / self.step_s, 0.0), levels - 1.0)
        low = min(int(at), levels - 2)
        return low, at - low

    @classmethod
    def solve(cls, job: Deadline, settings: Settings = DEFAULTS) -> Plan:
        """Backward induction, work level by work level; within one, from little slack to much."""
        return cls(_step_s(job, settings.steps), _Solver(job, settings).solve())


@lru_cache(maxsize=8)
def _solved(job: Deadline, settings: Settings) -> Plan:
    return Plan.solve(job, settings)


def _step_s(job: Deadline, steps: int) -> float:
    """About that part of the time; a changeover is a whole number of steps, or a step of changeovers."""
    rough = job.deadline_s / steps
    if job.changeover_s <= 0:
        return rough
    if job.changeover_s >= rough:
        return job.changeover_s / round(job.changeover_s / rough)
    return job.changeover_s * round(rough / job.changeover_s)


class _Solver:
    """One solution; attributes are the model's probabilities and prices, [W] each."""

    def __init__(self, job: Deadline, settings: Settings) -> None:
        means_s = np.array(settings.means_h) * 3600.0
        n = len(means_s)
        up_s, down_s = np.repeat(means_s, n), np.tile(means_s, n)
        self.job, self.stay, self.step_s = job, settings.stay, _step_s(job, settings.steps)
        self.lose = -np.expm1(-self.step_s / up_s)  # spot goes within a step
        self.gain = -np.expm1(-self.step_s / down_s)  # spot comes within a step
        self.lose_start = -np.expm1(-job.changeover_s / up_s)  # the same within a changeover
        self.gain_start = -np.expm1(-job.changeover_s / down_s)
        self.levels = max(1, math.ceil(job.slack_s / self.step_s)) + 1  # I
        self.works = max(1, math.ceil(job.work_s / self.step_s)) + 1  # J
        self.shift = job.changeover_s / self.step_s  # levels of slack that a changeover takes

    def solve(self) -> NDArray[np.float32]:
        """The table [I, J, 7, W]. At j = 0 the work is done and everything costs nothing."""
        worlds = len(self.lose)
        table = np.zeros((self.levels, self.works, 7, worlds), np.float32)
        spot, od_up, od_down, idle_down = np.zeros((4, self.levels, worlds))
        for j in range(1, self.works):
            # One step of work on either market, slack unchanged. [I, W]
            spot = self.job.spot_price * self.step_s + self._turn(self.lose, spot, idle_down)
            stay_up = self.step_s + self._turn(self.lose, od_up, od_down)
            stay_down = self.step_s + self._turn(self.gain, od_down, od_up)
            start_up, start_down = self._starts(stay_up, stay_down)
            try_spot, wait_up, wait_down, idle_down = self._idle(spot, start_up, start_down)
            od_up = np.minimum(np.minimum(stay_up, try_spot), wait_up)
            od_down = np.minimum(stay_down, wait_down)
            actions = (wait_down, wait_up, start_down, start_up, stay_down, stay_up, try_spot)
            table[:, j] = np.stack(actions, axis=1)
        return table

    def _turn(self, chance: Floats, same: Floats, other: Floats) -> Floats:
        """Expected cost when spot's state turns with this chance, and the world may change with it."""
        changed = self.stay * other + (1 - self.stay) * other.mean(-1, keepdims=True)
        return np.asarray((1 - chance) * same + chance * changed)

    def _starts(self, stay_up: Floats, stay_down: Floats) -> tuple[Floats, Floats]:
        """Starting on-demand, with spot up and down: a changeover's time and money, then running. [I, W]"""
        up, down = self._after_changeover(stay_up), self._after_changeover(stay_down)
        cost = self.job.changeover_s
        return cost + self._turn(self.lose_start, up, down), cost + self._turn(self.gain_start, down, up)

    def _after_changeover(self, costs: Floats) -> Floats:
        """`costs` [I, W] at the slack that is left after a changeover; NEVER where there is too little."""
        low = math.ceil(self.shift)
        part = low - self.shift  # between two levels when a step holds several changeovers
        moved = np.full_like(costs, NEVER)
        count = max(0, self.levels - low)
        moved[low:] = costs[:count]
        if part:
            moved[low:] += part * (costs[1 : count + 1] - costs[:count])
        return moved

    def _idle(self, spot: Floats, start_up: Floats, start_down: Floats) -> tuple[Floats, ...]:
        """Trying spot, waiting (spot up, down) and the best when idle with spot down, by rising slack. [I, W] each.

        A try that fails is taken to cost half a changeover's money and a whole one's slack.
        """
        price = self.job.spot_price * self.job.changeover_s
        works = price + self._after_changeover(spot)
        try_spot, wait_up, wait_down, idle_up, idle_down = np.full((5, *spot.shape), NEVER)
        low, part = math.ceil(self.shift), math.ceil(self.shift) - self.shift
        for i in range(self.levels):
            if i:
                wait_up[i] = self._turn(self.lose, idle_up[i - 1], idle_down[i - 1])
                wait_down[i] = self._turn(self.gain, idle_down[i - 1], idle_up[i - 1])
            idle_down[i] = np.minimum(wait_down[i], start_down[i])
            if i >= 2 * self.shift - 1e-9:
                lost = idle_down[i - low]
                if part:
                    lost = lost + part * (idle_down[i - low + 1] - lost)
                try_spot[i] = self._turn(self.lose_start, works[i], price / 2 + lost)
            idle_up[i] = np.minimum(np.minimum(wait_up[i], start_up[i]), try_spot[i])
        return try_spot, wait_up, wait_down, idle_down
