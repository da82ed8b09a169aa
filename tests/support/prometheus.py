"""A real Prometheus, Debian's or any on the PATH, and the metrics that a query names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from heliostat.cluster import embedded, ports
from heliostat.controller.metrics import TARGETS

DASHBOARDS = Path(__file__).parents[2] / "cluster" / "dashboards"
BINARY = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
DEVICES = frozenset(("ray_node_gpus_utilization", "ray_node_gram_used"))
"""Ray's agents tell these where NVML finds devices, and nowhere else."""
ONCE_SEEN = frozenset(("ray_cluster_failed_nodes", "ray_cluster_pending_nodes", "ray_heliostat_sheds_total"))
"""Told once a node was waited for, one failed, or a request was refused for load."""
_WORDS = frozenset(
    ("sum", "avg", "max", "min", "count", "rate", "increase", "delta", "time", "and", "or", "unless", "absent")
)
"""Of PromQL."""


def metrics_of(query: str) -> set[str]:
    """The names of the metrics in it."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", query)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare) if name not in _WORDS}


def queries() -> dict[str, str]:
    """Of every panel of every dashboard: "<dashboard>: <panel>, <letter>" and what it asks."""
    found = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{path.stem}: {panel['title']}, {target['refId']}"] = target["expr"]
    return found


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **params: Any) -> Any:  # Any: JSON
        answer = httpx.get(f"{self._url}{path}", params=params, timeout=10)
        return answer.json() if path.startswith("/api/") else answer

    def query(self, expression: str) -> list[dict[str, Any]]:  # Any: JSON
        """The samples. Raises AssertionError where Prometheus does not understand the query."""
        answer = self.get("/api/v1/query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def names(self) -> set[str]:
        """Of all metrics that were scraped."""
        return set(self.get("/api/v1/label/__name__/values")["data"])

    def targets(self) -> list[dict[str, Any]]:  # Any: JSON
        return list(self.get("/api/v1/targets")["data"]["activeTargets"])


def target_files(cluster: str, state_dir: Path) -> list[Path]:
    """What Prometheus reads its targets from: Ray's file and ours."""
    record = embedded.read_record(cluster)
    assert record is not None
    return [Path(record.temp_dir) / "prom_metrics_service_discovery.json", state_dir / TARGETS]


@contextmanager
def prometheus(folder: Path, files: Sequence[Path], *, every: str = "1s") -> Iterator[Prometheus]:
    """Scrapes the targets of the files, with the alert rules, on a port of its own; ended afterwards."""
    assert BINARY is not None
    port = ports.choose("auto", preferred=None, field="prometheus", taken=set())
    config = folder / "prometheus.json"  # JSON is YAML
    config.write_text(json.dumps({
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(DASHBOARDS / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "cluster",
             "file_sd_configs": [{"files": [str(path) for path in files], "refresh_interval": "2s"}]},
        ],
    }))  # fmt: skip
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [BINARY, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        made = Prometheus(port)
        deadline = time.monotonic() + 30
        while True:
            try:
                if made.get("/-/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "prometheus.log").read_text()[-2000:])
            time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=20)
