"""Bounds on a YAML text before it is built: ten lines of aliases stand for a billion values, and depth for hours."""

from __future__ import annotations

import re
from typing import Any

MOST_VALUES = 100_000
"""A hundred times what the largest definition has."""

MOST_DEPTH = 50
"""Ten times what anything here has."""

PARSER_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, NotImplementedError
)  # fmt: skip
"""What ruamel.yaml lets through, beside its own errors, for values that do not fit their tags."""


def is_too_deep(text: str, *, most: int = MOST_DEPTH) -> bool:
    """Whether brackets or dashes nest deeper than that. Told from the text alone: the parser's time grows with the
    square of the depth and worse, and is gone before it could tell. Brackets in strings and comments count as well.
    """
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if mark in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest > most or re.search(rf"(?:[-?] +){{{most}}}", text) is not None


def is_too_large(node: Any, *, most: int = MOST_VALUES) -> bool:  # Any: ruamel's nodes
    """Whether a composed document holds more values than `most`, or itself. Takes time by its nodes, not its values.

    Raises RecursionError for what is nested too deep.
    """
    return _count(node, {}, most) > most


def _count(node: Any, known: dict[int, int], most: int) -> int:
    if node is None:
        return 0
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = most + 1  # for whoever comes by again while it is being counted: it holds itself
    total = 1
    if node.id == "mapping":
        total += sum(_count(part, known, most) for pair in node.value for part in pair)
    elif node.id == "sequence":
        total += sum(_count(part, known, most) for part in node.value)
    known[id(node)] = total
    return total
