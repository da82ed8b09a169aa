"""A job's log and progress in a real store: what was printed comes back, and a store that fails loses none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import CorruptArtifact, StoreUnreachable
from heliostat.store import Store
from heliostat.train import logs, progress
from heliostat.train.logs import LogShipper, log_prefix, read_logs
from heliostat.train.progress import Curve, Progress, read_progress


def test_a_growing_log_comes_back_whole(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SEGMENT", 100)
    path = tmp_path / "driver.log"
    shipper = LogShipper(store, log_prefix("r", "r-1", 5.0), path)
    text = ""
    for number in range(60):
        text += f"line {number}\n"
        path.write_text(text)
        if number % 7 == 0:
            shipper.ship()
    shipper.ship()
    assert read_logs(store, "r-1") == text
    assert read_logs(store, "r") == text
    assert len(store.list("runs/r/logs")) == -(-len(text) // 100)
    assert read_logs(store, "unknown-2") is None


def test_a_store_that_fails_gets_the_same_bytes_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "driver.log"
    path.write_text("before\n")
    shipper = LogShipper(store, log_prefix("r", "r-1", 5.0), path)
    with monkeypatch.context() as broken:
        broken.setattr(store, "put", _fails)
        with pytest.raises(StoreUnreachable):
            shipper.ship()
    path.write_text("before\nafter\n")
    shipper.ship()
    assert read_logs(store, "r-1") == "before\nafter\n"


def _fails(*_: object) -> str:
    raise StoreUnreachable("away")


def test_the_jobs_of_a_run_are_in_the_order_in_which_they_were_begun(store: Store, tmp_path: Path) -> None:
    for number, job in enumerate(("r-zz", "r-aa")):
        path = tmp_path / job
        path.write_text(f"{number}\n")
        LogShipper(store, log_prefix("r", job, float(number)), path).ship()
    assert read_logs(store, "r") == "0\n1\n"


def test_progress_comes_back(store: Store) -> None:
    assert read_progress(store, "r") is None
    known = Progress("r", "training", 1.5, step=3, total=9, loss=0.5, nodes=("a", "b"), curve=((1, 2.0), (3, 0.5)))
    board = progress.Board(store, "r", lambda: known)
    board.start()
    board.close()
    assert read_progress(store, "r") == known
    assert "step 3/9  loss 0.5000" in known.line()
    store.put("runs/r/progress.json", b"{}")
    with pytest.raises(CorruptArtifact):
        read_progress(store, "r")


@given(st.integers(1, 5000), st.integers(0, 3))
def test_a_curve_is_bounded_and_rises(steps: int, back: int) -> None:
    curve = Curve()
    for _ in range(back + 1):
        for step in range(1, steps + 1, 3):
            curve.add(step, 1 / step)
    found = [step for step, _ in curve.points]
    assert found == sorted(set(found))
    assert len(found) <= progress.CURVE
    assert found[0] == 1
