"""The meter of a living cluster: it looks by itself, and comes back."""

from __future__ import annotations

import signal
import time

import pytest

from heliostat.cluster import embedded, processes
from heliostat.events import read_spool
from heliostat.meter import ledger
from heliostat.sdk import Platform

pytestmark = pytest.mark.real


def samplers(platform: Platform) -> list[processes.OwnedProcess]:
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    return [p for p in processes.owned(embedded.mark(record)) if "heliostat.meter.sampler" in p.command]


def test_a_sampler_that_is_killed_is_started_again(platform: Platform) -> None:
    deadline = time.monotonic() + 60
    while not (before := samplers(platform)):
        assert time.monotonic() < deadline, "no sampler"
        time.sleep(0.2)
    processes.kill(before, signal.SIGKILL)
    gone = {process.pid for process in before}
    while not [process for process in samplers(platform) if process.pid not in gone]:
        assert time.monotonic() < deadline, "no new sampler"
        time.sleep(0.2)


def test_what_ran_so_far_lies_in_one_class_each(platform: Platform) -> None:
    """Whatever the tests before have run here."""
    made = platform.cost_report(["team", "job", "app"])
    entries = ledger.newest_entries(platform.store).values()
    assert made.total.held == pytest.approx(sum(entry.lifetime for entry in entries))
    assert made.total.overlap_gpu_seconds == 0
    if any(event.kind == "node_ready" for event in read_spool(platform.settings.spool)):
        assert made.total.held > 0
