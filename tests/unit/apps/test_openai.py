"""/v1 as the official client sees it, over the real runners."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2  # what the client is built on
import numpy as np
import openai
import pytest

from heliostat.inference.generate import Sampling
from tests.tiny_apps import language_files, load_recipe, serve_recipe
from tests.unit.apps.conftest import Client

TEXTS = [f"a text of its own, number {n}" for n in range(5)]


@asynccontextmanager
async def official(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(app=client.served.endpoint)
    async with httpx2.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(base_url="http://app/v1", api_key="none", http_client=http, max_retries=0)


def ask(client: Client, test: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
    async def body() -> Any:
        async with official(client) as ai:
            return await asyncio.wait_for(test(ai), 60)

    return asyncio.run(body())


def test_a_vector_is_the_same_alone_in_a_list_as_floats_and_as_base64(embeddings: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        one = await ai.embeddings.create(model="embeddings", input=TEXTS[0])
        many = await ai.embeddings.create(model="embeddings", input=TEXTS, encoding_format="float")
        assert [entry.index for entry in many.data] == list(range(5))
        assert np.allclose(one.data[0].embedding, many.data[0].embedding, atol=1e-6)
        assert np.linalg.norm(many.data[3].embedding) == pytest.approx(1, abs=1e-5)
        assert many.usage.prompt_tokens == many.usage.total_tokens > 5 * one.usage.prompt_tokens - 5

    ask(embeddings, test)


def test_base64_is_little_endian_float32(embeddings: Client) -> None:
    sent = {"model": "embeddings", "input": "hello"}
    floats = embeddings.post("/v1/embeddings", json=sent).json()["data"][0]["embedding"]
    packed = embeddings.post("/v1/embeddings", json={**sent, "encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    assert np.allclose(np.frombuffer(base64.b64decode(packed), "<f4"), floats, atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_at_length_one(embeddings: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        whole = await ai.embeddings.create(model="embeddings", input="hello")
        short = await ai.embeddings.create(model="embeddings", input="hello", dimensions=8)
        first = np.array(whole.data[0].embedding[:8])
        assert np.allclose(short.data[0].embedding, first / np.linalg.norm(first), atol=1e-5)
        with pytest.raises(openai.BadRequestError, match="vectors have 32"):
            await ai.embeddings.create(model="embeddings", input="hello", dimensions=33)

    ask(embeddings, test)


@pytest.mark.parametrize("poison", [math.nan, None, 7, [1, 2], "", "x" * 1_000_000], ids=lambda value: str(value)[:12])
def test_one_poisoned_input_of_64_fails_alone_and_the_client_reads_the_rest(embeddings: Client, poison: object) -> None:
    good = [f"text {n}" for n in range(63)]
    expected = embeddings.post("/v1/embeddings", json={"model": "embeddings", "input": good}).json()["data"]
    content = json.dumps({"model": "embeddings", "input": [*good[:20], poison, *good[20:]]}).encode()
    data = embeddings.post("/v1/embeddings", content=content).json()["data"]
    bad = data.pop(20)
    assert (bad["object"], bad["index"], bad["embedding"]) == ("error", 20, None)
    assert bad["error"]["param"] == "input[20]"
    for entry, alone in zip(data, expected, strict=True):
        assert np.allclose(entry["embedding"], alone["embedding"], atol=1e-5)


def test_the_client_keeps_the_place_of_an_input_without_a_vector(embeddings: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        found = await ai.embeddings.create(model="embeddings", input=["fine", "", "fine"])
        assert found.data[1].embedding is None
        assert found.data[1].model_extra is not None
        assert found.data[1].model_extra["error"]["code"] == "empty_text"
        assert found.data[0].embedding == found.data[2].embedding

    ask(embeddings, test)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"input": [1, 2, 3]}, "tokens_refused"),
        ({"input": [[1, 2], [3]]}, "tokens_refused"),
        ({"input": []}, "wrong_type"),
        ({"input": {"a": 1}}, "wrong_type"),
        ({"input": ["a"] * 257}, "too_many_items"),
        ({"encoding_format": "hex"}, "wrong_field"),
        ({"dimensions": 0}, "wrong_field"),
        ({"dimensions": "8"}, "wrong_field"),
        ({"model": 3}, "wrong_field"),
        ({"flavour": "x"}, "unknown_field"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_the_field(embeddings: Client, change: Any, code: str) -> None:
    answer = embeddings.post("/v1/embeddings", json={"model": "embeddings", "input": "a", **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.json()["error"]["param"] in change


@pytest.mark.parametrize("name", ["embeddings", "embeddings:v1", "embeddings@production"])
def test_the_model_may_be_named_with_its_version_or_alias(embeddings: Client, name: str) -> None:
    assert embeddings.post("/v1/embeddings", json={"model": name, "input": "a"}).status_code == 200


def test_another_model_or_version_is_not_found(embeddings: Client) -> None:
    for name in ("gpt-4", "embeddings:v2", ""):
        assert embeddings.post("/v1/embeddings", json={"model": name, "input": "a"}).status_code == 404


def test_the_client_lists_the_model(generate: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in ai.models.list()] == ["generate"]

    ask(generate, test)


def test_a_completion_is_what_the_model_says_whole_and_streamed(generate: Client) -> None:
    model = generate.served.api.loaded.model

    async def test(ai: openai.AsyncOpenAI) -> None:
        prompt = model.encode("Once")
        engine = model.engine
        steps = [s async for s in engine.stream(prompt, Sampling(40, temperature=0), wait_until_s=math.inf)]
        said = model.decode([step.token for step in steps])
        whole = await ai.completions.create(model="generate", prompt="Once", max_tokens=40, temperature=0)
        assert whole.choices[0].text == said
        assert whole.choices[0].finish_reason == steps[-1].finish
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), len(steps))
        stream = await ai.completions.create(
            model="generate", prompt="Once", max_tokens=40, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == said
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == steps[-1].finish
        assert chunks[-1].usage == whole.usage

    ask(generate, test)


def test_a_chat_is_answered_by_the_assistant_whole_and_streamed(generate: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        asked: dict[str, Any] = {
            "model": "generate",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            ],
            "max_completion_tokens": 20,
            "seed": 3,
        }
        whole = await ai.chat.completions.create(**asked)
        assert whole.choices[0].message.role == "assistant"
        chunks = [chunk async for chunk in await ai.chat.completions.create(**asked, stream=True)]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        assert {chunk.id for chunk in chunks} == {chunks[0].id}

    ask(generate, test)


def test_a_seed_repeats_and_another_says_something_else(generate: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        async def say(seed: int) -> str:
            made = await ai.completions.create(model="generate", prompt="A", max_tokens=30, temperature=1.5, seed=seed)
            return made.choices[0].text

        said = await asyncio.gather(*(say(seed) for seed in (1, 1, 2, 2)))
        assert said[0] == said[1] != said[2] == said[3]

    ask(generate, test)


def test_a_stop_string_ends_the_text_before_it(generate: Client) -> None:
    async def test(ai: openai.AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "generate", "prompt": "Once", "max_tokens": 60, "temperature": 0}
        said = (await ai.completions.create(**asked)).choices[0].text
        stop = said[7:10]
        cut = await ai.completions.create(**asked, stop=["never said", stop])
        assert cut.choices[0].text == said[: said.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        assert cut.usage is not None
        assert cut.usage.completion_tokens < 60

    ask(generate, test)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"max_tokens": 0}, 400, "wrong_field"),
        ({"max_tokens": 300}, 400, "context_length_exceeded"),
        ({"prompt": "x" * 300}, 400, "context_length_exceeded"),
        ({"prompt": ""}, 422, "empty_text"),
        ({"prompt": "x" * 1_000_000}, 413, "text_too_long"),
        ({"prompt": ["a", "b"]}, 400, "wrong_field"),
        ({"temperature": 2.1}, 400, "wrong_field"),
        ({"temperature": "1"}, 400, "wrong_field"),
        ({"top_p": 0}, 400, "wrong_field"),
        ({"n": 2}, 400, "wrong_field"),
        ({"stop": ["a"] * 5}, 400, "wrong_field"),
        ({"stop": ""}, 400, "wrong_field"),
        ({"seed": 2**63}, 400, "wrong_field"),
        ({"logprobs": 5}, 400, "unknown_field"),
        ({"suffix": "x"}, 400, "unknown_field"),
    ],
)
def test_what_cannot_be_completed_is_refused_before_it_starts_also_as_a_stream(
    generate: Client, change: Any, status: int, code: str
) -> None:
    for stream in (False, True):
        body = {"model": "generate", "prompt": "a", "stream": stream, **change}
        answer = generate.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_conversation_with_pictures_or_tools_is_refused_by_name(generate: Client) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    for change in ({"messages": picture}, {"messages": []}, {"messages": [{"role": "tool", "content": "x"}]}):
        answer = generate.post("/v1/chat/completions", json={"model": "generate", **change})
        assert (answer.status_code, answer.json()["error"]["param"].split(".")[0]) == (400, "messages")
    hello = [{"role": "user", "content": "x"}]
    tools = generate.post("/v1/chat/completions", json={"model": "generate", "messages": hello, "tools": []})
    assert (tools.status_code, tools.json()["error"]["param"]) == (400, "tools")


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]


def test_a_stream_that_is_cut_ends_with_an_error_that_the_client_raises() -> None:
    served = serve_recipe("generate")
    client, model = Client(served), served.api.loaded.model._engine._model
    step, steps = model.step, 0

    def breaks(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps % 10 == 0:
            raise RuntimeError("a secret path")
        return step(*arguments)

    model.step = breaks
    body = {"model": "generate", "prompt": "a", "max_tokens": 50, "temperature": 0, "stream": True}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200
    last = json.loads(events(answer)[-1])
    assert last["error"]["code"] == "model_failed"
    assert "secret" not in answer.text
    assert "[DONE]" not in answer.text

    async def test(ai: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.APIError, match="could not answer"):
            async for _ in await ai.completions.create(**body):
                pass

    ask(client, test)
    assert served.api.queued_tokens == 0
    served.api.close()


def test_a_replica_that_ends_cuts_its_streams_with_an_error() -> None:
    served = serve_recipe("generate")
    client, model = Client(served), served.api.loaded.model._engine._model
    step = model.step

    def slow(*arguments: Any) -> Any:
        import time

        time.sleep(0.02)
        return step(*arguments)

    model.step = slow

    async def test(http: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "generate", "prompt": "a", "max_tokens": 200, "temperature": 0, "stream": True}
        asked = asyncio.create_task(http.post("/v1/completions", json=body))
        async with asyncio.timeout(10):
            while not served.api.loaded.model.engine.running:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(served.api.close)
        return await asked

    last = json.loads(events(client.run(test))[-1])
    assert last["error"]["code"] == "replica_closing"


def test_a_deadline_that_passes_on_the_way_ends_the_stream_with_an_error() -> None:
    served = serve_recipe("generate")
    client, model = Client(served), served.api.loaded.model._engine._model
    step = model.step

    def slow(*arguments: Any) -> Any:
        import time

        time.sleep(0.02)
        return step(*arguments)

    model.step = slow
    body = {"model": "generate", "prompt": "a", "max_tokens": 200, "temperature": 0, "stream": True}
    answer = client.post("/v1/completions", json=body, headers={"X-Deadline-Ms": "1500"})
    served.api.close()
    assert json.loads(events(answer)[-1])["error"]["type"] == "timeout_error"
    assert len(events(answer)) > 2


def test_a_new_version_takes_the_next_text_while_the_old_one_ends_its_own() -> None:
    served = serve_recipe("generate")
    newer = load_recipe("generate", version=2, files=language_files(5))
    old = served.api.loaded.model.engine

    async def test(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"model": "generate", "prompt": "a", "max_tokens": 200, "temperature": 0}
        first = asyncio.create_task(http.post("/v1/completions", json=body))
        while not old.running:
            await asyncio.sleep(0)
        served.api.take_over(newer)
        return [await first, await http.post("/v1/completions", json=body)]

    first, second = Client(served).run(test)
    assert (first.json()["version"], second.json()["version"]) == ("v1", "v2")
    assert first.headers["x-model-version"] == "v1"
    assert first.json()["choices"][0]["text"] != second.json()["choices"][0]["text"]
    old._thread.join(10)
    assert not old._thread.is_alive()
    served.api.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [1, 100])
def test_a_text_whose_version_is_replaced_before_it_begins_is_answered_by_the_next(length: int, stream: bool) -> None:
    served = serve_recipe("generate")
    newer = load_recipe("generate", version=2, files=language_files(5))
    model = served.api.loaded.model
    encode = model.encode

    def overtaken(text: str) -> Any:
        served.api.take_over(newer)
        return encode(text)

    model.encode = overtaken
    body = {"model": "generate", "prompt": "a" * length, "max_tokens": 5, "user": "u" * length * 200}
    answer = Client(served).post("/v1/completions", json={**body, "stream": stream})
    served.api.close()
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == "v2"
    assert '"v2"' in answer.text


def test_a_chat_template_of_the_models_own_is_used_and_can_reach_nothing() -> None:
    template = "{% for m in messages %}<s>{{ m.role }}|{{ m.content }}{% endfor %}{{ bos_token }}"
    model = load_recipe("generate", files=language_files(template=template)).model
    assert model.chat([{"role": "user", "content": "hi"}])[0] == 0
    assert model.decode(model.chat([{"role": "user", "content": "hi"}])) == "user|hi"
    model.engine.close()
    evil = "{{ messages.__class__.__mro__ }}"
    model = load_recipe("generate", files=language_files(template=evil)).model
    from heliostat.serve.errors import RequestError

    with pytest.raises(RequestError, match="chat template"):
        model.chat([{"role": "user", "content": "hi"}])
    model.engine.close()
