"""Attempts of a run as the gang drives them, with a real store and real gloo, and without Ray."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from heliostat.settings import Settings, save
from heliostat.store import Store
from heliostat.train import warm
from heliostat.train.checkpoint import claim_generation
from heliostat.train.child import Order
from heliostat.train.context import RunSpec
from heliostat.train.keeper import Keeper
from heliostat.train.seat import About, Ended, Seat
from tests.unit.train import small_recipe


class LocalKeeper(Keeper):
    """A keeper in this process instead of in a Ray actor; what it does with training processes is the real one's."""

    def __init__(self, node: str) -> None:
        self._about = About(node, "127.0.0.1", 0)
        self._process, self._attempt = None, ""
        self._progress = {}
        self._lock = threading.Lock()
        warm.ensure(node, belongs_to=os.getpid())


class Bench:
    """Runs attempts of one run after the other, as the gang does."""

    def __init__(self, node: str, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node, self.store, self.settings = node, store, settings
        monkeypatch.setenv("HELIOSTAT_SETTINGS", str(settings.state_dir) + "/settings.json")
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("HELIOSTAT_LOGICAL_GPUS", "1")
        self.keepers: list[LocalKeeper] = []

    def attempt(
        self, run: str, config: Any, *, workers: int, every: int | None = 5, train: Any = "train"
    ) -> list[Ended]:
        generation = claim_generation(self.store, run)
        order = Order(
            RunSpec(run, every, workers, "train", {}),
            getattr(small_recipe, train) if isinstance(train, str) else train,
            config,
        )
        self.keepers = [LocalKeeper(self.node) for _ in range(workers)]
        name = f"{generation:06d}-{uuid.uuid4().hex[:6]}"
        seats = [Seat(rank, workers, name, generation) for rank in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            work = [(keeper, seat, pickle.dumps(order)) for keeper, seat in zip(self.keepers, seats, strict=True)]
            ports = list(pool.map(lambda job: job[0].prepare(job[1], job[2]), work))
            futures = [pool.submit(keeper.train, "127.0.0.1", ports[0]) for keeper in self.keepers]
            ended = [future.result() for future in futures]
        for keeper in self.keepers:
            keeper.stop()
        return ended


@pytest.fixture(scope="module")
def node() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bench(node: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    settings = Settings(
        cluster="test",
        dashboard_url="http://127.0.0.1:1",
        gcs_address="127.0.0.1:1",
        serve_url="http://127.0.0.1:1",
        store=store.settings,
        spool=tmp_path / "spool",
        state_dir=tmp_path,
    )
    save(settings, tmp_path / "settings.json")
    return Bench(node, store, settings, monkeypatch)
