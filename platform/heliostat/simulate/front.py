"""Single requests: replicas with queues of their own, batches, admission. The rules are those that replicas run by.

A request goes to the replica with the fewest requests under way (HAProxy's leastconn). It is refused as
`serve.admission` says, waits in `inference.batching`'s queue, and runs in a pass with what goes before it up to the
batch's budget. Where no replica is open it is held, as by `serve.hold`, and let in when one opens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from heliostat.inference.batching import Item, TokenBatcher
from heliostat.inference.load import DutyCycle, Load
from heliostat.serve.admission import Admission
from heliostat.serve.hold import HOLD_S, MAX_HELD
from heliostat.serve.scaling import Demand
from heliostat.simulate.engine import Engine
from heliostat.simulate.measured import AppWork
from heliostat.simulate.tally import Tally

PER_SECOND = 1_000_000
"""A token here is a microsecond of model time, so that the batcher and admission reckon in time."""
MAX_ITEMS = 256
_DRAWN = 4096


class Replica:
    """One model and its queue."""

    def __init__(self, front: Front, batcher: TokenBatcher) -> None:
        self.front, self.batcher = front, batcher
        self.running: tuple[Item, ...] = ()
        self.running_tokens = 0
        self.under_way = 0
        self.busy_s = self.began_at = 0.0
        self.done_tokens = 0
        self.sheds = 0
        self.gone = False
        self.duty, self.demand = DutyCycle(), Demand()
        self.admission = Admission(front.max_queue_s)
        self.leave: Callable[[], None] | None = None

    def load(self) -> Load:
        speed = PER_SECOND / self.slowness
        return Load(self.batcher.queued_tokens, len(self.batcher), self.running_tokens, tokens_per_s=speed)

    @property
    def slowness(self) -> float:
        """Seconds that it ran for a second of work: above 1 where passes have an overhead."""
        return self.busy_s * PER_SECOND / self.done_tokens if self.done_tokens else 1.0

    def report(self, now: float) -> dict[str, float]:
        """What it tells the scaling policy."""
        load = self.load()
        return self.demand.report(
            now,
            queued_s=load.queued_s,
            busy=self.duty.share(now),
            sheds=self.sheds,
            mean_request_s=self.admission.mean_s(load),
        )


class Front:
    """One application's replicas that take requests, and those that wait for one to open.

    shared: one queue for all replicas, as the textbook's queues have; production has a queue per replica.
    """

    def __init__(
        self,
        engine: Engine,
        work: AppWork,
        *,
        max_queue_s: float,
        random: np.random.Generator,
        shared: bool = False,
        admit: bool = True,
    ) -> None:
        self.engine, self.work, self.max_queue_s = engine, work, max_queue_s
        self.tally = Tally()
        self.open: list[Replica] = []
        self.closing: list[Replica] = []
        self.held: deque[tuple[float, int]] = deque()
        self.last_answer_at = -math.inf
        self.told: Callable[[], None] | None = None
        """Called when something was answered."""
        self.busy_s = 0.0
        """Model time of all replicas, passes that were cut off included."""
        self._random = random
        self._drawn = iter(list[int]())
        self.taken = 0
        """Requests that a replica took."""
        self._admit = admit
        self._shared = self._batcher() if shared else None

    def _batcher(self) -> TokenBatcher:
        return TokenBatcher(max(1, round(self.work.batch_seconds * PER_SECOND)), MAX_ITEMS)

    def draw_tokens(self) -> int:
        """Of one request: gamma, by mean and variation."""
        try:
            return next(self._drawn)
        except StopIteration:
            self._drawn = iter(self._draw())
            return next(self._drawn)

    def _draw(self) -> list[int]:
        mean, variation = self.work.seconds_per_item * PER_SECOND, self.work.variation
        if variation == 0:
            return [max(1, round(mean))] * _DRAWN
        drawn = self._random.gamma(variation**-2, mean * variation**2, _DRAWN)
        whole: list[int] = np.maximum(1, np.rint(drawn)).astype(np.int64).tolist()
        return whole

    # --- requests

    def arrive(self, work_s: float = math.nan) -> None:
        """A request, of that much work or of what is drawn."""
        tokens = self.draw_tokens() if math.isnan(work_s) else max(1, round(work_s * PER_SECOND))
        self.tally.offered += 1
        if self.open:
            self._route(self.engine.now, tokens, held=False)
        elif len(self.held) < MAX_HELD:
            self.held.append((self.engine.now, tokens))
        else:
            self._give_up_old()
            if len(self.held) < MAX_HELD:
                self.held.append((self.engine.now, tokens))
            else:
                self.tally.refused += 1

    def _give_up_old(self) -> None:
        while self.held and self.engine.now - self.held[0][0] > HOLD_S:
            self.held.popleft()
            self.tally.gave_up += 1

    def next_replica(self) -> Replica:
        """That the next request goes to."""
        return min(self.open, key=_under_way)

    def _route(self, arrived_s: float, tokens: int, *, held: bool) -> None:
        replica = self.next_replica()
        refusal = (
            replica.admission.refusal(replica.load(), self.engine.now, under_way=replica.under_way, held=held)
            if self._admit
            else None
        )
        if refusal is not None:
            replica.sheds += 1
            self.tally.refused += 1
            return
        self.taken += 1
        replica.batcher.add(Item(self.taken, tokens, arrived_s, math.inf))
        if self._shared is None:
            replica.under_way += 1
            if not replica.running:
                self._begin(replica)
            return
        idle = next((one for one in self.open if not one.running), None)
        if idle is not None:
            self._begin(idle)

    def _begin(self, replica: Replica) -> None:
        now = self.engine.now
        batch = replica.batcher.take(now)
        if not batch.items:
            return
        replica.running, replica.running_tokens = batch.items, batch.tokens
        for item in batch.items:
            self.tally.wait.add(now - item.arrived_s)
        replica.began_at = now
        replica.duty.begin(now)
        took_s = batch.tokens / PER_SECOND + self.work.pass_overhead
        self.engine.at(now + took_s, self._end, replica, batch.items, took_s)

    def _end(self, replica: Replica, items: tuple[Item, ...], took_s: float) -> None:
        if replica.gone:
            return  # its requests have been sent elsewhere
        now = self.engine.now
        replica.duty.end(now)
        replica.busy_s += took_s
        self.busy_s += took_s
        replica.done_tokens += replica.running_tokens
        replica.running, replica.running_tokens = (), 0
        for item in items:
            self.tally.latency.add(now - item.arrived_s)
            replica.admission.answered(item.tokens)
        self.tally.answered += len(items)
        self.last_answer_at = now
        if self.told:
            self.told()
        replica.under_way = max(0, replica.under_way - len(items))
        if not (self._shared is not None and replica.leave):
            self._begin(replica)
        if replica.leave and not replica.running:
            self._left(replica)

    # --- replicas

    def add(self) -> Replica:
        """One more replica takes requests; those that were held are let in first."""
        replica = Replica(self, self._batcher() if self._shared is None else self._shared)
        self.open.append(replica)
        self._give_up_old()
        held, self.held = self.held, deque()
        for arrived_s, tokens in held:
            self._route(arrived_s, tokens, held=True)
        return replica

    def close(self, replica: Replica, then: Callable[[], None]) -> None:
        """It takes no more, answers what it has, and `then()`."""
        self.open.remove(replica)
        self.closing.append(replica)
        replica.leave = then
        if not replica.running:
            self._left(replica)

    def _left(self, replica: Replica) -> None:
        self.closing.remove(replica)
        then, replica.leave = replica.leave, None
        if then:
            then()

    def cut(self, replica: Replica) -> None:
        """Its node is gone: what it had is sent again, from the beginning."""
        if replica in self.open:
            self.open.remove(replica)
        if replica in self.closing:
            self.closing.remove(replica)
        replica.gone = True
        if replica.running:
            self.busy_s += self.engine.now - replica.began_at
        waiting = replica.batcher.take(self.engine.now).items if self._shared is None else ()
        lost = list(replica.running)
        while waiting:
            lost += waiting
            waiting = replica.batcher.take(self.engine.now).items
        for item in lost:
            if self.open:
                self._route(item.arrived_s, item.tokens, held=True)
            else:
                self.held.append((item.arrived_s, item.tokens))

    def finish(self) -> None:
        """The end of the simulation: what has no answer yet is counted."""
        self._give_up_old()
        inside = sum(len(one.running) for one in (*self.open, *self.closing))
        batchers = {id(one.batcher): one.batcher for one in (*self.open, *self.closing)}
        if self._shared is not None:
            batchers[id(self._shared)] = self._shared
        self.tally.left = inside + len(self.held) + sum(len(batcher) for batcher in batchers.values())

    @property
    def empty(self) -> bool:
        return not self.held and all(not one.running and not one.batcher for one in (*self.open, *self.closing))


def _under_way(replica: Replica) -> int:
    return replica.under_way
