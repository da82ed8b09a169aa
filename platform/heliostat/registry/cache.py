"""Files of artifacts on a node's own disk, by content: one download for all replicas and jobs of the node.

    <folder>/<sha256>         a whole file, read-only
    <folder>/<sha256>.half    one under way, or left by a process that was killed

Everything rests on flock, which the kernel lets go when a process dies, however it dies. Who downloads holds the half
file exclusively; who uses a file holds it shared for as long as its memory is mapped, so that it is not evicted. A file
appears by rename, whole. A half file is preallocated, so a full disk is found before the download and not in it.

A file is trusted no further than the process that downloaded it: every other verifies it before use (loading.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from heliostat.commit import FileEntry
from heliostat.settings import home

log = logging.getLogger(__name__)

SHARE_OF_DISK = 0.5
FREE_SHARE = 0.05
"""Of the disk stays free for everybody else."""
MAX_AGE_S = 30 * 86_400.0
WAIT_S = 3600.0
"""The longest wait for a process that downloads; after it the file is read without the cache."""
POLL_S = (0.02, 0.1)
_HALF = ".half"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class CachedFile:
    """An open file, held against eviction until `close` and until no mapping of it is left."""

    path: Path
    fd: int
    fresh: bool  # downloaded, and thereby verified, by this process just now

    def close(self) -> None:
        os.close(self.fd)


Fill = Callable[[int], None]
"""Writes the whole, verified content into an open file, which may hold some of it already."""


class NodeCache:
    """Safe to share between threads and processes. `limit_bytes` None: half of the disk."""

    def __init__(self, folder: Path, *, limit_bytes: int | None = None, max_age_s: float = MAX_AGE_S) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._max_age_s = max_age_s

    def open(self, entry: FileEntry, fill: Fill) -> CachedFile | None:
        """The file, from the disk or by `fill`, which runs in one process of the node at a time.

        None, with a warning in the log, where the disk is full, cannot be written, or the file is over the limit: the
        caller then reads without the cache. What `fill` raises for another reason is raised.
        """
        path = self.folder / entry.sha256
        deadline_s = time.monotonic() + WAIT_S
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            while time.monotonic() < deadline_s:
                found = self._open_whole(path, entry.size) or self._download(path, entry.size, fill)
                if found is not None:
                    return found
                time.sleep(random.uniform(*POLL_S))  # somebody else downloads it
            raise TimeoutError(f"another process has been downloading it for {WAIT_S:.0f} s")
        except OSError as error:
            # Errors of the store are ours and no OSError; these are the disk's.
            log.warning("the node cache is not used: %s (%s); reading from the store", error, path)
            return None

    def discard(self, cached: CachedFile) -> None:
        """Take out a file whose bytes are not what its name says. Who has it mapped keeps what it has."""
        with contextlib.suppress(FileNotFoundError):
            if cached.path.stat().st_ino == os.fstat(cached.fd).st_ino:
                cached.path.unlink()

    def evict(self, *, room_for: int = 0) -> list[str]:
        """Remove what is older than the limit, then the least recently used, until `room_for` bytes fit.

        Returns the digests that are gone. Files in use stay, and half files that somebody writes.
        """
        gone = []
        old_s = time.time() - self._max_age_s
        held = sorted(self._held(), key=lambda file: file[1])
        excess = self._excess(room_for, sum(size for _, _, size in held))
        for path, used_s, size in held:
            if (used_s < old_s or excess > 0) and _remove(path):
                gone.append(path.name)
                excess -= size
        return gone

    def size(self) -> int:
        """Bytes on the disk, half files included."""
        return sum(size for _, _, size in self._held())

    def _open_whole(self, path: Path, size: int) -> CachedFile | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not _is_at(fd, path):  # evicted between the two lines above
                raise BlockingIOError
            if os.fstat(fd).st_size != size:
                path.unlink(missing_ok=True)
                raise BlockingIOError
            os.utime(fd)  # its last use, for evict
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return CachedFile(path, fd, fresh=False)

    def _download(self, path: Path, size: int, fill: Fill) -> CachedFile | None:
        """None if another process is at it, or has just finished."""
        half = path.with_name(path.name + _HALF)
        fd = os.open(half, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(fd, half) or path.exists():  # it became the whole file, or a file that was given up
                if _is_at(fd, half):
                    half.unlink()
                os.close(fd)
                return None
            self._reserve(fd, size)
            fill(fd)
            half.rename(path)
            os.fchmod(fd, 0o400)
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            if error.errno in _NO_ROOM:
                half.unlink(missing_ok=True)
            os.close(fd)
            raise
        except BaseException:
            os.close(fd)  # what has arrived stays for the next attempt
            raise
        return CachedFile(path, fd, fresh=True)

    def _reserve(self, fd: int, size: int) -> None:
        missing = max(0, size - os.fstat(fd).st_blocks * 512)
        if size <= self._limit():
            self.evict(room_for=missing)
        if self._excess(missing, self.size()) > 0:
            raise OSError(errno.ENOSPC, f"no room for {size:,} bytes, with everything removed that is not in use")
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        if size:
            os.posix_fallocate(fd, 0, size)

    def _excess(self, room_for: int, held: int) -> int:
        """Bytes that have to go before `room_for` more fit; 0 or less if they fit."""
        disk = shutil.disk_usage(self.folder)
        return max(held + room_for - self._limit(), room_for + int(disk.total * FREE_SHARE) - disk.free)

    def _limit(self) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes
        return int(shutil.disk_usage(self.folder).total * SHARE_OF_DISK)

    def _held(self) -> Iterator[tuple[Path, float, int]]:
        """Every file with its last use and the bytes it takes on the disk."""
        with os.scandir(self.folder) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat()
                    yield Path(item.path), status.st_mtime, status.st_blocks * 512


def node_cache(state_dir: Path | None = None) -> NodeCache | None:
    """The cache of this node: the folder HELIOSTAT_CACHE, else `cache` in the embedded cluster's folder or in the home.

    None where HELIOSTAT_CACHE is "off". On Kubernetes, name a folder on the node's NVMe that its pods share.
    """
    given = os.environ.get("HELIOSTAT_CACHE", "")
    if given == "off":
        return None
    return NodeCache(Path(given) if given else (state_dir or home()) / "cache")


def _is_at(fd: int, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _remove(path: Path) -> bool:
    """Whether the file is gone now; False if somebody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(fd, path):
            return False
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
