"""What a replica shows in the Ray dashboard and in Prometheus, as `ray_heliostat_*`.

Sums that only grow come out as counters, so that any window can be asked for: the mean time in the queue is
`rate(ray_heliostat_queue_seconds_total[1m]) / rate(ray_heliostat_items_total[1m])`. They are written once in a while
by the replica's own thread, not at each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliostat.inference.load import Load

if TYPE_CHECKING:
    from heliostat.serve.endpoint import Counts

_GAUGES = {
    "heliostat_queue_items": "Items that wait",
    "heliostat_queue_tokens": "Tokens that wait",
    "heliostat_queue_delay_seconds": "Work before a new item, in seconds",
    "heliostat_busy": "Share of the last seconds in which the model ran",
    "heliostat_model_version": "The version that answers",
}
_COUNTERS = {
    "heliostat_requests": "Requests answered",
    "heliostat_sheds": "Requests refused for load",
    "heliostat_items": "Items run",
    "heliostat_tokens": "Tokens run, without padding",
    "heliostat_batches": "Batches run; tokens over batches is how full they are",
    "heliostat_queue_seconds": "Time in the queue, of all items together",
    "heliostat_forward_seconds": "Time that the model ran",
    "heliostat_request_seconds": "Time from arrival to answer, of all requests together",
    "heliostat_cold_starts": "Replicas that were started",
}


class ReplicaMetrics:
    """The metrics of one replica; one thread writes them."""

    def __init__(self, app: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"application": app}
        self._gauges = {name: Gauge(name, about, tag_keys=("application",)) for name, about in _GAUGES.items()}
        self._counters = {name: Counter(name, about, tag_keys=("application",)) for name, about in _COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(tags)
        self._told: dict[str, float] = {}

    def tell(self, load: Load, counts: Counts, *, version: int) -> None:
        """All of it, as it is now."""
        gauges = (load.waiting_items, load.waiting_tokens, load.queued_s, load.busy, version)
        for gauge, value in zip(self._gauges.values(), gauges, strict=True):
            gauge.set(value)
        sums = (
            counts.requests, counts.sheds, load.items, load.tokens, load.batches, load.waited_s, load.forward_s,
            counts.total_s, 1,
        )  # fmt: skip
        for name, total in zip(self._counters, sums, strict=True):
            # A new version has a runner of its own in some recipes, whose sums begin again.
            grown = total - self._told.get(name, 0.0)
            self._told[name] = total
            if grown > 0:
                self._counters[name].inc(grown)
