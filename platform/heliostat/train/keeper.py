"""One worker's place on a node: a small Ray actor that holds the GPU and starts training processes there.

The actor imports no torch and lives through restarts of the training: when a node is lost, the keepers of the others
stay, and each forks a new training process in milliseconds. Made and driven by `heliostat.train.gang`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heliostat.clock import process_began_at
from heliostat.train import warm
from heliostat.train.metrics import TrainMetrics
from heliostat.train.seat import MAIN, About, Ended, Seat
from heliostat.train.warm import Channel, ChannelClosed, TrainingProcess

FROZEN_S = 15.0
"""Without a sign of life for so long a training process counts as frozen. It beats twice a second."""
PORT_LIMIT_S = 60.0


class Keeper:
    """Called from several threads: `train` blocks while a training runs, the others come in meanwhile."""

    _gpus = 1.0  # that Ray gave it

    def __init__(self) -> None:
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        self._listener = socket.create_server((address, 0))
        self._about = About(context.get_node_id(), address, self._listener.getsockname()[1], process_began_at())
        self._gpus = float(context.get_assigned_resources().get("GPU", 0))
        self._process: TrainingProcess | None = None
        self._attempt = ""
        self._progress: dict[str, float] = {}
        self._metrics: TrainMetrics | None = None
        self._tells = False
        self._lock = threading.Lock()
        warm.ensure(self._about.node_id, belongs_to=os.getppid())
        threading.Thread(target=self._hold_lines, daemon=True, name="lines").start()

    def about(self) -> About:
        return self._about

    def prepare(self, seat: Seat, order: bytes, run: str = "") -> int:
        """Start a training process; returns the port at which rank 0 waits for the others (0 for other ranks).

        Ends the process before, if there is one.
        """
        self.stop()
        warm.ensure(self._about.node_id, belongs_to=os.getppid())  # in case the one before is gone
        env = {
            **os.environ,
            "HELIOSTAT_BIND": self._about.address,
            "HELIOSTAT_KEEPER": self._about.name,
            "HELIOSTAT_KEEPER_GPUS": str(self._gpus),
        }
        env.setdefault("HELIOSTAT_NODE_ID", self._about.node_id)
        if os.environ.get("HELIOSTAT_LOOPBACK_ONLY") == "1":
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        process = warm.start(self._about.node_id, warm.Start(MAIN, env, str(Path.cwd()), list(sys.path)), order)
        with self._lock:
            self._process, self._attempt, self._progress = process, seat.attempt, {}
        self._tells = bool(run) and seat.rank == 0
        if self._tells and self._metrics is None:
            self._metrics = TrainMetrics(run)
        with contextlib.suppress(ChannelClosed):
            process.channel.send(asdict(seat))
            if seat.rank == 0 and seat.world_size > 1:
                message = process.channel.receive(PORT_LIMIT_S)
                return 0 if message is None else int(message["port"])
        return 0

    def train(self, host: str, port: int) -> Ended:
        """Let the prepared process go, and wait until it has ended."""
        process = self._process
        if process is None:
            return Ended("lost", "there is no training process")
        with contextlib.suppress(ChannelClosed):
            process.channel.send({"address": [host, port]})
        return self._follow(process)

    def tell(self, attempt: str, word: str) -> None:
        """Pass "save" or "leave" on to the attempt's training process."""
        process = self._process
        if process is not None and self._attempt == attempt:
            with contextlib.suppress(ChannelClosed):
                process.channel.send({"word": word})

    def progress(self) -> dict[str, float]:
        return self._progress

    def stop(self, attempt: str | None = None) -> None:
        """SIGKILL the training process, if there is one; of that attempt only, as calls may overtake each other."""
        with self._lock:
            if attempt is not None and self._attempt != attempt:
                return
            process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _hold_lines(self) -> None:
        """Accept whoever wants to know that we live: the kernel closes the connection with us, and they see it at once.

        Ray tells of a dead node only after its health check has failed a few times.
        """
        lines = []
        while True:
            line, _ = self._listener.accept()
            lines.append(line)

    def _follow(self, process: TrainingProcess) -> Ended:
        channel: Channel = process.channel
        heard = time.monotonic()
        while True:
            try:
                message = channel.receive(1.0)
            except ChannelClosed:
                return Ended("lost", f"the training process ended by itself: {_status(process)}", self._progress)
            if message is not None:
                heard = time.monotonic()
                self._progress = message.get("progress", self._progress)
                if "progress" in message and self._tells and self._metrics is not None:
                    self._metrics.tell(self._progress)
                if "ended" in message:
                    return Ended(message["ended"], message["text"], self._progress)
            elif time.monotonic() - heard > FROZEN_S:
                process.kill()
                return Ended("lost", f"the training process gave no sign of life for {FROZEN_S:g} s", self._progress)


def warm_up() -> str:
    """Run once on a node that may be needed: its warm process, the job's folder and a Ray worker are there then."""
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    warm.ensure(node, belongs_to=os.getppid())
    return node


def _status(process: TrainingProcess) -> str:
    status: Any = process.exit_status()
    if status is None:
        return "status unknown"
    return f"signal {-status}" if status < 0 else f"exit code {status}"
