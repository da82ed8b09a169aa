"""Ids, deadlines and limits that every request has; errors in one form."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from heliostat.errors import AppError
from heliostat.serve import requests
from heliostat.serve.errors import RequestError
from heliostat.serve.fit import check_fit, memory_limit
from heliostat.serve.recipe import check_text
from heliostat.serve.requests import open_exchange, read_body, read_deadline, read_json, request_id


def body_of(chunks: list[bytes], *, limit: int, declared: str | None = None) -> tuple[bytes, int]:
    """(the body, how many chunks were taken)."""
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    headers = [] if declared is None else [(b"content-length", declared.encode())]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    return asyncio.run(read_body(request, limit, deadline_s=time.monotonic() + 10)), taken


def test_a_body_within_the_limit_is_whole() -> None:
    assert body_of([b"ab", b"", b"cd"], limit=4) == (b"abcd", 3)


def test_a_body_beyond_the_limit_is_refused_before_the_rest_arrives() -> None:
    with pytest.raises(RequestError) as raised:
        body_of([b"abc", b"de", b"never read" * 1000], limit=4)
    assert raised.value.status == 413


@pytest.mark.parametrize("declared", ["5", "99999999999999999999"])
def test_a_body_that_says_that_it_is_too_large_is_not_read_at_all(declared: str) -> None:
    with pytest.raises(RequestError, match=declared):
        body_of([b"abcde"], limit=4, declared=declared)


@pytest.mark.parametrize(("deadline_s", "body_s"), [(0.01, 60), (24 * 3600, 0.01)])
def test_a_body_that_does_not_come_is_given_up_whatever_the_deadline(
    deadline_s: float, body_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_S", body_s)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(RequestError) as raised:
        asyncio.run(read_body(request, 4, deadline_s=time.monotonic() + deadline_s))
    assert raised.value.status == 408


@pytest.mark.parametrize("sent", ["a", "0c3-4f.Z:_", "x" * 128])
def test_a_good_request_id_is_kept(sent: str) -> None:
    assert request_id(sent) == sent


@pytest.mark.parametrize("sent", [None, "", " a", "x" * 129, "a\nb", "é", "-a", 'a"b'])
def test_any_other_is_replaced_by_a_new_one(sent: str | None) -> None:
    made = request_id(sent)
    assert made != sent
    assert request_id(made) == made


def test_a_deadline_counts_from_the_arrival() -> None:
    exchange = open_exchange({})
    read_deadline(exchange, {"x-deadline-ms": "1500"})
    assert exchange.deadline_s == exchange.arrived_s + 1.5
    assert exchange.expired().status == 504


def test_without_one_the_platforms_own_holds_and_is_told_as_503() -> None:
    exchange = open_exchange({})
    read_deadline(exchange, {})
    error = exchange.expired()
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})


@pytest.mark.parametrize("sent", ["", "-1", "1.5", "abc", "1e3", "9" * 10, "999999999", "\u0661"])
def test_a_deadline_that_is_no_count_of_milliseconds_is_refused(sent: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_deadline(open_exchange({}), {"x-deadline-ms": sent})
    assert (raised.value.status, raised.value.param) == (400, "X-Deadline-Ms")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_request_error(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        read_json(body)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())))
def test_a_text_comes_back_as_it_is_or_as_a_request_error(value: object) -> None:
    with contextlib.suppress(RequestError):
        assert check_text(value, 100) == value


def test_the_type_of_an_error_follows_from_its_status() -> None:
    types = {
        status: RequestError(status, "c", "w").type for status in (400, 401, 403, 404, 413, 422, 429, 500, 503, 504)
    }
    assert types == {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "invalid_request_error",
        422: "invalid_request_error",
        429: "rate_limit_error",
        500: "server_error",
        503: "unavailable_error",
        504: "timeout_error",
    }


def test_an_error_said_of_an_item_keeps_everything_else() -> None:
    error = RequestError(413, "too_long", "it is long", "cut it", retry_after_s=2).at("texts[3]")
    assert error.body("id") == {
        "error": {
            "type": "invalid_request_error",
            "code": "too_long",
            "message": "it is long; cut it",
            "param": "texts[3]",
            "request_id": "id",
        }
    }
    assert (error.status, error.headers) == (413, {"Retry-After": "2"})


def test_a_model_that_does_not_fit_is_refused_with_both_numbers() -> None:
    check_fit(10, 10, what="m v1")
    check_fit(10**15, None, what="on a CPU")
    with pytest.raises(AppError, match=r"m v1 needs 40\.0 GiB .* 24\.0 GiB are free"):
        check_fit(40 * 2**30, 24 * 2**30, what="m v1")


def test_a_cpu_has_no_limit_that_would_refuse_a_model() -> None:
    assert memory_limit(torch.device("cpu"), gpus=1) is None


def test_nan_is_called_by_its_name() -> None:
    with pytest.raises(RequestError, match="NaN, not a string"):
        check_text(math.nan, 10)
