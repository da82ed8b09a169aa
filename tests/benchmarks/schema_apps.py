"""Requests made from each application's own OpenAPI document, by schemathesis, and the answers held against it.

    python tests/benchmarks/schema_apps.py [--examples 1000] [--seed 0]

Half of the requests are what the document allows, half are not. A failure is a 5xx other than a 503 with Retry-After
(or a 504 where the request named a deadline), a status, content type, header or body that the document does not
describe, or a good answer to what the document forbids. What is allowed may still be refused: no schema says which
base64 is an image. fuzz_apps.py breaks whole requests instead, below what a schema can say.

Prints what each operation answered, and one request for each kind of failure; then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

sys.path.insert(0, str(Path(__file__).parents[2]))  # recipes and tests are files, not installed packages

from tests.tiny_apps import RECIPES, serve_recipe

OURS = [not_a_server_error, negative_data_rejection, positive_data_acceptance]
"""Checks that are made here, with the exceptions named above."""


@dataclass
class Tally:
    """What came of all of them."""

    inputs: int = 0
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    """By operation and kind of request."""
    failures: dict[str, str] = field(default_factory=dict)
    """A request that shows it, for each kind of failure."""

    def fail(self, kind: str, case: Any, response: Any, why: str = "") -> None:
        shown = f"{case.as_curl_command()[:300]}\n    {response.status_code} {response.text[:300]}\n    {why[:500]}"
        self.failures.setdefault(f"{case.operation.label}: {kind}", shown)


def try_app(app: Any, tally: Tally, *, name: str, examples: int, seed: int) -> None:
    """Send `examples` allowed and as many forbidden requests to each operation of an ASGI application."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            statuses = tally.statuses.setdefault(f"{name}: {operation.label}, {mode.value}", Counter())
            _try(operation.as_strategy(generation_mode=mode), mode, tally, statuses, examples=examples, seed=seed)


def _try(cases: Any, mode: GenerationMode, tally: Tally, statuses: Counter[int], *, examples: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def one(case: Any) -> None:
        response = case.call()
        tally.inputs += 1
        statuses[response.status_code] += 1
        judge(case, response, mode, tally)

    one()


def judge(case: Any, response: Any, mode: GenerationMode, tally: Tally) -> None:
    status = response.status_code
    in_time = status == 504 and "X-Deadline-Ms" in (case.headers or {})
    if status >= 500 and not in_time and not (status == 503 and "retry-after" in response.headers):
        tally.fail(f"answered {status}", case, response)
    if mode is GenerationMode.NEGATIVE and status < 400:
        tally.fail("took what the document forbids", case, response, str(case.meta))
    try:
        case.validate_response(response, excluded_checks=OURS)
    except FailureGroup as group:
        for problem in group.exceptions:
            tally.fail(type(problem).__name__, case, response, str(problem))
    except Failure as problem:
        tally.fail(type(problem).__name__, case, response, str(problem))


def run(examples: int, seed: int) -> Tally:
    """Every recipe's application, in this process."""
    tally = Tally()
    for name in RECIPES:
        served = serve_recipe(name, max_queue_s=5)
        try:
            try_app(served.endpoint, tally, name=name, examples=examples, seed=seed)
        finally:
            served.api.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=1000, help="for each operation, allowed and forbidden alike")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    tally = run(parsed.examples, parsed.seed)
    for name, statuses in tally.statuses.items():
        print(f"{name:60} {dict(sorted(statuses.items()))}")
    for kind, shown in tally.failures.items():
        print(f"{kind}\n    {shown}")
    print(
        json.dumps(
            {
                "benchmark": "schema_apps",
                "inputs": tally.inputs,
                "failures": len(tally.failures),
                "seconds": round(time.monotonic() - began, 1),
                "seed": parsed.seed,
            }
        )
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
