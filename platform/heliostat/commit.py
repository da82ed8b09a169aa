"""The commit protocol that registry and checkpoints share: whole things, or nothing.

1. Every file goes under a prefix of the attempt that writes it (`<prefix>/<attempt>/<file>`), so a writer that was
   taken for dead and comes back overwrites nothing.
2. The manifest, which names the files with size and digests, is created only if absent. That is the commit, and the
   claim of its key.
A reader starts at the manifest, so it sees all of it or none. A create whose answer was lost is answered "exists" on
retry: the manifest is read back, and if it is this attempt's, the commit was ours. What no manifest names is left of
writers that died (`unnamed`): a sweep may delete it once it is too old to be somebody's work under way.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing, StoreError, UsageError
from heliostat.names import check_path, check_segment
from heliostat.store import ObjectInfo, Store

PART_BYTES = 16 * 2**20
SCHEMA_VERSION = 2  # 2: files may have parts. 1 is what says nothing.
# A file up to this size is read once and kept, so that nobody can change it between its digest and its upload.
KEPT_BYTES = 8 * 2**20
FILES_AT_ONCE = 8
# Unnamed parts younger than this may be a writer's work under way. A writer that took half as long does not commit.
GRACE = timedelta(hours=24)

Moved = Callable[[int], None]
"""Told of bytes that have been read or written since the last call."""


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

    @property
    def folder(self) -> str:
        """Under which all its files lie, and nobody else's."""
        return f"{self.prefix}/{self.attempt}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def key(self, name: str) -> str:
        """Where the file lies. Raises CorruptArtifact for a name that the manifest does not hold."""
        if name not in self.files:
            raise CorruptArtifact(
                f"there is no file {name!r} in it", where=self.prefix, do=f"one of: {', '.join(sorted(self.files))}"
            )
        return f"{self.folder}/{name}"


@dataclass(frozen=True)
class Source:
    """A file's content with its digests, which are taken once."""

    content: Path | bytes
    entry: FileEntry
    stamp: tuple[int, ...] = ()  # of a file on disk when it was read; () for bytes

    @classmethod
    def of(cls, content: Path | bytes, moved: Moved = lambda _: None) -> Source:
        """Raises UsageError for a file that cannot be read."""
        if isinstance(content, bytes):
            return cls(content, describe(content))
        try:
            if content.stat().st_size <= KEPT_BYTES:
                data = content.read_bytes()
                moved(len(data))
                return cls(data, describe(data))
            stamp = _stamp(content)
            return cls(content, _describe_file(content, moved), stamp)
        except OSError as error:
            raise UsageError(f"a file cannot be read: {error.strerror}", where=str(content)) from error

    def check_unchanged(self) -> None:
        """Raises UsageError when the file on disk is no longer the one whose digest was taken."""
        if isinstance(self.content, Path) and self.stamp != _stamp(self.content):
            raise UsageError(
                "the file changed while it was read and uploaded",
                where=str(self.content),
                do="wait until its writer is done, then publish again",
            )


def commit(
    store: Store,
    prefix: str,
    files: Mapping[str, Path | bytes | Source],
    *,
    manifest_key: str,
    attempt: str,
    body: str = "",
) -> Manifest:
    """Write the files, then the manifest. Raises ObjectExists when another attempt holds the key already.

    May be repeated with the same attempt. Killed at any line it leaves nothing that a reader sees.
    """
    begun = time.time()
    entries = upload(store, prefix, files, attempt=attempt)
    manifest = Manifest(schema_version=SCHEMA_VERSION, prefix=prefix, attempt=attempt, files=entries, body=body)
    return seal(store, manifest, key=manifest_key, begun=begun)


def upload(
    store: Store,
    prefix: str,
    files: Mapping[str, Path | bytes | Source],
    *,
    attempt: str,
    moved: Moved = lambda _: None,
) -> dict[str, FileEntry]:
    """The first half of `commit`: the files, seen by no reader yet. Several go up at once."""
    check_segment(attempt)
    for name in files:
        check_path(name)

    def write(item: tuple[str, Path | bytes | Source]) -> tuple[str, FileEntry]:
        name, given = item
        source = given if isinstance(given, Source) else Source.of(given)
        store.put(f"{prefix}/{attempt}/{name}", source.content)
        source.check_unchanged()
        moved(source.entry.size)
        return name, source.entry

    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="upload") as pool:
        return dict(pool.map(write, sorted(files.items())))


def seal(store: Store, manifest: Manifest, *, key: str, begun: float) -> Manifest:
    """The second half: create the manifest. Raises ObjectExists when another attempt holds the key already.

    `begun` is when the first file went up, in seconds since the epoch. Raises StoreError where that is so long ago
    that a sweep may have taken the files for a dead writer's.
    """
    if time.time() - begun > GRACE.total_seconds() / 2:
        raise StoreError(
            f"the files went up more than {GRACE / 2} ago: a sweep may be deleting them", where=key, do="try again"
        )
    try:
        store.create(key, manifest.model_dump_json().encode())
    except ObjectExists:
        # Ours, if its answer was lost. What is unreadable is somebody else's.
        with suppress(CorruptArtifact):
            there = read_manifest(store, key, prefixes=(manifest.prefix,))
            if there is not None and there.attempt == manifest.attempt:
                return there
        raise
    return manifest


def read_manifest(store: Store, key: str, *, prefixes: tuple[str, ...] = ()) -> Manifest | None:
    """The manifest, or None where nothing was committed. Raises CorruptArtifact for one that cannot be read.

    Its files lie under one of `prefixes`, by default beside it: a manifest that names any other place is refused.
    """
    try:
        data = store.get(key).data
    except ObjectMissing:
        return None
    return parse_manifest(data, key, prefixes=prefixes)


def parse_manifest(data: bytes, key: str, *, prefixes: tuple[str, ...] = ()) -> Manifest:
    """See `read_manifest`."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifact("its manifest cannot be read", where=key, do="publish or write it again") from error
    if manifest.prefix not in (prefixes or (key.rpartition("/")[0],)):
        raise CorruptArtifact(f"its manifest names files outside it ({manifest.prefix[:200]!r})", where=key)
    try:
        check_segment(manifest.attempt)
        for name in manifest.files:
            check_path(name)
    except UsageError as error:
        raise CorruptArtifact(f"its manifest names what cannot be a file: {error.what[:300]}", where=key) from error
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
    view = memoryview(content)
    return _entry((view[at : at + PART_BYTES] for at in range(0, len(view), PART_BYTES)), lambda _: None)


def newest_complete(store: Store, prefix: str) -> Manifest | None:
    """The newest whole thing under a prefix whose folders sort by age, such as `checkpoints/<run>/<step>`.

    Whole: its manifest can be read, and every file it names is there with its size.
    """
    listing = store.list(prefix)
    sizes = {info.key: info.size for info in listing}
    for key in sorted((key for key in sizes if key.endswith("/manifest.json")), reverse=True):
        with suppress(CorruptArtifact):
            manifest = read_manifest(store, key)
            if manifest is not None and not missing(manifest, sizes):
                return manifest
    return None


def missing(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """Files of the manifest that a listing (size by key) lacks, or has with another size."""
    return sorted(name for name, entry in manifest.files.items() if sizes.get(manifest.key(name)) != entry.size)


def unnamed(listing: Iterable[ObjectInfo], manifests: Iterable[Manifest]) -> list[ObjectInfo]:
    """What no manifest names, of the objects listed; the caller leaves out the manifests themselves."""
    named = {manifest.key(name) for manifest in manifests for name in manifest.files}
    return [info for info in listing if info.key not in named]


def _describe_file(path: Path, moved: Moved) -> FileEntry:
    with path.open("rb") as file:
        return _entry(iter(lambda: memoryview(file.read(PART_BYTES)), memoryview(b"")), moved)


def _entry(parts: Iterable[memoryview], moved: Moved) -> FileEntry:
    from blake3 import blake3

    size, whole, digests = 0, hashlib.sha256(), []
    for part in parts:
        whole.update(part)
        digests.append(blake3(part).hexdigest())
        size += len(part)
        moved(len(part))
    return FileEntry(size=size, sha256=whole.hexdigest(), parts=Parts(size=PART_BYTES, blake3=tuple(digests)))


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
