"""For those who have a Ray Train script: the pieces that place it on the job's group and keep its state in the store.

    from ray.train.torch import TorchTrainer
    from heliostat.train import ray_train

    def main() -> None:
        result = TorchTrainer(
            train,
            scaling_config=ray_train.scaling_config(workers=2),
            torch_config=ray_train.torch_config(),
            run_config=ray_train.run_config(),
        ).fit()
        ray_train.hand_in(files={"model.safetensors": weights}, metrics=result.metrics, lineage={})

Such a script is a job of the definition like any other: submitted, listed, logged and published in the same way, and
the same run name again resumes from Ray Train's last checkpoint. What it does not get: the training is torn down and
started anew at each loss (docs/decisions/0013-recovery.md), no interval is promised, and its goodput is not counted.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heliostat.errors import ObjectExists, UsageError
from heliostat.settings import StoreSettings, load
from heliostat.store import Store
from heliostat.train.context import write_output
from heliostat.train.job import GROUP, RUN
from heliostat.train.reclaims import LABEL_GROUP

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

LOSSES = 100
"""Lost worker groups that a run survives. A bound at all, because Ray Train retries errors of one's own code too."""


def scaling_config(*, workers: int | tuple[int, int], cpus: float = 1, gpus: float = 1) -> ScalingConfig:
    """Workers on the job's group; a pair is (fewest, most), for an elastic run."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
        placement_strategy="SPREAD",
        label_selector={LABEL_GROUP: _given(GROUP)},
    )


def torch_config() -> TorchConfig:
    """gloo where the GPUs are only declared, as on a laptop's cluster."""
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="gloo" if os.environ.get("HELIOSTAT_LOGICAL_GPUS") == "1" else "nccl")


def run_config(**more: Any) -> RunConfig:  # Any: RunConfig's own fields
    """The run's name and a folder of the store, `runs/<run>/ray-train`; losses of nodes are survived."""
    from ray.train import FailureConfig, RunConfig

    run, store = _given(RUN), load().store
    fields: dict[str, Any] = {
        "name": run,
        "storage_path": f"{store.bucket}/runs/{run}/ray-train",
        "storage_filesystem": filesystem(store),
        "failure_config": FailureConfig(max_failures=LOSSES),
    }
    return RunConfig(**(fields | more))


def filesystem(store: StoreSettings) -> Any:  # Any: pyarrow ships no types
    """The store for what takes a pyarrow filesystem: Ray Train, Ray Tune, Ray Data."""
    from pyarrow.fs import S3FileSystem

    options: dict[str, Any] = {"region": store.region}
    if store.access_key_id and store.secret_access_key:
        options["access_key"] = store.access_key_id
        options["secret_key"] = store.secret_access_key.get_secret_value()
    if store.session_token:
        options["session_token"] = store.session_token.get_secret_value()
    if store.endpoint:
        scheme, _, host = store.endpoint.partition("://")
        options |= {"endpoint_override": host, "scheme": scheme}
    return S3FileSystem(**options)


def hand_in(
    *,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float] | None,
    lineage: Mapping[str, Any],
    run: str | None = None,
) -> None:
    """Make these files the run's output, whole or not at all, so that it can be published. By the driver, after fit.

    A run that has an output keeps it.
    """
    with contextlib.suppress(ObjectExists):
        write_output(
            Store.connect(load().store),
            run or _given(RUN),
            files=files,
            metrics={key: float(value) for key, value in (metrics or {}).items() if isinstance(value, int | float)},
            lineage=lineage,
            attempt=uuid.uuid4().hex[:12],
        )


def _given(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UsageError(f"{name} is not set", do="submit the script with heliostat job submit, which sets it")
    return value
