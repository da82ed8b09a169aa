"""The training process: joins the others, runs the training function, says how it ended.

Begun by `heliostat.train.warm`, with a channel to its keeper. What it says there: `port` (rank 0), `beat`, `progress`,
and last `ended`, with one of

    done     the function returned
    left     it left on request, its checkpoint in the store
    lost     a peer or the store went away: to be tried again
    failed   the function itself is wrong: told once, with its traceback

It knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from heliostat.errors import StoreError, TrainingSuperseded
from heliostat.inference.device import pick_device
from heliostat.plan import fabric
from heliostat.settings import load
from heliostat.store import Store
from heliostat.train.checkpoint import STORE_PATIENCE_S
from heliostat.train.context import Left, RunSpec, TrainContext
from heliostat.train.fabric import check as check_fabric
from heliostat.train.seat import GO_ON, SAVE, WORDS, Seat

if TYPE_CHECKING:
    from heliostat.train.warm import Channel

BEAT_S = 0.5
JOIN_LIMIT_S = 60.0
# Above the patience with a store that is away: meanwhile rank 0 waits for it, and the others for rank 0. Peers that are
# dead or frozen are seen long before, by the driver.
COLLECTIVE_LIMIT_S = STORE_PATIENCE_S + 300.0


@dataclass(frozen=True)
class Order:
    """What a training process is to do; travels pickled, from the driver over the keeper."""

    spec: RunSpec
    train: Callable[[TrainContext, Any], None]  # Any: the recipe's own configuration
    config: Any


class _Line:
    """The channel to the keeper: reads wishes and beats in two threads of its own."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._wish = GO_ON
        self._address: tuple[str, int] | None = None
        self._has_address = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True, name="keeper").start()
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def address(self) -> tuple[str, int]:
        """Where rank 0 waits, once the driver has told. Raises TimeoutError."""
        if not self._has_address.wait(JOIN_LIMIT_S) or self._address is None:
            raise TimeoutError("the other workers did not come")
        return self._address

    def wish(self) -> float:
        """What is asked now; a SAVE is asked once, a LEAVE stays."""
        wish = self._wish
        if wish == SAVE:
            self._wish = GO_ON
        return wish

    def progress(self, **figures: float) -> None:
        self.send({"progress": {**figures, "at": time.time()}})

    def send(self, message: dict[str, Any]) -> None:
        self._channel.send(message)

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.receive() or {}
                if "address" in message:
                    host, port = message["address"]
                    self._address = (str(host), int(port))
                    self._has_address.set()
                if message.get("word") in WORDS:
                    self._wish = max(self._wish, WORDS[message["word"]])
        except OSError:
            os._exit(1)  # without its keeper nobody can tell it to stop

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                time.sleep(BEAT_S)
                self.send({"beat": time.time()})


def main(channel: Channel, payload: bytes) -> None:
    """Called in the training process, by `heliostat.train.warm`."""
    began_at = time.time()
    line = _Line(channel)
    seat = Seat(**(channel.receive() or {}))
    listener = _listen(channel) if seat.rank == 0 and seat.world_size > 1 else None
    order: Order = pickle.loads(payload)  # noqa: S301  # from our own driver, as Ray itself sends functions
    line.start()
    kind, text = _run(order, seat, line, listener, began_at)
    channel.send({"ended": kind, "text": text})
    # The keeper reads it and kills us; leaving on our own would close connections before the others have ended.
    time.sleep(30 if kind in ("done", "left") else 0)


def _run(order: Order, seat: Seat, line: _Line, listener: socket.socket | None, began_at: float) -> tuple[str, str]:
    context = None
    try:
        if seat.world_size > 1:
            _join(seat, line.address(), listener)
            if (expected := fabric.from_environment(os.environ)) is not None:
                settings = load()
                check_fabric(Store.connect(settings.store), order.spec.run, expected, seat.rank, pick_device())
        context = TrainContext(order.spec, load(), seat, line, began_at=began_at)
        order.train(context, order.config)
        return "done", ""
    except Left:
        return "left", ""
    except Exception as error:  # noqa: BLE001  # told apart below, and told to the driver
        if _is_loss(error):
            return "lost", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        trace = traceback.format_exc(limit=-4)
        with contextlib.suppress(OSError):
            print(trace, flush=True)  # noqa: T201  # the job's log is its standard output
        if context is not None:
            with contextlib.suppress(OSError):
                context.fail()
        return "failed", trace


def _listen(channel: Channel) -> socket.socket:
    """Rank 0's side of the meeting: on the one address that the keeper names, never on all."""
    listener = socket.socket()
    listener.bind((os.environ.get("HELIOSTAT_BIND", "127.0.0.1"), 0))
    listener.listen(128)
    channel.send({"port": listener.getsockname()[1]})
    return listener


def _join(seat: Seat, address: tuple[str, int], listener: socket.socket | None) -> None:
    import torch
    import torch.distributed as dist

    host, port = address
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
        host,
        port,
        world_size=seat.world_size,
        is_master=seat.rank == 0,
        timeout=timedelta(seconds=JOIN_LIMIT_S),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(seat.attempt, store),  # type: ignore[attr-defined]
        rank=seat.rank,
        world_size=seat.world_size,
        timeout=timedelta(seconds=COLLECTIVE_LIMIT_S),
    )


def _is_loss(error: Exception) -> bool:
    """Whether a node, a peer or the store went away, rather than the training function being wrong."""
    import torch.distributed

    if isinstance(error, StoreError | TrainingSuperseded | TimeoutError | torch.distributed.DistError):
        return True
    # gloo raises no class of its own
    return isinstance(error, RuntimeError) and "gloo" in str(error)
