"""Slow and hostile clients hurt nobody else: while hundreds of them do their worst, a normal one is answered.

Twice: at the front as a cluster runs it (HAProxy, the holding server), and at an application behind plain uvicorn.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn

from heliostat.cluster.haproxy import HEADERS_S
from tests.faults import hostile
from tests.faults.front import Front
from tests.tiny_apps import serve_recipe

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
WORST_S = 3.0
"""On a machine that does other things too; alone the slowest of some hundred takes 0.2 s."""


@dataclass
class Seen:
    """What the normal clients got, and what the hostile ones were told."""

    statuses: list[int | str] = field(default_factory=list)
    slowest_s: float = 0.0
    told: dict[str, hostile.Told] = field(default_factory=dict)


def attack(url: str, path: str, body: bytes, seconds: float) -> Seen:
    """All the crowds at once, beside one client that keeps its connection and one that opens one for every request."""
    seen = Seen()
    port = httpx.URL(url).port
    assert port is not None

    async def ask(client: httpx.AsyncClient) -> None:
        began = time.monotonic()
        try:
            seen.statuses.append((await client.post(url + path, content=body)).status_code)
        except httpx.TransportError as problem:
            seen.statuses.append(type(problem).__name__)
        seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)

    async def keeps(until: float) -> None:
        async with httpx.AsyncClient(timeout=20) as client:
            while asyncio.get_running_loop().time() < until:
                await ask(client)
                await asyncio.sleep(0.02)

    async def opens(until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            async with httpx.AsyncClient(timeout=20, headers={"Connection": "close"}) as client:
                await ask(client)
            await asyncio.sleep(0.02)

    async def all_at_once() -> None:
        until = asyncio.get_running_loop().time() + seconds
        told = [crowd(port, path, until) for crowd in hostile.CROWDS]
        _, _, *found = await asyncio.gather(keeps(until), opens(until), *told)
        seen.told = {crowd.__name__: one for crowd, one in zip(hostile.CROWDS, found, strict=True)}

    asyncio.run(all_at_once())
    return seen


@pytest.fixture
def application() -> Iterator[str]:
    served = serve_recipe("intent-classifier")
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(served.endpoint, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 15
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(15)
    listener.close()
    served.api.close()


def test_at_the_front_nobody_else_notices_and_slow_headers_are_given_up(front: Front) -> None:
    seen = attack(front.url, "/app", b"x" * 100, HEADERS_S + 2.5)
    assert set(seen.statuses) == {200}
    assert seen.slowest_s < WORST_S
    assert {crowd: set(seen.told[crowd]) for crowd in ("slow_headers", "huge_headers", "garbage")} == {
        "slow_headers": {"408"},
        "huge_headers": {"400"},
        "garbage": {"400"},
    }


def test_at_an_application_behind_uvicorn_nobody_else_notices(application: str) -> None:
    seen = attack(application, "/", b'{"text": "turn on the light"}', 3)
    assert set(seen.statuses) == {200}
    assert seen.slowest_s < WORST_S
    assert sum(told["refused"] for told in seen.told.values()) == 0
