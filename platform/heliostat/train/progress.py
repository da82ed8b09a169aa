"""How far a run is, in the store: one small object that its driver keeps up to date, and whoever follows it reads.

    runs/<run>/progress.json

It holds the curve as well, thinned to CURVE points, so that it outlives the nodes and the events.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from heliostat.errors import CorruptArtifact, ObjectMissing, StoreError
from heliostat.store import Store, json_bytes

CURVE = 1000
PERIOD_S = 2.0


@dataclass(frozen=True)
class Progress:
    """A run as its driver sees it. Steps count completed ones; times are in seconds since the epoch."""

    run: str
    state: str  # waiting for nodes, starting, training, done, failed
    at: float
    step: int = 0
    total: int = 0
    loss: float | None = None
    steps_per_s: float = 0.0
    group: str = ""
    nodes: tuple[str, ...] = ()  # Ray's ids
    gpu_seconds: float = 0.0
    useful: float = 0.0  # of the GPU-seconds, 0 to 1
    losses: int = 0  # workers lost without a notice
    notices: int = 0
    steps_again: int = 0
    attempts: int = 0
    deadline: float | None = None
    curve: tuple[tuple[int, float], ...] = ()  # (step, loss)

    def line(self) -> str:
        """For a person who watches."""
        parts = [f"step {self.step}/{self.total}" if self.total else self.state]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.state == "training":
            parts.append(f"{self.steps_per_s:.2f} steps/s")
        elif self.total:
            parts.append(self.state)
        parts.append(f"{self.gpu_seconds:.0f} GPU-s, {self.useful:.0%} useful")
        nodes, reclaims = len(self.nodes), self.losses + self.notices
        parts.append(f"{nodes} node{'s' * (nodes != 1)} of {self.group}")
        parts.append(f"{reclaims} reclaim{'s' * (reclaims != 1)}, {self.steps_again} steps again")
        if self.deadline is not None:
            left_s = max(0.0, self.deadline - self.at)
            parts.append(f"{left_s / 60:.0f} min to the deadline" if left_s < 7200 else f"{left_s / 3600:.1f} h to it")
        return "  ".join(parts)


_READ = TypeAdapter(Progress)


def read_progress(store: Store, run: str) -> Progress | None:
    """None while nothing is known of the run. Raises CorruptArtifact."""
    try:
        data = store.get(_key(run)).data
    except ObjectMissing:
        return None
    try:
        return _READ.validate_json(data)
    except ValidationError as error:
        raise CorruptArtifact(f"not a run's progress: {error.errors()[0]['msg']}", where=_key(run)) from error


class Curve:
    """The losses of a run, at most CURVE points: when there are more, every other one is left out."""

    def __init__(self, points: tuple[tuple[int, float], ...] = ()) -> None:
        self._points = list(points)
        self._every = 1

    def add(self, step: int, loss: float) -> None:
        """Steps that a loss took back are replaced by what comes now."""
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        if self._points and step - self._points[-1][0] < self._every:
            return
        self._points.append((step, round(loss, 5)))
        if len(self._points) > CURVE:
            span = self._points[-1][0] - self._points[0][0]
            self._points = self._points[::2]
            self._every = max(1, 2 * span // CURVE)

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        return tuple(self._points)


class Board:
    """Puts the newest progress into the store, in a thread of its own: the driver never waits for it."""

    def __init__(self, store: Store, run: str, look: Callable[[], Progress]) -> None:
        self._store, self._run_name, self._look = store, run, look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Put the last word; a store that is away is not waited for."""
        self._stop.set()
        self._thread.join(PERIOD_S * 3)

    def _run(self) -> None:
        while True:
            ended = self._stop.wait(PERIOD_S)
            with contextlib.suppress(StoreError):
                self._store.put(_key(self._run_name), json_bytes(asdict(self._look())))
            if ended:
                return


def curve_of(store: Store, run: str) -> Curve:
    """To go on from; empty where there is none, or it cannot be read."""
    with contextlib.suppress(StoreError, CorruptArtifact):
        known = read_progress(store, run)
        if known is not None:
            return Curve(known.curve)
    return Curve()


def _key(run: str) -> str:
    return f"runs/{run}/progress.json"
