"""The endpoint on real sockets, behind uvicorn, which is what a Serve replica runs too."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
import uvicorn

from tests.tiny_apps import Served, serve_recipe

LIMIT_S = 15.0


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def _serve(name: str) -> Iterator[tuple[Served, str]]:
    served = serve_recipe(name)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(served.endpoint, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until(lambda: server.started)
    yield served, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(LIMIT_S)
    listener.close()
    served.api.close()


@pytest.fixture(scope="module")
def intents() -> Iterator[tuple[Served, str]]:
    yield from _serve("intent-classifier")


@pytest.fixture(scope="module")
def generate() -> Iterator[tuple[Served, str]]:
    yield from _serve("generate")


def test_the_official_client_streams_over_a_socket(generate: tuple[Served, str]) -> None:
    _, url = generate
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as ai:
        whole = ai.completions.create(model="generate", prompt="Once", max_tokens=30, temperature=0)
        pieces = list(ai.completions.create(model="generate", prompt="Once", max_tokens=30, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert len(pieces) > 5


def test_a_client_that_leaves_its_stream_frees_the_slot(generate: tuple[Served, str]) -> None:
    served, url = generate
    model = served.api.loaded.model.engine._model
    step, steps = model.step, 0

    def slow(*arguments: object) -> object:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return step(*arguments)

    model.step = slow
    try:
        body = {"model": "generate", "prompt": "a", "max_tokens": 200, "temperature": 0, "stream": True}
        before = served.endpoint.counts.requests
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=LIMIT_S) as answer:
            next(answer.iter_lines())
            until(lambda: served.api.queued_tokens > 0)
        until(lambda: served.api.queued_tokens == 0)
        assert steps < 199  # it did not end by itself
        until(lambda: served.endpoint.counts.requests == before + 1)
    finally:
        model.step = step


def test_after_a_body_that_was_refused_half_way_the_next_request_is_answered(intents: tuple[Served, str]) -> None:
    _, url = intents
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client:

        def endless() -> Iterator[bytes]:
            yield b'{"text": "'
            for _ in range(20):
                yield b"x" * 2**20

        try:
            refused = client.post("/", content=endless())
        except httpx.TransportError:  # the server may close while the client still sends
            pass
        else:
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert client.post("/", json={"text": "turn on the light"}).status_code == 200


def test_a_client_that_sends_slowly_holds_nobody_up_and_is_given_up(intents: tuple[Served, str]) -> None:
    _, url = intents
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nX-Deadline-Ms: 300\r\n\r\n{")
        assert httpx.post(url, json={"text": "meanwhile"}, timeout=LIMIT_S).status_code == 200
        head, _, body = slow.recv(65536).partition(b"\r\n\r\n")
        while not body.endswith(b"}}"):
            body += slow.recv(65536)
    assert b" 408 " in head.split(b"\r\n")[0]
    assert json.loads(body)["error"]["code"] == "body_too_slow"
