"""How long a step's own work takes on this rank, without the waiting for the others.

All ranks leave `step_done` together and meet again in the first exchange of gradients, so a whole step takes as long
everywhere as on the slowest. What tells them apart is the time from one meeting to the next exchange: the data and the
forward pass. On a GPU it is taken with events on the stream, as kernels run later than they are called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEPT = 0.8  # of the smoothed figure, with each step


class OwnWork:
    """`step_s`: smoothed seconds; 0 until a step was made."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._begun: float | None = None
        self._events: tuple[Any, Any] | None = None  # Any: torch.cuda.Event
        self._forward_s: float | None = None
        self._forward_seen = False

    def watch(self, model: torch.nn.Module) -> None:
        """The model whose forward pass ends a step's own work. A step without one ends it in `end`."""
        model.register_forward_hook(self._after_forward)

    def begin(self) -> None:
        """All ranks are together."""
        import torch

        self._begun, self._forward_s, self._forward_seen = time.perf_counter(), None, False
        self._events = None
        if torch.cuda.is_available():
            event: Any = torch.cuda.Event  # Any: torch gives it no types
            self._events = (event(enable_timing=True), event(enable_timing=True))
            self._events[0].record()

    def end(self) -> None:
        """The step is made, and everything on the stream before it has been waited for."""
        if self._begun is None:
            return
        took = self._forward_s if self._forward_s is not None else time.perf_counter() - self._begun
        if self._events is not None and self._forward_seen:
            self._events[1].synchronize()
            took = max(took, self._events[0].elapsed_time(self._events[1]) / 1000)
        self.step_s = took if not self.step_s else KEPT * self.step_s + (1 - KEPT) * took

    def _after_forward(self, *_: object) -> None:
        """The last forward of a step counts; with several (accumulated gradients) they are all before the exchange."""
        if self._begun is None:
            return
        self._forward_s, self._forward_seen = time.perf_counter() - self._begun, True
        if self._events is not None:
            self._events[1].record()
