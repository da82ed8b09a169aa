from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.controller.duty import World
from heliostat.controller.loop import Controller
from heliostat.errors import HeliostatError
from heliostat.settings import Settings
from heliostat.store import Store

pytestmark = pytest.mark.real


class Counting:
    def __init__(self, period_s: float, problem: Exception | None = None) -> None:
        self.period_s, self.problem = period_s, problem
        self.acted: list[float] = []
        self.forgot = 0

    def act(self, world: World, now: float) -> None:
        self.acted.append(now)
        if self.problem:
            raise self.problem

    def forget(self) -> None:
        self.forgot += 1


def controller(store: Store, folder: Path, *duties: Counting) -> Controller:
    settings = Settings(
        cluster="c",
        store=store.settings,
        state_dir=folder,
        spool=folder / "spool",
        gcs_address="127.0.0.1:3",
        dashboard_url="http://127.0.0.1:1",
        serve_url="http://127.0.0.1:2",
    )
    made = Controller(settings)
    made._duties = list(duties)
    made._called = [float("-inf")] * len(duties)
    return made


def test_one_failing_duty_does_not_stop_the_others(store: Store, tmp_path: Path) -> None:
    broken, raising, fine = Counting(1, HeliostatError("away")), Counting(1, KeyError("x")), Counting(5)
    loop = controller(store, tmp_path, broken, raising, fine)
    for now in (1000.0, 1001.0, 1005.0):
        loop.apply_round(now)
    assert broken.acted == raising.acted == [1000.0, 1001.0, 1005.0]
    assert fine.acted == [1000.0, 1005.0]


def test_whoever_has_not_the_lease_forgets_and_does_not_act(store: Store, tmp_path: Path) -> None:
    first, second = Counting(1), Counting(1)
    controller(store, tmp_path, first).apply_round(2000.0)
    controller(store, tmp_path, second).apply_round(2001.0)
    assert (first.acted, second.acted, second.forgot) == ([2000.0], [], 1)


def test_a_full_disk_of_events_keeps_no_duty_from_being_done(store: Store, tmp_path: Path) -> None:
    duty = Counting(1)
    loop = controller(store, tmp_path, duty)
    (tmp_path / "spool" / ".shipping").mkdir(parents=True)  # cannot be opened for writing, as on a full disk
    loop.apply_round(1000.0)
    assert duty.acted == [1000.0]
