"""What an apply would change, field by field, in words that one can review. Pure.

The two sides are the live object and the API server's own answer to a dry run, so defaults, webhooks and merges are in
it. Values of Secrets, and of environment variables that sound like one, are compared but never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.cluster.kubernetes.objects import Object, Ref, applied_fields

# Set by the server at every write; they say nothing about what was asked for.
_SERVER_SIDE = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink")
# kubectl keeps a copy of the whole object there, a Secret's values too.
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_SOUNDS_SECRET = re.compile(r"token|secret|passw|credential|api_?key|private_?key", re.IGNORECASE)
# What names an entry of a list, so that a path says containers[ray-head] and an insertion is not a change of all.
_ENTRY_KEYS = ("name", "groupName", "key", "mountPath", "containerPort", "port")

Verb = Literal["create", "change", "same", "delete", "keep"]
ABSENT = "(absent)"


@dataclass(frozen=True)
class Hidden:
    """A value that is compared and never shown."""

    value: Any = field(repr=False)

    def __str__(self) -> str:
        return "(hidden)"


@dataclass(frozen=True)
class FieldChange:
    """One field: values as short text, ABSENT where there is none."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Ownership:
    """A field that is to change and that another manager holds."""

    path: str
    manager: str


@dataclass(frozen=True)
class Change:
    """What happens to one object. `note` says why where it is not plain."""

    verb: Verb
    ref: Ref
    fields: tuple[FieldChange, ...] = ()
    conflicts: tuple[Ownership, ...] = ()
    note: str = ""


def compare(ref: Ref, live: Object, wanted: Object) -> Change:
    """`wanted` is the server's answer to a dry run of the apply."""
    fields = tuple(_walk("", _shown(live), _shown(wanted)))
    if fields:
        return Change("change", ref, fields)
    if applied_fields(live) != applied_fields(wanted):
        return Change("change", ref, note="the same values; which of them we own changes")
    return Change("same", ref)


def _shown(thing: Object) -> Object:
    meta = {k: v for k, v in thing.get("metadata", {}).items() if k not in _SERVER_SIDE}
    if annotations := meta.get("annotations"):
        meta["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
    shown = {k: v for k, v in thing.items() if k != "status"} | {"metadata": meta}
    hidden: Object = _hide(shown)
    if thing.get("kind") == "Secret":
        for key in ("data", "stringData"):
            if isinstance(hidden.get(key), dict):
                hidden[key] = {name: Hidden(value) for name, value in hidden[key].items()}
    return hidden


def _hide(value: Any) -> Any:  # Any: any part of an object
    if isinstance(value, list):
        return [_hide(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("name"), str) and "value" in value and _SOUNDS_SECRET.search(value["name"]):
        return {key: Hidden(entry) if key == "value" else entry for key, entry in value.items()}
    return {key: _hide(entry) for key, entry in value.items()}


def _walk(path: str, old: Any, new: Any) -> Iterator[FieldChange]:  # Any: any two parts of an object
    if old == new:
        return
    if isinstance(old, list) and isinstance(new, list):
        old, new = _keyed(old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _walk(_join(path, key), old.get(key, _NOTHING), new.get(key, _NOTHING))
    elif old != new:
        yield FieldChange(path, _text(old), _text(new))


class _Nothing:
    """Unlike None, which is a value."""


_NOTHING = _Nothing()


class _Entry(str):
    """A key of a list's entry; shown in brackets."""

    __slots__ = ()


def _keyed(old: list[Any], new: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both lists as mappings: by a key that names every entry of both, or by place."""
    for key in _ENTRY_KEYS:
        if all(isinstance(e, dict) and key in e for e in old + new):
            left, right = _by_key(old, key), _by_key(new, key)
            if len(left) == len(old) and len(right) == len(new):
                return left, right
    return _by_place(old), _by_place(new)


def _by_key(entries: list[Any], key: str) -> dict[str, Any]:
    return {_Entry(str(entry[key])): entry for entry in entries}


def _by_place(entries: list[Any]) -> dict[str, Any]:
    return {_Entry(str(index)): entry for index, entry in enumerate(entries)}


def _join(path: str, key: str) -> str:
    if isinstance(key, _Entry) or "." in key or "/" in key:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _text(value: Any, limit: int = 120) -> str:
    if isinstance(value, _Nothing):
        return ABSENT
    if isinstance(value, Hidden):
        return str(value)
    text = json.dumps(value, default=str, sort_keys=True)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def lines(change: Change) -> Iterator[str]:
    """One change as text: a mark and the object, then a line for each field."""
    mark = {"create": "+", "change": "~", "same": "=", "delete": "-", "keep": "!"}[change.verb]
    yield f"{mark} {change.ref}" + (f"  ({change.note})" if change.note else "")
    for one in change.fields:
        yield f"    {one.path}: {one.old} -> {one.new}"
    for owned in change.conflicts:
        yield f"    {owned.path}: held by {owned.manager}"
