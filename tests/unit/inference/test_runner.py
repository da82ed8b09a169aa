"""The runner with its real thread, a real event loop, and models of one line."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from heliostat.inference.runner import Answer, Closed, Expired, Forward, Runner

LIMIT_S = 10.0
"""No test waits longer than this for anything."""


def soon() -> float:
    return time.monotonic() + LIMIT_S


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), LIMIT_S * 2))


@asynccontextmanager
async def runner(forward: Forward[Any], **options: Any) -> AsyncIterator[Runner[Any]]:
    started: Runner[Any] = Runner(forward, identity="v1", **options)
    try:
        yield started
    finally:
        await asyncio.to_thread(started.close)


def sums(texts: Sequence[Sequence[int]]) -> list[int]:
    return [sum(text) for text in texts]


class Gate:
    """A model that stops inside its first forward until it is let go, so that others queue behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self.batches: list[list[list[int]]] = []

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[int]:
        self.batches.append([list(text) for text in texts])
        self.entered.set()
        if not self.released.wait(LIMIT_S):
            raise TimeoutError("the test never let the model go")
        return sums(texts)


async def until(true: Callable[[], bool]) -> None:
    limit = soon()
    while not true():
        assert time.monotonic() < limit
        await asyncio.sleep(0.001)


async def blocked(gate: Gate, started: Runner[Any]) -> asyncio.Task[Answer[Any]]:
    """Send the item that holds the model inside the gate."""
    first = asyncio.create_task(started.submit([1], soon()))
    await asyncio.to_thread(gate.entered.wait, LIMIT_S)
    return first


def test_every_text_gets_its_own_result_and_the_name_of_the_model() -> None:
    async def test() -> None:
        async with runner(sums, budget_tokens=7) as started:
            answers = await asyncio.gather(*(started.submit([i] * (i % 5 + 1), soon()) for i in range(200)))
        assert answers == [Answer(i * (i % 5 + 1), "v1") for i in range(200)]

    run(test)


def test_what_queued_while_the_model_ran_goes_together_in_order_of_arrival() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate, budget_tokens=4) as started:
            first = await blocked(gate, started)
            rest = [asyncio.create_task(started.submit([n, n], soon())) for n in (2, 3, 4)]
            await until(lambda: started.queued_tokens == 7)
            gate.released.set()
            await asyncio.gather(first, *rest)
        assert gate.batches == [[[1]], [[2, 2], [3, 3]], [[4, 4]]]

    run(test)


def test_a_bad_item_fails_alone_and_with_its_own_error() -> None:
    def forward(texts: Sequence[Sequence[int]]) -> list[int]:
        if any(13 in text for text in texts):
            raise ValueError("13 is not a token")
        return sums(texts)

    async def test() -> None:
        async with runner(forward) as started:
            texts = ([1], [13], [2])
            answers = await asyncio.gather(*(started.submit(t, soon()) for t in texts), return_exceptions=True)
        assert (answers[0], answers[2]) == (Answer(1, "v1"), Answer(2, "v1"))
        assert isinstance(answers[1], ValueError)

    run(test)


def test_a_model_that_loses_results_fails_its_items_and_not_the_thread() -> None:
    async def test() -> None:
        async with runner(lambda texts: []) as started:
            with pytest.raises(ValueError, match="returned 0 results for 1 items"):
                await started.submit([1], soon())
            started.swap(sums, "v2")
            assert await started.submit([1], soon()) == Answer(1, "v2")

    run(test)


def test_a_cancelled_request_leaves_the_queue_and_is_never_run() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            dropped = asyncio.create_task(started.submit([2] * 50, soon()))
            await until(lambda: started.queued_tokens == 51)
            dropped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dropped
            assert started.queued_tokens == 1
            gate.released.set()
            await first
        assert gate.batches == [[[1]]]

    run(test)


def test_a_request_cancelled_while_it_runs_disturbs_nobody() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            first.cancel()
            gate.released.set()
            assert (await started.submit([5], soon())).result == 5

    run(test)


def test_an_item_past_its_deadline_is_told_so_and_never_run() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            late = asyncio.create_task(started.submit([2], time.monotonic()))
            await until(lambda: started.queued_tokens == 2)
            gate.released.set()
            with pytest.raises(Expired):
                await late
            await first
        assert gate.batches == [[[1]]]

    run(test)


def test_a_swap_takes_effect_between_batches_and_no_answer_carries_the_wrong_name() -> None:
    def model(version: int) -> Forward[int]:
        return lambda texts: [version for _ in texts]

    async def test() -> None:
        async with runner(model(0), budget_tokens=8) as started:
            started.swap(model(0), 0)
            waiting = []
            for version in range(1, 40):
                waiting += [asyncio.create_task(started.submit([1, 2], soon())) for _ in range(10)]
                await asyncio.sleep(0)
                started.swap(model(version), version)
            answers = await asyncio.gather(*waiting)
            assert all(answer.result == answer.identity for answer in answers)
            assert (await started.submit([1], soon())).identity == started.identity == 39

    run(test)


def test_the_batch_that_runs_during_a_swap_ends_with_the_old_model() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            started.swap(sums, "v2")
            second = asyncio.create_task(started.submit([1], soon()))
            gate.released.set()
            assert [(await first).identity, (await second).identity] == ["v1", "v2"]

    run(test)


def test_speed_and_seconds_of_queued_work_are_measured() -> None:
    async def test() -> None:
        ticks = iter(range(1000))  # the clock is read on arrival, on take, before and after the model
        async with runner(sums, clock=lambda: float(next(ticks))) as started:
            assert (started.tokens_per_s, started.queued_seconds) == (0.0, 0.0)
            await started.submit([1] * 30, 1e9)
            await until(lambda: started.queued_tokens == 0)
            assert started.tokens_per_s == 30.0
            assert started.queued_seconds == 0.0

    run(test)


def test_closing_fails_what_waits_lets_what_runs_finish_and_refuses_what_comes_later() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            waiting = asyncio.create_task(started.submit([2], soon()))
            await until(lambda: started.queued_tokens == 2)
            closing = asyncio.create_task(asyncio.to_thread(started.close))
            with pytest.raises(Closed):
                await waiting
            gate.released.set()
            assert (await first).result == 1
            await closing
            with pytest.raises(Closed):
                await started.submit([3], soon())

    run(test)


def test_closing_a_model_that_hangs_does_not_wait_for_ever() -> None:
    async def test() -> None:
        gate = Gate()
        async with runner(gate) as started:
            first = await blocked(gate, started)
            with pytest.raises(TimeoutError, match="still runs"):
                started.close(timeout_s=0.01)
            gate.released.set()
            await first

    run(test)


def test_the_thread_outlives_an_event_loop_that_ended_with_requests_waiting() -> None:
    gate = Gate()
    started: Runner[int] = Runner(gate, identity="v1")

    async def leave() -> None:
        await blocked(gate, started)  # the loop ends and cancels the task

    asyncio.run(leave())
    gate.released.set()
    assert asyncio.run(started.submit([4], soon())).result == 4
    started.close()


def test_an_empty_text_is_refused_at_once() -> None:
    async def test() -> None:
        async with runner(sums) as started:
            with pytest.raises(ValueError, match="0 tokens"):
                await started.submit([], soon())

    run(test)


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration()])
def test_a_model_that_raises_what_no_future_takes_fails_its_item_and_not_the_thread(raised: BaseException) -> None:
    def forward(texts: Sequence[Sequence[int]]) -> list[int]:
        raise raised

    async def test() -> None:
        async with runner(forward) as started:
            with pytest.raises(RuntimeError, match="must raise ordinary errors"):
                await started.submit([1], soon())
            started.swap(sums, "v2")
            assert (await started.submit([1], soon())).result == 1

    run(test)
