"""Running a training function on a spot worker group with Ray Train, from inside a job.

    if __name__ == "__main__":
        run(train, config, name="intent-classifier", workers=2, checkpoint_every=20)

Ray Train does the restarts; the checkpoints are ours (see `checkpoint.py`), so each fit() gets a name of its own and
Ray's resume by name is never in play.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.commit import Manifest, read_file, read_manifest
from heliostat.errors import JobFailed
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train.context import OUTPUT_META, RunSpec, TrainContext, worker_context

if TYPE_CHECKING:
    from ray.train import ScalingConfig

RUN = "HELIOSTAT_RUN"
Config = TypeVar("Config")

# Of the user's own code. Losses of nodes are counted apart: a notice is free, a kill is charged here by Ray.
MAX_FAILURES = 3


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
    group: str = "train",
    workers: int = 2,
    checkpoint_every: int = 20,
) -> TrainedModel:
    """Train on `workers` nodes of the spot group, through reclaims, until the function is done.

    The run's name comes from HELIOSTAT_RUN, which `heliostat job submit` sets; by hand it is `name` and a random
    part. The same run name again resumes from its last checkpoint, and returns at once if it had finished.
    Raises JobFailed with the cause and where its log is.
    """
    settings = load()
    run_name = os.environ.get(RUN) or f"{name}-{uuid.uuid4().hex[:8]}"
    store = Store.connect(settings.store)
    done = trained_model(store, run_name)
    if done is not None:
        return done
    spec = RunSpec(run_name, checkpoint_every, workers, group, _tags())
    _fit(train, config, spec, settings)
    made = trained_model(store, run_name)
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
    context = worker_context(arguments["spec"])
    arguments["train"](context, arguments["config"])


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
    return {
        key: os.environ[f"HELIOSTAT_{key.upper()}"] for key in ("team", "project") if f"HELIOSTAT_{key.upper()}" in os.environ
    }


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
