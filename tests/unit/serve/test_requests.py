from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.serve.requests import BadRequest, parse


def status(body: bytes) -> int:
    with pytest.raises(BadRequest) as raised:
        parse(body, max_characters=1000)
    assert set(raised.value.body()["error"]) == {"code", "message", "do"}
    return raised.value.status


def test_one_text_and_many_are_taken() -> None:
    assert parse(b'{"text": "hi"}', max_characters=10).single
    assert parse(b'{"texts": ["a", "b"]}', max_characters=10).texts == ("a", "b")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"text": ""}, 422),
        ({"text": "   "}, 422),
        ({"text": 7}, 422),
        ({"text": None}, 422),
        ({"text": ["a"]}, 422),
        ({"text": "x" * 100_000}, 413),
        ({"texts": []}, 422),
        ({"texts": ["a"] * 257}, 422),
        ({"texts": ["a", 1]}, 422),
        ({"text": "a", "texts": ["b"]}, 422),
        ({"text": "a", "lang": "en"}, 422),
        ({}, 422),
        ([], 422),
        ("text", 422),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(sent: object, expected: int) -> None:
    assert status(json.dumps(sent).encode()) == expected


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff\xfe", b"{", b"[" * 100_000])
def test_what_is_not_json_is_a_400(body: bytes) -> None:
    assert status(body) == 400


def test_a_body_beyond_the_limit_is_a_413() -> None:
    assert status(b'{"text": "' + b"x" * 1_000_001 + b'"}') == 413


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_bad_request(body: bytes) -> None:
    try:
        status = 200 if parse(body, max_characters=100).texts else 500
    except BadRequest as error:
        status = error.status
    assert status == 200 or 400 <= status < 500
