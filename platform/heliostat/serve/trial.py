"""Two versions in one replica: one known to be good, and one that is tried beside it.

Which requests the tried one is given first is the release record's business (`heliostat.promote.release`); here they
are answered and counted. No client pays for a bad version: what the tried one fails at, or does not answer in time,
the version before answers, and that counts as the tried one's error.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from heliostat.inference.load import Load
from heliostat.promote.release import Trial
from heliostat.promote.tally import Latencies, Tally, bucket_of
from heliostat.serve.api import Api, Loaded, Operation, Sent
from heliostat.serve.compare import Reading, compare, read
from heliostat.serve.errors import NOT_FINITE, RequestError
from heliostat.serve.recipe import EmbeddingModel, ItemModel
from heliostat.serve.requests import DEADLINE_S, Exchange, Identity

if TYPE_CHECKING:
    from starlette.responses import Response

log = logging.getLogger(__name__)

SESSION = "x-session-id"
"""A client's own: its requests all get the same version. Else each request is drawn by its id."""
KEPT = 64
"""Different requests that a replica remembers, to try a version with before anybody waits for it."""
KEPT_BYTES = 16 * 1024
"""Of each."""
AT_ONCE = 4
"""Copies that run at a time; more are left out, so that a trial costs a bounded part of the replica."""
PROBES_S = 3.0
"""What the first comparison may take before the trial begins."""
_SLOW, _SLOW_S, _NO_MEASURE_S = 10.0, 1.0, 10.0


class Recent:
    """The last different requests that were answered, in memory alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Sent], None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, path: str, sent: Sent) -> None:
        if len(sent.body) > KEPT_BYTES:
            return
        with self._lock:
            self._kept[path, sent] = None
            self._kept.move_to_end((path, sent))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def all(self) -> list[tuple[str, Sent]]:
        """Newest first."""
        with self._lock:
            return list(reversed(self._kept))


@dataclass
class Counts:
    """The replica's event loop writes them, its watcher reads."""

    probed: int = 0
    shadowed: int = 0
    requests: int = 0
    compared: int = 0
    disagreed: int = 0
    drift: float = 0.0
    errors: int = 0
    nans: int = 0
    last_error: str = ""
    before: dict[int, int] = field(default_factory=dict)
    tried: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Outcome:
    """What one version made of a request: a response, or the error it refused it with."""

    response: Response | None
    error: RequestError | None
    seconds: float

    @cached_property
    def reading(self) -> Reading | None:
        body = getattr(self.response, "body", None)  # a stream has none yet
        return read(body) if isinstance(body, bytes) else None

    @property
    def failed(self) -> int:
        """Items without an answer; at least one where there is none at all."""
        if self.error is not None:
            return 1_000_000
        reading = self.reading
        return 0 if reading is None else reading.failed

    @property
    def is_not_finite(self) -> bool:
        reading = self.reading
        if self.error is not None:
            return NOT_FINITE in self.error.message
        return reading is not None and reading.not_finite > 0

    @property
    def said(self) -> str:
        if self.error is not None:
            return self.error.message
        return NOT_FINITE if self.is_not_finite else "an item got no answer"


class TrialRun:
    """One release in this replica. `before` and `tried` are whole APIs, each with a queue of its own; without a
    `before`, which did not fit beside it, nobody answers what the tried one fails at.
    """

    def __init__(self, plan: Trial, *, before: Api | None, tried: Api) -> None:
        self.plan = plan
        self.before, self.tried = before, tried
        self.counts = Counts()
        self._copies: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    def tally(self) -> Tally:
        counts = vars(self.counts) | {
            "before": Latencies(buckets=dict(self.counts.before)),
            "tried": Latencies(buckets=dict(self.counts.tried)),
        }
        identity = self.tried.loaded.identity
        return Tally(
            release=self.plan.release,
            version=identity.version,
            digest=identity.digest,
            alone=self.before is None,
            **counts,
        )

    @property
    def is_busy(self) -> bool:
        return self.in_flight > 0 or bool(self._copies)

    def holds(self, version: int) -> Api | None:
        """The API that has this version."""
        return next((api for api in (self.before, self.tried) if api and api.loaded.identity.version == version), None)

    async def answer(self, operation: Operation, sent: Sent, exchange: Exchange, *, session: str | None) -> Response:
        """One request. Raises RequestError where the version known to be good refuses it too."""
        self.in_flight += 1
        try:
            if self.before is None:
                return await self._answer_alone(operation, sent, exchange)
            if _place(self.plan.release, session or exchange.request_id) < self.plan.share:
                return await self._answer_tried(self.before, operation, sent, exchange)
            return await self._answer_before(self.before, operation, sent, exchange)
        finally:
            self.in_flight -= 1

    async def _answer_alone(self, operation: Operation, sent: Sent, exchange: Exchange) -> Response:
        outcome = await _run(self.tried, operation, sent, exchange)
        self.counts.requests += 1
        if outcome.error is None or outcome.error.status >= 500:
            self._count_failure(None, outcome)
        return _said(outcome)

    async def _answer_before(self, before: Api, operation: Operation, sent: Sent, exchange: Exchange) -> Response:
        outcome = await _run(before, operation, sent, exchange)
        if outcome.response is not None:
            _count(self.counts.before, outcome.seconds)
        if _place("copy", exchange.request_id) < self.plan.shadow:
            self._copy(self.tried, operation, sent, outcome)
        return _said(outcome)

    async def _answer_tried(self, before: Api, operation: Operation, sent: Sent, exchange: Exchange) -> Response:
        outcome = await _run(self.tried, operation, sent, exchange, limit_s=self._limit_s())
        self.counts.requests += 1
        if outcome.failed == 0:
            _count(self.counts.tried, outcome.seconds)
            # What share answers is compared whole while it is small; later, a part of it.
            if self.plan.share < 1 or _place("copy", exchange.request_id) < self.plan.shadow:
                self._copy(before, operation, sent, outcome)
            return _said(outcome)
        exchange.identity, exchange.items, exchange.tokens = None, 0, 0
        known = await _run(before, operation, sent, exchange)
        self._count_failure(known, outcome)
        return _said(known)

    def _limit_s(self) -> float:
        """After which the version before is asked: far beyond what it takes itself."""
        before = Latencies(buckets=dict(self.counts.before))
        if before.count < AT_ONCE:
            return _NO_MEASURE_S
        return _SLOW_S + _SLOW * before.quantile_ms(0.99) / 1000

    def _copy(self, other: Api, operation: Operation, sent: Sent, answered: _Outcome) -> None:
        """Give the request to the other version as well; nobody waits for it."""
        if len(self._copies) >= AT_ONCE or answered.response is None or answered.reading is None:
            return
        task = asyncio.get_running_loop().create_task(self._compare(other, operation, sent, answered))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _compare(self, other: Api, operation: Operation, sent: Sent, answered: _Outcome) -> None:
        copy = await _run(other, operation, sent, _exchange("copy"), limit_s=DEADLINE_S)
        if other is self.tried:
            self.counts.shadowed += 1
            if copy.failed == 0:
                _count(self.counts.tried, copy.seconds)
            self._add(answered, copy)
        elif copy.error is None:
            _count(self.counts.before, copy.seconds)
            self._add(copy, answered)

    def _add(self, before: _Outcome, tried: _Outcome) -> None:
        """A pair of answers to the same request."""
        self._count_failure(before, tried)
        one, other = before.reading, tried.reading
        if one is None or other is None:
            return
        difference = compare(one, other)
        self.counts.compared += difference.items
        self.counts.disagreed += difference.disagreed
        self.counts.drift += difference.drift

    def _count_failure(self, before: _Outcome | None, tried: _Outcome) -> None:
        """A failure is the tried version's where the other one had more to say, or where there is none to ask."""
        if tried.failed <= (0 if before is None else before.failed):
            return
        self.counts.errors += 1
        self.counts.nans += tried.is_not_finite
        self.counts.last_error = tried.said[:300]

    async def rehearse(self, recent: Sequence[tuple[str, Sent]]) -> None:
        """Both versions on requests that nobody waits for, before the first one is given to the tried one."""
        if self.before is None:
            return
        samples = list(recent) or list(_examples(self.before))
        until = time.monotonic() + PROBES_S
        for index, (path, sent) in enumerate(samples):
            operation = find(self.before, "POST", path)
            if operation is None or time.monotonic() > until:
                break
            if index == 0:  # the first run of a model is slower than all others
                await _run(self.tried, operation, sent, _exchange("probe"), limit_s=PROBES_S)
            before = await _run(self.before, operation, sent, _exchange("probe"), limit_s=DEADLINE_S)
            limit_s = PROBES_S + _SLOW * before.seconds
            tried = await _run(self.tried, operation, sent, _exchange("probe"), limit_s=limit_s)
            await _drop(before)
            await _drop(tried)
            if before.error is None:
                _count(self.counts.before, before.seconds)
                if tried.failed == 0:
                    _count(self.counts.tried, tried.seconds)
                self.counts.probed += 1
                self._add(before, tried)


class Held:
    """Stands where no version is, while one gives way to another that does not fit beside it. Nobody is answered."""

    operations: Sequence[Operation] = ()
    max_body_bytes = 0
    queued_tokens = 0
    load = Load()

    def __init__(self, identity: Identity) -> None:
        self.loaded: Loaded[Any] = Loaded(identity, None)  # Any: there is none

    def take_over(self, loaded: Loaded[Any]) -> None:
        raise RuntimeError("there is no model to take over from")

    def close(self) -> None:
        """Nothing is open."""


def find(api: Api, method: str, path: str) -> Operation | None:
    return next((each for each in api.operations if (each.method, each.path) == (method, path)), None)


async def _run(
    api: Api, operation: Operation, sent: Sent, exchange: Exchange, *, limit_s: float | None = None
) -> _Outcome:
    """The same operation of one version."""
    own = find(api, operation.method, operation.path)
    begun = time.monotonic()
    response: Response | None = None
    error: RequestError | None = None
    try:
        async with asyncio.timeout(limit_s):
            if own is None:
                raise RequestError(404, "no_such_path", "this version does not have that operation")
            response = await own.handler(sent, exchange)
    except RequestError as refused:
        error = refused
    except TimeoutError:
        error = RequestError(504, "too_slow", f"no answer came within {limit_s or 0:.1f} s")
    except Exception as problem:  # the recipe's own, or a mistake here
        log.exception("request %s failed", exchange.request_id)
        error = RequestError(500, "model_failed", f"the model raised {type(problem).__name__}", "see the replica's log")
    return _Outcome(response, error, time.monotonic() - begun)


async def _drop(outcome: _Outcome) -> None:
    """Nobody will read it: a stream must not run on."""
    stream = getattr(outcome.response, "body_iterator", None)
    if stream is not None:
        await stream.aclose()


def _said(outcome: _Outcome) -> Response:
    if outcome.response is None:
        raise outcome.error or RequestError(500, "model_failed", "there is no answer")
    return outcome.response


def _count(buckets: dict[int, int], seconds: float) -> None:
    bucket = bucket_of(seconds * 1000)
    buckets[bucket] = buckets.get(bucket, 0) + 1


def _place(salt: str, key: str) -> float:
    """A number in [0, 1) that is always the same for the same key."""
    digest = hashlib.blake2b(f"{salt}/{key}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _exchange(what: str) -> Exchange:
    now = time.monotonic()
    return Exchange(f"trial-{what}", now, now + DEADLINE_S, client_deadline=False)


def _examples(api: Api) -> Iterable[tuple[str, Sent]]:
    """The recipe's own examples, as a client would send them."""
    model = api.loaded.model
    if isinstance(model, EmbeddingModel):
        for text in model.examples:
            body = {"model": api.loaded.identity.name, "input": text}
            yield "/v1/embeddings", Sent(json.dumps(body).encode(), "application/json")
    elif isinstance(model, ItemModel):
        for value in model.examples:
            yield "", Sent(json.dumps({model.field: value}).encode(), "application/json")
