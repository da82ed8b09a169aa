"""A rank that makes no progress says where it stands, and one that goes on says nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from heliostat.train import stall
from heliostat.train.stall import StallWatch


class Told:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.first = threading.Event()

    def __call__(self, **fields: Any) -> None:
        self.events.append(fields)
        self.first.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "LOOK_S", 0.01)
    monkeypatch.setattr(stall, "FIRST_S", 0.2)


def stand_still(told: Told) -> None:
    assert told.first.wait(10)


def test_a_rank_without_steps_says_where_its_main_thread_stands() -> None:
    told = Told()
    watch = StallWatch(told)
    watch.step_done(3, 0.01)
    stand_still(told)
    watch.end()
    assert told.events[0]["step"] == 3
    assert told.events[0]["seconds"] >= 0.2
    assert "in wait" in told.events[0]["doing"] or "in stand_still" in told.events[0]["doing"]


def test_a_rank_with_steps_says_nothing_nor_does_one_whose_steps_are_slow() -> None:
    told, slow = Told(), Told()
    watch, waiting = StallWatch(told), StallWatch(slow)
    waiting.step_done(1, pace_s=60.0)
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        watch.step_done(1, 0.001)
        time.sleep(0.01)
    watch.end()
    waiting.end()
    assert (told.events, slow.events) == ([], [])


def test_the_collectives_that_a_rank_has_entered_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.distributed as dist

    assert stall._collectives() is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        before = stall._collectives()
        assert before is not None
        dist.all_reduce(torch.zeros(1))
        dist.all_reduce(torch.zeros(1))
        assert stall._collectives() == before + 2
    finally:
        dist.destroy_process_group()
