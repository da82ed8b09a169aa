"""A sample of the fuzzing that tests/benchmarks/fuzz_apps.py does at length, and that it can find something."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from heliostat.serve.errors import RequestError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_apps.py"


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_apps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(120)
def test_no_broken_request_gets_more_than_a_clear_refusal(fuzzing: ModuleType) -> None:
    tally = asyncio.run(fuzzing.fuzz(400, seed=1))
    assert tally.failures == []
    assert tally.inputs == 400
    assert {"200", "400", "413", "422"} <= set(tally.statuses)


class _Broken:
    """An app that fails as it is told to."""

    def __init__(self, what: Exception | PlainTextResponse) -> None:
        self._what = what
        self.endpoint = self

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if isinstance(self._what, Exception):
            raise self._what
        await self._what(scope, receive, send)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (RuntimeError("x"), "crashes"),
        (PlainTextResponse("{}", 500), "bad_5xx"),
        (PlainTextResponse("{}", 503), "bad_5xx"),
        (PlainTextResponse("NaN", 200), "malformed"),
        (PlainTextResponse("{}", 400), "malformed"),
    ],
)
def test_every_kind_of_failure_would_be_seen(fuzzing: ModuleType, what: Any, kind: str) -> None:
    request = fuzzing.Request("digits", "POST", "/", (), (b"{}",))
    tally = fuzzing.Tally()
    asyncio.run(fuzzing.judge(_Broken(what), request, None, tally))
    assert len(getattr(tally, kind)) == 1


def test_a_wrong_answer_to_a_whole_request_would_be_seen(fuzzing: ModuleType) -> None:
    answer = PlainTextResponse('{"a": 2}', headers={"x-request-id": "i", "x-model-digest": "d"})
    request = fuzzing.Request("digits", "POST", "/", (), (b"{}",), whole=True)
    tally = fuzzing.Tally()
    asyncio.run(fuzzing.judge(_Broken(answer), request, b'{"a": 1}', tally))
    assert len(tally.wrong) == 1


def test_the_form_of_errors_is_the_one_that_is_looked_for() -> None:
    assert set(RequestError(400, "c", "w").body("id")["error"]) == {"type", "code", "message", "param", "request_id"}
