"""A version to and from a folder on this machine, and the check of every byte at rest. In pieces, never whole files.

Replicas do not load this way: see `loading.py`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heliostat.commit import PART_BYTES, FileEntry, Moved
from heliostat.errors import CorruptArtifact, ObjectMissing, UnsafeArtifact, UsageError
from heliostat.names import check_path
from heliostat.registry.artifacts import Artifact
from heliostat.registry.formats import check_content
from heliostat.store import Store

FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file; bytes `start` to `end` (exclusive) hold the first difference."""

    path: str
    start: int
    end: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what} (bytes {self.start:,} to {self.end:,})"


def verify(store: Store, artifact: Artifact, *, moved: Moved = lambda _: None) -> list[Finding]:
    """Read every byte of the version and compare it with the manifest. [] when all are what was published."""
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="verify") as pool:
        found = pool.map(lambda path: _verify_file(store, artifact, path, moved), sorted(artifact.manifest.files))
        return [finding for finding in found if finding is not None]


def pull(store: Store, artifact: Artifact, folder: Path, *, moved: Moved = lambda _: None) -> list[Path]:
    """Every file, verified, into the folder. A file appears whole or not at all; those of other names are left.

    A file that is there with the right content is not asked for again, so a broken pull goes on where it was.
    Raises CorruptArtifact that names file and byte range, UnsafeArtifact.
    """

    def fetch(path: str) -> Path:
        target = folder / check_path(path)
        _refuse_link(folder, target)
        if not _is_there(target, artifact.manifest.files[path]):
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(store, artifact, path, target, moved)
        else:
            moved(artifact.manifest.files[path].size)
        return target

    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="pull") as pool:
        return list(pool.map(fetch, sorted(artifact.manifest.files)))


def files_of(
    folder: Path, *, exclude: Sequence[str] = (), left_out: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """The files of a folder as `publish` takes them, by path. A Hugging Face folder is taken as it is.

    Hidden files and folders (.gitattributes, .cache) and those that match a pattern of `exclude` are told to
    `left_out`. Raises UsageError where there is no folder, or for a link that leads out of it.
    """
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is not a folder", do="give the folder that holds the model's files")
    root, found = folder.resolve(), {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir():
            continue
        if any(part.startswith(".") for part in relative.parts):
            left_out(f"{relative} (hidden)")
        elif any(fnmatch.fnmatch(relative.as_posix(), each) or fnmatch.fnmatch(path.name, each) for each in exclude):
            left_out(f"{relative} (excluded)")
        elif not path.resolve().is_relative_to(root) and not _is_hub_link(path, root):
            raise UsageError(f"{relative} is a link out of the folder", where=str(folder), do="copy the file into it")
        else:
            found[relative.as_posix()] = path
    return found


def _is_hub_link(path: Path, root: Path) -> bool:
    """In Hugging Face's cache, a snapshot's files are links to ../../blobs."""
    return path.resolve().parent == root.parents[1] / "blobs"


def _verify_file(store: Store, artifact: Artifact, path: str, moved: Moved) -> Finding | None:
    try:
        for _ in _pieces(store, artifact, path, moved):
            pass
    except _Different as difference:
        return difference.finding
    return None


def _fetch(store: Store, artifact: Artifact, path: str, target: Path, moved: Moved) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".pull-")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in _pieces(store, artifact, path, moved):
                file.write(piece)
        check_content(path, Path(temporary))
        Path(temporary).replace(target)
    except _Different as difference:
        raise CorruptArtifact(
            f"{difference.finding}", where=artifact.manifest.key(path), do="publish it again; the others are as written"
        ) from None
    finally:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()


class _Different(Exception):  # never leaves this file
    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def _pieces(store: Store, artifact: Artifact, path: str, moved: Moved) -> Iterator[bytes]:
    """The file's pieces, each verified before it is given out where the manifest has digests of them; at the end the
    whole is. Raises _Different.
    """
    from blake3 import blake3

    key, entry = artifact.manifest.key(path), artifact.manifest.files[path]
    size = entry.parts.size if entry.parts else PART_BYTES
    whole = hashlib.sha256()
    for number, start in enumerate(range(0, max(entry.size, 1), size)):
        end = min(start + size, entry.size)
        try:
            piece = store.get_range(key, start, end - start)
        except ObjectMissing:
            raise _Different(Finding(path, 0, entry.size, "it is gone from the store")) from None
        if len(piece) != end - start:
            raise _Different(Finding(path, start + len(piece), entry.size, "it is cut off"))
        if entry.parts and entry.size and blake3(piece).hexdigest() != entry.parts.blake3[number]:
            raise _Different(Finding(path, start, end, "its bytes are not the ones that were published"))
        whole.update(piece)
        moved(len(piece))
        yield piece
    actual = _size_in_store(store, key)
    if actual != entry.size:
        raise _Different(Finding(path, entry.size, max(actual, entry.size), f"it has {actual:,} bytes"))
    if whole.hexdigest() != entry.sha256:
        raise _Different(Finding(path, 0, entry.size, "its bytes are not the ones that were published"))


def _size_in_store(store: Store, key: str) -> int:
    try:
        return store.head(key).size
    except ObjectMissing:
        return -1


def _is_there(target: Path, entry: FileEntry) -> bool:
    if not target.is_file() or target.stat().st_size != entry.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _refuse_link(folder: Path, target: Path) -> None:
    """A link in the folder must not lead a file out of it."""
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise UnsafeArtifact(f"{target} leads out of the folder", do="pull into an empty folder")
