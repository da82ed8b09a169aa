from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliostat.events import Spool, read_spool


def test_what_is_emitted_is_read_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker-1")
    spool.emit("step", run="r", step=1)
    spool.emit("step", run="r", step=2)
    assert [event.fields["step"] for event in read_spool(tmp_path)] == [1, 2]


def test_a_line_torn_by_a_kill_is_ignored_and_spoils_no_later_one(tmp_path: Path) -> None:
    Spool(tmp_path, "a").emit("first")
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"id":"x","kind":"torn"')
    Spool(tmp_path, "a").emit("second")
    assert [event.kind for event in read_spool(tmp_path)] == ["first", "second"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: spool.emit("e", number=number, text="x" * 500), range(200)))
    assert sorted(event.fields["number"] for event in read_spool(tmp_path)) == list(range(200))


def test_a_field_may_not_take_a_name_of_the_envelope(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="time_s"):
        Spool(tmp_path, "a").emit("e", time_s=1)
