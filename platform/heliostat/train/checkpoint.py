"""A training state as files, and back: safetensors for what is a tensor, JSON for the rest. No pickle.

The state is what a resumed run needs to go on as if nothing had happened: model, optimizer, and where the data
stands. Writing goes through the commit protocol, so a reader sees a whole checkpoint or none.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliostat.commit import commit, newest_complete, read_file
from heliostat.errors import ObjectExists
from heliostat.store import Store

if TYPE_CHECKING:
    import torch

TENSORS = "state.safetensors"
META = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` lie on the CPU; `step` is the number of steps completed when it was taken."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]  # Any: JSON that the training function gave


def prefix(run: str) -> str:
    return f"checkpoints/{run}/"


def newest(store: Store, run: str) -> Checkpoint | None:
    """The newest complete checkpoint of the run in the store, verified; None if there is none yet.

    The store is asked, not Ray: Ray counts a checkpoint only once its controller has polled for it.
    """
    import safetensors.torch

    manifest = newest_complete(store, prefix(run))
    if manifest is None:
        return None
    meta = json.loads(read_file(store, manifest, META))
    return Checkpoint(meta["step"], safetensors.torch.load(read_file(store, manifest, TENSORS)), meta["meta"])


class CheckpointWriter:
    """Writes checkpoints behind the training's back: the step waits only for the copy to host memory.

    One checkpoint is under way at a time; asking for the next waits for the one before. An upload that failed is
    raised by the next call, after the store's own retries.
    """

    def __init__(self, store: Store, run: str, attempt: str) -> None:
        self._store, self._run, self._attempt = store, run, attempt
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._steps_written: set[int] = set()

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], *, wait: bool) -> None:
        self.wait()
        if step in self._steps_written:
            return
        host = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(step, host, dict(meta)), name="checkpoint")
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint under way is in the store. Raises what its upload raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        import safetensors.torch

        folder = f"{prefix(self._run)}{step:012d}"
        try:
            commit(
                self._store,
                folder,
                {
                    TENSORS: safetensors.torch.save(tensors),
                    META: json.dumps({"step": step, "meta": meta}).encode(),
                },
                manifest_key=f"{folder}/manifest.json",
                attempt=self._attempt,
            )
            self._steps_written.add(step)
        except ObjectExists:
            # An earlier attempt, taken for dead, has committed this very step: it is as good as ours.
            self._steps_written.add(step)
        except Exception as error:  # noqa: BLE001  # a thread's boundary: handed to the next call of the owner
            self._error = error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's per-parameter state, flat: `optimizer.<parameter index>.<name>`."""
    return {
        f"optimizer.{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `optimizer_tensors`, into an optimizer over the same parameters in the same order."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
