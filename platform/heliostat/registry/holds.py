"""Holds on a version: "I am about to use it" and "I am about to delete it" exclude one another.

An alias and a version are two objects, and S3 changes one at a time: between the look at the aliases and the deletion,
somebody could point an alias at the version. So each first writes a hold of its own, and only then looks for the
other kind: of two that collide at least one sees the other, and withdraws. A hold whose owner was killed ends by
itself; its age is the difference of two times of the store's clock, so no other clock has to be right.

A hold to use, taken for longer, is a lease: `with lease(...)` keeps a version from every sweep.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from heliostat.errors import ObjectMissing, StoreError, VersionHeld
from heliostat.names import version_name
from heliostat.registry.versions import folder
from heliostat.store import ObjectInfo, Store

Kind = Literal["use", "delete"]
# Longer than twice what the store's retries can take: the owner trusts half of it.
SHORT_S = 900
_HOLD = re.compile(r"(use|delete)\.([0-9]{1,9})\.[0-9a-f]{32}\.json")
_HOLD_KEY = re.compile(r"models/[^/]+/holds/v([0-9]{1,9})/(?:use|delete)\.([0-9]{1,9})\.[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Hold:
    """One that is in force. `left_s` by the store's clock."""

    kind: Kind
    who: str
    why: str
    left_s: float


@dataclass(frozen=True)
class Held:
    """A hold of one's own."""

    until: float  # monotonic

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have taken it for a dead owner's."""
        return time.monotonic() < self.until


@contextmanager
def hold(
    store: Store, name: str, version: int, kind: Kind, *, who: str, why: str, seconds: int = SHORT_S
) -> Iterator[Held]:
    """Hold the version for as long as the block runs. Raises VersionHeld, which names the other, and leaves nothing.

    Of equal kinds there may be many.
    """
    place = f"{_place(name, version)}/{kind}.{seconds}.{uuid.uuid4().hex}.json"
    held = Held(time.monotonic() + seconds / 2)
    store.put(place, json.dumps({"who": who, "why": why}).encode())
    try:
        for other in _in_force(store, name, version, place):
            if other.kind != kind:
                doing = "is being deleted by" if other.kind == "delete" else "is held by"
                raise VersionHeld(
                    f"{name} {version_name(version)} {doing} {other.who} ({other.why})",
                    do=f"try again; a hold whose owner has died ends by itself in {other.left_s:.0f} s",
                )
        yield held
    finally:
        with suppress(StoreError):  # it ends by itself
            store.delete(place)


@contextmanager
def lease(store: Store, name: str, version: int, *, who: str, why: str, seconds: int) -> Iterator[None]:
    """Keep a version from being deleted while a job needs it, for at most so many seconds. Raises VersionHeld."""
    # The owner trusts half of a hold: twice the time makes the whole of it sure.
    with hold(store, name, version, "use", who=who, why=why, seconds=2 * seconds):
        yield


def holds_of(store: Store, name: str, version: int, *, now: datetime) -> list[Hold]:
    """The holds in force."""
    return list(_read(store, store.list(_place(name, version)), now))


def clear_holds(store: Store, name: str, version: int) -> None:
    """Remove what is left of the holds on a version that is deleted."""
    for info in store.list(_place(name, version)):
        store.delete(info.key)


def dead_holds(listing: Iterable[ObjectInfo], deleted: Container[int], *, now: datetime) -> list[ObjectInfo]:
    """The holds in a listing of a model that have ended by themselves, or whose version is deleted."""
    found = []
    for info in listing:
        match = _HOLD_KEY.fullmatch(info.key)
        if match is not None:
            ended = (now - info.modified).total_seconds() > int(match[2])
            if ended or int(match[1]) in deleted:
                found.append(info)
    return found


def _in_force(store: Store, name: str, version: int, own: str) -> list[Hold]:
    """The others' holds, by the time at which our own was written."""
    listing = store.list(_place(name, version))
    now = [info.modified for info in listing if info.key == own]
    if not now:
        raise StoreError(f"the hold {own!r} was written and is not listed", where=store.place, do="try again")
    return list(_read(store, [info for info in listing if info.key != own], now[0]))


def _read(store: Store, listing: list[ObjectInfo], now: datetime) -> Iterator[Hold]:
    for info in listing:
        match = _HOLD.fullmatch(info.key.rpartition("/")[2])
        if match is None:
            continue
        left_s = int(match[2]) - (now - info.modified).total_seconds()
        if left_s <= 0:
            continue
        with suppress(ObjectMissing, ValueError, AttributeError):  # just released; or not written by us
            body = json.loads(store.get(info.key).data)
            kind: Kind = "delete" if match[1] == "delete" else "use"
            yield Hold(kind, str(body.get("who", "?")), str(body.get("why", "?")), left_s)


def _place(name: str, version: int) -> str:
    return f"{folder(name)}/holds/{version_name(version)}"
