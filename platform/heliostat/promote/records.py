"""Release records in the store: `apps/<app>/release.json`, written only if unchanged. The alias moves first.

Two who release at once both create or swap the same object: one wins, the other is told who did. A crash between the
alias and the record leaves an alias that is ahead; `release.step` sees that and the record follows.
"""

from __future__ import annotations

from pydantic import ValidationError

from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing, ReleaseConflict, SwapLost
from heliostat.names import check_segment, version_name
from heliostat.promote.release import Release
from heliostat.registry import get_alias, move_alias
from heliostat.registry.aliases import rollback_alias, rollback_targets
from heliostat.store import Store

PRODUCTION = "production"


def read_release(store: Store, app: str) -> tuple[Release, str] | None:
    """The record and its tag, or None where nothing was ever released. Raises CorruptArtifact."""
    key = _key(app)
    try:
        blob = store.get(key)
    except ObjectMissing:
        return None
    try:
        record = Release.model_validate_json(blob.data)
    except ValidationError as error:
        raise CorruptArtifact("a release record cannot be read", where=key, do="restore it, or delete it") from error
    if not record.history or record.app != app:
        raise CorruptArtifact("a release record is another one's, or has no history", where=key, do="restore it")
    return record, blob.etag


def write_release(store: Store, record: Release, *, etag: str | None) -> None:
    """Create the record (etag None) or swap it. Raises ReleaseConflict where somebody else was first, and names them.

    A write of our own whose answer was lost is found by its id and generation, and counts.
    """
    data = record.model_dump_json(indent=1).encode()
    try:
        if etag is None:
            store.create(_key(record.app), data)
        else:
            store.swap(_key(record.app), data, etag)
    except (ObjectExists, SwapLost) as error:
        found = read_release(store, record.app)
        now = None if found is None else found[0]
        if now is not None and record.last in now.history:
            return
        raise _lost(record, now) from error


def move_production(store: Store, before: Release, after: Release) -> None:
    """Point `production` at the record's stable version, by hand of whoever made the record. Harmless when repeated.

    Raises AliasMoved where somebody has moved it elsewhere meanwhile.
    """
    if after.stable is None or after.stable == before.stable:
        return
    now = get_alias(store, after.model, PRODUCTION)
    version = None if now is None else now.version
    if version == after.stable:
        return
    entry = after.last
    why = entry.why if entry.forced is None else f"{entry.why} (forced: {entry.forced})"
    if after.state == "rolled_back" and now is not None and after.stable in rollback_targets(now):
        rollback_alias(store, name=after.model, alias=PRODUCTION, who=entry.who, why=why, to_version=after.stable)
        return
    move_alias(
        store,
        name=after.model,
        alias=PRODUCTION,
        to_version=after.stable,
        expected_version=before.stable,
        who=entry.who,
        why=why,
    )


def commit(store: Store, before: Release, after: Release, *, etag: str) -> None:
    """One step of a release: the alias, then the record. Killed between the two, the next step finishes it."""
    move_production(store, before, after)
    write_release(store, after, etag=etag)


def _lost(record: Release, now: Release | None) -> ReleaseConflict:
    if now is None:
        return ReleaseConflict(f"the release record of {record.app} is gone", do="try again")
    entry = now.last
    to = "" if entry.to_version is None else f" {version_name(entry.to_version)}"
    return ReleaseConflict(
        f"somebody else was first with {record.app}: {entry.who}{to}, {entry.state} ({entry.why})",
        do="look at heliostat app status, then decide again",
    )


def _key(app: str) -> str:
    return f"apps/{check_segment(app, what='application')}/release.json"
