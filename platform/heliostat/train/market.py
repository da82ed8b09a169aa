"""Where a deadline job's workers are to be: on spot, on demand, or nowhere yet. Pure, but for the terms' one object.

The policy (`heliostat.plan.policy.forecast`) is asked about spot as it is, and what spot was like it has learnt from
the spells that were seen. Whether spot could be had is known only by asking for its nodes. So a gang that waits keeps
asking, and one on demand is asked a second question, "would you take spot if it were there?": while the answer is yes
its requests stay open, and nodes that come turn the first answer. Nodes that were asked for count as there for half a
changeover, while there is time to find out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from heliostat.errors import ObjectExists, UsageError
from heliostat.plan.policy.deadline import Deadline, Market, Observation, Policy, Spell, can_try_spot, slack_left_s
from heliostat.plan.policy.forecast import Forecast
from heliostat.store import Store, json_bytes

MARGIN = 1.05
"""On the time that the steps left are measured to take: machines differ, and the end is not a step."""
PACE_STEPS = 10
"""Steps of an attempt before its pace counts."""
SHORTER = 0.8
"""Of the work that was planned for: less is planned for anew."""


@dataclass(frozen=True)
class Terms:
    """What a deadline job was promised. Durations are in seconds of the policy's clock, which runs `speed` times faster
    than the world's: 1, but in a rehearsal.
    """

    deadline_s: float
    work_s: float
    on_demand: str  # the group
    changeover_s: float = 600.0
    poll_s: float = 60.0
    spot_price: float = 0.3
    speed: float = 1.0

    @property
    def question(self) -> Deadline:
        """Raises UsageError where it cannot be kept from the start."""
        return Deadline(self.work_s, self.deadline_s, self.changeover_s, self.spot_price, self.poll_s)


def read_terms(text: str) -> Terms:
    """From HELIOSTAT_DEADLINE. Raises UsageError."""
    try:
        terms = Terms(**json.loads(text))
        if terms.speed <= 0 or not terms.on_demand:
            raise ValueError("speed must be above 0, on_demand a group")
    except (ValueError, TypeError) as error:
        raise UsageError(f"not the terms of a deadline: {error}", where="HELIOSTAT_DEADLINE") from error
    terms.question  # noqa: B018  # refused before a node is started
    return terms


def agree(store: Store, run: str, terms: Terms, *, now: float) -> tuple[Terms, float]:
    """(the run's terms, when it began): those of its first driver hold for every later one."""
    key = f"runs/{run}/deadline.json"
    try:
        store.create(key, json_bytes({"terms": asdict(terms), "began_at": now}))
        return terms, now
    except ObjectExists:
        known: dict[str, Any] = json.loads(store.get(key).data)
        return Terms(**known["terms"]), float(known["began_at"])


@dataclass(frozen=True)
class Wanted:
    """Where the gang is to be, and whether it keeps asking for spot beside."""

    market: Market
    ask_spot: bool


@dataclass
class Chooser:
    """One run's. `now` is in seconds since the epoch throughout."""

    terms: Terms
    began_at: float
    policy: Policy[Any] | None = None  # Any: its memory; the forecast where none is given
    market: Market = Market.NONE
    held_s: dict[Market, float] = field(default_factory=lambda: {Market.SPOT: 0.0, Market.ON_DEMAND: 0.0})
    moves: int = 0

    def __post_init__(self) -> None:
        self._job = self.terms.question
        self._policy: Policy[Any] = self.policy or Forecast(self._job)
        self._memory = self._policy.begin()
        self._up, self._turned_at = True, self.began_at
        self._missing_since: float | None = self.began_at
        self._was_there = False  # in the present up spell, not only asked for
        self._moved_at: float | None = None  # until the first step after it
        self._looked_at = self.began_at
        self._left_s = self.terms.work_s

    @property
    def ends_at(self) -> float:
        return self.began_at + self.terms.deadline_s / self.terms.speed

    @property
    def cost_s(self) -> float:
        """So far, in seconds of on-demand."""
        return self.terms.spot_price * self.held_s[Market.SPOT] + self.held_s[Market.ON_DEMAND]

    def saw_steps(self, step: float, total: float, *, made: float, seconds: float) -> None:
        """How far it is; `made` steps took `seconds` in the attempt under way."""
        if total <= 0:
            return
        self._left_s = self.terms.work_s * (1 - step / total)
        if made >= PACE_STEPS:
            pace_s = seconds / made * self.terms.speed * MARGIN
            self._left_s = (total - step) * pace_s
            self._plan_anew(total * pace_s)
        if made > 0:
            self._moved_at = None

    def _plan_anew(self, work_s: float) -> None:
        """A plan reaches as far as the slack that was promised; work that turns out shorter leaves more of it."""
        if isinstance(self._policy, Forecast) and work_s < SHORTER * self._job.work_s:
            self._job = replace(self._job, work_s=work_s)
            self._policy = Forecast(self._job, self._policy.settings)

    def saw_spot(self, there: bool, now: float) -> None:
        """Whether the gang's spot nodes are there. An up spell is learnt from only where they were."""
        if there:
            self._missing_since, self._was_there = None, True
        elif self._missing_since is None:
            self._missing_since = now
        missing = self._missing_since
        up = missing is None or self._elapsed(now) - self._elapsed(missing) < self.terms.changeover_s / 2
        if up == self._up:
            return
        turned_at = now if missing is None else missing
        seconds = self._elapsed(turned_at) - self._elapsed(self._turned_at)
        if seconds > 0 and (not self._up or self._was_there):
            self._memory = self._policy.learn(self._memory, Spell(self._up, seconds))
        self._up, self._turned_at, self._was_there = up, turned_at, there

    def choose(self, now: float) -> Wanted:
        """Where to be from now on. Counts the time since the last call as spent there."""
        passed = (now - self._looked_at) * self.terms.speed
        self._looked_at = now
        if self.market in self.held_s:
            self.held_s[self.market] += passed
        seen = self._observe(now)
        market = self._policy.decide(seen, self._memory)
        may_try = can_try_spot(self._job, replace(seen, spot_up=True))
        if market == Market.NONE and may_try and self._missing_since is None:
            market = Market.SPOT  # its nodes are there and are paid for: to wait beside them is worse
        ask = market == Market.SPOT or (may_try if market == Market.NONE else self._would_take(seen))
        if market != self.market:
            self.market, self.moves = market, self.moves + (market != Market.NONE)
            self._moved_at = now
        return Wanted(market, ask)

    def _would_take(self, seen: Observation) -> bool:
        there = replace(seen, spot_up=True, spell_s=0.0)
        return self._policy.decide(there, self._memory) == Market.SPOT

    def _observe(self, now: float) -> Observation:
        started = self._moved_at
        starting_s = 0.0
        if started is not None and self.market != Market.NONE:
            starting_s = max(0.0, self.terms.changeover_s - (now - started) * self.terms.speed)
        seen = Observation(
            elapsed_s=self._elapsed(now),
            work_left_s=self._left_s,
            market=self.market,
            starting_left_s=starting_s,
            spot_up=self._up,
            spell_s=self._elapsed(now) - self._elapsed(self._turned_at),
            spent_s=self.cost_s,
        )
        if self._missing_since is not None and slack_left_s(self._job, seen) < 2 * self.terms.changeover_s:
            seen = replace(seen, spot_up=False)  # no time to find out
        if self.market == Market.SPOT and not seen.spot_up:
            seen = replace(seen, market=Market.NONE, starting_left_s=0.0)
        return seen

    def _elapsed(self, now: float) -> float:
        return (now - self.began_at) * self.terms.speed
