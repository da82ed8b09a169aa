"""What is the same for every application: ids, keys, deadlines, paths, the documentation, the access log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from heliostat.serve.admission import Admission
from heliostat.serve.api import Loaded
from heliostat.serve.keys import KeyRing, StoredKey, key_digest
from tests.tiny_apps import Served, load_recipe, serve_recipe
from tests.unit.apps.conftest import Client

LIMIT_S = 10.0
ALL = ["intents", "embeddings", "digits", "generate"]


@pytest.fixture
def gate() -> Iterator[Gate]:
    held = Gate()
    yield held
    held.released.set()
    held.served.api.close()


class Gate:
    """The intents' application whose model stops in its first batch until it is let go."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.batches: list[int] = []
        loaded = load_recipe("intent-classifier")
        forward = loaded.model.forward

        def held(batch: Any) -> Any:
            self.batches.append(len(batch))
            self.entered.set()
            assert self.released.wait(LIMIT_S)
            return forward(batch)

        loaded.model.forward = held
        self.served: Served = serve_recipe("intent-classifier", max_queue_s=1e9)
        self.served.api.take_over(loaded)

    async def occupy(self, client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
        first = asyncio.create_task(client.post("/", json={"text": "first"}))
        assert await asyncio.to_thread(self.entered.wait, LIMIT_S)
        return first


async def until(true: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.001)


def test_the_request_id_comes_back_in_answers_and_errors(intents: Client) -> None:
    sent = {"X-Request-Id": "mine-42"}
    assert intents.post(json={"text": "hi"}, headers=sent).headers["x-request-id"] == "mine-42"
    refused = intents.post(content=b"{", headers=sent)
    assert refused.json()["error"]["request_id"] == refused.headers["x-request-id"] == "mine-42"
    made = intents.post(json={"text": "hi"}, headers={"X-Request-Id": "not; one"}).headers["x-request-id"]
    assert made != "not; one"
    assert len(made) == 32


@pytest.mark.parametrize("name", ALL)
def test_every_response_says_which_model_it_is(request: pytest.FixtureRequest, name: str) -> None:
    client: Client = request.getfixturevalue(name)
    for answer in (client.post(content=b"{"), client.ask("GET", "/nothing"), client.ask("GET", "/openapi.json")):
        assert answer.headers["x-model-version"] == "v1"
        assert answer.headers["x-model-digest"] == "sha256:tiny"


def test_other_paths_and_methods_are_told_with_what_there_is(embeddings: Client) -> None:
    lost = embeddings.post("/v1/embedding", json={})
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "no_such_path")
    assert "POST /v1/embeddings" in lost.json()["error"]["message"]
    assert embeddings.ask("GET", "/v1/embeddings").status_code == 405


def test_below_a_route_the_paths_are_the_same(embeddings: Client) -> None:
    async def ask() -> int:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "method": "GET", "headers": [], "path": "/emb/v1/models", "root_path": "/emb"}
        return (await embeddings.served.endpoint.answer(Request(scope, receive))).status_code

    assert asyncio.run(ask()) == 200


@pytest.mark.parametrize("name", ALL)
def test_the_documentation_names_every_operation_and_its_example_is_accepted(
    request: pytest.FixtureRequest, name: str
) -> None:
    client: Client = request.getfixturevalue(name)
    document = client.ask("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    wanted = {(operation.method.lower(), operation.path or "/") for operation in client.served.api.operations}
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == wanted
    page = client.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    for path, methods in document["paths"].items():
        schema = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in schema.get("schema", {}):
            assert client.post(path, json=schema["schema"]["example"]).status_code == 200


def test_without_a_key_nobody_is_answered_and_a_key_is_counted_for_its_team() -> None:
    ring = KeyRing(
        app="intent-classifier",
        named=(
            StoredKey(name="search", sha256=key_digest("hs-search"), team="search-team"),
            StoredKey(name="ads", sha256=key_digest("hs-ads"), team="ads-team", applications=("other",)),
        ),
        closed=True,
    )
    served = serve_recipe("intent-classifier", keys=ring)
    client = Client(served)

    def ask(key: str) -> httpx.Response:
        return client.post(json={"texts": ["a", "b"]}, headers={"Authorization": f"Bearer {key}"})

    assert [ask(key).status_code for key in ("hs-search", "hs-ads", "wrong")] == [200, 403, 401]
    assert client.ask("GET", "/openapi.json").status_code == 401
    use = served.endpoint.counts.teams
    assert set(use) == {"search-team"}
    assert (use["search-team"].requests, use["search-team"].items) == (1, 2)
    assert use["search-team"].tokens == 6  # each text with the marks around it
    served.api.close()


def test_work_past_its_deadline_is_dropped_in_the_queue_and_told_504(gate: Gate) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        first = await gate.occupy(client)
        late = asyncio.create_task(client.post("/", json={"text": "late"}, headers={"X-Deadline-Ms": "1"}))
        await until(lambda: gate.served.api.queued_tokens == 6)
        await asyncio.sleep(0.005)
        gate.released.set()
        answer = await late
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
        assert (await first).status_code == 200

    Client(gate.served).run(test)
    assert gate.batches == [1]


def test_what_an_older_tokeniser_prepared_is_prepared_anew_where_the_newer_model_fails_on_it(gate: Gate) -> None:
    newer = load_recipe("intent-classifier", version=2)
    forward = newer.model.forward

    def strict(batch: Any) -> Any:
        if any(ids != [101, 102] for ids in batch):
            raise IndexError("this model knows no such token")
        return forward(batch)

    newer.model.forward, newer.model.tokenise = strict, lambda text: [101, 102]

    async def test(client: httpx.AsyncClient) -> None:
        first = await gate.occupy(client)
        waiting = asyncio.create_task(client.post("/", json={"texts": ["turn on", "the light"]}))
        await until(lambda: gate.served.api.queued_tokens > 3)
        gate.served.api.take_over(newer)
        gate.released.set()
        answer = (await waiting).json()
        assert (answer["failed"], answer["version"]) == (0, "v2")
        assert (await first).json()["version"] == "v1"  # it was under way

    Client(gate.served).run(test)


def test_a_client_that_leaves_takes_its_queued_work_with_it(gate: Gate) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        first = await gate.occupy(client)
        gone = asyncio.create_task(client.post("/", json={"texts": ["never run"] * 20}))
        await until(lambda: gate.served.api.queued_tokens > 40)
        gone.cancel()
        await until(lambda: gate.served.api.queued_tokens == 3)
        gate.released.set()
        assert (await first).status_code == 200

    Client(gate.served).run(test)
    assert gate.batches == [1]


def test_a_body_on_its_way_is_no_work_and_goes_to_the_model_that_is_there_when_it_is_whole() -> None:
    served = serve_recipe("intent-classifier")
    begun, go = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        begun.set()
        yield b'{"text": '
        await go.wait()
        yield b'"late"}'

    async def test(client: httpx.AsyncClient) -> httpx.Response:
        slow = asyncio.create_task(client.post("/", content=slowly()))
        await begun.wait()
        assert served.endpoint.in_flight == 0
        served.endpoint.hold = True  # the replica changes its model
        go.set()
        await asyncio.sleep(0.1)
        assert not slow.done()
        served.api.take_over(load_recipe("intent-classifier", version=2))
        served.endpoint.hold = False
        return await slow

    answer = Client(served).run(test)
    served.api.close()
    assert (answer.status_code, answer.json()["version"]) == (200, "v2")


def test_too_much_queued_work_is_refused_with_429_and_a_time(gate: Gate) -> None:
    gate.served.endpoint._admission = Admission(0.0)

    async def test(client: httpx.AsyncClient) -> None:
        gate.released.set()
        assert (await client.post("/", json={"text": "measured"})).status_code == 200
        gate.released.clear()
        gate.entered.clear()
        first = await gate.occupy(client)
        refused = await client.post("/", json={"text": "one too many"})
        gate.released.set()
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await first).status_code == 200

    Client(gate.served).run(test)


def test_a_replica_that_ends_tells_waiting_clients_to_come_again(gate: Gate) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        first = await gate.occupy(client)
        waiting = asyncio.create_task(client.post("/", json={"text": "waiting"}))
        await until(lambda: gate.served.api.queued_tokens == 6)
        closing = asyncio.create_task(asyncio.to_thread(gate.served.api.close))
        answer = await waiting
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        gate.released.set()
        assert (await first).status_code == 200
        await closing

    Client(gate.served).run(test)


def test_every_request_has_a_line_in_the_access_log_that_nobody_can_forge(
    intents: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="heliostat.access"):
        intents.post(json={"texts": ["hello", "hello"]}, headers={"X-Request-Id": "logged"})
        intents.post("/x%0A2026 forged", json={})
    # Once each, also where something has set up logging so that a record comes twice.
    lines = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert len(lines) == 2
    assert lines[0].startswith("logged intent-classifier POST / 200 ms=")
    assert lines[0].endswith("items=2 tokens=6 key=- team=- version=v1")
    assert "\n" not in lines[1]


def test_a_recipe_that_raises_is_a_500_without_its_inside(intents: Client) -> None:
    def broken(batch: Any) -> Any:
        raise RuntimeError("a secret path")

    served = serve_recipe("intent-classifier")
    loaded: Loaded[Any] = load_recipe("intent-classifier")
    loaded.model.forward = broken
    served.api.take_over(loaded)
    answer = Client(served).post(json={"text": "hi"})
    served.api.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
    assert "secret" not in answer.text
