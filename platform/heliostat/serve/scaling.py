"""Ray Serve's autoscaling policy for every application: queued seconds of work, not counts of requests.

Serve's configuration names `heliostat.serve.scaling:QueueDelayPolicy`; the controller of Serve makes one and calls it
with what the replicas return from `record_autoscaling_stats`. Bounds, delays and the start from zero stay Serve's.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from heliostat.inference.load import WINDOW_S
from heliostat.plan.policy.scale import ReplicaLoad, wanted_replicas

BACKLOG, BUSY = "backlog_s", "busy"
TARGET_S = 0.5
"""Queue delay that a replica may have before another is wanted: people notice half a second."""
_SHARE_OF_MAX = 0.25
"""Of `max_queue`, where that is short: more replicas are to come well before requests are refused."""


def target_delay_s(max_queue_s: float) -> float:
    return min(TARGET_S, _SHARE_OF_MAX * max_queue_s)


class Demand:
    """What a replica reports: its backlog, with the work that it sent away of late.

    Admission keeps the queue short, so the queue alone would hide how much more is wanted.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()  # (when, requests refused so far)

    def report(
        self, now: float, *, queued_s: float, busy: float, sheds: int, mean_request_s: float
    ) -> dict[str, float]:
        """`sheds` counts refusals since the replica began; each is taken for a mean request."""
        self._seen.append((now, sheds))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._window_s:
            self._seen.popleft()
        sent_away = sheds - self._seen[0][1]
        return {BACKLOG: queued_s + sent_away * mean_request_s, BUSY: busy}


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
