"""The holding server with its real HTTP, before a small upstream that fails as Serve and dying replicas do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from heliostat.cluster.haproxy import HELD, HOLD, RELAYED
from heliostat.definition import load
from heliostat.registry import move_alias
from heliostat.registry.artifacts import publish
from heliostat.serve import hold as holding
from heliostat.serve.desired import DesiredApp
from heliostat.serve.hold import Hold, Known, Waiting, find
from heliostat.serve.keys import KeyRing, key_digest
from heliostat.settings import Settings, StoreSettings
from heliostat.store import Store
from tests.faults.kill_points import META

SPEC = load(Path(__file__).parents[3] / "cluster" / "laptop.yaml").applications["intent-classifier"]
MODEL = {"X-Model-Version": "v1"}
Handler = Callable[[web.Request, int], Awaitable[web.StreamResponse]]


class World:
    """The holding server and what stands behind it; `asked` is what came through."""

    def __init__(self, url: str, hold: Hold, asked: list[dict[str, Any]]) -> None:
        self.url, self.hold, self.asked = url, hold, asked

    async def post(
        self, path: str = "/intent-classifier", *, body: bytes | AsyncIterator[bytes] = b"{}", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        sent = {"Authorization": "Bearer right", **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, data=body, headers=sent) as answer,
        ):
            return answer.status, dict(answer.headers), await answer.text()


@asynccontextmanager
async def world(handler: Handler, tmp_path: Path) -> AsyncIterator[World]:
    asked: list[dict[str, Any]] = []

    async def upstream(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked.append({"headers": {k.lower(): v for k, v in request.headers.items()}, "body": body})
        return await handler(request, len(asked))

    behind = web.Application(client_max_size=2**27)
    behind.router.add_route("*", "/{path:.*}", upstream)
    async with listening(behind) as behind_url:
        settings = Settings(
            cluster="test", dashboard_url="http://127.0.0.1:1", gcs_address="127.0.0.1:1", serve_url=behind_url,
            store=StoreSettings(endpoint="http://127.0.0.1:9", bucket="none", access_key_id="k", secret_access_key="s"),
            spool=tmp_path,
        )  # fmt: skip
        hold = Hold(settings, front_url=behind_url, proxy_url=behind_url)
        hold.refresh = lambda _: None  # type: ignore[method-assign]  # no store here: what it would read is set below
        desired = DesiredApp(name="intent-classifier", spec=SPEC, package="")
        hold._known = (Known(desired, KeyRing("intent-classifier", cluster_key_sha256=key_digest("right"))),)
        async with listening(hold.application()) as url:
            yield World(url, hold, asked)


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


def run(handler: Handler, tmp_path: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def body() -> None:
        async with world(handler, tmp_path) as made:
            await asyncio.wait_for(test(made), 20)

    asyncio.run(body())


async def well(request: web.Request, _: int) -> web.StreamResponse:
    return web.json_response({"length": len(await request.read())}, headers=MODEL)


async def dies_twice(request: web.Request, time: int) -> web.StreamResponse:
    if time == 1:
        return web.Response(status=500, text="Internal Server Error")  # as Serve's proxy says it
    if time == 2:
        assert request.transport is not None
        request.transport.close()  # as a killed process does
    return await well(request, time)


def test_what_serve_failed_at_is_sent_again_whole(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        status, headers, text = await made.post(body=b"x" * 5_000_000, X_Request_Id="mine")
        assert (status, json.loads(text)) == (200, {"length": 5_000_000})
        assert [one["headers"]["x-request-id"] for one in made.asked] == ["mine"] * 3
        assert all(one["body"] == b"x" * 5_000_000 and HELD in one["headers"] for one in made.asked)
        assert headers["X-Model-Version"] == "v1"
        assert made.hold.counts.replays == 2

    run(dies_twice, tmp_path, test)


def test_an_applications_own_failure_is_its_answer(tmp_path: Path) -> None:
    async def fails(_: web.Request, __: int) -> web.StreamResponse:
        return web.json_response({"error": "its own"}, status=500, headers=MODEL)

    async def test(made: World) -> None:
        assert (await made.post())[0] == 500
        assert len(made.asked) == 1

    run(fails, tmp_path, test)


def test_what_must_not_be_sent_twice_is_not(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        status, _, text = await made.post(X_Heliostat_Replay="never")
        assert (status, json.loads(text)["error"]["code"]) == (502, "replica_lost")
        assert len(made.asked) == 1

    run(dies_twice, tmp_path, test)


def test_what_has_no_version_yet_is_told_at_once_and_takes_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(made: World) -> None:
        made.hold._known = tuple(replace(known, released=False) for known in made.hold._known)
        monkeypatch.setattr(made.hold, "_is_released", lambda *_: False)
        status, headers, text = await made.post()
        assert (status, json.loads(text)["error"]["code"]) == (503, "not_released")
        assert "heliostat app release intent-classifier intent-classifier:vN" in text
        assert int(headers["Retry-After"]) >= 1
        assert (await made.post(Authorization="Bearer wrong"))[0] == 401
        assert made.asked == []
        monkeypatch.setattr(made.hold, "_is_released", lambda *_: True)  # a moment ago; the watcher has not looked yet
        assert (await made.post())[0] == 200

    run(well, tmp_path, test)


@pytest.mark.real
def test_an_application_is_released_with_its_alias(store: Store, tmp_path: Path) -> None:
    settings = Settings(
        cluster="test", dashboard_url="http://127.0.0.1:1", gcs_address="127.0.0.1:1", serve_url="http://127.0.0.1:1",
        store=store.settings, spool=tmp_path,
    )  # fmt: skip
    hold = Hold(settings, front_url="http://127.0.0.1:1", proxy_url="http://127.0.0.1:1")
    store.put("apps/intent-classifier/desired.json", DesiredApp(
        name="intent-classifier", spec=SPEC, package="").model_dump_json().encode())  # fmt: skip
    hold.refresh(store)
    assert [known.released for known in hold._known] == [False]
    made = publish(store, name="intent-classifier", files={"config.json": b"{}"}, metadata=META)
    move_alias(store, name=made.name, alias="production", to_version=1, expected_version=None, who="t", why="t")
    hold.refresh(store)
    assert [known.released for known in hold._known] == [True]


def test_nobody_without_a_key_wakes_an_application(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        assert (await made.post(Authorization="Bearer wrong"))[0] == 401
        assert made.asked == []
        assert (await made.post("/another-path"))[0] == 200  # not known here: its replica will say

    run(well, tmp_path, test)


def test_it_waits_as_long_as_the_client_does_and_then_says_when_to_come(tmp_path: Path) -> None:
    async def never(_: web.Request, __: int) -> web.StreamResponse:
        return web.Response(status=503)

    async def test(made: World) -> None:
        status, headers, text = await made.post(X_Deadline_Ms="2000")
        assert (status, json.loads(text)["error"]["code"]) == (503, "no_replica")
        assert 1 <= int(headers["Retry-After"]) <= holding.FIRST_COLD_S
        assert len(made.asked) > 1
        assert made.hold._waiting["intent-classifier"].arrived == []

    run(never, tmp_path, test)


def test_beyond_its_bound_it_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_HELD", 3)
    go = asyncio.Event()

    async def slow(request: web.Request, time: int) -> web.StreamResponse:
        await go.wait()
        return await well(request, time)

    async def test(made: World) -> None:
        held = [asyncio.create_task(made.post()) for _ in range(3)]
        while len(made.asked) < 3:
            await asyncio.sleep(0.01)
        status, headers, text = await made.post()
        assert (status, json.loads(text)["error"]["code"]) == (503, "starting")
        assert int(headers["Retry-After"]) >= 1
        go.set()
        assert [answer[0] for answer in await asyncio.gather(*held)] == [200] * 3

    run(slow, tmp_path, test)


async def endless(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    await asyncio.sleep(60)


def test_a_body_that_does_not_come_is_given_up_with_what_it_held(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        status, _, text = await made.post(body=endless(b"a" * 100_000), X_Deadline_Ms="300")
        assert (status, json.loads(text)["error"]["code"]) == (408, "body_too_slow")
        assert made.asked == []
        assert made.hold._bytes == 0

    run(well, tmp_path, test)


def test_bodies_count_against_the_room_while_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_BYTES", 150_000)

    async def test(made: World) -> None:
        slow = asyncio.create_task(made.post(body=endless(b"a" * 100_000), X_Deadline_Ms="5000"))
        while made.hold._bytes < 100_000:
            await asyncio.sleep(0.01)
        status, headers, text = await made.post(body=endless(b"a" * 100_000))
        assert (status, json.loads(text)["error"]["code"]) == (503, "no_room")
        assert headers["Retry-After"] == "1"
        assert (await made.post(body=b"a" * 10_000))[0] == 200
        slow.cancel()
        while made.hold._bytes:
            await asyncio.sleep(0.01)

    run(well, tmp_path, test)


def stream_of(events: int, *, cut: bool) -> Handler:
    async def stream(request: web.Request, _: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={**MODEL, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(events):
            await response.write(f'data: {{"token": {number}}}\n\n'.encode())
        if cut:
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write(b"data: [DONE]\n\n")
        return response

    return stream


def test_a_stream_passes_and_a_cut_one_ends_with_an_error(tmp_path: Path) -> None:
    async def whole(made: World) -> None:
        status, _, text = await made.post("/intent-classifier/v1/completions", **{HOLD: "relay"})
        assert (status, text.count("token"), text.endswith("data: [DONE]\n\n")) == (200, 3, True)
        assert made.asked[0]["headers"][RELAYED] == "1"
        assert HELD not in made.asked[0]["headers"]

    async def cut(made: World) -> None:
        status, _, text = await made.post("/intent-classifier/v1/completions", **{HOLD: "relay"})
        last = [line for line in text.split("\n") if line.startswith("data: ")][-1]
        assert status == 200
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stream_cut"
        assert "[DONE]" not in text
        assert made.hold.counts.cut_streams == 1

    run(stream_of(3, cut=False), tmp_path, whole)
    run(stream_of(3, cut=True), tmp_path, cut)


def test_clients_cannot_say_what_the_front_says(tmp_path: Path) -> None:
    async def test(made: World) -> None:
        await made.post(**{RELAYED: "1", HELD: "mine"})
        assert made.asked[0]["headers"][HELD] == "1"
        assert RELAYED not in made.asked[0]["headers"]

    run(well, tmp_path, test)


def test_the_longest_route_is_the_applications() -> None:
    short, long = (
        Known(DesiredApp(name=name, spec=SPEC.model_copy(update={"route": route}), package=""), KeyRing(name))
        for name, route in (("short", "/a"), ("long", "/a/b"))
    )
    known = (short, long)
    assert find(known, "/a/b/v1") is long
    assert find(known, "/a/bc") is short
    assert find(known, "/ab") is None


def test_retry_after_is_what_is_left_of_a_start() -> None:
    assert Waiting(cold_s=10.0).retry_after_s(100.0) == 10
    assert Waiting(arrived=[94.0, 99.0], cold_s=10.0).retry_after_s(100.0) == 4
    assert Waiting(arrived=[50.0], cold_s=10.0).retry_after_s(100.0) == 1
