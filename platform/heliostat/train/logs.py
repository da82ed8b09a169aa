"""A job's log in the store, so that it outlives the driver, its node and the cluster.

    runs/<run>/logs/<begun>-<job>/<number>.log   whole segments, the last one written anew as it grows

S3 cannot append. A segment is at most SEGMENT bytes, so what is written again each time is bounded, and so is the
number of objects. What is shipped is the file behind the driver's standard output: Ray's jobs write to one, and the
lines of the workers come there too.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from pathlib import Path

from heliostat.errors import StoreError
from heliostat.store import Store

SEGMENT = 64 * 1024
PERIOD_S = 2.0
_BEGUN = 15
"""Digits of the milliseconds since the epoch."""


class LogShipper:
    """Ships what is new in a growing file. Remembers no bytes: what a failing store has not taken is read again."""

    def __init__(self, store: Store, prefix: str, path: Path) -> None:
        self._store, self._prefix, self._path = store, prefix, path
        self._number, self._shipped = 0, 0  # the segment that grows, and how much of it is in the store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="log")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ship the rest. Waits for it, but not for a store that is away."""
        self._stop.set()
        self._thread.join(PERIOD_S * 5)

    def ship(self) -> None:
        """Everything that is new. Raises StoreError."""
        with self._path.open("rb") as file:
            while True:
                file.seek(self._number * SEGMENT)
                data = file.read(SEGMENT)
                if len(data) > self._shipped:
                    self._store.put(f"{self._prefix}/{self._number:08d}.log", data)
                    self._shipped = len(data)
                if len(data) < SEGMENT:
                    return
                self._number, self._shipped = self._number + 1, 0

    def _run(self) -> None:
        while True:
            ended = self._stop.wait(PERIOD_S)
            with contextlib.suppress(StoreError, OSError):  # the next round reads the same bytes again
                self.ship()
            if ended:
                return


def shipper(store: Store, run: str, job: str, output: int = 1) -> LogShipper | None:
    """For the file behind a descriptor; None where that is a terminal or a pipe."""
    if not stat.S_ISREG(os.fstat(output).st_mode):
        return None
    return LogShipper(store, log_prefix(run, job, time.time()), Path(f"/proc/self/fd/{output}"))


def read_logs(store: Store, name: str) -> str | None:
    """The log of a job, or of all jobs of a run, in the order in which they were begun. None where there is none."""
    keys = [info.key for info in store.list(f"runs/{name}/logs")]
    if not keys and "-" in name:
        run = name.rpartition("-")[0]  # a job's name is its run's and four letters
        keys = [info.key for info in store.list(f"runs/{run}/logs") if info.key.split("/")[3][_BEGUN + 1 :] == name]
    return b"".join(store.get(key).data for key in sorted(keys)).decode(errors="replace") if keys else None


def log_prefix(run: str, job: str, begun: float) -> str:
    """Where a job's segments go; by time, so that a run's jobs sort as they were begun."""
    return f"runs/{run}/logs/{round(begun * 1000):0{_BEGUN}d}-{job}"
