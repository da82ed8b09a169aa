"""Names that move: `intent-classifier@production`. One object per alias, swapped only if unchanged, with its history.

The body carries a generation, since equal tags do not prove that nothing happened between two reads. While it moves,
the version it moves to is held (`holds.py`), so nobody deletes it meanwhile.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.commit import Manifest
from heliostat.errors import (
    AliasMoved,
    CorruptArtifact,
    ObjectExists,
    ObjectMissing,
    RegistryError,
    SwapLost,
    UnknownAlias,
    UnknownVersion,
)
from heliostat.names import check_name, version_name
from heliostat.registry.holds import hold
from heliostat.registry.versions import folder, read_version
from heliostat.store import Store


class AliasMove(BaseModel):
    """One entry of the history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    who: str
    why: str
    from_version: int | None
    to_version: int
    back: bool = False  # a rollback: it undoes moves until one to its version stands last again
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
    known = alias_names(store, name)
    raise UnknownAlias(
        f"{name} has no alias {alias!r}",
        do=f"one of: {', '.join(known)}" if known else "promote a version first: heliostat app release",
    )


def alias_names(store: Store, name: str) -> list[str]:
    return [info.key.rsplit("/", 1)[1].removesuffix(".json") for info in store.list(f"{folder(name)}/aliases/")]


def list_aliases(store: Store, name: str) -> list[Alias]:
    """Every alias of the model. Raises CorruptArtifact for one that cannot be read: what it points at is not known."""
    found = (get_alias(store, name, alias) for alias in alias_names(store, name))
    return [alias for alias in found if alias is not None]


def move_alias(
    store: Store, *, name: str, alias: str, to_version: int, expected_version: int | None, who: str, why: str
) -> Alias:
    """Point the alias at a version, if it still points at `expected_version` (None: if there is none yet).

    Exactly one of several concurrent movers wins; the others get AliasMoved, which names the winner.
    """
    return _move(
        store, name, alias, to_version=to_version, expected_version=expected_version, who=who, why=why, back=False
    )


def rollback_alias(store: Store, *, name: str, alias: str, who: str, why: str, to_version: int | None = None) -> Alias:
    """Back to an earlier entry of the history; by default to the version that the current one replaced.

    Rolled back twice, it goes back two versions: never forward again to the one that was taken away. Raises
    RegistryError when there was none, UnknownVersion when it has been deleted, AliasMoved as `move_alias`.
    """
    current = must_get_alias(store, name, alias)
    earlier = _standing(current.history)[:-1]
    if not earlier:
        raise RegistryError(f"{name}@{alias} has never pointed at an earlier version", do="release one first")
    target = earlier[-1] if to_version is None else to_version
    if target not in earlier:
        known = ", ".join(version_name(version) for version in dict.fromkeys(reversed(earlier)))
        raise RegistryError(f"{name}@{alias} was not moved away from {version_name(target)}", do=f"one of: {known}")
    return _move(store, name, alias, to_version=target, expected_version=current.version, who=who, why=why, back=True)


def rollback_targets(alias: Alias) -> list[int]:
    """The versions that rollbacks would lead to, the next one first."""
    return list(dict.fromkeys(reversed(_standing(alias.history)[:-1])))


def _standing(history: tuple[AliasMove, ...]) -> list[int]:
    """The versions that were moved to and not undone."""
    standing: list[int] = []
    for move in history:
        if move.back:
            del standing[-1:]
            while len(standing) > 1 and standing[-1] != move.to_version:
                standing.pop()
        else:
            standing.append(move.to_version)
    return standing


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
    found = _read(store, name, alias)
    if (None if found is None else found[0].version) != expected_version:
        raise _moved(store, name, alias, expected_version)
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
        history=(*(() if found is None else found[0].history), move),
    )
    with hold(store, name, to_version, "use", who=who, why=f"moves {alias} to it") as held:
        _check_there(store, name, to_version)
        if not held.is_sure:
            raise RegistryError(f"moving {name}@{alias} took too long", do="try again")
        _write(store, moved, etag=None if found is None else found[1])
    return moved


def _write(store: Store, moved: Alias, *, etag: str | None) -> None:
    name, alias, move = moved.name, moved.alias, moved.history[-1]
    data = moved.model_dump_json(indent=1).encode()
    try:
        if etag is None:
            store.create(_key(name, alias), data)
        else:
            store.swap(_key(name, alias), data, etag)
    except (ObjectExists, SwapLost) as error:
        now = get_alias(store, name, alias)
        if now is not None and move in now.history:
            return  # our own write, whose answer was lost; others may have moved it on since
        raise _moved(store, name, alias, move.from_version) from error


def _check_there(store: Store, name: str, version: int) -> None:
    found = read_version(store, name, version)
    if found is None:
        raise UnknownVersion(f"{name} has no {version_name(version)}", do="publish it first")
    if not isinstance(found[0], Manifest):
        raise UnknownVersion(
            f"{name} {version_name(version)} was deleted by {found[0].who} ({found[0].why})", do="heliostat model list"
        )


def _read(store: Store, name: str, alias: str) -> tuple[Alias, str] | None:
    key = _key(name, alias)
    try:
        blob = store.get(key)
    except ObjectMissing:
        return None
    try:
        found = Alias.model_validate_json(blob.data)
    except ValidationError as error:
        raise CorruptArtifact("an alias cannot be read", where=key, do="restore the object, or delete it") from error
    if (found.name, found.alias) != (name, alias) or found.version < 1:
        raise CorruptArtifact(f"an alias says that it is {found.name[:80]}@{found.alias[:80]}", where=key)
    return found, blob.etag


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
    return f"{folder(name)}/aliases/{check_name(alias, what='alias')}.json"
