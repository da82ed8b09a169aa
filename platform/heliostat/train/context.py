"""What a training function sees: its rank and device, the last checkpoint, and one call after each step.

    def train(context: TrainContext, config: Config) -> None:
        ...build model and optimizer...
        start = context.restore(model, optimizer)
        for step in range(start, total_steps):
            ...one step...
            context.step_done(step + 1, total_steps, loss=loss)
        context.finish(files={...}, metrics={...})

`step_done` checkpoints on the interval, and when a node of the run has been given notice it checkpoints at once and
leaves the node, so that nothing is recomputed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliostat.commit import commit
from heliostat.errors import ObjectExists, ObjectMissing
from heliostat.events import Spool
from heliostat.inference.device import pick_device
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train.checkpoint import CheckpointWriter, load_optimizer, newest, optimizer_tensors

if TYPE_CHECKING:
    import torch

OUTPUT_META = "run.json"


@dataclass(frozen=True)
class RunSpec:
    """What the driver tells every worker."""

    run: str
    checkpoint_every: int  # steps
    workers: int
    group: str
    tags: dict[str, str]


class TrainContext:
    """One worker's view of the run. Made by `heliostat.train.job.run`, in the worker."""

    def __init__(self, spec: RunSpec, settings: Settings, *, rank: int, world_size: int) -> None:
        self.spec = spec
        self.rank = rank
        self.world_size = world_size
        self.device = pick_device()
        self._store = Store.connect(settings.store)
        self._attempt = uuid.uuid4().hex[:12]
        self._writer = CheckpointWriter(self._store, spec.run, self._attempt)
        self._spool = Spool(settings.spool, f"train-{spec.run}-{rank}-{self._attempt}")
        self._model: torch.nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._meta: dict[str, Any] = {}
        self._emit_worker("worker_started")

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the run's newest complete checkpoint into both; returns the number of steps already done (0: fresh)."""
        self._model, self._optimizer = model, optimizer
        found = newest(self._store, self.spec.run)
        if found is not None:
            names = dict(model.state_dict())
            model.load_state_dict({name: found.tensors[f"model.{name}"] for name in names})
            load_optimizer(optimizer, found.tensors)
            self._meta = dict(found.meta)
        step = 0 if found is None else found.step
        self._emit("train_resumed" if found else "train_started", step=step)
        return step

    def step_done(self, step: int, total: int, *, loss: float, tokens: int = 0) -> None:
        """To be called by every rank after each optimizer step. `step` counts completed steps, from 1.

        Raises ray's RayActorError, which Ray Train takes for a preemption, after the checkpoint that a notice asked
        for is in the store. Let it pass.
        """
        self._emit("step", step=step, total=total, loss=round(loss, 5), tokens=tokens)
        if self._any_rank_has_notice():
            self._checkpoint(step, wait=True)
            self._barrier()
            self._emit("train_left", step=step)
            self._emit_worker("worker_ended")
            _leave()
        if step % self.spec.checkpoint_every == 0 and step < total:
            self._checkpoint(step, wait=False)

    def finish(self, *, files: Mapping[str, bytes], metrics: Mapping[str, float], lineage: Mapping[str, Any]) -> None:
        """Put what the training made into the store, whole or not at all, as `runs/<run>/output`. Rank 0 only acts."""
        self._writer.wait()
        if self.rank == 0:
            about = {"run": self.spec.run, "metrics": dict(metrics), "lineage": dict(lineage)}
            folder = f"runs/{self.spec.run}/output"
            # An attempt that was killed just after its commit has finished the run: its output is the run's.
            with contextlib.suppress(ObjectExists):
                commit(
                    self._store,
                    folder,
                    {**files, OUTPUT_META: json.dumps(about).encode()},
                    manifest_key=f"{folder}/manifest.json",
                    attempt=self._attempt,
                )
            self._emit("train_finished", metrics=dict(metrics))
        self._barrier()
        self._emit_worker("worker_ended")

    def fail(self, trace: str) -> None:
        """Say that the training function itself is wrong, then let the other ranks know by closing the connections."""
        import torch.distributed as dist

        print(trace, flush=True)  # noqa: T201  # the job's log is its standard output
        self._store.put(_failure_key(self.spec.run), trace.encode())
        self._emit_worker("worker_failed")
        if dist.is_initialized():
            dist.destroy_process_group()

    def failed_elsewhere(self, *, wait_s: float) -> bool:
        """Whether another rank has said so, waiting a moment for it."""
        deadline = time.monotonic() + wait_s
        while read_failure(self._store, self.spec.run) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def log(self, message: str) -> None:
        if self.rank == 0:
            print(message, flush=True)  # noqa: T201  # the job's log is its standard output

    def _checkpoint(self, step: int, *, wait: bool) -> None:
        if self.rank != 0 or self._model is None or self._optimizer is None:
            return
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        self._writer.save(step, {**tensors, **optimizer_tensors(self._optimizer)}, self._meta, wait=wait)
        self._emit("checkpoint", step=step, waited=wait)

    def _any_rank_has_notice(self) -> bool:
        """All ranks agree by an all-reduce, so that all leave after the same step."""
        import ray.train
        import torch
        import torch.distributed as dist

        mine = 1.0 if ray.train.get_preemption_info() is not None else 0.0
        if self.world_size == 1:
            return mine > 0
        flag = torch.tensor([mine], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item() > 0)

    def _barrier(self) -> None:
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()

    def _emit_worker(self, kind: str) -> None:
        """Every rank says when it held its node's GPU: the meter needs it."""
        node = os.environ.get("HELIOSTAT_NODE_ID", "")
        self._spool.emit(kind, run=self.spec.run, rank=self.rank, node=node, attempt=self._attempt, **self.spec.tags)

    def _emit(self, kind: str, **fields: Any) -> None:
        if self.rank == 0:
            self._spool.emit(kind, run=self.spec.run, attempt=self._attempt, **self.spec.tags, **fields)


def read_failure(store: Store, run: str) -> str | None:
    """The traceback that ended the run, None where its training function has not failed."""
    try:
        return store.get(_failure_key(run)).data.decode()
    except ObjectMissing:
        return None


def clear_failure(store: Store, run: str) -> None:
    store.delete(_failure_key(run))


def _failure_key(run: str) -> str:
    return f"runs/{run}/failure.txt"


def worker_context(spec: RunSpec) -> TrainContext:
    import ray.train

    about = ray.train.get_context()
    return TrainContext(spec, load(), rank=about.get_world_rank(), world_size=about.get_world_size())


def _leave() -> None:
    from ray.exceptions import RayActorError

    # Measured: 7.8 s from notice to the next step, against 10.8 s with a return and a second fit(). It leans on Ray
    # reading `preempted` as the loss of a node, which is charged to the preemption budget, not to max_failures.
    raise RayActorError(error_msg="left the node on notice, checkpoint saved", preempted=True)
