"""A deadline job's chooser on a simulated clock: the deadline is kept whatever spot does, and spot is what it likes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.errors import UsageError
from heliostat.plan.policy.deadline import Market, UniformProgress
from heliostat.store import Store
from heliostat.train.market import Chooser, Terms, agree, read_terms

HOUR = 3600.0
TERMS = Terms(deadline_s=10 * HOUR, work_s=4 * HOUR, on_demand="od", changeover_s=600.0, poll_s=60.0)
LOOK_S = 60.0


class World:
    """A gang that does as it is told: spot's nodes come `start_s` after they were asked for, if there are any."""

    def __init__(self, terms: Terms, *, start_s: float, policy: UniformProgress | None = None) -> None:
        self.chooser = Chooser(terms, began_at=0.0, policy=policy)
        self.work_s, self.start_s = terms.work_s, start_s
        self.now, self.ready_at, self.asked_at = 0.0, 0.0, 0.0
        self.where = Market.NONE
        self.markets: list[Market] = []

    def run(self, up: list[bool], spell_s: float) -> float:
        """The second in which the work was done."""
        has_spot = False
        while self.work_s > 0:
            there = up[min(int(self.now // spell_s), len(up) - 1)]
            if not there:
                has_spot = False
                if self.where == Market.SPOT:
                    self.where = Market.NONE
            elif self.asked_at and self.now - self.asked_at >= self.start_s:
                has_spot = True
            self.chooser.saw_spot(has_spot, self.now)
            wanted = self.chooser.choose(self.now)
            self.markets.append(wanted.market)
            self.asked_at = (self.asked_at or self.now) if wanted.ask_spot and there else 0.0
            self._go(wanted.market, has_spot)
            if self.where != Market.NONE and self.now >= self.ready_at:
                self.work_s -= LOOK_S
                done = TERMS.work_s - self.work_s
                self.chooser.saw_steps(done, TERMS.work_s, made=done, seconds=done)
            self.now += LOOK_S
            assert self.now < 20 * HOUR
        return self.now

    def _go(self, market: Market, has_spot: bool) -> None:
        if market == self.where or (market == Market.SPOT and not has_spot):
            return
        self.where = market
        left = self.start_s if market == Market.ON_DEMAND else 0.0
        self.ready_at = self.now + left + TERMS.changeover_s / 2 - LOOK_S


def test_spot_that_stays_is_all_that_is_used() -> None:
    world = World(TERMS, start_s=100)
    assert world.run([True], HOUR) < 5 * HOUR
    assert set(world.markets) == {Market.SPOT}
    assert world.chooser.held_s[Market.ON_DEMAND] == 0


def test_a_market_that_is_dry_is_waited_for_and_then_left_in_time() -> None:
    world = World(TERMS, start_s=100)
    ended = world.run([False], HOUR)
    assert ended <= TERMS.deadline_s
    assert world.markets[-1] == Market.ON_DEMAND
    assert world.chooser.held_s[Market.ON_DEMAND] > TERMS.work_s * 0.9


def test_nodes_that_take_long_to_come_are_no_short_spell_of_spot() -> None:
    """What was only asked for teaches nothing: it is taken when it is there."""
    slow = Terms(deadline_s=12 * HOUR, work_s=6 * HOUR, on_demand="od", changeover_s=HOUR, poll_s=60.0)
    chooser = Chooser(slow, began_at=0.0)
    for now in range(0, 4000, 20):
        chooser.saw_spot(now > 2400, float(now))
        wanted = chooser.choose(float(now))
        assert wanted.ask_spot or now == 0
    assert wanted.market == Market.SPOT


def test_spot_that_comes_back_is_taken() -> None:
    world = World(TERMS, start_s=100)
    assert world.run([False] * 2 + [True] * 30, HOUR) <= TERMS.deadline_s
    assert world.markets[-1] == Market.SPOT


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from([300.0, 1200.0, HOUR]), st.floats(0, 290))
def test_the_deadline_is_kept_on_any_market(up: list[bool], spell_s: float, start_s: float) -> None:
    """As long as a changeover takes no longer than was said: nodes within half of it, and the start in the other."""
    cheap = UniformProgress(TERMS.question)  # the law is of the rules that each policy obeys, and of the chooser
    assert World(TERMS, start_s=start_s, policy=cheap).run(up, spell_s) <= TERMS.deadline_s


def test_the_first_drivers_terms_hold(store: Store) -> None:
    later = Terms(deadline_s=20 * HOUR, work_s=HOUR, on_demand="other")
    assert agree(store, "run-1", TERMS, now=5.0) == (TERMS, 5.0)
    assert agree(store, "run-1", later, now=99.0) == (TERMS, 5.0)


def test_a_rehearsals_clock_runs_faster() -> None:
    fast = Chooser(Terms(deadline_s=10 * HOUR, work_s=4 * HOUR, on_demand="od", speed=100), began_at=1000.0)
    assert fast.ends_at == 1000 + 360
    fast.choose(1010.0)
    fast.choose(1020.0)
    assert fast.held_s[Market.SPOT] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no", "not the terms"),
        (json.dumps({"deadline_s": 10.0}), "not the terms"),
        (json.dumps({"deadline_s": 3600.0, "work_s": 3600.0, "on_demand": "od"}), "too near"),
    ],
)
def test_terms_that_cannot_be_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_terms(text)


def test_work_that_turns_out_shorter_leaves_on_demand_for_spot_again() -> None:
    """Promised: hardly more time than the work takes. Measured: a third of that work, so there is slack after all."""
    terms = Terms(deadline_s=8.6 * HOUR, work_s=8 * HOUR, on_demand="b")
    chooser = Chooser(terms, began_at=0.0)
    chooser.saw_spot(False, 0.0)
    now = 0.0
    while chooser.choose(now).market != Market.ON_DEMAND:
        chooser.saw_spot(False, now := now + LOOK_S)
    now += 1800
    assert not chooser.choose(now).ask_spot
    steps = 0.0
    while not chooser.choose(now).ask_spot:
        steps, now = steps + LOOK_S / 24, now + LOOK_S
        chooser.saw_steps(steps, 400, made=steps, seconds=steps * 24)
        chooser.saw_spot(False, now)
        assert steps < 100
    chooser.saw_spot(True, now := now + LOOK_S)
    assert chooser.choose(now).market == Market.SPOT
