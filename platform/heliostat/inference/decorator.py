"""The batcher as a decorator, for any Ray Serve deployment or asyncio program: what `serve.batch` is used for.

    @serve.deployment
    class Classifier:
        @token_batched(budget_tokens=512)
        def classify(self, batch: list[list[int]]) -> list[str]:
            ...one result for each, in order...

        async def __call__(self, request: Request) -> str:
            return await self.classify(self.tokenise(await request.json()))

See docs/batching.md for what changes against `serve.batch`, and why. Nothing here needs Ray.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar, overload

from heliostat.inference.runner import Runner

W = TypeVar("W")
R = TypeVar("R")
Method = Callable[[Any, Sequence[W]], Sequence[R]]
"""A method over a batch; Any is its `self`."""


class token_batched:  # noqa: N801  # a decorator
    """Make a method over a batch one that is awaited for a single item.

    budget_tokens   the most that one batch adds up to; a larger item runs alone
    max_items       the most items of one batch
    tokens          what an item counts for; len unless given. `lambda _: 1` batches by count
    timeout_s       an item that has waited longer raises Expired (a TimeoutError) and is never run

    The method is an ordinary one: it runs in a thread of its own, one batch at a time, so it does not hold up the event
    loop. Each object has its own queue and thread, made at its first call. An item's own error is raised for that item
    alone; cancelling the awaiting task takes it out of the queue.
    """

    def __init__(
        self,
        *,
        budget_tokens: int = 512,
        max_items: int = 256,
        tokens: Callable[[Any], int] = len,  # Any: whatever the method takes
        timeout_s: float = 60.0,
    ) -> None:
        self._budget_tokens, self._max_items = budget_tokens, max_items
        self._tokens, self._timeout_s = tokens, timeout_s

    def __call__(self, method: Method[W, R]) -> BatchedMethod[W, R]:
        """Raises TypeError for an `async def`, which would have to run in the event loop it is to keep free."""
        if inspect.iscoroutinefunction(method):
            raise TypeError(f"{method.__qualname__} is an async def; write def, it runs in a thread of its own")
        return BatchedMethod(
            method,
            budget_tokens=self._budget_tokens,
            max_items=self._max_items,
            tokens=self._tokens,
            timeout_s=self._timeout_s,
        )


class BatchedMethod(Generic[W, R]):
    """What the decorator leaves in the class. It holds no thread, so the class can be pickled to a replica."""

    def __init__(
        self,
        method: Method[W, R],
        *,
        budget_tokens: int,
        max_items: int,
        tokens: Callable[[W], int],
        timeout_s: float,
    ) -> None:
        self.method = method
        self._budget_tokens, self._max_items = budget_tokens, max_items
        self._tokens, self._timeout_s = tokens, timeout_s
        self._place = f"_batched_{method.__name__}"
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_batched_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> BatchedMethod[W, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[[W], Coroutine[Any, Any, R]]: ...
    def __get__(
        self, instance: object | None, owner: type
    ) -> BatchedMethod[W, R] | Callable[[W], Coroutine[Any, Any, R]]:
        if instance is None:
            return self

        async def run(item: W) -> R:
            deadline_s = time.monotonic() + self._timeout_s
            answer = await self.runner(instance).submit(item, deadline_s, tokens=self._tokens(item))
            return answer.result

        return run

    def runner(self, instance: object) -> Runner[R]:
        """The queue and thread of one object: its queued_seconds tells when to refuse work, close() ends it."""
        # setdefault, not a lock: two threads may make one each, and all use the one that came first.
        made: Runner[R] | None = vars(instance).get(self._place)
        if made is None:
            made = vars(instance).setdefault(self._place, self._make(instance))
        return made

    def _make(self, instance: object) -> Runner[R]:
        return Runner(
            lambda batch: self.method(instance, batch),
            identity=self._place,
            budget_tokens=self._budget_tokens,
            max_items=self._max_items,
        )
