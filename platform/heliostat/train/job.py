"""Running a training function on a spot worker group with Ray Train, from inside a job.

    if __name__ == "__main__":
        run(train, config, name="intent-classifier", workers=2, checkpoint_every=20)

Ray Train does the restarts; the checkpoints are ours (see `checkpoint.py`), so each fit() gets a name of its own and
Ray's resume by name is never in play.
"""

from __future__ import annotations

import json
import os
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.commit import Manifest, read_file, read_manifest
from heliostat.errors import JobFailed, StoreError
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train.context import (
    OUTPUT_META,
    RunSpec,
    TrainContext,
    clear_failure,
    read_failure,
    worker_context,
)

if TYPE_CHECKING:
    from ray.train import ScalingConfig

RUN = "HELIOSTAT_RUN"
GROUP = "HELIOSTAT_GROUP"
Config = TypeVar("Config")

# Losses without notice in one run; those with notice are not counted by Ray, and the user's own errors end the run.
MAX_FAILURES = 20
# How long a worker whose peer went away waits to hear that it failed by its own error.
PEER_S = 3.0


@dataclass(frozen=True)
class TrainedModel:
    """What a finished run left in the store: the files to publish, and what to say about them."""

    run: str
    manifest: Manifest
    metrics: dict[str, float]
    lineage: dict[str, Any]  # Any: JSON

    def read(self, store: Store) -> dict[str, bytes]:
        """Every file to publish, verified."""
        return {name: read_file(store, self.manifest, name) for name in self.manifest.files if name != OUTPUT_META}


def trained_model(store: Store, run: str) -> TrainedModel | None:
    """The output of a run, or None while it has none."""
    manifest = read_manifest(store, f"runs/{run}/output/manifest.json")
    if manifest is None:
        return None
    about = json.loads(read_file(store, manifest, OUTPUT_META))
    return TrainedModel(run, manifest, about["metrics"], about["lineage"])


def run(
    train: Callable[[TrainContext, Config], None],
    config: Config,
    *,
    name: str,
    group: str | None = None,
    workers: int = 2,
    checkpoint_every: int = 20,
) -> TrainedModel:
    """Train on `workers` nodes of the spot group, through reclaims, until the function is done.

    The run's name comes from HELIOSTAT_RUN, which `heliostat job submit` sets; by hand it is `name` and a random
    part. The group, where none is given, comes from HELIOSTAT_GROUP in the same way. The same run name again resumes
    from its last checkpoint, and returns at once if it had finished.
    Raises JobFailed with the cause and where its log is.
    """
    settings = load()
    run_name = os.environ.get(RUN) or f"{name}-{uuid.uuid4().hex[:8]}"
    store = Store.connect(settings.store)
    done = trained_model(store, run_name)
    if done is not None:
        return done
    group = group or os.environ.get(GROUP) or "train"
    spec = RunSpec(run_name, checkpoint_every, workers, group, _tags())
    clear_failure(store, run_name)  # of an earlier try whose driver was killed before it could tell
    _fit(train, config, spec, settings)
    made = trained_model(store, run_name)
    failure = None if made else read_failure(store, run_name)
    if failure is not None:
        raise JobFailed(
            f"the training function raised\n{failure}",
            where=f"run {run_name}",
            do="mend it; the same run name resumes from the last checkpoint",
        )
    if made is None:
        raise JobFailed(f"run {run_name} ended without calling context.finish(...)", do="call it on every rank")
    return made


def _fit(train: Callable[[TrainContext, Config], None], config: Config, spec: RunSpec, settings: Settings) -> None:
    import ray.train
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"train": train, "config": config, "spec": spec},
        scaling_config=_scaling(spec),
        torch_config=TorchConfig(backend="gloo" if _gpus_are_logical() else "nccl", timeout_s=120),
        run_config=RunConfig(
            name=f"{spec.run}-{uuid.uuid4().hex[:6]}",
            storage_path=f"{settings.store.bucket}/runs/{spec.run}/ray",
            storage_filesystem=_filesystem(settings),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise JobFailed(
            f"training failed: {_root_cause(error)}",
            where=f"run {spec.run}",
            do="read the job's log above this line; the same run name resumes from the last checkpoint",
        ) from error


def _worker(arguments: dict[str, Any]) -> None:
    """One worker. An error of the user's own code is told once and ends the run; only losses are tried again."""
    context = worker_context(arguments["spec"])
    try:
        arguments["train"](context, arguments["config"])
    except Exception as error:
        if _is_loss(error):
            if not context.failed_elsewhere(wait_s=PEER_S):
                raise
            return
        context.fail(traceback.format_exc(limit=-4))


def _is_loss(error: Exception) -> bool:
    """Whether a node, a peer or the store went away, rather than the training function being wrong."""
    import torch.distributed
    from ray.exceptions import RayActorError

    if isinstance(error, RayActorError | StoreError | torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)  # gloo raises no class of its own


def _scaling(spec: RunSpec) -> ScalingConfig:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=spec.workers,
        use_gpu=True,
        resources_per_worker={"GPU": 1, "CPU": 1},
        placement_strategy="SPREAD",
        label_selector={"heliostat.io/group": spec.group},
    )


def _filesystem(settings: Settings) -> Any:  # Any: pyarrow ships no types
    from pyarrow.fs import S3FileSystem

    keys = settings.store
    options: dict[str, Any] = {"region": keys.region}
    if keys.access_key_id and keys.secret_access_key:
        options["access_key"] = keys.access_key_id
        options["secret_key"] = keys.secret_access_key.get_secret_value()
    if keys.endpoint:
        scheme, _, host = keys.endpoint.partition("://")
        options |= {"endpoint_override": host, "scheme": scheme}
    return S3FileSystem(**options)


def _gpus_are_logical() -> bool:
    """Whether the cluster declares GPUs that are not there; only the embedded cluster does, and says so."""
    return os.environ.get("HELIOSTAT_LOGICAL_GPUS") == "1"


def _tags() -> dict[str, str]:
    given = {key: os.environ.get(f"HELIOSTAT_{key.upper()}") for key in ("team", "project")}
    return {key: value for key, value in given.items() if value}


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
