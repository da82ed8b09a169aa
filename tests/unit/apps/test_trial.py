"""Two versions side by side behind one endpoint: no client sees what the tried one fails at, and all is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from heliostat.promote.release import Trial
from heliostat.serve.api import Sent
from heliostat.serve.kinds import make_api
from heliostat.serve.trial import Recent, TrialRun
from tests.tiny_apps import RECIPES, Served, load_recipe, serve_recipe
from tests.unit.apps.conftest import Client

BODY = {"text": "turn on the light"}


def nothing(_: Any) -> None:
    """The model as it is."""


@contextmanager
def two_versions(
    name: str, *, share: float, shadow: float = 1.0, change: Callable[[Any], None] = nothing
) -> Iterator[tuple[Client, TrialRun]]:
    """The application at v1 with v2 beside it; `change` breaks v2's model."""
    served: Served = serve_recipe(name)
    loaded = load_recipe(name, version=2, files=RECIPES[name][1]())
    change(loaded.model)
    second = make_api(loaded, app=name, budget_tokens=512)
    run = TrialRun(Trial("r", 1, 2, share, shadow), before=served.api, tried=second)
    served.endpoint.trial = run
    try:
        yield Client(served), run
    finally:
        second.close()
        served.api.close()


def ask_many(client: Client, run: TrialRun, count: int, **options: Any) -> list[httpx.Response]:
    async def body(http: httpx.AsyncClient) -> list[httpx.Response]:
        answers = []
        for index in range(count):
            headers = {"X-Request-Id": f"id-{index}", **options.get("headers", {})}
            answers.append(await http.post("/", json=options.get("json", BODY), headers=headers))
            while run.is_busy:
                await asyncio.sleep(0.001)
        return answers

    found: list[httpx.Response] = client.run(body)
    return found


def raise_every(count: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        forward, calls = model.forward, iter(range(1, 10**6))

        def failing(batch: Any) -> Any:
            if next(calls) % count == 0:
                raise RuntimeError("boom")
            return forward(batch)

        model.forward = failing

    return change


def test_in_the_shadow_every_answer_is_the_old_versions_and_both_are_compared() -> None:
    with two_versions("intent-classifier", share=0.0) as (client, run):
        answers = ask_many(client, run, 12)
    assert {answer.json()["version"] for answer in answers} == {"v1"}
    tally = run.tally()
    assert (tally.shadowed, tally.compared, tally.disagreed, tally.errors, tally.requests) == (12, 12, 0, 0, 0)
    assert tally.before.count == tally.tried.count == 12


def test_a_canary_answers_its_share_and_a_session_stays_with_its_version() -> None:
    with two_versions("intent-classifier", share=0.3) as (client, run):
        answers = ask_many(client, run, 60)
        sticky = [ask_many(client, run, 6, headers={"X-Session-Id": f"s{index}"}) for index in range(6)]
    versions = [answer.json()["version"] for answer in answers]
    assert 8 <= versions.count("v2") <= 28
    assert all(a.headers["x-model-version"] == a.json()["version"] for a in answers)
    each = [{answer.json()["version"] for answer in session} for session in sticky]
    assert all(len(seen) == 1 for seen in each)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_version_that_raises_costs_no_client_an_answer(share: float) -> None:
    with two_versions("intent-classifier", share=share, change=raise_every(3)) as (client, run):
        answers = ask_many(client, run, 30)
    assert {answer.status_code for answer in answers} == {200}
    tally = run.tally()
    assert tally.errors >= 5
    assert tally.nans == 0
    for answer in answers:
        assert answer.headers["x-model-version"] == answer.json()["version"]


def test_a_wrong_request_is_no_fault_of_the_version() -> None:
    with two_versions("intent-classifier", share=1.0) as (client, run):
        answers = ask_many(client, run, 5, json={"text": ""})
        listed = ask_many(client, run, 5, json={"texts": ["good", ""]})
    assert {answer.status_code for answer in answers} == {422}
    assert {answer.json()["failed"] for answer in listed} == {1}
    assert run.tally().errors == 0


def test_an_item_that_the_new_version_alone_fails_at_is_answered_by_the_old_one() -> None:
    def change(model: Any) -> None:
        present = model.present
        model.present = lambda result: present(result) | {"probability": float("nan")}

    with two_versions("intent-classifier", share=1.0, change=change) as (client, run):
        (answer,) = ask_many(client, run, 1, json={"texts": ["one", "two"]})
    assert (answer.json()["version"], answer.json()["failed"]) == ("v1", 0)
    tally = run.tally()
    assert (tally.errors, tally.nans) == (1, 1)
    assert "not a finite number" in tally.last_error


def test_a_version_that_hangs_is_overtaken_by_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.serve.trial._NO_MEASURE_S", 0.2)

    def change(model: Any) -> None:
        import time

        forward = model.forward
        model.forward = lambda batch: time.sleep(1.0) or forward(batch)

    with two_versions("intent-classifier", share=1.0, change=change) as (client, run):
        answer = client.post(json=BODY)
    assert (answer.status_code, answer.json()["version"]) == (200, "v1")
    assert "within 0.2 s" in run.tally().last_error


def test_swapped_labels_are_seen_as_disagreement() -> None:
    def change(model: Any) -> None:
        present = model.present
        model.present = lambda result: present(result) | {"label": "other"}

    with two_versions("intent-classifier", share=0.0, change=change) as (client, run):
        ask_many(client, run, 8)
    assert (run.tally().compared, run.tally().disagreed) == (8, 8)


@pytest.mark.parametrize("name", ["intent-classifier", "embeddings", "digits"])
def test_before_the_first_request_both_answer_the_recipes_examples(name: str) -> None:
    with two_versions(name, share=0.0) as (_, run):
        asyncio.run(run.rehearse([]))
    tally = run.tally()
    assert tally.probed >= 2
    assert (tally.compared, tally.disagreed, tally.errors) == (tally.probed, 0, 0)


def test_a_language_model_is_probed_by_what_was_asked_before_and_leaves_no_stream_open() -> None:
    body = {"model": "generate", "prompt": "Once", "max_tokens": 4}
    samples = [
        ("/v1/completions", Sent(json.dumps({**body, "stream": stream}).encode(), "application/json"))
        for stream in (True, False)
    ]
    with two_versions("generate", share=0.0) as (_, run):
        asyncio.run(run.rehearse(samples))
        assert run.before.queued_tokens == run.tried.queued_tokens == 0
    assert (run.tally().probed, run.tally().errors) == (2, 0)


def test_what_is_remembered_is_bounded_and_different() -> None:
    recent = Recent()
    for index in range(200):
        recent.add("", Sent(b"%d" % (index % 100)))
    recent.add("", Sent(b"x" * 100_000))
    kept = recent.all()
    assert (len(kept), kept[0][1].body, len(set(kept))) == (64, b"99", 64)
