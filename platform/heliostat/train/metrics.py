"""What a run shows in Ray's dashboard and in Prometheus, by run, as `ray_heliostat_train_*`; rank 0's keeper tells."""

from __future__ import annotations

from collections.abc import Mapping

_GAUGES = {
    "heliostat_train_step": "Steps completed",
    "heliostat_train_total_steps": "Steps that the run is to have",
    "heliostat_train_loss": "Loss of the last step",
}
_COUNTERS = {
    "heliostat_train_steps": "Steps done, those done twice as well",
    "heliostat_train_stall_seconds": "Time that steps waited for checkpoints",
}


class TrainMetrics:
    """Of a run, through all attempts whose rank 0 is on this node; one thread writes them."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._gauges = {name: Gauge(name, about, tag_keys=("run",)) for name, about in _GAUGES.items()}
        self._counters = {name: Counter(name, about, tag_keys=("run",)) for name, about in _COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags({"run": run})
        self._told: dict[str, float] = {}

    def tell(self, progress: Mapping[str, float]) -> None:
        """`progress` as the training process sends it (`TrainContext.step_done`)."""
        step = progress.get("step", 0.0)
        for name, value in zip(
            self._gauges, (step, progress.get("total", 0.0), progress.get("loss", 0.0)), strict=True
        ):
            self._gauges[name].set(value)
        sums = (step, progress.get("stall_s", 0.0))
        begun = (progress.get("from_step", 0.0), 0.0)
        for name, total, low in zip(self._counters, sums, begun, strict=True):
            grown = total - self._told.get(name, low)
            self._told[name] = total
            if grown > 0:
                self._counters[name].inc(grown)
