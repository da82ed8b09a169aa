"""The applications over ASGI, with their real recipes, runners and endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.tiny_apps import Served, serve_recipe


class Client:
    """One application, asked synchronously or within a coroutine of the test's own."""

    def __init__(self, served: Served) -> None:
        self.served = served

    @asynccontextmanager
    async def open(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.served.endpoint.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=30) as client:
            yield client

    def run(self, test: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
        import asyncio

        async def body() -> Any:
            async with self.open() as client:
                return await asyncio.wait_for(test(client), 60)

        return asyncio.run(body())

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send(client: httpx.AsyncClient) -> httpx.Response:
            return await client.request(method, path, **options)

        answer: httpx.Response = self.run(send)
        return answer

    def post(self, path: str = "/", **options: Any) -> httpx.Response:
        return self.ask("POST", path, **options)


def _client(name: str) -> Iterator[Client]:
    served = serve_recipe(name)
    try:
        yield Client(served)
    finally:
        served.api.close()


@pytest.fixture(scope="module")
def intents() -> Iterator[Client]:
    yield from _client("intent-classifier")


@pytest.fixture(scope="module")
def embeddings() -> Iterator[Client]:
    yield from _client("embeddings")


@pytest.fixture(scope="module")
def digits() -> Iterator[Client]:
    yield from _client("digits")


@pytest.fixture(scope="module")
def generate() -> Iterator[Client]:
    yield from _client("generate")
