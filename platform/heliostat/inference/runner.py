"""One thread that owns a model and runs it on whatever waits, while an event loop goes on taking requests.

An `await submit(...)` puts an item into the queue; the thread takes what is there as soon as the model is free (no
timer collects a batch: under load the queue fills while the model runs), calls forward, and hands the results back to
the loop. A PyTorch forward lets go of the interpreter's lock, so the loop keeps answering meanwhile.

Not here: which items run together (batching.py), tokenising, refusing work when `queued_seconds` grows too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Generic, TypeVar

from heliostat.inference.batching import Batch, Item, TokenBatcher
from heliostat.inference.load import DutyCycle, Load

R = TypeVar("R")

Work = Any
"""What a model takes of one item: a text's token ids, an image's tensor. The runner only carries it."""

Forward = Callable[[Sequence[Work]], Sequence[R]]
"""A model as the runner sees it: some items' work -> one result for each, in the same order."""

_MEMORY = 0.9
"""Weight of the past in the measured speed: about the last ten batches count."""


_LATE = "the deadline passed while the item waited; allow more time, or send less"
_CLOSED = "this runner was closed before the item could run; send it to another replica"


class Expired(TimeoutError):
    """The item's deadline passed while it waited; it was never run."""


class Closed(RuntimeError):
    """The runner was closed before the item could run."""


@dataclass(frozen=True)
class Answer(Generic[R]):
    """A result, and the identity of the forward that produced it."""

    result: R
    identity: object


@dataclass(frozen=True)
class _Loaded(Generic[R]):
    """A forward and its identity, replaced together so that no answer carries another model's name."""

    forward: Forward[R]
    identity: object


@dataclass(frozen=True)
class _Job(Generic[R]):
    work: Work
    tokens: int
    arrived_s: float
    future: asyncio.Future[Answer[R]]
    loop: asyncio.AbstractEventLoop


class Runner(Generic[R]):
    """A queue, a thread and a model. Close it when done; a thread left open ends with the process."""

    def __init__(
        self,
        forward: Forward[R],
        *,
        identity: object,
        budget_tokens: int = 512,
        max_items: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaded = _Loaded(forward, identity)
        self._batcher = TokenBatcher(budget_tokens, max_items)
        self._clock = clock
        self._jobs: dict[Hashable, _Job[R]] = {}
        self._ids = count()
        self._changed = threading.Condition()  # guards every field of this object
        self._closed = False
        self._running_tokens = 0
        self._busy_s = 0.0
        self._done_tokens = 0.0
        self._duty = DutyCycle()
        self._sums = Load()
        self._thread = threading.Thread(target=self._work, name="heliostat-model", daemon=True)
        self._thread.start()

    async def submit(self, work: Work, deadline_s: float, *, tokens: int | None = None) -> Answer[R]:
        """Run the model on one item and return its answer; to be awaited in an event loop, from any thread.

        deadline_s is a moment on the runner's clock (time.monotonic unless given). tokens is what the item takes of a
        batch's budget: len(work) unless given, 1 for each of a model's inputs of fixed shape. Raises Expired where
        the item waited past its deadline, Closed where the runner was closed, ValueError for an empty text, and
        whatever the model raised for this very item. Cancelling the awaiting task takes the item out of the queue.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer[R]] = loop.create_future()
        item = Item(next(self._ids), len(work) if tokens is None else tokens, self._clock(), deadline_s)
        with self._changed:
            if self._closed:
                raise Closed("this runner is closed; send the request to another replica")
            self._batcher.add(item)
            self._jobs[item.id] = _Job(work, item.tokens, item.arrived_s, future, loop)
            self._changed.notify()
        try:
            return await future
        finally:
            if future.cancelled():
                self._forget(item.id)

    def swap(self, forward: Forward[R], identity: object) -> None:
        """Use another forward from the next batch on; returns at once, and the running batch ends with the old one."""
        with self._changed:
            self._loaded = _Loaded(forward, identity)

    def close(self, timeout_s: float = 30.0) -> None:
        """Refuse new items, fail the waiting ones with Closed, wait for the running batch; harmless when repeated.

        TimeoutError where the model still runs after timeout_s; its thread then ends with its batch.
        """
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            jobs = [self._jobs.pop(item_id) for item_id in left if self._batcher.cancel(item_id)]
            self._changed.notify()
        _deliver([(job, Closed(_CLOSED)) for job in jobs])
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the model still runs {timeout_s} s after close; wait longer, or end the process")

    @property
    def identity(self) -> object:
        """Identity of the forward that the next batch will use."""
        return self._loaded.identity

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or run now: what a new item has before it."""
        with self._changed:
            return self._batcher.queued_tokens + self._running_tokens

    @property
    def tokens_per_s(self) -> float:
        """Measured speed of the model while it runs, over about its last ten batches; 0.0 before the first."""
        with self._changed:
            return self._done_tokens / self._busy_s if self._busy_s > 0 else 0.0

    @property
    def queued_seconds(self) -> float:
        """Seconds of work before a new item, by the measured speed; 0.0 before anything was measured."""
        speed = self.tokens_per_s
        return self.queued_tokens / speed if speed else 0.0

    @property
    def load(self) -> Load:
        """All of it at one moment."""
        speed = self.tokens_per_s
        with self._changed:
            return replace(
                self._sums,
                waiting_tokens=self._batcher.queued_tokens,
                waiting_items=len(self._batcher),
                running_tokens=self._running_tokens,
                tokens_per_s=speed,
                busy=self._duty.share(self._clock()),
            )

    def _work(self) -> None:
        """The thread: batch after batch until closed."""
        while (taken := self._next_batch()) is not None:
            loaded, running, expired = taken
            _deliver([(job, Expired(_LATE)) for job in expired])
            began = self._clock()
            outcomes = _run(loaded, running)
            self._measure(running, began, self._clock())
            _deliver(list(zip(running, outcomes, strict=True)))

    def _next_batch(self) -> tuple[_Loaded[R], list[_Job[R]], list[_Job[R]]] | None:
        """Wait for items; the model to use, what to run and what expired. None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._batcher))
            if self._closed:
                return None
            batch: Batch = self._batcher.take(self._clock())
            self._running_tokens = batch.tokens
            self._duty.begin(self._clock())
            running = [self._jobs.pop(item.id) for item in batch.items]
            expired = [self._jobs.pop(item.id) for item in batch.expired]
            return self._loaded, running, expired

    def _measure(self, running: Sequence[_Job[R]], began: float, ended: float) -> None:
        tokens = sum(job.tokens for job in running)
        with self._changed:
            self._running_tokens = 0
            self._duty.end(ended)
            if not tokens:
                return
            self._done_tokens = self._done_tokens * _MEMORY + tokens
            self._busy_s = self._busy_s * _MEMORY + ended - began
            self._sums = Load(
                items=self._sums.items + len(running),
                tokens=self._sums.tokens + tokens,
                batches=self._sums.batches + 1,
                waited_s=self._sums.waited_s + sum(began - job.arrived_s for job in running),
                forward_s=self._sums.forward_s + ended - began,
            )

    def _forget(self, item_id: Hashable) -> None:
        """Take an item out of the queue; one that runs already is left to finish, and its result is dropped."""
        with self._changed:
            if self._batcher.cancel(item_id) is not None:
                del self._jobs[item_id]


def _run(loaded: _Loaded[R], jobs: Sequence[_Job[R]]) -> list[Answer[R] | Exception]:
    """One outcome per job. Where the batch fails, each job runs alone, so that a bad item fails alone."""
    if not jobs:
        return []
    try:
        return list(_forward(loaded, jobs))
    except BaseException as problem:  # noqa: BLE001 the model is the user's: whatever it raises belongs to its items
        if len(jobs) == 1:
            return [_deliverable(problem, loaded)]
    return [outcome for job in jobs for outcome in _run(loaded, [job])]


def _deliverable(problem: BaseException, loaded: _Loaded[R]) -> Exception:
    """The problem itself, or one that names it: a SystemExit would end the loop, a StopIteration no future takes."""
    if isinstance(problem, Exception) and not isinstance(problem, StopIteration):
        return problem
    named = RuntimeError(f"the model {loaded.identity!r} raised {problem!r}; a forward must raise ordinary errors")
    named.__cause__ = problem
    return named


def _forward(loaded: _Loaded[R], jobs: Sequence[_Job[R]]) -> list[Answer[R]]:
    results = loaded.forward([job.work for job in jobs])
    if len(results) != len(jobs):
        raise ValueError(
            f"the model {loaded.identity!r} returned {len(results)} results for {len(jobs)} items; "
            "its forward must return one per item, in order"
        )
    return [Answer(result, loaded.identity) for result in results]


def _deliver(outcomes: Sequence[tuple[_Job[R], Answer[R] | Exception]]) -> None:
    """Hand outcomes to the loops that wait for them: each loop is woken once, not once for an item."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer[R]], Answer[R] | Exception]]] = {}
    for job, outcome in outcomes:
        by_loop.setdefault(job.loop, []).append((job.future, outcome))
    for loop, settled in by_loop.items():
        # A loop that has been closed has nobody who waits; the thread goes on for the others.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: Sequence[tuple[asyncio.Future[Answer[R]], Answer[R] | Exception]]) -> None:
    for future, outcome in settled:
        _settle(future, outcome)


def _settle(future: asyncio.Future[Answer[R]], outcome: Answer[R] | Exception) -> None:
    if future.done():  # cancelled while it ran
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
