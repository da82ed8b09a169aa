"""The laws of the batcher, over arbitrary interleavings of arrivals, cancellations and takes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heliostat.inference.batching import Item, TokenBatcher

LENGTHS = st.integers(1, 60)


class Queue(RuleBasedStateMachine):
    """A batcher beside a plain list of what should be waiting."""

    @initialize(budget=st.integers(1, 100), most=st.integers(1, 8))
    def start(self, budget: int, most: int) -> None:
        self.batcher = TokenBatcher(budget, most)
        self.waiting: list[Item] = []
        self.gone: list[Hashable] = []
        self.now_s = 0.0
        self.added = 0

    @rule(tokens=LENGTHS, patience_s=st.floats(0, 10))
    def add(self, tokens: int, patience_s: float) -> None:
        item = Item(self.added, tokens, self.now_s, self.now_s + patience_s)
        self.added += 1
        self.batcher.add(item)
        self.waiting.append(item)

    @rule(choice=st.integers(0, 50))
    def cancel(self, choice: int) -> None:
        wanted = next((item for item in self.waiting if item.id == choice), None)
        assert self.batcher.cancel(choice) == wanted
        if wanted:
            self.waiting.remove(wanted)
            self.gone.append(choice)

    @rule(later_s=st.floats(0, 5))
    def take(self, later_s: float) -> None:
        self.now_s += later_s
        batch = self.batcher.take(self.now_s)
        alive = [item for item in self.waiting if item.deadline_s >= self.now_s]
        # Nothing waits past its deadline unseen, and nothing that expired is run.
        assert list(batch.expired) == [item for item in self.waiting if item.deadline_s < self.now_s]
        # Order of arrival, no item passed over.
        assert list(batch.items) == alive[: len(batch.items)]
        # Nothing alive is kept waiting by an idle model.
        assert bool(batch.items) == bool(alive)
        # The budget holds, save for one item that could never fit.
        assert batch.tokens <= self.batcher.budget_tokens or len(batch.items) == 1
        assert len(batch.items) <= self.batcher.max_items
        # And is used: the next item would not have fitted.
        rest = alive[len(batch.items) :]
        if rest and len(batch.items) < self.batcher.max_items:
            assert batch.tokens + rest[0].tokens > self.batcher.budget_tokens
        self.waiting = rest
        self.gone += [item.id for item in (*batch.items, *batch.expired)]

    @invariant()
    def no_item_is_lost_or_doubled(self) -> None:
        if hasattr(self, "batcher"):
            assert Counter([*self.gone, *(item.id for item in self.waiting)]) == Counter(range(self.added))
            assert self.batcher.queued_tokens == sum(item.tokens for item in self.waiting)
            assert len(self.batcher) == len(self.waiting)


TestQueue = Queue.TestCase


@given(st.lists(LENGTHS, min_size=1, max_size=40), st.integers(1, 100), st.integers(1, 8))
def test_taking_until_empty_gives_back_every_item_once_and_in_order(lengths: list[int], budget: int, most: int) -> None:
    batcher = TokenBatcher(budget, most)
    for i, tokens in enumerate(lengths):
        batcher.add(Item(i, tokens, 0.0, 1.0))
    out = []
    while batcher.queued_tokens:
        out += [(item.id, item.tokens) for item in batcher.take(0.5).items]
    assert out == list(enumerate(lengths))


def test_an_item_larger_than_the_budget_runs_alone_in_its_turn() -> None:
    batcher = TokenBatcher(10, 8)
    for name, tokens in (("small", 4), ("huge", 30), ("next", 4)):
        batcher.add(Item(name, tokens, 0.0, 9.0))
    assert [[item.id for item in batcher.take(0.0).items] for _ in range(4)] == [["small"], ["huge"], ["next"], []]


def test_an_id_that_already_waits_is_refused() -> None:
    batcher = TokenBatcher(10, 8)
    batcher.add(Item("a", 1, 0.0, 9.0))
    with pytest.raises(ValueError, match="'a' already waits"):
        batcher.add(Item("a", 2, 0.0, 9.0))


@pytest.mark.parametrize(("budget", "most"), [(0, 1), (1, 0)])
def test_a_batcher_without_room_is_refused(budget: int, most: int) -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        TokenBatcher(budget, most)


def test_an_item_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        Item("empty", 0, 0.0, 1.0)


def test_the_batcher_needs_neither_torch_nor_an_event_loop() -> None:
    program = "import sys, heliostat.inference.batching; print({'torch', 'asyncio', 'ray'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
