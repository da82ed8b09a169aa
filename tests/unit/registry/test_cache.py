"""The node cache by itself: who fills, who waits, what goes first, what stays."""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat.commit import FileEntry, describe
from heliostat.registry.cache import NodeCache, node_cache
from heliostat.settings import home

BLOCK = 64 * 1024


def content(number: int) -> bytes:
    return bytes([number]) * BLOCK


def writes(data: bytes) -> Callable[[int], None]:
    return lambda fd: _write(fd, data)


def _write(fd: int, data: bytes) -> None:
    assert os.pwrite(fd, data, 0) == len(data)


def put(cache: NodeCache, number: int, *, used_s: float | None = None) -> FileEntry:
    """A file of one block in the cache, last used so many seconds ago."""
    entry = describe(content(number))
    cached = cache.open(entry, writes(content(number)))
    assert cached is not None
    cached.close()
    if used_s is not None:
        os.utime(cached.path, (time.time() - used_s,) * 2)
    return entry


def never(fd: int) -> None:
    raise AssertionError("the file is there already")


def test_a_file_is_filled_once_and_read_back(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "made" / "by it")
    put(cache, 1)
    cached = cache.open(describe(content(1)), never)
    assert cached is not None
    assert not cached.fresh
    assert os.pread(cached.fd, BLOCK, 0) == content(1)
    assert cached.path.stat().st_mode & 0o777 == 0o400
    cached.close()


def test_of_many_who_ask_at_once_one_fills(tmp_path: Path) -> None:
    cache, filled = NodeCache(tmp_path), []

    def fill(fd: int) -> None:
        filled.append(fd)
        time.sleep(0.1)  # the others come meanwhile
        _write(fd, content(1))

    with ThreadPoolExecutor(10) as pool:
        opened = list(pool.map(lambda _: cache.open(describe(content(1)), fill), range(10)))
    assert len(filled) == 1
    for cached in opened:
        assert cached is not None
        assert os.pread(cached.fd, BLOCK, 0) == content(1)
        cached.close()


def test_when_the_one_who_fills_fails_another_goes_on_from_where_it_was(tmp_path: Path) -> None:
    cache, entry = NodeCache(tmp_path), describe(content(1))

    def goes_on(fd: int) -> None:
        assert os.pread(fd, 4, 0) == b"half"
        _write(fd, content(1))

    class Broken(Exception):
        pass

    def fails(fd: int) -> None:
        os.pwrite(fd, b"half", 0)
        raise Broken

    with pytest.raises(Broken):
        cache.open(entry, fails)
    assert list(tmp_path.glob("*.half"))
    cached = cache.open(entry, goes_on)
    assert cached is not None
    assert cached.fresh
    cached.close()
    assert not list(tmp_path.glob("*.half"))


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=3 * BLOCK)
    old, used, new = (put(cache, number, used_s=100 - number) for number in (1, 2, 3))
    opened = cache.open(old, never)  # now it is the most recently used
    assert opened is not None
    opened.close()
    put(cache, 4)
    assert {path.name for path in tmp_path.iterdir()} == {old.sha256, new.sha256, describe(content(4)).sha256}
    assert used.sha256 not in {path.name for path in tmp_path.iterdir()}


def test_what_is_in_use_stays_as_long_as_it_is_mapped(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=BLOCK)
    entry = put(cache, 1)
    cached = cache.open(entry, never)
    assert cached is not None
    mapping = mmap.mmap(cached.fd, BLOCK, access=mmap.ACCESS_COPY)
    cached.close()  # the mapping alone holds it now
    assert cache.evict(room_for=BLOCK) == []
    assert mapping[:] == content(1)
    mapping.close()
    assert cache.evict(room_for=BLOCK) == [entry.sha256]


def test_what_nobody_has_used_for_long_goes_though_there_is_room(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, max_age_s=50)
    new, old = put(cache, 2, used_s=49), put(cache, 1, used_s=51)
    assert cache.evict() == [old.sha256]
    assert [path.name for path in tmp_path.iterdir()] == [new.sha256]


def test_a_file_over_the_limit_takes_nothing_away_and_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = NodeCache(tmp_path, limit_bytes=2 * BLOCK)
    small = put(cache, 1)
    large = bytes(3 * BLOCK)
    with caplog.at_level(logging.WARNING):
        assert cache.open(describe(large), never) is None
    assert "no room" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [small.sha256]


def test_a_disk_that_fills_up_on_the_way_is_left_clean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level(logging.WARNING):
        assert NodeCache(tmp_path).open(describe(content(1)), full) is None
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert NodeCache(tmp_path / "file").open(describe(content(1)), never) is None
    assert "the node cache is not used" in caplog.text


def test_a_file_that_somebody_cut_off_is_filled_again(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path)
    entry = put(cache, 1)
    (tmp_path / entry.sha256).chmod(0o600)
    os.truncate(tmp_path / entry.sha256, 5)
    put(cache, 1)
    assert hashlib.sha256((tmp_path / entry.sha256).read_bytes()).hexdigest() == entry.sha256


def test_a_discarded_file_is_gone_for_others_and_stays_for_those_who_have_it(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path)
    entry = put(cache, 1)
    cached = cache.open(entry, never)
    assert cached is not None
    cache.discard(cached)
    assert not cached.path.exists()
    put(cache, 1)
    cache.discard(cached)  # the new one is another file
    assert cached.path.exists()
    assert os.pread(cached.fd, BLOCK, 0) == content(1)
    cached.close()


def test_the_folder_is_the_environments_or_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heliostat_home: Path
) -> None:
    made = node_cache()
    assert made is not None
    assert made.folder == home() / "cache" == heliostat_home / "cache"
    made = node_cache(tmp_path / "cluster")
    assert made is not None
    assert made.folder == tmp_path / "cluster" / "cache"
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path / "nvme"))
    made = node_cache()
    assert made is not None
    assert made.folder == tmp_path / "nvme"
    monkeypatch.setenv("HELIOSTAT_CACHE", "off")
    assert node_cache() is None
