"""Whether a replica takes a request or refuses it, by the work that waits. Pure but for the clock it is given.

`max_queue` of the definition holds always. Below it a request is refused only under *overload*: a long queue alone may
be a burst, what waited for the replica to start, or a pool of clients that each wait for their answer, and all three
clear by themselves. In overload more work comes than the model can do, and whoever joins the queue waits for nothing:
the model is busy either way. So the queue is cut to what is ordinary below capacity, and the others are told at once.

Overload begins where all of this is so:
- more requests are under way than a pool of clients is likely to have (`POOL`);
- the replica has not been idle for a moment (`STANDING_S`): CoDel's interval (Nichols and Jacobson, "Controlling Queue
  Delay", 2012). CoDel looks at the shortest queue of an interval, but a batcher empties its queue with every batch, so
  here it is idleness;
- the work that came of late (`OFFERED_WINDOW_S`) exceeds what the model does in that time (`EXCESS`). Whoever had
  waited for the replica is not counted.
It ends where the last of these no longer holds: a queue of ten, once found too long, would otherwise refuse a pool of
32 for ever, since each of the refused comes again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from heliostat.inference.load import Load

POOL = 64
"""Requests under way at a replica that are no overload, whatever their size."""
STANDING_S = 0.1
"""A replica that was idle so recently has a burst before it."""
OFFERED_WINDOW_S = 0.5
EXCESS = 1.1
"""Of the capacity: a pool offers exactly what it is answered, give or take the model's own fluctuation."""
ORDINARY_SERVICES = 10
"""Mean requests that may wait in overload. At 0.8 of capacity the wait in an M/D/1 queue exceeds ln(80)/0.43 = 10
services in one case of a hundred. A service is the mean work of a request, so lists of texts have longer queues."""
LEAST_S = 0.02
"""Of waiting work that is never refused: nobody notices it, and a clock cannot tell less from a late thread."""
_MEMORY = 0.95
"""Weight of the past in the mean request: about the last twenty count."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused, in seconds of work."""

    queued_s: float
    limit_s: float


class Admission:
    """One replica's rule; the event loop alone asks it."""

    def __init__(self, max_queue_s: float) -> None:
        self._max_queue_s = max_queue_s
        self._mean_tokens = 0.0
        self._idle_at = float("-inf")  # when the replica was last seen idle
        self._came: deque[float] = deque()  # moments within the window, the refused among them
        self._overload = False

    def answered(self, tokens: int) -> None:
        """A request of that many tokens was answered."""
        if tokens > 0:
            self._mean_tokens = self._mean_tokens * _MEMORY + tokens * (1 - _MEMORY) if self._mean_tokens else tokens

    def refusal(self, load: Load, now: float, *, under_way: int, held: bool = False) -> Refusal | None:
        """None where the request may come in. `under_way`: requests let in and not answered yet. `held`: it has waited
        for a replica to start, so it is part of a burst that came while there was nobody to serve it, and only
        `max_queue` refuses it.
        """
        if not held:
            self._came.append(now)
        while self._came and self._came[0] <= now - OFFERED_WINDOW_S:
            self._came.popleft()
        if load.waiting_tokens + load.running_tokens == 0:
            self._idle_at = now
        if load.queued_s > self._max_queue_s:
            return Refusal(load.queued_s, self._max_queue_s)
        limit_s = max(LEAST_S, ORDINARY_SERVICES * self.mean_s(load))
        if not self._is_overload(load, now, under_way) or held:
            return None
        return Refusal(load.queued_s, limit_s) if load.waiting_tokens * load.seconds_per_token > limit_s else None

    def mean_s(self, load: Load) -> float:
        """Work of a mean request, in seconds."""
        return self._mean_tokens * load.seconds_per_token

    def _is_overload(self, load: Load, now: float, under_way: int) -> bool:
        if len(self._came) * self.mean_s(load) <= EXCESS * OFFERED_WINDOW_S:
            self._overload = False
        elif under_way > POOL and now - self._idle_at > STANDING_S:
            self._overload = True
        return self._overload
