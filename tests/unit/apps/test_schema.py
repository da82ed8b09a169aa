"""A sample of what tests/benchmarks/schema_apps.py does at length: the applications do what their documents say."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from heliostat.serve.openapi import openapi
from tests.benchmarks import schema_apps
from tests.tiny_apps import serve_recipe

EXAMPLES = 20
"""For each operation, twice."""


@pytest.mark.timeout(120)
def test_every_answer_is_as_documented_and_nothing_forbidden_is_taken() -> None:
    tally = schema_apps.run(EXAMPLES, seed=1)
    assert tally.failures == {}
    assert tally.inputs >= 2 * 7 * EXAMPLES
    for name, statuses in tally.statuses.items():
        assert ("positive" in name) == (200 in statuses), name  # whatever refuses all is never found wrong


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        (JSONResponse({"error": "x"}, 500), {"answered 500", "JsonSchemaError"}),
        (JSONResponse({}, 503), {"answered 503", "MissingHeaders"}),
        (JSONResponse({"label": "on"}), {"JsonSchemaError", "took what the document forbids"}),
        (PlainTextResponse("on"), {"UndefinedContentType"}),
        (JSONResponse({}, 418), {"UndefinedStatusCode"}),
    ],
    ids=["500", "503", "fields", "kind", "status"],
)
def test_every_kind_of_failure_would_be_seen(answer: Any, kinds: set[str]) -> None:
    served = serve_recipe("intent-classifier")
    document = JSONResponse(openapi(served.name, served.api))
    served.api.close()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await (document if scope["path"] == "/openapi.json" else answer)(scope, receive, send)

    tally = schema_apps.Tally()
    schema_apps.try_app(broken, tally, name="broken", examples=3, seed=1)
    assert kinds <= {kind.split(": ")[1] for kind in tally.failures}
