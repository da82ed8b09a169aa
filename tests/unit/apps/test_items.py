"""The plain JSON interface: one item, lists, and bad items that fail alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.tiny_apps import Served, load_recipe
from tests.unit.apps.conftest import Client

GOOD = [f"turn on the light number {n}, and slowly" for n in range(63)]
POISON: list[Any] = [float("nan"), None, 7, ["nested"], {"text": "hi"}, True, "", "   ", "x" * 1_000_000, "\ud800"]
FLAT = [[0.0] * 8] * 8
POISONED_IMAGES: list[Any] = [
    [[float("nan"), *[0] * 7], *FLAT[1:]],
    [[float("inf"), *[0] * 7], *FLAT[1:]],
    [[10**400, *[0] * 7], *FLAT[1:]],
    [[True, *[0] * 7], *FLAT[1:]],
    [["1", *[0] * 7], *FLAT[1:]],
    [[17, *[0] * 7], *FLAT[1:]],
    FLAT[1:],
    [[0] * 7] * 8,
    None,
    "no base64!",
    "AAAA",
    "x" * 1_000_000,
]


def png(*, side: int = 8, shade: int = 255, kind: str = "PNG") -> bytes:
    image = Image.new("L", (side, side), 0)
    image.paste(shade, (side // 2, 0, side, side))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def dumps(body: object) -> bytes:
    """As a careless client would: NaN as it is, and half surrogates escaped."""
    return json.dumps(body).encode()


def test_one_text_and_a_list_are_answered_with_the_identity_of_the_model(intents: Client) -> None:
    one, many = intents.post(json={"text": "hello"}), intents.post(json={"texts": ["hello", "light on"]})
    assert one.status_code == many.status_code == 200
    identity = {"model": "intent-classifier", "version": "v1", "digest": "sha256:tiny"}
    assert set(one.json()) == {"label", "probability", *identity}
    for answer in (one.json(), many.json()):
        assert {key: answer[key] for key in identity} == identity
    assert one.json()["label"] == many.json()["results"][0]["label"]
    assert many.json()["failed"] == 0
    assert one.headers["x-model-version"] == "v1"
    assert one.headers["x-model-digest"] == "sha256:tiny"


@pytest.mark.parametrize("poison", POISON, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("at", [0, 40])
def test_one_poisoned_text_of_64_fails_alone(intents: Client, poison: object, at: int) -> None:
    expected = intents.post(json={"texts": GOOD}).json()["results"]
    answer = intents.post(content=dumps({"texts": [*GOOD[:at], poison, *GOOD[at:]]}))
    assert answer.status_code == 200
    results = answer.json()["results"]
    bad = results.pop(at)
    assert [result["label"] for result in results] == [result["label"] for result in expected]
    for result, alone in zip(results, expected, strict=True):
        assert result["probability"] == pytest.approx(alone["probability"], abs=1e-5)
    assert answer.json()["failed"] == 1
    assert set(bad["error"]) == {"type", "code", "message", "param", "request_id"}
    assert bad["error"]["param"] == f"texts[{at}]"
    assert bad["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("poison", POISON, ids=lambda value: str(value)[:12])
def test_a_single_bad_text_is_the_response_itself(intents: Client, poison: object) -> None:
    answer = intents.post(content=dumps({"text": poison}))
    assert answer.status_code in (413, 422)
    assert answer.json()["error"]["param"] == "text"


@pytest.mark.parametrize("poison", POISONED_IMAGES, ids=lambda value: str(value)[:24])
def test_one_poisoned_image_of_64_fails_alone(digits: Client, poison: object) -> None:
    good = [[[(n * x + y) % 17 for x in range(8)] for y in range(8)] for n in range(63)]
    expected = digits.post(json={"images": good}).json()["results"]
    answer = digits.post(content=dumps({"images": [*good[:30], poison, *good[30:]]})).json()
    bad = answer["results"].pop(30)
    assert [result["digit"] for result in answer["results"]] == [result["digit"] for result in expected]
    assert (bad["error"]["param"], answer["failed"]) == ("images[30]", 1)


def test_an_image_is_the_same_as_pixels_base64_file_and_form(digits: Client) -> None:
    file = png()
    rows = [[0] * 4 + [16] * 4] * 8
    answers = [
        digits.post(json={"image": rows}),
        digits.post(json={"image": base64.b64encode(file).decode()}),
        digits.post(json={"image": "data:image/png;base64," + base64.b64encode(file).decode()}),
        digits.post(content=file, headers={"Content-Type": "image/png"}),
        digits.post(content=png(side=64, kind="JPEG"), headers={"Content-Type": "image/jpeg"}),
        digits.post(files={"image": ("half.png", file, "image/png")}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.json()["digit"] for answer in answers}) == 1
    for answer in answers:
        assert answer.json()["probability"] == pytest.approx(answers[0].json()["probability"], abs=0.02)


def test_several_files_of_a_form_make_a_list(digits: Client) -> None:
    files = [("image", ("a.png", png(), "image/png")), ("image", ("b.png", b"no image", "image/png"))]
    answer = digits.post(files=files).json()
    assert "digit" in answer["results"][0]
    assert answer["results"][1]["error"]["code"] == "not_an_image"


def test_a_small_file_that_claims_a_huge_image_is_refused_before_it_is_unpacked(digits: Client) -> None:
    bomb = png(side=5000)
    assert len(bomb) < 1_000_000
    answer = digits.post(content=bomb, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "image_too_large")


def test_half_a_png_is_a_clear_error(digits: Client) -> None:
    answer = digits.post(content=png(side=200)[:90], headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_an_image")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "not_json"),
        (b"{", 400, "not_json"),
        (b"\xff\xfe", 400, "not_json"),
        (b"[" * 100_000, 400, "not_json"),
        (b"[]", 422, "wrong_fields"),
        (b"{}", 422, "wrong_fields"),
        (b'{"text": "a", "texts": ["b"]}', 422, "wrong_fields"),
        (b'{"text": "a", "lang": "en"}', 422, "unknown_field"),
        (b'{"texts": []}', 422, "wrong_type"),
        (b'{"texts": "abc"}', 422, "wrong_type"),
        (dumps({"texts": ["a"] * 257}), 422, "too_many_items"),
        (dumps({"text": "x" * 10_001}), 413, "text_too_long"),
        (b'{"text": "' + b"x" * 8 * 2**20 + b'"}', 413, "body_too_large"),
    ],
)
def test_what_is_no_list_of_items_is_refused_whole(intents: Client, body: bytes, status: int, code: str) -> None:
    answer = intents.post(content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_limit_is_told_with_its_number(intents: Client) -> None:
    assert "257" in intents.post(json={"texts": ["a"] * 257}).json()["error"]["message"]
    assert "10000" in intents.post(json={"text": "x" * 10_001}).json()["error"]["message"]


def test_a_new_version_answers_from_the_next_batch_on_and_a_list_is_never_mixed() -> None:
    from tests.tiny_apps import intent_files, serve_recipe

    served: Served = serve_recipe("intent-classifier")
    versions = [load_recipe("intent-classifier", version=n, files=intent_files(n)) for n in range(2, 6)]

    async def test(client: httpx.AsyncClient) -> None:
        for loaded in versions:
            asked = [asyncio.create_task(client.post("/", json={"texts": GOOD[:8]})) for _ in range(6)]
            await asyncio.sleep(0.002)
            served.api.take_over(loaded)
            for answer in await asyncio.gather(*asked):
                body = answer.json()
                assert answer.headers["x-model-version"] == body["version"]
                seen.setdefault(body["version"], []).append([r["probability"] for r in body["results"]])
        last = await client.post("/", json={"text": "x"})
        assert last.json()["version"] == "v5"

    seen: dict[str, list[list[float]]] = {}
    Client(served).run(test)
    served.api.close()
    for answers in seen.values():
        for probabilities in answers[1:]:
            assert probabilities == pytest.approx(answers[0], abs=1e-5)
    firsts = [tuple(answers[0]) for answers in seen.values()]
    assert len(set(firsts)) == len(firsts)


def test_a_model_that_gives_nan_for_one_item_fails_that_item_alone(intents: Client) -> None:
    from serve_apps.intent_classifier import Intent
    from tests.tiny_apps import serve_recipe

    served = serve_recipe("intent-classifier")
    model = served.api.loaded.model
    forward = model.forward
    model_class = type(model)

    class Poisoned(model_class):  # type: ignore[misc,valid-type]
        def forward(self, batch: Any) -> list[Intent]:
            results = list(forward(batch))
            return [Intent("on", float("nan")) if len(ids) == 3 else r for ids, r in zip(batch, results, strict=True)]

    poisoned = Poisoned(model._model, model._tokenizer, model._labels)
    served.api.take_over(type(served.api.loaded)(served.api.loaded.identity, poisoned))
    answer = Client(served).post(json={"texts": ["hello", "turn it on please"]}).json()  # hello: [CLS] hello [SEP]
    served.api.close()
    assert answer["results"][0]["error"]["code"] == "model_failed"
    assert "label" in answer["results"][1]
