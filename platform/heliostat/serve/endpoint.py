"""One application's HTTP, from the request line to the access log: all that is the same whatever the model.

In this order: id, key, operation, deadline, admission, body within its limit, the API's own handler. A request that is
refused for load has cost no more than its headers: its body is neither read nor parsed. Whatever goes wrong is answered
in one form (errors.py). Every response carries X-Request-Id and the version and digest of the model.
It runs in any ASGI server as well as in a Serve replica, so the tests drive what is deployed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from heliostat.serve.admission import Admission
from heliostat.serve.api import Api, Operation, Sent, identity_headers
from heliostat.serve.errors import RequestError, model_failed
from heliostat.serve.keys import KeyRing
from heliostat.serve.openapi import describe
from heliostat.serve.requests import Exchange, open_exchange, read_body, read_deadline
from heliostat.serve.trial import SESSION, Recent, TrialRun

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)
access_log = logging.getLogger("heliostat.access")

HOLD_STEP_S = 0.02

HELD = "x-heliostat-held"
"""Set by the holding server (hold.py) on what has waited for a replica; the front takes it from everybody else."""


@dataclass
class TeamUse:
    """What one team asked of this replica."""

    requests: int = 0
    items: int = 0
    tokens: int = 0


@dataclass
class Counts:
    """What this replica has answered; the event loop alone writes it."""

    requests: int = 0
    """Those that an operation answered; not health checks, not refusals."""
    last_request_at: float = field(default_factory=time.time)  # a replica is started for a request
    sheds: int = 0
    """Refused for load."""
    total_s: float = 0.0
    """From arrival to the end of the answer, of all that were answered, together."""
    teams: dict[str, TeamUse] = field(default_factory=dict)

    def add(self, exchange: Exchange) -> None:
        self.requests += 1
        self.total_s += time.monotonic() - exchange.arrived_s
        self.last_request_at = time.time()
        if exchange.caller.team:
            use = self.teams.setdefault(exchange.caller.team, TeamUse())
            use.requests += 1
            use.items += exchange.items
            use.tokens += exchange.tokens


class Endpoint:
    """The application as a web server sees it. `keys` is asked at every request: a revoked key stops working."""

    def __init__(
        self,
        api: Api,
        *,
        app: str,
        keys: Callable[[], KeyRing],
        max_queue_s: float,
        server_returns_id: bool = False,
    ) -> None:
        """`server_returns_id`: the server around it gives every request an id and appends it to the response itself,
        as Ray Serve does; said twice, clients would read "id, id".
        """
        self._server_returns_id = server_returns_id
        self._api = api
        self._app = app
        self._keys = keys
        self._admission = Admission(max_queue_s)
        self.counts = Counts()
        self.trial: TrialRun | None = None
        """Two versions that answer side by side, while a release goes on; the replica's watcher sets it."""
        self.recent = Recent()
        self.in_flight = 0
        """Requests that a model has."""
        self.hold = False
        """While set, requests wait: the replica has no model at this moment. The replica's watcher sets it."""

    def replace(self, api: Api) -> None:
        """Answer with another API from the next request on; what runs ends with the old one."""
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application for any ASGI server; requests alone, no websockets."""
        request = Request(scope, receive)
        response = await self.answer(request)
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """Never raises but for a client that has gone."""
        exchange = open_exchange(request.headers)
        response = await self._answer(request, exchange)
        if not (self._server_returns_id and request.headers.get("x-request-id") == exchange.request_id):
            response.headers["X-Request-Id"] = exchange.request_id
        identity = exchange.identity or self._api.loaded.identity
        response.headers.update(identity_headers(identity))
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._logged(response.body_iterator, request, exchange)
        else:
            self._log(request, exchange, str(response.status_code))
        return response

    async def _answer(self, request: Request, exchange: Exchange) -> Response:
        try:
            return await self._operate(request, exchange)
        except RequestError as refused:
            return JSONResponse(refused.body(exchange.request_id), refused.status, refused.headers)
        except ClientDisconnect:
            # Nobody reads this; it is said for the log.
            gone = RequestError(499, "client_gone", "the client left before its request was read")
            return JSONResponse(gone.body(exchange.request_id), gone.status)
        except Exception:  # the recipe's own, or a mistake here: told without its inside, and logged with it
            log.exception("request %s failed", exchange.request_id)
            error = model_failed()
            return JSONResponse(error.body(exchange.request_id), error.status)

    async def _operate(self, request: Request, exchange: Exchange) -> Response:
        exchange.caller = self._keys().caller(request.headers.get("authorization", ""))
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).rstrip("/")
        if path in ("/openapi.json", "/docs") and request.method == "GET":
            return describe(self._app, self._api, page=path == "/docs")
        read_deadline(exchange, request.headers)
        sent = await self._read(path, request, exchange)
        await self._has_model(exchange)
        operation = self._find(request.method, path)  # of the model that is there now
        self.in_flight += 1
        try:
            response = await self._respond(operation, sent, request, exchange)
        finally:
            self.in_flight -= 1  # of a stream, when it begins
        if operation.method == "POST" and not isinstance(response, StreamingResponse):
            self._count(exchange)
        return response

    async def _read(self, path: str, request: Request, exchange: Exchange) -> Sent:
        """What was sent, of a request that is let in. Until it is whole it is in nobody's way: a client that takes its
        time over its body is no work for the model, and a change of the model does not wait for it.
        """
        await self._has_model(exchange)
        kind = request.headers.get("content-type", "")
        if self._find(request.method, path).method != "POST":
            return Sent(b"", kind)
        self._admit(held=HELD in request.headers)
        return Sent(await read_body(request, self._api.max_body_bytes, deadline_s=exchange.deadline_s), kind)

    async def _has_model(self, exchange: Exchange) -> None:
        """Wait while the replica changes its model."""
        while self.hold:
            if time.monotonic() > exchange.deadline_s:
                raise exchange.expired()
            await asyncio.sleep(HOLD_STEP_S)

    async def _respond(self, operation: Operation, sent: Sent, request: Request, exchange: Exchange) -> Response:
        if operation.method != "POST":
            return await operation.handler(sent, exchange)
        trial = self.trial
        if trial is None:
            response = await operation.handler(sent, exchange)
        else:
            response = await trial.answer(operation, sent, exchange, session=request.headers.get(SESSION))
        self.recent.add(operation.path, sent)
        return response

    def _find(self, method: str, path: str) -> Operation:
        here = [operation for operation in self._api.operations if operation.path == path]
        if not here:
            known = ", ".join(f"{o.method} {o.path or '/'}" for o in self._api.operations)
            raise RequestError(404, "no_such_path", f"there is nothing at {path[:100] or '/'}", f"there is: {known}")
        for operation in here:
            if operation.method == method:
                return operation
        raise RequestError(405, "wrong_method", f"{method} is not served here", f"send a {here[0].method}")

    def _admit(self, *, held: bool) -> None:
        """Refuse by seconds of queued work: a count of requests bounds nothing where lengths differ thirty times."""
        refusal = self._admission.refusal(self._api.load, time.monotonic(), under_way=self.in_flight, held=held)
        if refusal is None:
            return
        self.counts.sheds += 1
        wait_s = max(1, math.ceil(refusal.queued_s))
        raise RequestError(
            429,
            "overloaded",
            f"{refusal.queued_s:.2f} s of work is queued; the limit is {refusal.limit_s:.2f} s",
            f"try again in {wait_s} s",
            retry_after_s=wait_s,
        )

    @property
    def mean_request_s(self) -> float:
        """Work of a mean request, in seconds of this replica; 0.0 before the first."""
        return self._admission.mean_s(self._api.load)

    def _count(self, exchange: Exchange) -> None:
        self.counts.add(exchange)
        self._admission.answered(exchange.tokens)

    async def _logged(
        self, stream: AsyncIterator[Any] | Any, request: Request, exchange: Exchange
    ) -> AsyncIterator[Any]:  # Any: text or bytes, as starlette has it
        """The stream as it is; it is counted and logged when it ends, or is cut."""
        how = "200 cut"
        try:
            async for chunk in stream:
                yield chunk
            how = "200"
        finally:
            self._count(exchange)
            self._log(request, exchange, how)

    def _log(self, request: Request, exchange: Exchange, status: str) -> None:
        access_log.info(
            "%s %s %s %s %s ms=%.1f items=%d tokens=%d key=%s team=%s%s",
            exchange.request_id,
            self._app,
            request.method,
            _printable(request.scope["path"]),
            status,
            (time.monotonic() - exchange.arrived_s) * 1000,
            exchange.items,
            exchange.tokens,
            exchange.caller.key or "-",
            exchange.caller.team or "-",
            _version(exchange),
        )


def _version(exchange: Exchange) -> str:
    return "" if exchange.identity is None else f" version=v{exchange.identity.version}"


def _printable(path: str) -> str:
    """A path that cannot forge a line of the log."""
    return path[:200].encode("unicode_escape").decode()
