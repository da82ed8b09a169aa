"""The front loses nothing: the real HAProxy with the configuration that Ray writes, the real holding server, and
replicas as processes that get SIGKILL under load. Without Ray, so that it runs in seconds; tests/benchmarks/
losing_nothing.py does the same on a whole cluster.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from tests.faults.front import Front

pytestmark = pytest.mark.timeout(120)
SIZES = (1024, 100 * 1024, 5 * 2**20)


def under_load(
    front: Front, path: str, body: bytes, seconds: float, faults: Callable[[], Awaitable[None]]
) -> list[Any]:
    """(status, text) of every request of eight clients that send one after another while the faults happen."""
    found: list[Any] = []

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            try:
                async with session.post(front.url + path, data=body) as answer:
                    found.append((answer.status, await answer.text()))
            except aiohttp.ClientError as problem:
                found.append((0, type(problem).__name__))

    async def body_of() -> None:
        until = time.monotonic() + seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            await asyncio.gather(faults(), *(client(session, until) for _ in range(8)))

    asyncio.run(body_of())
    return found


def kills(front: Front, times: int, draw: random.Random) -> Callable[[], Awaitable[None]]:
    """The only replica is killed at random moments, and comes back a second later."""

    async def faults() -> None:
        for _ in range(times):
            await asyncio.sleep(0.5 + draw.random())
            front.kill_replica()
            await asyncio.sleep(1.0)
            front.start_replica()
            await asyncio.sleep(1.0)

    return faults


@pytest.mark.parametrize("size", SIZES)
def test_killing_the_only_replica_loses_no_request(front: Front, size: int) -> None:
    faults = kills(front, 2, random.Random(size))
    found = under_load(front, "/app", b"x" * size, 7.0, faults)
    assert len(found) > 3  # 5 MiB a request: how many a crowded machine does is not the point
    assert [one for one in found if one[0] != 200] == []
    assert {json.loads(text)["length"] for _, text in found} == {size}  # nothing was torn


def test_a_stream_that_is_cut_says_so(front: Front) -> None:
    found = under_load(front, "/app/v1/completions", b"{}", 7.0, kills(front, 2, random.Random(7)))
    ends = [
        "done" if text.endswith("data: [DONE]\n\n") else "told" if '"stream_cut"' in text else text for _, text in found
    ]
    assert {status for status, _ in found} == {200}
    assert set(ends) == {"done", "told"}


def test_without_the_holding_server_the_front_still_answers(front: Front) -> None:
    front.running["hold"].kill()
    front.running["hold"].wait(10)
    deadline = time.monotonic() + 10
    while (answer := httpx.post(f"{front.url}/app/v1/completions", timeout=10)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert httpx.post(f"{front.url}/app", content=b"x", timeout=10).status_code == 200


def test_headers_that_no_buffer_holds_are_refused(front: Front) -> None:
    assert httpx.post(f"{front.url}/app", headers={"X-Long": "x" * 100_000}, timeout=10).status_code == 400


def test_a_large_body_of_no_known_length_arrives_whole(front: Front) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    assert httpx.post(f"{front.url}/app", content=parts(), timeout=10).json() == {"length": 2_000_000}
