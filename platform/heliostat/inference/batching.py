"""Which items run together: a queue in arrival order, cut by a budget of tokens.

Values in, values out: no clock, no thread, no tensor. The runner (runner.py) brings those.

Items leave in the order in which they came, always: a long item is not put behind short ones, so nothing starves.
An item larger than the whole budget runs alone rather than never.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing to run the model on; times are seconds on the caller's clock, which only has to go forward."""

    id: Hashable
    tokens: int
    arrived_s: float
    deadline_s: float
    """After this moment nobody waits for the result any more."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(
                f"item {self.id!r} has {self.tokens} tokens; give at least 1, or answer it without a model"
            )


@dataclass(frozen=True)
class Batch:
    """What one `take` removed from the queue, both in order of arrival."""

    items: tuple[Item, ...]
    """To be run now; tokens add up to the budget at most, save for one larger item alone."""
    expired: tuple[Item, ...]
    """Past their deadline, to be answered as such; never run."""

    @property
    def tokens(self) -> int:
        """Tokens of the items to be run."""
        return sum(item.tokens for item in self.items)


class TokenBatcher:
    """A queue of items; one owner, no locks: guard it where threads share it."""

    def __init__(self, budget_tokens: int, max_items: int) -> None:
        for name, value in (("budget_tokens", budget_tokens), ("max_items", max_items)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self.budget_tokens = budget_tokens
        self.max_items = max_items
        # A dict keeps the order of arrival and removes from its middle at once.
        self._waiting: dict[Hashable, Item] = {}
        self._queued_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Tokens of all waiting items."""
        return self._queued_tokens

    def add(self, item: Item) -> None:
        """Put an item at the end; an id that already waits is refused with ValueError."""
        if item.id in self._waiting:
            raise ValueError(f"item {item.id!r} already waits; give every item an id of its own")
        self._waiting[item.id] = item
        self._queued_tokens += item.tokens

    def cancel(self, item_id: Hashable) -> Item | None:
        """Remove a waiting item and return it; None where it is not (or no longer) waiting."""
        item = self._waiting.pop(item_id, None)
        if item is not None:
            self._queued_tokens -= item.tokens
        return item

    def take(self, now_s: float) -> Batch:
        """Remove and return the next batch, and with it every waiting item whose deadline has passed.

        Items are empty only where nothing alive waits. All of the queue is searched for expired items, not its head
        alone: whoever gave up on a place far behind is told now, and its tokens no longer count as work.
        """
        expired = tuple(item for item in self._waiting.values() if item.deadline_s < now_s)
        for item in expired:
            self.cancel(item.id)
        chosen: list[Item] = []
        room = self.budget_tokens
        for item in self._waiting.values():
            if len(chosen) == self.max_items or (chosen and item.tokens > room):
                break
            chosen.append(item)
            room -= item.tokens
        for item in chosen:
            self.cancel(item.id)
        return Batch(tuple(chosen), expired)
