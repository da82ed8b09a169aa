"""Whether a replica takes a request or refuses it, by the work that waits. Pure but for the clock it is given.

Two limits. `max_queue` of the definition holds always. The other holds only for a queue that *stands*: where a replica
has not been idle for a while, a long queue is no burst but overload, and every request that joins it waits as long as
the queue, for nothing: the model is busy either way. The idea is CoDel's (Nichols and Jacobson, "Controlling Queue
Delay", 2012): a good queue clears by itself, so a burst is let in whole; a standing one is cut down. CoDel looks at the
shortest queue of an interval, but a batcher empties its queue whenever it takes a batch: so here it is idleness.

How long a queue may stand: as long as the clients that wait for their answers make it. A pool of 32 connections, each
of which sends its next request when it has an answer, keeps 32 waiting and is no overload; half as many again is room
for a second one to begin. (At 0.8 of capacity the wait in an M/D/1 queue exceeds ln(80)/0.43 = 10 services in one case
of a hundred: ordinary open load stays far below.) A service is the mean work of one request, so lists of texts have
longer queues than single ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.inference.load import Load

STANDING_SERVICES = 48
"""Mean requests that may wait in a standing queue."""
STANDING_S = 0.1
"""A replica that was not idle for this long has a queue that stands; CoDel's interval."""
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

    def answered(self, tokens: int) -> None:
        """A request of that many tokens was answered."""
        if tokens > 0:
            self._mean_tokens = self._mean_tokens * _MEMORY + tokens * (1 - _MEMORY) if self._mean_tokens else tokens

    def refusal(self, load: Load, now: float, *, held: bool = False) -> Refusal | None:
        """None where the request may come in. `held`: it has waited for a replica to start, so it is part of a burst
        that came while there was nobody to serve it, and only `max_queue` refuses it.
        """
        if load.queued_s > self._max_queue_s:
            return Refusal(load.queued_s, self._max_queue_s)
        if load.waiting_tokens + load.running_tokens == 0:
            self._idle_at = now
        waiting_s = load.waiting_tokens * load.seconds_per_token
        limit_s = self.standing_limit_s(load)
        if waiting_s <= limit_s or held or now - self._idle_at <= STANDING_S:
            return None
        return Refusal(load.queued_s, limit_s)

    def standing_limit_s(self, load: Load) -> float:
        """Seconds of waiting work that a standing queue may have."""
        return max(LEAST_S, STANDING_SERVICES * self._mean_tokens * load.seconds_per_token)

    def mean_s(self, load: Load) -> float:
        """Work of a mean request, in seconds."""
        return self._mean_tokens * load.seconds_per_token
