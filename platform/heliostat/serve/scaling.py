"""Ray Serve's autoscaling policy for every application: queued seconds of work, not counts of requests.

Serve's configuration names `heliostat.serve.scaling:QueueDelayPolicy`; the controller of Serve makes one and calls it
with what the replicas return from `record_autoscaling_stats`. Bounds, delays and the start from zero stay Serve's.
"""

from __future__ import annotations

from typing import Any

from heliostat.plan.policy.scale import ReplicaLoad, wanted_replicas

BACKLOG, BUSY = "backlog_s", "busy"


class QueueDelayPolicy:
    """`target_s`: the queue delay, in seconds of work before a new item, that a replica may have."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:  # Any: ray.serve.config.AutoscalingContext
        reported = context.aggregated_metrics or {}
        busy, backlog = reported.get(BUSY, {}), reported.get(BACKLOG, {})
        loads = [
            ReplicaLoad(max(0.0, backlog[replica]), min(1.0, max(0.0, busy[replica])))
            for replica in backlog
            if replica in busy
        ]
        wanted = wanted_replicas(
            loads,
            replicas=context.current_num_replicas,
            target_s=self._target_s,
            low=context.capacity_adjusted_min_replicas,
            high=context.capacity_adjusted_max_replicas,
        )
        return wanted, {}
