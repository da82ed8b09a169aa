"""The Grafana files: as `make.py` writes them, loadable beside Ray's own, asking for metrics that somebody tells."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from heliostat.controller.metrics import GAUGES
from heliostat.serve import metrics as serving
from heliostat.train import metrics as training
from tests.support.prometheus import DASHBOARDS, DEVICES, ONCE_SEEN, PROMTOOL, metrics_of, queries

FILES = sorted(DASHBOARDS.glob("*.json"))
RAYS = {
    "ray_cluster_active_nodes", "ray_cluster_pending_nodes", "ray_cluster_failed_nodes", "ray_resources", "ray_tasks",
    "ray_actors", "ray_node_mem_used", "ray_node_mem_total", "ray_node_cpu_utilization", *DEVICES,
}  # fmt: skip
"""Ray's own; tests/benchmarks/waste.py sees them scraped, but for the devices' and ONCE_SEEN."""


def told() -> set[str]:
    gauges = (*serving._GAUGES, *training._GAUGES)
    counters = (*serving._COUNTERS, *training._COUNTERS)
    return {*GAUGES, *(f"ray_{name}" for name in gauges), *(f"ray_{name}_total" for name in counters), *RAYS}


@pytest.mark.parametrize("label", queries())
def test_every_panel_asks_for_metrics_that_somebody_tells(label: str) -> None:
    names = metrics_of(queries()[label])
    assert names
    assert names <= told()


def test_what_is_told_once_it_happens_stands_in_rays_code_or_in_ours() -> None:
    import ray

    source = (Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    rays = {name for name in ONCE_SEEN if f'"{name.removeprefix("ray_")}"' in source}
    assert rays | {f"ray_{name}_total" for name in serving._COUNTERS} >= ONCE_SEEN


def test_every_metric_of_ours_is_shown() -> None:
    shown = {name for query in queries().values() for name in metrics_of(query)}
    ours = {name for name in told() if "heliostat" in name}
    assert ours - shown == {
        "ray_heliostat_queue_items",
        "ray_heliostat_queue_tokens",
        "ray_heliostat_forward_seconds_total",
    }


def test_the_files_are_what_the_script_makes() -> None:
    made = _make()
    assert {path.stem for path in FILES} == set(made.DASHBOARDS)
    for path in FILES:
        assert json.loads(path.read_text()) == made.dashboard(path.stem)


def test_the_dashboards_load_beside_rays_own() -> None:
    """No uid, no title and no panel number twice, and a data source that Grafana fills in."""
    import ray

    base = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    rays = [json.loads(path.read_text()) for path in base.glob("*.json")]
    ours = [json.loads(path.read_text()) for path in FILES]
    for key in ("uid", "title"):
        values = [board[key] for board in (*rays, *ours) if board.get(key)]
        assert len(values) == len(set(values))
    for board in ours:
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(numbers) == len(set(numbers))
        assert len(board["uid"]) <= 40
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(places) == len(set(places))
        for panel in board["panels"]:
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards_make", DASHBOARDS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["dashboards_make"] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install prometheus")
def test_every_alert_fires_when_it_should_and_not_before() -> None:
    assert PROMTOOL is not None
    for arguments in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")):
        done = subprocess.run([PROMTOOL, *arguments], cwd=DASHBOARDS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = (DASHBOARDS / "alerts.test.yml").read_text()
    rules = [line.split()[-1] for line in (DASHBOARDS / "alerts.yml").read_text().splitlines() if "- alert:" in line]
    assert rules
    assert all(f"alertname: {rule}" in tested for rule in rules)
