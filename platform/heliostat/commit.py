"""The commit protocol that registry and checkpoints share: whole things, or nothing.

1. Every file goes under a prefix of the attempt that writes it (`<prefix>/<attempt>/<file>`), so a writer that was
   taken for dead and comes back overwrites nothing.
2. The manifest, which names the files with size and digests, is created only if absent. That is the commit, and the
   claim of its key.
A reader starts at the manifest, so it sees all of it or none. A create whose answer was lost is answered "exists" on
retry: the manifest is read back, and if it is this attempt's, the commit was ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing
from heliostat.names import check_segment
from heliostat.store import Store

PART_BYTES = 16 * 2**20
SCHEMA_VERSION = 2  # 2: files may have parts. 1 is what says nothing.


class Parts(BaseModel):
    """A file's digests by pieces of equal length, so that pieces are verified as they arrive, in any order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(gt=0, le=2**28)  # bytes of every part but the last, which may be shorter
    blake3: tuple[str, ...]  # hex


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)  # bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # hex
    parts: Parts | None = None  # None: written before there were any

    @model_validator(mode="after")
    def _parts_cover_the_file(self) -> FileEntry:
        if self.parts is not None and len(self.parts.blake3) != -(-self.size // self.parts.size):
            raise ValueError(f"{len(self.parts.blake3)} parts of {self.parts.size} bytes are not {self.size} bytes")
        return self


class Manifest(BaseModel):
    """What one commit made visible."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=1, ge=1, le=SCHEMA_VERSION)
    prefix: str
    attempt: str
    files: dict[str, FileEntry]
    body: str = ""  # what the caller adds, as JSON

    def key(self, name: str) -> str:
        """Where the file lies. Raises CorruptArtifact for a name that the manifest does not hold."""
        if name not in self.files:
            raise CorruptArtifact(
                f"there is no file {name!r} in it", where=self.prefix, do=f"one of: {', '.join(sorted(self.files))}"
            )
        return f"{self.prefix}/{self.attempt}/{name}"


def commit(
    store: Store,
    prefix: str,
    files: Mapping[str, Path | bytes],
    *,
    manifest_key: str,
    attempt: str,
    body: str = "",
) -> Manifest:
    """Write the files, then the manifest. Raises ObjectExists when another attempt holds the key already.

    May be repeated with the same attempt. Killed at any line it leaves nothing that a reader sees.
    """
    check_segment(attempt)
    entries = {name: _write(store, f"{prefix}/{attempt}", name, data) for name, data in sorted(files.items())}
    manifest = Manifest(schema_version=SCHEMA_VERSION, prefix=prefix, attempt=attempt, files=entries, body=body)
    try:
        store.create(manifest_key, manifest.model_dump_json().encode())
    except ObjectExists:
        there = read_manifest(store, manifest_key)
        if there is None or there.attempt != attempt:
            raise
        return there
    return manifest


def read_manifest(store: Store, key: str) -> Manifest | None:
    """The manifest, or None where nothing was committed. Raises CorruptArtifact for one that cannot be read."""
    try:
        data = store.get(key).data
    except ObjectMissing:
        return None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifact("its manifest cannot be read", where=key, do="publish or write it again") from error
    for name in manifest.files:
        for part in name.split("/"):
            check_segment(part)
    if not key.startswith(manifest.prefix.rstrip("/") + "/"):
        raise CorruptArtifact(f"its manifest names files outside it ({manifest.prefix})", where=key)
    return manifest


def read_file(store: Store, manifest: Manifest, name: str) -> bytes:
    """One file, verified. Raises CorruptArtifact that names the file when a byte is not what was written."""
    key = manifest.key(name)
    entry = manifest.files[name]
    try:
        data = store.get(key).data
    except ObjectMissing as error:
        raise CorruptArtifact(f"{name} is gone from the store", where=key, do="write it again") from error
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtifact(
            f"{name} is not what was written: {len(data)} bytes, sha256 differs", where=key, do="write it again"
        )
    return data


def describe(content: bytes) -> FileEntry:
    """Size and digests of a file's content.

    sha256 is the file's identity, known everywhere. The parts are blake3, since they are computed at every load:
    it is as hard to forge and costs a third of the time.
    """
    from blake3 import blake3

    view = memoryview(content)
    parts = tuple(blake3(view[at : at + PART_BYTES]).hexdigest() for at in range(0, len(view), PART_BYTES))
    return FileEntry(
        size=len(view), sha256=hashlib.sha256(view).hexdigest(), parts=Parts(size=PART_BYTES, blake3=parts)
    )


def newest_complete(store: Store, prefix: str) -> Manifest | None:
    """The newest committed thing under a prefix whose folders sort by age, such as `checkpoints/<run>/<step>`."""
    keys = [info.key for info in store.list(prefix) if info.key.endswith("/manifest.json")]
    return read_manifest(store, max(keys)) if keys else None


def _write(store: Store, folder: str, name: str, data: Path | bytes) -> FileEntry:
    for part in name.split("/"):
        check_segment(part)
    content = data if isinstance(data, bytes) else data.read_bytes()
    store.put(f"{folder}/{name}", content)
    return describe(content)
