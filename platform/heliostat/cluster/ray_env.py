"""The environment of every Ray process of the embedded cluster. Pure: values in, a dict out.

Each setting has its reason beside it; the figures are in docs/decisions/0002-embedded-cluster.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from heliostat.cluster.haproxy import BUFFER_BYTES
from heliostat.cluster.head import REGISTER_LIMIT_S
from heliostat.cluster.processes import CLUSTER_ID
from heliostat.definition import Tags, WasteRules

LOOPBACK_ONLY = "HELIOSTAT_LOOPBACK_ONLY"
WASTE = "HELIOSTAT_WASTE"
"""The rules about waste as JSON, for the controller."""
METRICS_PORT = "HELIOSTAT_METRICS_PORT"
"""Where the controller tells Prometheus what only it knows."""


def head_environment(
    base: dict[str, str],
    *,
    cluster_id: str,
    token_path: Path,
    settings_path: Path,
    state_dir: Path,
    temp_dir: Path,
    ports: dict[str, int],
    cuda_devices: int,
    tags: Tags,
    waste: WasteRules,
) -> dict[str, str]:
    """`base` with what the head needs; worker nodes, replicas and jobs inherit it.

    `ports` has serve_http_min (1,000 from there on for replicas), haproxy_metrics, haproxy_stats, hold, proxy,
    proxy_grpc and controller_metrics.
    """
    kept = {key: value for key, value in base.items() if not key.startswith(("RAY_", "HELIOSTAT_"))}
    # HAProxy takes socket paths of 97 bytes at most, and Ray puts a node id of 56 into them.
    haproxy = temp_dir / "h"
    return {
        **kept,
        CLUSTER_ID: cluster_id,
        LOOPBACK_ONLY: "1",
        # Logical GPUs are declared and not there.
        "HELIOSTAT_LOGICAL_GPUS": "0" if cuda_devices else "1",
        "HELIOSTAT_SETTINGS": str(settings_path),
        "HELIOSTAT_HOME": str(settings_path.parents[2]),
        # Read by heliostat.train.job: whose every event of a training is.
        "HELIOSTAT_TEAM": tags.team,
        "HELIOSTAT_PROJECT": tags.project,
        WASTE: waste.model_dump_json(),
        METRICS_PORT: str(ports.get("controller_metrics", 0)),
        "PYTHONUNBUFFERED": "1",
        # So that a job's `python` is this one, whichever way `heliostat` was called.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', '')}",
        # Ray rewrites 127.0.0.1 to the machine's address and listens everywhere unless told that this is no cluster OS.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # What the autoscaler calls the head.
        "RAY_CLOUD_INSTANCE_ID": "head",
        "RAY_NODE_TYPE_NAME": "head",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        # Workers run at nice 15 otherwise and starve beside anything else on the machine.
        "RAY_worker_niceness": "0",
        # A node gets as long to come up as cluster/head.py gives it.
        "RAY_agent_register_timeout_ms": str(round(REGISTER_LIMIT_S * 1000)),
        # A frozen node is noticed after 1.6 s instead of 62.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
        "RAY_health_check_initial_delay_ms": "1000",
        # A result above 100 kB is pinned in the object store of the node that made it, and such a node is never idle:
        # Serve's build task alone (230 kB) kept a serving node up for ever. Up to 8 MiB travel inline.
        "RAY_max_direct_call_object_size": str(8 * 2**20),
        **train_environment(),
        **serve_front_environment(),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(state_dir / "bin" / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["haproxy_metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["haproxy_stats"]),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Where Serve's Python proxy listens, behind the holding server; 8500 and 9500 for every cluster otherwise.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["proxy"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["proxy_grpc"]),
        # Read by heliostat.serve.hold.
        "HELIOSTAT_HOLD_PORT": str(ports["hold"]),
        "HELIOSTAT_SERVE_PROXY_PORT": str(ports["proxy"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports["serve_http_min"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports["serve_http_min"] + 999),
    }


ALERT_WEBHOOK = "HELIOSTAT_ALERT_WEBHOOK"
ALERTMANAGER = "HELIOSTAT_ALERTMANAGER"


def alert_targets(base: Mapping[str, str]) -> dict[str, str]:
    """For the controller alone, which is who tells: their addresses are secrets, and jobs see their environment."""
    return {name: base[name] for name in (ALERT_WEBHOOK, ALERTMANAGER) if base.get(name)}


def train_environment() -> dict[str, str]:
    """For a Ray Train script of one's own: quick to see a loss. Heliostat's jobs are driven by train/gang.py."""
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    }


def serve_front_environment() -> dict[str, str]:
    """Ray Serve's front, wherever it runs: HAProxy straight to the replicas, far cheaper than the Python proxy."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Replays requests that were running on a replica that died.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "5",
        # It replays what fits its buffer, and copies all of it for every request: 8 MiB took 10 ms of CPU each.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        # 30 s by default: an idle replica would hold its GPU that much longer.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }
