"""What only the controller knows, for Prometheus: the month so far by class and team, what is waste, and that it lives.

Ray's own metrics and those of replicas and runs (`ray_heliostat_*`) come from Ray's agents; these from a port of the
controller's own. The ledger is read in a thread: a round never waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from heliostat.cluster.ray_env import METRICS_PORT
from heliostat.controller.duty import World
from heliostat.controller.waste import read_state
from heliostat.errors import HeliostatError
from heliostat.files import put_file
from heliostat.meter import ledger
from heliostat.meter.facts import CLASSES
from heliostat.meter.prices import from_catalogue
from heliostat.meter.report import columns_of, places, report
from heliostat.meter.waste import Finding
from heliostat.settings import Settings
from heliostat.store import Store

log = logging.getLogger(__name__)

LEDGER_S = 60.0
TARGETS = "prometheus-targets.json"
Series = Mapping[tuple[str, ...], float]


class Metrics:
    """Serves the port from its first round on. Without HELIOSTAT_METRICS_PORT it does nothing."""

    period_s = 5.0

    def __init__(self) -> None:
        self._port = int(os.environ.get(METRICS_PORT) or 0)
        self._gauges: dict[str, Any] | None = None  # Any: prometheus_client's Gauge
        self._read_at = float("-inf")
        self._reading: threading.Thread | None = None

    def forget(self) -> None:
        pass  # everything is read anew

    def act(self, world: World, now: float) -> None:
        if not self._port:
            return
        gauges = self._gauges or self._serve(world.settings)
        gauges["heliostat_controller_round_timestamp_seconds"].set(now)
        findings = read_state(world.store).findings
        for name, series in waste_series(findings).items():
            _fill(gauges[name], series)
        if now - self._read_at >= LEDGER_S and (self._reading is None or not self._reading.is_alive()):
            self._read_at = now
            self._reading = threading.Thread(target=self._read, args=(world.store, now), name="month", daemon=True)
            self._reading.start()

    def _read(self, store: Store, now: float) -> None:
        try:
            for name, series in month_series(store, now).items():
                if self._gauges is not None:
                    _fill(self._gauges[name], series)
        except HeliostatError as error:  # the store is away: the next time tries again
            log.warning("metrics: %s", error)

    def _serve(self, settings: Settings) -> dict[str, Any]:  # Any: prometheus_client's Gauge
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._gauges = {name: Gauge(name, about, labels, registry=registry) for name, (about, labels) in GAUGES.items()}
        host = "127.0.0.1" if settings.state_dir is not None else "0.0.0.0"  # noqa: S104  # a NetworkPolicy fences pods
        start_http_server(self._port, addr=host, registry=registry)
        if settings.state_dir is not None:
            write_targets(settings, self._port)
        return self._gauges


GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "heliostat_controller_round_timestamp_seconds": ("When the controller last went round", ()),
    "heliostat_month_gpu_hours": ("GPU-hours of this month so far, by class", ("group", "market", "use")),
    "heliostat_month_team_gpu_hours": ("GPU-hours of this month so far, by whose they are", ("team", "project")),
    "heliostat_month_usd": ("Money for this month's GPU-hours that have a price", ("group", "market")),
    "heliostat_month_team_usd": ("Money for this month's GPU-hours of a team", ("team", "project")),
    "heliostat_month_unpriced_gpu_hours": ("GPU-hours of this month without a price", ("group", "market")),
    "heliostat_waste_gpus": ("GPUs that are held and do no useful work", ("kind", "group")),
    "heliostat_waste_gpu_hours": ("GPU-hours of what is waste now, since it began", ("kind", "group")),
    "heliostat_waste_usd": ("Money for them, where they have a price", ("kind", "group")),
}


def waste_series(findings: tuple[Finding, ...]) -> dict[str, Series]:
    gpus: dict[tuple[str, ...], float] = defaultdict(float)
    hours: dict[tuple[str, ...], float] = defaultdict(float)
    usd: dict[tuple[str, ...], float] = defaultdict(float)
    for finding in findings:
        key = (finding.kind, finding.group)
        gpus[key] += finding.gpus
        hours[key] += finding.gpu_hours
        usd[key] += finding.usd or 0.0
    return {"heliostat_waste_gpus": gpus, "heliostat_waste_gpu_hours": hours, "heliostat_waste_usd": usd}


def month_series(store: Store, now: float) -> dict[str, Series]:
    """From the ledger as it is folded; nothing is folded here."""
    first = datetime.fromtimestamp(now, UTC).date().replace(day=1)
    columns = tuple(dict.fromkeys((*columns_of(("group", "market")), *columns_of(("team", "project")))))
    rows = ledger.read(store, since=first, columns=columns)
    prices = from_catalogue(places(rows))
    by_group = report(rows, by=("group", "market"), prices=prices)
    by_team = report(rows, by=("team", "project"), prices=prices)
    used: dict[tuple[str, ...], float] = {}
    for line in by_group.lines:
        group, market = (key or "" for key in line.keys)
        used |= {(group, market, use.label): line.gpu_seconds.get(use.label, 0.0) / 3600 for use in CLASSES}
    keys = [(line, tuple(key or "" for key in line.keys)) for line in by_group.lines]
    teams = [(line, tuple(key or "" for key in line.keys)) for line in by_team.lines]
    return {
        "heliostat_month_gpu_hours": used,
        "heliostat_month_team_gpu_hours": {key: line.held / 3600 for line, key in teams},
        "heliostat_month_usd": {key: line.usd for line, key in keys},
        "heliostat_month_team_usd": {key: line.usd for line, key in teams},
        "heliostat_month_unpriced_gpu_hours": {key: line.unpriced_gpu_seconds / 3600 for line, key in keys},
    }


def _fill(gauge: Any, series: Series) -> None:  # Any: prometheus_client's Gauge
    """These values and no others: what is gone is not shown for ever."""
    gauge.clear()
    for labels, value in series.items():
        gauge.labels(*labels).set(value)


def write_targets(settings: Settings, port: int) -> None:
    """For Prometheus's file_sd_configs, beside the file that Ray writes for its own."""
    assert settings.state_dir is not None  # noqa: S101  # asked by the caller
    targets = [{"labels": {"job": "heliostat", "cluster": settings.cluster}, "targets": [f"127.0.0.1:{port}"]}]
    put_file(settings.state_dir / TARGETS, json.dumps(targets, indent=1))
