"""What a training function sees: its rank and device, the last checkpoint, and one call after each step.

    def train(context: TrainContext, config: Config) -> None:
        ...build model and optimizer...
        start = context.restore(model, optimizer, scheduler=scheduler)
        for step in range(start, total_steps):
            ...one step...
            context.step_done(step + 1, total_steps, loss=loss)
        context.finish(files={...}, metrics={...}, lineage={...})

A checkpoint holds model, optimizer, whatever else has `state_dict`, and the random generators of every rank: a resumed
run of as many workers equals an uninterrupted one bit for bit on the CPU. The order of the data must follow from the
seed and the step, or be given to `restore` as well.

`step_done` begins checkpoints early enough that a node killed without notice costs `checkpoint_every` steps at most,
and on a notice it checkpoints at once and leaves the node, so that nothing is recomputed. Where no interval is given,
it is the one that loses the least time, from what a checkpoint costs and how often the group's nodes are taken away.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from heliostat.commit import commit
from heliostat.errors import CorruptArtifact, ObjectExists
from heliostat.events import Spool
from heliostat.inference.device import pick_device
from heliostat.plan.policy.checkpoint import Interval, checkpoint_interval
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train.checkpoint import Checkpoint, CheckpointWriter, Part, Place, at, complete, patiently
from heliostat.train.pace import OwnWork
from heliostat.train.reclaims import Reclaims
from heliostat.train.seat import GO_ON, LEAVE, SAVE, Seat
from heliostat.train.stall import StallWatch

if TYPE_CHECKING:
    import torch

OUTPUT_META = "run.json"
FIRST_INTERVAL = 10
"""Steps, where the interval is to be found and nothing is measured yet."""
DATA_WAIT_TOLD_S = 0.01
_RANDOMS_BYTES = 20_480  # 1,249 words of up to 10 digits, as JSON


class Stateful(Protocol):
    """A scheduler, a sampler, a data loader: its state holds JSON values and tensors."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class RunSpec:
    """What the driver tells every worker."""

    run: str
    checkpoint_every: int | None  # steps: what a loss without notice may cost; None: what loses the least
    workers: int
    group: str
    tags: dict[str, str]
    reclaims: Reclaims = field(default_factory=Reclaims)  # of the group's nodes, as counted when the driver began
    gpus: float = 1.0  # that a worker holds


class Wishes(Protocol):
    """What the keeper has asked of this worker, and where it says how far it is."""

    def wish(self) -> float: ...
    def progress(self, **figures: float) -> None: ...


class Left(BaseException):
    """Raised through the training function when its checkpoint is in the store and the node is to be left.

    No Exception, so that a recipe's own `except Exception` does not hold it up.
    """


class TrainContext:
    """One worker's view of the run. Made by `heliostat.train.child`, in the training process."""

    def __init__(
        self, spec: RunSpec, settings: Settings, seat: Seat, wishes: Wishes, *, began_at: float | None = None
    ) -> None:
        self.spec = spec
        self.rank = seat.rank
        self.world_size = seat.world_size
        self.device = pick_device()
        self._seat = seat
        self._wishes = wishes
        self._store = Store.connect(settings.store)
        self._writer = CheckpointWriter(
            self._store,
            spec.run,
            generation=seat.generation,
            attempt=seat.attempt,
            rank=seat.rank,
            ranks=seat.world_size,
            on_trouble=self._trouble,
        )
        self._spool = Spool(settings.spool, f"train-{spec.run}-{seat.rank}-{seat.attempt}")
        self._model: torch.nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._extras: dict[str, Stateful] = {}
        self._safe_step = 0  # the newest step that a loss cannot take back
        self._pace_s = 0.0  # of a step, smoothed
        self._last_step_at: float | None = None
        self._stall_s = 0.0
        self._own = OwnWork()
        self._data_s = self._data_told_s = 0.0  # in which the steps waited for data
        self._every = spec.checkpoint_every or FIRST_INTERVAL
        self._save_s = 0.0  # what the last checkpoint kept the steps waiting
        self._interval_of: int | None = None  # the committed step that `_every` was last reckoned after
        self._from_step = 0
        self._first_at: float | None = None
        self._emit_worker("worker_started", began_at=time.time() if began_at is None else began_at)
        self._newest = _Ahead(self._store, spec.run, self._trouble)
        self._stall = StallWatch(partial(self._emit_worker, "no_progress", world=seat.world_size))

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **extras: Stateful) -> int:
        """Load the run's newest complete checkpoint; returns the number of steps already done (0: fresh).

        `extras` are saved and restored as well, by their names. The random generators are put back last: draw nothing
        between this call and the first step that an uninterrupted run would not have drawn there.
        """
        self._model, self._optimizer, self._extras = model, optimizer, dict(extras)
        self._own.watch(model)
        begun = time.time()
        candidates = self._newest.first_then_others()
        while (found := self._same_for_all(candidates)) is not None:
            if self._all(self._loads(found)):
                self._safe_step = self._from_step = found.step
                self._emit("train_resumed", step=found.step, generation=self._seat.generation, restore_at=begun)
                return found.step
        self._emit("train_started", step=0, generation=self._seat.generation)
        return 0

    def step_done(self, step: int, total: int, *, loss: float, tokens: int = 0) -> None:
        """To be called by every rank after each optimizer step. `step` counts completed steps, from 1."""
        self._measure_pace()
        self._stall.step_done(step, self._pace_s)
        self._own.end()
        self._measure_data()
        self._emit("step", step=step, total=total, loss=round(loss, 5), tokens=tokens, world=self.world_size)
        now = time.time()
        self._first_at = self._first_at or now
        self._wishes.progress(
            step=step,
            total=total,
            loss=loss,
            stall_s=self._stall_s,
            data_s=self._data_s,
            every=self._every,
            from_step=self._from_step,
            first_at=self._first_at,
            last_at=now,
            own_s=self._own.step_s,
            upload_s=self._writer.seconds,
        )
        word = self._agree(max(self._wishes.wish(), SAVE if self._is_due(step, total) else GO_ON))
        if word == LEAVE:
            self._save(step)
            self._writer.wait()
            self._barrier()
            self._emit("train_left", step=step)
            self._emit_worker("worker_ended")
            raise Left
        if word == SAVE and step < total:
            self._save(step)
        self._hold_to_interval(step, total)
        self._own.begin()

    def finish(self, *, files: Mapping[str, bytes], metrics: Mapping[str, float], lineage: Mapping[str, Any]) -> None:
        """Put what the training made into the store, whole or not at all, as `runs/<run>/output`. Rank 0 only acts."""
        self._stall.end()
        self._writer.wait()
        if self.rank == 0:

            def write() -> None:
                # An attempt that was killed just after its commit has finished the run: its output is the run's.
                with contextlib.suppress(ObjectExists):
                    write_output(
                        self._store,
                        self.spec.run,
                        files=files,
                        metrics=metrics,
                        lineage=lineage,
                        attempt=self._seat.attempt,
                    )

            patiently(write, what="the output", warn=self._trouble)
            self._emit("train_finished", metrics=dict(metrics))
        self._barrier()
        self._emit_worker("worker_ended")

    def data_waited(self, seconds: float) -> None:
        """For a recipe with a data loader of its own: how long the step just made has waited for its samples.

        A `Stream` that was given to `restore` is asked by itself.
        """
        self._data_s += seconds

    def fail(self) -> None:
        """The training function itself is wrong."""
        self._emit_worker("worker_failed")

    def log(self, message: str) -> None:
        if self.rank == 0:
            with contextlib.suppress(OSError):  # a full disk ends no training
                print(message, flush=True)  # noqa: T201  # the job's log is its standard output

    # --- when -------------------------------------------------------------------------------------------------------

    def _is_due(self, step: int, total: int) -> bool:
        """Rank 0 begins a checkpoint so many steps early as its way into the store takes, on what was measured."""
        if self.rank != 0 or step >= total or self._writer.busy:
            return False
        every = self._find_interval()
        if self._writer.committed is None:
            lead = every / 2  # nothing is measured yet
        else:
            lead = 1.25 * self._writer.seconds / max(self._pace_s, 1e-6) + 1
        since = step - (self._writer.started if self._writer.started is not None else self._safe_step)
        return since >= max(1, every - math.ceil(min(lead, every / 2)))

    def _hold_to_interval(self, step: int, total: int) -> None:
        """Wait, if going on would put more than the interval at risk. The other ranks wait in the next step."""
        if self.rank != 0:
            return
        self._safe_step = max(self._safe_step, self._writer.committed or 0)
        if step - self._safe_step < self._every or step >= total or self._writer.started is None:
            return
        begun = time.monotonic()
        self._writer.wait()
        waited = time.monotonic() - begun
        self._stall_s += waited
        self._safe_step = max(self._safe_step, self._writer.committed or 0)
        self._emit("checkpoint_stall", step=step, seconds=round(waited, 4))

    def _find_interval(self) -> int:
        """In steps: as it was asked for, or reckoned anew after each checkpoint, from what that one cost."""
        if self.spec.checkpoint_every is not None or self._writer.committed == self._interval_of or not self._pace_s:
            return self._every
        self._interval_of = self._writer.committed
        found = self._best_interval()
        if found.steps != self._every:
            self._every = found.steps
            self._emit(
                "checkpoint_interval",
                steps=found.steps,
                seconds=round(found.seconds, 3),
                stall_s=round(self._save_s, 4),
                upload_s=round(self._writer.seconds, 3),
                step_s=round(self._pace_s, 4),
                lost_share=round(found.lost_share, 6),
            )
        return self._every

    def _best_interval(self) -> Interval:
        reclaims = self.spec.reclaims
        return checkpoint_interval(
            stall_s=self._save_s,
            step_s=self._pace_s,
            rate_per_node_hour=reclaims.per_node_hour,
            nodes=self._seat.nodes,
            unannounced=reclaims.unannounced_share,
            least_s=self._writer.seconds,
        )

    def _measure_data(self) -> None:
        """Take in how long the data kept the steps waiting; told when there is something to tell."""
        self._data_s += sum(getattr(extra, "take_waited", float)() for extra in self._extras.values())
        waited = self._data_s - self._data_told_s
        if waited > DATA_WAIT_TOLD_S:
            self._data_told_s = self._data_s
            self._emit("data_wait", seconds=round(waited, 4))

    def _measure_pace(self) -> None:
        now = time.monotonic()
        if self._last_step_at is not None:
            took = now - self._last_step_at
            self._pace_s = took if not self._pace_s else 0.8 * self._pace_s + 0.2 * took
        self._last_step_at = now

    def _agree(self, word: float) -> float:
        """All ranks take the highest word of all, so that all save, or leave, after the same step."""
        import torch
        import torch.distributed as dist

        if self.world_size == 1:
            return word
        flag = torch.tensor([word], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return float(flag.item())

    # --- what -------------------------------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        if self._model is None or self._optimizer is None:
            return
        begun = time.monotonic()
        tensors, places = _flatten(self._model, self._optimizer)
        sharded = bool(places)
        randoms = self._gather_randoms()
        meta: dict[str, Any] = {"world_size": self.world_size, "groups": _group_options(self._optimizer)}
        for name, extra in self._extras.items():
            held, plain = _split(extra.state_dict())
            tensors.update({f"extra.{name}.{key}": value for key, value in held.items()})
            meta.setdefault("extras", {})[name] = plain
        if self.rank == 0:
            tensors.update(randoms)
        if self.rank == 0 or sharded:
            mine = tensors if self.rank == 0 else {key: tensors[key] for key in places}
            self._writer.save(step, Part(mine, places), meta, sharded=sharded)
        took = time.monotonic() - begun
        self._stall_s += took
        self._save_s = took
        self._emit("checkpoint", step=step, stall_s=round(took, 4))

    def _same_for_all(self, candidates: Iterator[Checkpoint]) -> Checkpoint | None:
        """Rank 0's next candidate, on every rank: what each finds for itself may differ by a commit in between."""
        import torch.distributed as dist

        if self.world_size == 1:
            return next(candidates, None)
        mine = next(candidates, None)  # every rank has read ahead, and rarely for nothing
        choice = [mine.manifest.prefix if mine is not None else ""]
        dist.broadcast_object_list(choice, src=0)
        if not choice[0]:
            return None
        if mine is not None and mine.manifest.prefix == choice[0]:
            return mine
        return patiently(lambda: at(self._store, choice[0]), what="the restore", warn=self._trouble)

    def _loads(self, found: Checkpoint) -> bool:
        try:
            self._load(found)
        except CorruptArtifact as error:
            self._trouble(f"passing over a damaged checkpoint: {error}")
            return False
        return True

    def _all(self, mine: bool) -> bool:
        return self._agree(0.0 if mine else 1.0) == 0.0

    def _load(self, found: Checkpoint) -> None:
        import torch

        model, optimizer = self._model, self._optimizer
        if model is None or optimizer is None:
            return
        wanted = _pieces(model, optimizer)
        tensors = found.read_pieces(wanted) if wanted else found.tensors()
        with torch.no_grad():
            for name, target in model.state_dict().items():
                if f"model.{name}" not in wanted:
                    target.copy_(tensors[f"model.{name}"])
        _load_optimizer(optimizer, tensors, wanted, found.meta["groups"])
        for name, extra in self._extras.items():
            start = f"extra.{name}."
            held = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            extra.load_state_dict(_join(held, found.meta["extras"][name]))
        self._set_randoms(tensors)

    def _gather_randoms(self) -> dict[str, torch.Tensor]:
        """The state of every rank's generators, on rank 0."""
        import torch.distributed as dist

        mine = _randoms()
        if self.world_size == 1:
            return {f"random.0.{name}": value for name, value in mine.items()}
        everyone: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object({name: value.tolist() for name, value in mine.items()}, everyone)
        import torch

        return {
            f"random.{rank}.{name}": torch.tensor(value, dtype=torch.uint8)
            for rank, states in enumerate(everyone or [])
            for name, value in states.items()
        }

    def _set_randoms(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """This rank's own generators; a rank that the saving run did not have goes on from rank 0's, set apart."""
        start = f"random.{self.rank}."
        if any(name.startswith(start) for name in tensors):
            _put_back({n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)})
            return
        import torch

        _put_back({n.removeprefix("random.0."): v for n, v in tensors.items() if n.startswith("random.0.")})
        torch.manual_seed(torch.initial_seed() + 1_000_003 * self.rank)

    def _barrier(self) -> None:
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()

    # --- events -----------------------------------------------------------------------------------------------------

    def _emit_worker(self, kind: str, **fields: Any) -> None:
        """Every rank says when it held its node's GPU: the meter needs it."""
        node = os.environ.get("HELIOSTAT_NODE_ID", "")
        about = {"run": self.spec.run, "rank": self.rank, "node": node, "attempt": self._seat.attempt}
        about["gpus"] = self.spec.gpus
        if keeper := os.environ.get("HELIOSTAT_KEEPER"):
            fields |= {"keeper": keeper}
            about["gpus"] = float(os.environ.get("HELIOSTAT_KEEPER_GPUS", 1))
        self._spool.emit(kind, **about, **self.spec.tags, **fields)

    def _emit(self, kind: str, **fields: Any) -> None:
        if self.rank == 0:
            self._spool.emit(kind, run=self.spec.run, attempt=self._seat.attempt, **self.spec.tags, **fields)

    def _trouble(self, message: str) -> None:
        self.log(message)
        self._emit("checkpoint_trouble", message=message)


def write_output(
    store: Store,
    run: str,
    *,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float],
    lineage: Mapping[str, Any],
    attempt: str,
) -> None:
    """A run's output, whole or not at all. Raises ObjectExists where it has one."""
    about = {"run": run, "metrics": dict(metrics), "lineage": dict(lineage)}
    folder = f"runs/{run}/output"
    content = {**files, OUTPUT_META: json.dumps(about).encode()}
    commit(store, folder, content, manifest_key=f"{folder}/manifest.json", attempt=attempt)


class _Ahead:
    """Reads the newest checkpoint while the recipe still builds its model."""

    def __init__(self, store: Store, run: str, warn: Callable[[str], None]) -> None:
        self._store, self._run, self._warn = store, run, warn
        self._found: Checkpoint | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True, name="restore")
        self._thread.start()

    def first_then_others(self) -> Iterator[Checkpoint]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._found is None:
            return
        yield self._found
        others = complete(self._store, self._run, warn=self._warn)
        yield from (found for found in others if found.manifest != self._found.manifest)

    def _read(self) -> None:
        try:
            patiently(self._find, what="the restore", warn=self._warn)
        except CorruptArtifact:
            pass  # found again, and told, when it is read in earnest
        except Exception as error:  # noqa: BLE001  # a thread's boundary: raised where it is waited for
            self._error = error

    def _find(self) -> None:
        self._found = next(complete(self._store, self._run, warn=self._warn), None)
        if self._found is not None:
            self._found.fetch()


# --- states as flat tensors -----------------------------------------------------------------------------------------


def _flatten(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Place]]:
    """Model and optimizer as local tensors, and the place of each that is only a piece (a DTensor of FSDP2)."""
    named = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    tensors, places = {}, {}
    for name, value in named.items():
        piece = _piece(value)
        tensors[name] = value if piece is None else piece[0]
        if piece is not None:
            places[name] = piece[1]
    return tensors, places


def _pieces(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[torch.Tensor, Place]]:
    """What this rank holds a piece of only, to be filled. The optimizer's state is made like its parameters."""
    import torch

    found = {}
    for name, value in model.state_dict().items():
        piece = _piece(value)
        if piece is not None:
            found[f"model.{name}"] = piece
    for index, parameter in enumerate(_parameters(optimizer)):
        piece = _piece(parameter)
        if piece is not None:
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                found[f"optimizer.{index}.{name}"] = (torch.zeros_like(piece[0]), piece[1])
    return found


def _piece(value: Any) -> tuple[torch.Tensor, Place] | None:
    """(local tensor, its place) of a DTensor; None for a tensor that is whole."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local = value.to_local()
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return local, Place(tuple(value.shape), tuple(offset))


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    pieces: Mapping[str, tuple[torch.Tensor, Place]],
    groups: list[dict[str, Any]],
) -> None:
    from torch.distributed.tensor import DTensor

    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    parameters = _parameters(optimizer)
    for key, (local, _) in pieces.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            like = parameters[int(index)]
            if int(index) in state and isinstance(like, DTensor):
                state[int(index)][name] = DTensor.from_local(
                    local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                )
    whole = optimizer.state_dict()
    whole["state"] = state
    for group, options in zip(whole["param_groups"], groups, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    optimizer.load_state_dict(whole)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Each group's rates and other numbers, as a scheduler has left them."""
    plain = (int, float, bool, str, type(None), tuple, list)
    return [
        {key: value for key, value in group.items() if key != "params" and isinstance(value, plain)}
        for group in optimizer.param_groups
    ]


def _split(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, the rest). The rest must be JSON: said here, where the name is known, and not by a later restore."""
    import torch

    held = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    plain = {key: value for key, value in state.items() if key not in held}
    return held, json.loads(json.dumps(plain))


def _join(held: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {**plain, **held}


def _randoms() -> dict[str, torch.Tensor]:
    """The generators of Python, numpy, torch and CUDA, as bytes."""
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    text = json.dumps(
        {
            "python": [version, list(words), gauss],
            "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        }
    )
    found = {
        "torch": torch.get_rng_state(),
        # Always of one length, so that a checkpoint's layout stays what it is.
        "python": torch.frombuffer(bytearray(text.encode().ljust(_RANDOMS_BYTES)), dtype=torch.uint8),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _put_back(states: Mapping[str, torch.Tensor]) -> None:
    import numpy as np
    import torch

    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "python" in states:
        about = json.loads(bytes(states["python"].tolist()))
        version, words, gauss = about["python"]
        random.setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = about["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
