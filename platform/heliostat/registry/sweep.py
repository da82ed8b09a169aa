"""Deleting: one version by hand, or by a sweep all that nothing needs. What is in use stays, whoever asks.

A version goes in this order, so that a kill at any line leaves nothing half visible and a second run completes it:

1. hold it for deletion (`holds.py`): from here on nobody points an alias at it;
2. ask again whether an alias, a running application or a lease needs it: if so, let go;
3. swap its manifest for a tombstone, if unchanged: it is gone for every reader, and its number is never used again;
4. delete its files, which no manifest names any more.

A sweep deletes also what dead publishers left: files that no manifest names, and unfinished uploads, once they are too
old to be somebody's work under way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from heliostat.commit import GRACE, Manifest, unnamed
from heliostat.errors import CorruptArtifact, SwapLost, UnknownModel, UnknownVersion, VersionHeld
from heliostat.names import version_name
from heliostat.registry.aliases import Alias, list_aliases, rollback_targets
from heliostat.registry.artifacts import (
    Artifact,
    Damaged,
    Deleted,
    Version,
    as_artifact,
    get_version,
    list_models,
    scan,
)
from heliostat.registry.holds import clear_holds, dead_holds, hold, holds_of
from heliostat.registry.versions import (
    Tombstone,
    attempt_folder,
    folder,
    manifest_key,
    read_version,
    tombstone_bytes,
    version_numbers,
)
from heliostat.store import ObjectInfo, Store

Users = Callable[[str], Mapping[int, str]]
"""Who runs what: given a model's name, its versions that somebody outside the registry needs, each with the reason."""

DELETES_AT_ONCE = 16
_MODEL = re.compile(r"models/([a-z][a-z0-9-]{0,62})/")


@dataclass(frozen=True)
class Retention:
    """Which versions a sweep leaves, though nothing uses them."""

    newest: int = 5
    """The newest so many of each model."""
    age: timedelta = timedelta(days=30)
    """Whatever was published within this time."""
    rollbacks: int = 3
    """Of each alias, the versions that so many rollbacks would lead to."""


@dataclass(frozen=True)
class Decision:
    """What a sweep would do with one version, and why."""

    name: str
    version: int
    delete: bool
    why: str
    bytes: int


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do. `left` says, by model, why its unnamed files stay."""

    decisions: tuple[Decision, ...]
    parts: tuple[ObjectInfo, ...]
    holds: tuple[ObjectInfo, ...]  # whose owners have died, or whose version is deleted
    uploads: int
    left: Mapping[str, str]

    @property
    def doomed(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.delete)

    @property
    def bytes(self) -> int:
        return sum(decision.bytes for decision in self.doomed) + sum(info.size for info in self.parts)


@dataclass(frozen=True)
class Swept:
    """What a sweep did. `spared` came into use between the plan and the deed, with the reason."""

    deleted: tuple[Decision, ...]
    spared: Mapping[str, str]
    objects: int
    uploads: int


def nobody(_: str) -> Mapping[int, str]:
    """The `Users` of a registry that nothing serves from."""
    return {}


def plan_sweep(
    store: Store,
    *,
    models: Iterable[str] | None = None,
    retention: Retention = Retention(),
    users: Users = nobody,
    grace: timedelta = GRACE,
) -> SweepPlan:
    """What `sweep` would do now. Changes nothing. Raises UnknownModel."""
    now = datetime.now(UTC)
    models = None if models is None else sorted(models)
    names = _names(store) if models is None else models
    decisions: list[Decision] = []
    parts: list[ObjectInfo] = []
    holds: list[ObjectInfo] = []
    left: dict[str, str] = {}
    for name in names:
        # The listing comes first: whatever is committed after it has a manifest by the time of the scan.
        listing = store.list(folder(name))
        versions = scan(store, name)
        if not listing:
            raise UnknownModel(
                f"there is no model {name!r}", do=f"one of: {', '.join(list_models(store)) or 'none yet'}"
            )
        try:
            decisions += _decide(store, name, versions, listing, retention=retention, users=users, now=now)
        except CorruptArtifact as error:
            left[name] = f"all of it is left: {error}"
            continue
        holds += dead_holds(listing, [n for n, each in versions.items() if isinstance(each, Deleted)], now=now)
        damaged = [each for each in versions.values() if isinstance(each, Damaged)]
        if damaged:
            which = ", ".join(version_name(each.version) for each in damaged)
            left[name] = f"{which} cannot be read, so which files are its own is not known; delete it first"
        else:
            parts += unnamed_parts(listing, versions, now=now, grace=grace)
    uploads = sum(len(store.unfinished_uploads(prefix, older_than=grace)) for prefix in _prefixes(models))
    return SweepPlan(tuple(decisions), tuple(parts), tuple(holds), uploads, left)


def sweep(
    store: Store,
    *,
    who: str,
    models: Iterable[str] | None = None,
    retention: Retention = Retention(),
    users: Users = nobody,
    grace: timedelta = GRACE,
    progress: Callable[[str], None] = lambda _: None,
) -> Swept:
    """Delete what nothing needs. May be killed at any line, and repeated."""
    chosen = None if models is None else sorted(models)
    plan = plan_sweep(store, models=chosen, retention=retention, users=users, grace=grace)
    deleted, spared = [], {}
    for decision in plan.doomed:
        shown = f"{decision.name} {version_name(decision.version)}"
        try:
            _bury(store, decision.name, decision.version, who=who, why=f"sweep: {decision.why}", users=users)
        except VersionHeld as error:
            spared[shown] = error.what
            continue
        deleted.append(decision)
        progress(f"deleted {shown} ({decision.why})")
    # Now that their manifests are gone, the files of these versions are unnamed too.
    after = plan_sweep(store, models=chosen, retention=retention, users=users, grace=grace)
    _delete(store, after.parts)
    _delete(store, after.holds)
    uploads = sum(store.abort_uploads(prefix, older_than=grace) for prefix in _prefixes(chosen)) if after.uploads else 0
    return Swept(tuple(deleted), spared, len(after.parts), uploads)


def delete_version(store: Store, name: str, version: int, *, who: str, why: str, users: Users = nobody) -> Tombstone:
    """Delete one version, unless it is in use. Deleting a deleted one completes what was begun.

    Raises VersionHeld with what needs it, UnknownVersion, UnknownModel.
    """
    stone = _bury(store, name, version, who=who, why=why, users=users)
    versions = scan(store, name)
    parts = [info for info in store.list(folder(name)) if stone.folder and attempt_folder(info.key) == stone.folder]
    _delete(store, unnamed(parts, _manifests(versions)))
    clear_holds(store, name, version)
    return stone


def unnamed_parts(
    listing: Iterable[ObjectInfo], versions: Mapping[int, Version], *, now: datetime, grace: timedelta
) -> list[ObjectInfo]:
    """Files that no version names: those of deleted versions, and what is older than the grace.

    The age of an attempt is that of its youngest file: as long as files come, its publisher lives.
    """
    attempts: dict[str, list[ObjectInfo]] = {}
    for info in listing:
        place = attempt_folder(info.key)
        if place is not None:
            attempts.setdefault(place, []).append(info)
    buried = {each.tombstone.folder for each in versions.values() if isinstance(each, Deleted)}
    manifests = _manifests(versions)
    found: list[ObjectInfo] = []
    for place, infos in attempts.items():
        if place in buried or now - max(info.modified for info in infos) >= grace:
            found += unnamed(infos, manifests)
    return found


def _decide(
    store: Store,
    name: str,
    versions: Mapping[int, Version],
    listing: Iterable[ObjectInfo],
    *,
    retention: Retention,
    users: Users,
    now: datetime,
) -> list[Decision]:
    claims = version_numbers(listing).get(name, {})
    living = {number: each for number, each in versions.items() if isinstance(each, Artifact)}
    newest = sorted(living)[-retention.newest :] if retention.newest else []
    aliases = list_aliases(store, name)
    needed = _needed(aliases, users(name))
    for alias in aliases:
        for target in rollback_targets(alias)[: retention.rollbacks]:
            needed.setdefault(target, f"a rollback of {alias.alias} leads to it")
    decisions = []
    for number, artifact in living.items():
        why = needed.get(number)
        if why is None and number in newest:
            why = f"one of the newest {retention.newest}"
        if why is None and number not in claims:
            why = "published just now"
        elif why is None and now - claims[number].modified < retention.age:
            why = f"younger than {_days(retention.age)}"
        if why is None:
            why = next(
                (f"held by {h.who} ({h.why})" for h in holds_of(store, name, number, now=now) if h.kind == "use"), None
            )
        decisions.append(
            Decision(name, number, why is None, why or "nothing uses it and no rule keeps it", artifact.manifest.size)
        )
    return decisions


def _needed(aliases: Iterable[Alias], used: Mapping[int, str]) -> dict[int, str]:
    """Versions that an application or an alias needs, each with the reason."""
    needed = dict(used)
    for alias in aliases:
        needed.setdefault(alias.version, f"{alias.alias} points at it")
    return needed


def _bury(store: Store, name: str, version: int, *, who: str, why: str, users: Users) -> Tombstone:
    """Steps 1 to 3."""
    with hold(store, name, version, "delete", who=who, why=why) as held:
        needed = _needed(list_aliases(store, name), users(name)).get(version)
        if needed is not None:
            raise VersionHeld(
                f"{name} {version_name(version)} is in use: {needed}", do="move the alias or the application first"
            )
        etag, place, digest = _state(store, name, version)
        if isinstance(etag, Tombstone):
            return etag
        stone = Tombstone(at=datetime.now(UTC), who=who, why=why, digest=digest, folder=place)
        if not held.is_sure:
            raise VersionHeld(f"deleting {name} {version_name(version)} took too long", do="try again")
        try:
            store.swap(manifest_key(name, version), tombstone_bytes(stone), etag)
        except SwapLost:
            # Somebody else deleted it at the same moment, or our own answer was lost.
            found = read_version(store, name, version)
            if found is None or isinstance(found[0], Manifest):
                raise
            return found[0]
    return stone


def _state(store: Store, name: str, version: int) -> tuple[str | Tombstone, str, str]:
    """(the manifest's tag or the tombstone there, the folder of its files, its digest)"""
    try:
        found = read_version(store, name, version)
    except CorruptArtifact:
        return store.get(manifest_key(name, version)).etag, "", ""
    if found is None:
        get_version(store, name, version)  # raises with what there is
        raise UnknownVersion(f"{name} has no {version_name(version)}")
    state, etag = found
    if isinstance(state, Tombstone):
        return state, state.folder, state.digest
    try:
        # From what was read above: asked again, it may be a tombstone by now.
        digest = as_artifact(state, name, version).digest
    except CorruptArtifact:
        digest = ""
    return etag, state.folder, digest


def _manifests(versions: Mapping[int, Version]) -> list[Manifest]:
    return [each.manifest for each in versions.values() if isinstance(each, Artifact)]


def _delete(store: Store, infos: Iterable[ObjectInfo]) -> None:
    with ThreadPoolExecutor(DELETES_AT_ONCE, thread_name_prefix="sweep") as pool:
        list(pool.map(lambda info: store.delete(info.key), infos))


def _names(store: Store) -> list[str]:
    """Every model with anything in the store, were it only what a killed publisher left."""
    found = (_MODEL.match(info.key) for info in store.list("models/"))
    return sorted({match[1] for match in found if match is not None})


def _prefixes(models: Iterable[str] | None) -> list[str]:
    return ["models/"] if models is None else [folder(name) + "/" for name in models]


def _days(age: timedelta) -> str:
    return f"{age.days} days" if age.days else str(age)
