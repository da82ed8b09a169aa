"""The decorator in a class of one's own, as in a Serve deployment."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import cloudpickle
import pytest

from heliostat.inference.decorator import token_batched
from heliostat.inference.runner import Expired


class Adder:
    def __init__(self, plus: int = 0) -> None:
        self.plus = plus
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    @token_batched(budget_tokens=8)
    def total(self, batch: Sequence[list[int]]) -> list[int]:
        """Sums."""
        time.sleep(0.01)  # a model at work, while others come
        self.batches.append([len(item) for item in batch])
        self.threads.add(threading.get_ident())
        if any(-1 in item for item in batch):
            raise ValueError("-1")
        return [sum(item) + self.plus for item in batch]

    @token_batched(tokens=lambda _: 1, budget_tokens=4, timeout_s=0.02)
    def slow(self, batch: Sequence[object]) -> list[int]:
        time.sleep(0.1)
        return [1] * len(batch)


def test_single_items_are_awaited_and_run_together_within_the_budget() -> None:
    async def test() -> None:
        found = await asyncio.gather(*(adder.total([n] * (n % 4 + 1)) for n in range(30)))
        assert found == [n * (n % 4 + 1) + 100 for n in range(30)]

    adder = Adder(100)
    asyncio.run(test())
    assert max(sum(batch) for batch in adder.batches) <= 8
    assert max(len(batch) for batch in adder.batches) > 1
    assert threading.get_ident() not in adder.threads
    assert len(adder.threads) == 1


def test_two_objects_share_nothing() -> None:
    async def test() -> None:
        assert await asyncio.gather(one.total([1]), two.total([1])) == [2, 3]

    one, two = Adder(1), Adder(2)
    asyncio.run(test())
    assert one.threads.isdisjoint(two.threads)


def test_a_bad_item_fails_alone() -> None:
    async def test() -> None:
        found = await asyncio.gather(adder.total([1]), adder.total([-1]), adder.total([2]), return_exceptions=True)
        assert (found[0], found[2]) == (1, 2)
        assert isinstance(found[1], ValueError)

    adder = Adder()
    asyncio.run(test())


def test_what_waits_too_long_is_told_so() -> None:
    async def test() -> None:
        found = await asyncio.gather(*(adder.slow("x") for _ in range(6)), return_exceptions=True)
        assert any(isinstance(one, Expired) for one in found)
        assert 1 in found

    adder = Adder()
    asyncio.run(test())


def test_a_class_travels_to_a_replica_and_an_object_tells_its_queue() -> None:
    there = cloudpickle.loads(cloudpickle.dumps(Adder))
    adder = there(5)
    assert asyncio.run(adder.total([1])) == 6
    runner = there.total.runner(adder)
    assert (runner.queued_tokens, runner.tokens_per_s > 0) == (0, True)
    runner.close()


def test_an_async_method_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match="write def"):

        class Wrong:
            @token_batched()
            async def total(self, batch: Sequence[list[int]]) -> list[int]:
                return []
