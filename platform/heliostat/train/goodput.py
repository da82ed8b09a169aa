"""Where a training's GPU time went. Pure: what the driver saw of each attempt in, GPU-seconds out.

    held = useful + again + stall + data + startup + waiting

`useful`   steps that the result is made of
`again`    steps that a loss took back, and that were computed once more
`stall`    steps that waited for a checkpoint
`data`     steps that waited for their samples
`startup`  from the decision to start an attempt to its first completed step, restoring included; and after its last
`waiting`  workers held while others were still missing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Goodput:
    """GPU-seconds, and the steps behind them."""

    useful: float = 0.0
    again: float = 0.0
    stall: float = 0.0
    data: float = 0.0
    startup: float = 0.0
    waiting: float = 0.0
    steps: int = 0
    steps_again: int = 0
    attempts: int = 0

    @property
    def held(self) -> float:
        return self.useful + self.again + self.stall + self.data + self.startup + self.waiting

    @property
    def share(self) -> float:
        """Useful of held, 0 to 1."""
        return self.useful / self.held if self.held else 0.0

    def line(self) -> str:
        """For the job's log."""
        return (
            f"{self.held:.0f} GPU-seconds held, {self.share:.0%} useful; {self.startup:.0f} starting, "
            f"{self.waiting:.0f} waiting for nodes, {self.stall:.1f} for checkpoints, {self.data:.1f} for data, "
            f"{self.again:.0f} for "
            f"{self.steps_again} steps computed again; {self.steps} steps in {self.attempts} attempts"
        )


@dataclass(frozen=True)
class Span:
    """One attempt as the driver saw it. Times in seconds on one clock; steps count completed ones.

    `first_at` is when its first step was completed, None if none was; `from_step` is where it resumed.
    """

    workers: int
    waited_s: float
    began_at: float
    ended_at: float
    first_at: float | None = None
    last_at: float | None = None
    from_step: int = 0
    step: int = 0
    stall_s: float = 0.0
    data_s: float = 0.0


def reckon(spans: Sequence[Span]) -> Goodput:
    """The attempts of one run, in order. A step that was done before in an earlier attempt is done again."""
    total = Goodput(attempts=len(spans))
    reached = 0
    for span in spans:
        training = _training(span)
        stall = min(span.stall_s, training)
        data = min(span.data_s, training - stall)
        stepping = training - stall - data
        steps = max(0, span.step - span.from_step) if span.first_at is not None else 0
        again = max(0, min(span.step, reached) - span.from_step) if steps else 0
        share = again / steps if steps else 0.0
        reached = max(reached, span.step)
        total = replace(
            total,
            useful=total.useful + stepping * (1 - share) * span.workers,
            again=total.again + stepping * share * span.workers,
            stall=total.stall + stall * span.workers,
            data=total.data + data * span.workers,
            startup=total.startup + (span.ended_at - span.began_at - training) * span.workers,
            waiting=total.waiting + span.waited_s * span.workers,
            steps=reached,
            steps_again=total.steps_again + again,
        )
    return total


def _training(span: Span) -> float:
    """Seconds in which steps were made; the first step's own time counts as start-up, as nothing tells it apart."""
    if span.first_at is None or span.last_at is None:
        return 0.0
    return max(0.0, min(span.last_at, span.ended_at) - span.first_at)
