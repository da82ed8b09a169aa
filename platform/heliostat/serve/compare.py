"""How far two answers to the same request lie apart. Pure: JSON in, counts out.

Words, whole numbers and truth values must be equal, vectors must point the same way; other numbers may differ, and how
far is the drift. Who answered is left out. Texts that a language model makes up are not compared: with a temperature
no two are equal.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.serve.errors import NOT_FINITE

Json = Any
"""A JSON value."""
_WHO = frozenset({"model", "version", "digest", "id", "created", "usage", "request_id"})
VECTOR = 8
"""A list of at least so many numbers is a vector."""
SAME_WAY = 0.9
"""Least cosine of two vectors that say the same."""


@dataclass(frozen=True)
class Difference:
    """Of one request, or of all together."""

    items: int = 0
    disagreed: int = 0
    drift: float = 0.0
    """Sum over the items."""


@dataclass(frozen=True)
class Reading:
    """What an answer says, as far as a comparison needs it."""

    items: Sequence[Json]
    failed: int
    """Items that got an error in place of an answer."""
    not_finite: int


def read(body: bytes) -> Reading | None:
    """None for what is not comparable."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if not isinstance(answer, dict) or "choices" in answer:
        return None
    several = next((answer[key] for key in ("results", "data") if isinstance(answer.get(key), list)), None)
    items = [answer] if several is None else several
    errors = [item["error"] for item in items if isinstance(item, dict) and isinstance(item.get("error"), dict)]
    bad = sum(NOT_FINITE in str(error.get("message", "")) for error in errors)
    return Reading(items, len(errors), bad)


def compare(before: Reading, tried: Reading) -> Difference:
    """Item by item; an item that either failed at is not compared."""
    if len(before.items) != len(tried.items):
        return Difference(1, 1)
    total = Difference()
    for one, other in zip(before.items, tried.items, strict=True):
        if _failed(one) or _failed(other):
            continue
        apart = list(_apart(one, other))
        total = Difference(
            total.items + 1,
            total.disagreed + any(math.isinf(distance) for distance in apart),
            total.drift + max((distance for distance in apart if math.isfinite(distance)), default=0.0),
        )
    return total


def _failed(item: Json) -> bool:
    return isinstance(item, dict) and isinstance(item.get("error"), dict)


def _apart(before: Json, tried: Json, key: str = "") -> Iterator[float]:
    """Distances of what is in two values; infinite where they say different things."""
    if key == "embedding":
        before, tried = _numbers(before), _numbers(tried)
    if isinstance(before, dict) and isinstance(tried, dict):
        for name in (before.keys() | tried.keys()) - _WHO:
            if name in before and name in tried:
                yield from _apart(before[name], tried[name], name)
            else:
                yield math.inf
    elif isinstance(before, list) and isinstance(tried, list):
        yield from _lists(before, tried)
    elif float in (type(before), type(tried)) and {type(before), type(tried)} <= {int, float}:
        yield abs(before - tried) / max(1.0, abs(before))
    elif before != tried:
        yield math.inf


def _lists(before: list[Json], tried: list[Json]) -> Iterator[float]:
    if len(before) != len(tried):
        yield math.inf
    elif len(before) >= VECTOR and all(isinstance(value, int | float) for value in (*before, *tried)):
        cosine = _cosine(before, tried)
        yield 1 - cosine
        if not cosine >= SAME_WAY:
            yield math.inf
    else:
        for one, other in zip(before, tried, strict=True):
            yield from _apart(one, other)


def _cosine(one: list[float], other: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 1.0


def _numbers(value: Json) -> Json:
    """An embedding in base64 as its numbers."""
    if not isinstance(value, str):
        return value
    try:
        return list(memoryview(base64.b64decode(value, validate=True)).cast("f"))
    except (binascii.Error, ValueError, TypeError):
        return value
