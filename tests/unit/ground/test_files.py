"""A file is the one before or the new one, whoever reads it while it is put in place."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat.files import put_file


def test_readers_never_see_a_part_while_many_write(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    whole = {letter * 200_000 for letter in "abcd"}
    put_file(path, "a" * 200_000)
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(put_file, path, each) for each in sorted(whole) * 10]
        while not all(each.done() for each in writing):
            assert path.read_text() in whole
    assert [each.result() for each in writing] == [None] * 40
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    put_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            put_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    put_file(tmp_path / "open", "x")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o644)
    put_file(tmp_path / "secret", "y", private=True)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) != 0o600
