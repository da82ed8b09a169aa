"""The applications as the goal state of Serve's REST API. Pure.

A PUT there is the whole goal state: applications missing from it are removed. So it has one writer, the controller,
and everybody else says what is wanted in the store (`desired.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heliostat.serve.desired import DesiredApp
from heliostat.serve.scaling import target_delay_s

# The router's default waits 25 to 500 ms and is not woken when a slot frees.
_ROUTER = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}
MAX_ONGOING = 1000


def serve_config(
    apps: Sequence[DesiredApp], *, awake: set[str], port: int, host: str = "127.0.0.1"
) -> dict[str, Any]:  # Any: Serve's schema
    """`awake` are the applications whose lower bound of replicas holds; the others may go to zero."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": 120},
        "applications": [_application(app, awake=app.name in awake) for app in apps],
    }


def _application(app: DesiredApp, *, awake: bool) -> dict[str, Any]:
    spec = app.spec
    return {
        "name": app.name,
        "route_prefix": spec.route,
        "import_path": "heliostat.serve.deployment:build",
        "args": {
            "app": app.name,
            "recipe": spec.recipe,
            "model": spec.model,
            "max_queue_s": spec.max_queue.seconds,
            "dtype": spec.dtype,
            "keys": list(spec.keys),
            **({"signed_by": list(spec.signed_by)} if spec.signed_by else {}),
            "cpus": 1,
            "gpus": spec.gpus_per_replica,
            "label_selector": _nodes(app),
            **({} if app.vram_bytes is None else {"vram_bytes": app.vram_bytes}),
        },
        # Without a package, the image holds the recipes.
        **({"runtime_env": {"working_dir": app.package}} if app.package else {}),
        "deployments": [
            {
                "name": "model",
                "max_ongoing_requests": MAX_ONGOING,
                "autoscaling_config": {
                    "min_replicas": spec.replicas.low if awake else 0,
                    "max_replicas": spec.replicas.high,
                    "initial_replicas": spec.replicas.low if awake else 0,
                    # Serve's own measure, which starts the first replica; the policy decides from there on.
                    "target_ongoing_requests": app.target_ongoing_requests,
                    "policy": {
                        "policy_function": "heliostat.serve.scaling:QueueDelayPolicy",
                        "policy_kwargs": {"target_s": target_delay_s(spec.max_queue.seconds)},
                    },
                    "metrics_interval_s": 0.5,
                    "look_back_period_s": 2,
                    # A burst that one replica clears by itself must not start a node that comes too late.
                    "upscale_delay_s": 2,
                    "downscale_delay_s": 10,
                    "downscale_to_zero_delay_s": spec.idle_timeout.seconds if spec.replicas.low == 0 else 2,
                },
                "request_router_config": _ROUTER,
                "ray_actor_options": {
                    "num_cpus": 1,
                    "num_gpus": spec.gpus_per_replica,
                    "label_selector": _nodes(app),
                },
            }
        ],
    }


def _nodes(app: DesiredApp) -> dict[str, str]:
    groups = app.groups or (app.spec.group,)
    return {"heliostat.io/group": groups[0] if len(groups) == 1 else f"in({', '.join(groups)})"}
