"""Names that move: `intent-classifier@production`. One object per alias, swapped only if unchanged, with its history.

The body carries a generation, since equal tags do not prove that nothing happened between two reads.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from heliostat.errors import (
    AliasMoved,
    ObjectExists,
    ObjectMissing,
    RegistryError,
    SwapLost,
    UnknownAlias,
    UnknownVersion,
)
from heliostat.names import check_name, version_name
from heliostat.store import Store


class AliasMove(BaseModel):
    """One entry of the history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    who: str
    why: str
    from_version: int | None
    to_version: int
    back: bool = False  # a rollback: it undoes the last move that is not undone yet
    mark: str = ""  # random: tells a mover whose answer was lost which entry is its own


class Alias(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of the model
    alias: str
    version: int
    generation: int
    history: tuple[AliasMove, ...]  # oldest first; the last one led to `version`


def get_alias(store: Store, name: str, alias: str) -> Alias | None:
    found = _read(store, name, alias)
    return None if found is None else found[0]


def must_get_alias(store: Store, name: str, alias: str) -> Alias:
    """Raises UnknownAlias with the aliases that there are."""
    found = get_alias(store, name, alias)
    if found is not None:
        return found
    known = [info.key.rsplit("/", 1)[1].removesuffix(".json") for info in store.list(f"models/{name}/aliases/")]
    raise UnknownAlias(
        f"{name} has no alias {alias!r}",
        do=f"one of: {', '.join(known)}" if known else "promote a version first: heliostat app release",
    )


def move_alias(
    store: Store, *, name: str, alias: str, to_version: int, expected_version: int | None, who: str, why: str
) -> Alias:
    """Point the alias at a version, if it still points at `expected_version` (None: if there is none yet).

    Exactly one of several concurrent movers wins; the others get AliasMoved, which names the winner.
    """
    return _move(
        store, name, alias, to_version=to_version, expected_version=expected_version, who=who, why=why, back=False
    )


def rollback_alias(store: Store, *, name: str, alias: str, who: str, why: str) -> Alias:
    """Back to the version that the current one replaced. Raises RegistryError when there was none.

    Rolled back twice, it goes back two versions: never forward again to the one that was taken away.
    """
    current = must_get_alias(store, name, alias)
    before = _before(current.history)
    if before is None:
        raise RegistryError(f"{name}@{alias} has never pointed at an earlier version", do="release one first")
    return _move(store, name, alias, to_version=before, expected_version=current.version, who=who, why=why, back=True)


def _before(history: tuple[AliasMove, ...]) -> int | None:
    standing: list[int] = []  # the versions that were moved to and not undone
    for move in history:
        if move.back:
            standing.pop()
        else:
            standing.append(move.to_version)
    return standing[-2] if len(standing) > 1 else None


def _move(
    store: Store,
    name: str,
    alias: str,
    *,
    to_version: int,
    expected_version: int | None,
    who: str,
    why: str,
    back: bool,
) -> Alias:
    check_name(alias, what="alias")
    try:
        store.head(f"models/{name}/{version_name(to_version)}/manifest.json")
    except ObjectMissing as error:
        raise UnknownVersion(f"{name} has no {version_name(to_version)}", do="publish it first") from error
    found = _read(store, name, alias)
    if (None if found is None else found[0].version) != expected_version:
        raise _moved(store, name, alias, expected_version)
    history = () if found is None else found[0].history
    move = AliasMove(
        at=datetime.now(UTC),
        who=who,
        why=why,
        from_version=expected_version,
        to_version=to_version,
        back=back,
        mark=uuid.uuid4().hex,
    )
    moved = Alias(
        name=name,
        alias=alias,
        version=to_version,
        generation=1 if found is None else found[0].generation + 1,
        history=(*history, move),
    )
    data = moved.model_dump_json(indent=1).encode()
    try:
        if found is None:
            store.create(_key(name, alias), data)
        else:
            store.swap(_key(name, alias), data, found[1])
    except (ObjectExists, SwapLost) as error:
        now = get_alias(store, name, alias)
        if now is not None and move in now.history:
            return moved  # our own write, whose answer was lost; others may have moved it on since
        raise _moved(store, name, alias, expected_version) from error
    return moved


def _read(store: Store, name: str, alias: str) -> tuple[Alias, str] | None:
    try:
        blob = store.get(_key(name, alias))
    except ObjectMissing:
        return None
    return Alias.model_validate_json(blob.data), blob.etag


def _moved(store: Store, name: str, alias: str, expected: int | None) -> AliasMoved:
    now = get_alias(store, name, alias)
    last = now.history[-1] if now else None
    won = f"{last.who} moved it to {version_name(last.to_version)} ({last.why})" if last else "it is gone"
    wanted = "no version" if expected is None else version_name(expected)
    return AliasMoved(
        f"{name}@{alias} no longer points at {wanted}: {won}",
        do="look at heliostat model history, then decide again",
    )


def _key(name: str, alias: str) -> str:
    return f"models/{name}/aliases/{alias}.json"
