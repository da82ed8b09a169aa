"""What a rank says once it makes no progress: which collective it is in, and where its main thread stands.

A run of many ranks goes on together or not at all: when one of them stops, the others wait for it inside a collective,
and none of them reports a step. Each counts the collectives that it has entered (torch keeps the count), so the one
that is behind is the one that the others wait for. A run that goes on says nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_S = 60.0
"""Without a step for this long, and for ten times a usual step, a rank says so; again after as long once more."""
LOOK_S = 1.0


class StallWatch:
    """Looks on from a thread of its own. `tell` is called with fields of the event `no_progress`."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._main = threading.main_thread().ident
        self._step, self._since, self._pace_s = 0, time.monotonic(), 0.0
        self._told_at: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="stall-watch").start()

    def step_done(self, step: int, pace_s: float) -> None:
        self._step, self._since, self._pace_s = step, time.monotonic(), pace_s
        self._told_at = None

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            now = time.monotonic()
            stuck = now - self._since
            again = self._told_at is None or now - self._told_at >= FIRST_S
            if stuck >= max(FIRST_S, 10 * self._pace_s) and again:
                self._told_at = now
                self._tell(
                    step=self._step, seconds=round(stuck, 1), collectives=_collectives(), doing=_where(self._main)
                )


def _collectives() -> int | None:
    """How many collectives this rank has entered; None without a process group, or where it does not count."""
    torch: Any = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    try:
        return int(dist.distributed_c10d._get_default_group()._get_sequence_number_for_group())
    except (RuntimeError, AttributeError):
        return None


def _where(thread: int | None) -> str:
    """The innermost frame of the thread that is not the interpreter's or a package's own, as file:line in function."""
    frame = sys._current_frames().get(thread or 0)
    inner = frame
    while frame is not None and "site-packages" in frame.f_code.co_filename:
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
