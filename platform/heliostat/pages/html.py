"""HTML from values: every text is escaped, unless it is HTML already."""

from __future__ import annotations

from html import escape
from typing import TypeAlias


class Html(str):
    """Text that is HTML, and goes out as it is."""

    __slots__ = ()


Part: TypeAlias = "str | None"  # None stands for nothing
_VOID = frozenset(("meta", "rect", "line", "path", "col"))


def tag(name: str, /, *children: Part, **attributes: str | float | bool | None) -> Html:
    """An element. Attributes: `class_` for class, an underscore for a hyphen, None and False leave it out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(_text(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Part) -> Html:
    """One after another."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
