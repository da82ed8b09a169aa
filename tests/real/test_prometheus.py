"""A real Prometheus scrapes the embedded cluster: its targets are up, and it understands every panel's query."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.sdk import Platform
from tests.support.prometheus import BINARY, metrics_of, prometheus, queries, target_files

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(180),
    pytest.mark.skipif(BINARY is None, reason="no Prometheus: apt-get install prometheus"),
]


def until(true: Callable[[], bool], what: str, *, limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_prometheus_scrapes_ray_and_the_controller(platform: Platform, tmp_path: Path) -> None:
    """What needs an application, a run or a device to be told is looked for by tests/benchmarks/waste.py."""
    folder = platform.settings.state_dir
    assert folder is not None
    with prometheus(tmp_path, target_files(platform.settings.cluster, folder)) as server:

        def all_up() -> bool:
            targets = server.targets()
            return len(targets) >= 2 and all(target["health"] == "up" for target in targets)

        until(all_up, "a target is not up")
        fleet = {name for query in queries().values() for name in metrics_of(query) if name.startswith("ray_node_mem")}
        expected = {"heliostat_controller_round_timestamp_seconds", "ray_resources", *fleet}
        until(lambda: expected <= server.names(), "metrics of Ray or of the controller are missing")
        for query in queries().values():
            server.query(query)
        (age,) = server.query("time() - heliostat_controller_round_timestamp_seconds")
        assert float(age["value"][1]) < 60
        groups = server.get("/api/v1/rules")["data"]["groups"]
        assert sum(len(group["rules"]) for group in groups) == 6
