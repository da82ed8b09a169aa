"""The holding server: `python -m heliostat.serve.hold`. It stands behind HAProxy, on loopback, on the head.

HAProxy sends it two kinds of request (cluster/haproxy.py says how):

- *Those that no replica can take now*, because there is none, or the only one has just died. It reads the request
  whole, checks the caller's key (nobody without one wakes a sleeping application), and hands it to Serve's own proxy,
  which queues it and thereby makes Serve start a replica. What comes back as Serve's own failure rather than the
  application's is sent again, until a replica has answered or the request's time is up.
- *Those that may stream, and those too large for HAProxy's buffer.* It relays them to a replica by way of HAProxy,
  sends them again where no answer has begun, and when a replica dies in the middle of a stream, ends it with an error
  event.

What it holds is bounded, in requests, bytes and seconds; beyond the bound it answers 503 with a Retry-After that is
what the last start of a replica took, less what has passed of this one. It keeps no state: HAProxy falls back to
Serve's proxy where it is not there.

A request is sent again only where no answer has begun. Whoever must not have that sends `X-Heliostat-Replay: never`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from heliostat.cluster.haproxy import BODY_S, HELD, HOLD, RELAYED, REPLAY
from heliostat.errors import HeliostatError
from heliostat.serve.desired import DesiredApp, read_desired, released, to_release
from heliostat.serve.errors import RequestError
from heliostat.serve.keys import KeyRing, key_digest, read_keys
from heliostat.serve.requests import open_exchange, read_deadline
from heliostat.settings import Settings, load
from heliostat.store import Store

log = logging.getLogger("heliostat.hold")

MAX_HELD = 2048
"""Requests of one application that wait here at a time: 40 a second for the 15 s of a new node, three times over."""
MAX_BODY_BYTES = 64 * 2**20
"""Of one request. An application's own limit is lower and is told by its replica."""
MAX_BYTES = 512 * 2**20
"""Of all bodies together."""
HOLD_S = 110.0
"""Below Serve's own limit of a request (120 s), so that whoever waited in vain is told so by us."""
REFRESH_S = 5.0
FIRST_COLD_S = 15.0
"""What a start is taken to last before one was seen."""
_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 0.5
_SERVES_OWN = frozenset({500, 502, 503, 504})
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade", "host",
     "content-length", "expect"}
)  # fmt: skip
_CUT = RequestError(502, "stream_cut", "the replica that was answering has ended", "send the request again")


@dataclass(frozen=True)
class Known:
    """An application and who may call it."""

    app: DesiredApp
    keys: KeyRing
    released: bool = True
    """Whether it has a version to answer with."""


@dataclass
class Waiting:
    """One application's requests that are held now."""

    arrived: list[float] = field(default_factory=list)
    cold_s: float = FIRST_COLD_S
    """How long the last start took those who came at its beginning."""

    def retry_after_s(self, now: float) -> int:
        """When a replica should be there: what the last start took, less what has passed of this one."""
        passed = now - min(self.arrived, default=now)
        return max(1, math.ceil(self.cold_s - passed))


@dataclass
class Counts:
    """Since the server began."""

    held: int = 0
    replays: int = 0
    refused: int = 0
    cut_streams: int = 0


def find(known: Sequence[Known], path: str) -> Known | None:
    """The application whose route a path lies under, the longest where several do."""
    fitting = [one for one in known if path == one.app.spec.route or path.startswith(one.app.spec.route + "/")]
    return max(fitting, key=lambda one: len(one.app.spec.route), default=None)


def is_serves_own(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a failure comes from Serve or HAProxy rather than from an application, which names its model."""
    return status in _SERVES_OWN and "X-Model-Version" not in headers


class Hold:
    """The server. `front_url` is HAProxy's, `proxy_url` that of Serve's Python proxy."""

    def __init__(self, settings: Settings, *, front_url: str, proxy_url: str) -> None:
        self._settings, self._front_url, self._proxy_url = settings, front_url, proxy_url
        self._known: tuple[Known, ...] = ()
        self._waiting: dict[str, Waiting] = {}
        self._bytes = 0
        self.counts = Counts()
        self._released: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._stop = threading.Event()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/-/healthz", self._health)
        app.router.add_get("/-/metrics", self._metrics)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.cleanup_ctx.append(self._running)
        return app

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            watcher = threading.Thread(target=self._watch, name="keys", daemon=True)
            watcher.start()
            yield
            self._stop.set()

    def _watch(self) -> None:
        """Which applications there are and what opens them, read again every few seconds."""
        while True:
            try:
                self.refresh(Store.connect(self._settings.store))
            except (HeliostatError, ValueError):  # the store is away, or holds nonsense: what is known holds
                log.warning("the applications could not be read", exc_info=True)
            if self._stop.wait(REFRESH_S):
                return

    def refresh(self, store: Store) -> None:
        key = self._settings.api_key
        digest = None if key is None else key_digest(key.get_secret_value())
        self._known = tuple(
            Known(
                app,
                KeyRing(
                    app=app.name,
                    named=read_keys(store, app.spec.keys),
                    cluster_key_sha256=digest,
                    closed=bool(app.spec.keys),
                ),
                self._seems_released(store, app),
            )
            for app in read_desired(store)
        )

    def _seems_released(self, store: Store, app: DesiredApp) -> bool:
        """True where it cannot be read: then its replica says what is wrong, and the others' keys are known."""
        try:
            return self._is_released(store, app)
        except HeliostatError:
            return True

    def _is_released(self, store: Store, app: DesiredApp) -> bool:
        """Asked until it is once: nobody takes an alias away from a model that answers."""
        if app.spec.model not in self._released:
            if released(store, app.spec) is None:
                return False
            self._released.add(app.spec.model)
        return True

    async def _must_be_released(self, known: Known) -> None:
        """A replica without a version would take a node, fail, and begin again, while the request waits."""
        look = lambda: self._seems_released(Store.connect(self._settings.store), known.app)  # noqa: E731
        if await asyncio.to_thread(look):
            return
        model, do = known.app.spec.model.partition("@")[0], to_release(known.app.name, known.app.spec)
        raise RequestError(
            503, "not_released", f"no version of {model} is released yet", do, retry_after_s=math.ceil(REFRESH_S)
        )

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="success")

    async def _metrics(self, _: web.Request) -> web.Response:
        now = {"waiting": sum(len(one.arrived) for one in self._waiting.values())}
        sums = {f"{name}_total": value for name, value in vars(self.counts).items()}
        return web.Response(text="".join(f"heliostat_hold_{k} {v}\n" for k, v in {**now, **sums}.items()))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        exchange = open_exchange(request.headers)
        try:
            read_deadline(exchange, request.headers)
            until = min(exchange.deadline_s, exchange.arrived_s + HOLD_S) if exchange.client_deadline else (
                exchange.arrived_s + HOLD_S
            )  # fmt: skip
            known = find(self._known, request.path)
            if known is not None:  # else its replica will say whether there is such an application
                known.keys.caller(request.headers.get("Authorization", ""))
                if not known.released:
                    await self._must_be_released(known)
            body = await self._read(request, min(until, exchange.arrived_s + BODY_S))
            try:
                sent = _Sent(request, body, exchange.request_id, until)
                if request.headers.get(HOLD) == "relay":
                    return await self._relay(sent)
                return await self._hold(sent, known.app.name if known else "")
            finally:
                self._bytes -= len(body)
        except RequestError as refused:
            return _refusal(refused, exchange.request_id)

    async def _read(self, request: web.Request, until: float) -> bytes:
        """The whole body. Its bytes count against the bound as they come, and are given back by whoever gets them here:
        many that come slowly would fill the memory as well as many that wait.
        """
        body = bytearray()
        self._check_room(request.content_length or 0)
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                async for chunk in request.content.iter_any():
                    self._check_room(len(chunk))
                    self._bytes += len(chunk)
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise RequestError(413, "body_too_large", f"it has more than {MAX_BODY_BYTES} bytes")
        except BaseException as problem:
            self._bytes -= len(body)
            if isinstance(problem, TimeoutError):
                raise RequestError(408, "body_too_slow", f"{len(body)} bytes came in time", "send again") from None
            raise
        return bytes(body)

    def _check_room(self, more: int) -> None:
        if self._bytes + more > MAX_BYTES:
            self.counts.refused += 1
            raise RequestError(503, "no_room", "too much is waiting here", "try again later", retry_after_s=1)

    async def _hold(self, sent: _Sent, app: str) -> web.StreamResponse:
        """Until a replica has answered."""
        waiting = self._waiting.setdefault(app, Waiting())
        if len(waiting.arrived) >= MAX_HELD:
            self.counts.refused += 1
            wait_s = waiting.retry_after_s(time.monotonic())
            raise RequestError(
                503, "starting", f"{MAX_HELD} requests wait for a replica already", f"try again in {wait_s} s",
                retry_after_s=wait_s,
            )  # fmt: skip
        self.counts.held += 1
        arrived = time.monotonic()
        waiting.arrived.append(arrived)
        try:
            found = await self._send_until_answered(sent, self._proxy_url, {HELD: "1"}, waiting)
            if arrived == waiting.arrived[0]:
                waiting.cold_s = time.monotonic() - arrived
            return found
        finally:
            waiting.arrived.remove(arrived)

    async def _relay(self, sent: _Sent) -> web.StreamResponse:
        return await self._send_until_answered(sent, self._front_url, {RELAYED: "1"}, Waiting(cold_s=1.0))

    async def _send_until_answered(
        self, sent: _Sent, base_url: str, extra: Mapping[str, str], waiting: Waiting
    ) -> web.StreamResponse:
        """Send, and send again what Serve failed at. Raises RequestError once the time is up."""
        pause_s, why = _BACKOFF_S, "nothing came back"
        while (left_s := sent.until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s) as limit:
                    answer = await self._once(sent, base_url, extra, limit)
            except (aiohttp.ClientError, OSError) as problem:
                answer, why = None, type(problem).__name__
            except TimeoutError:
                break
            if answer is not None:
                return answer
            if sent.only_once:
                raise RequestError(502, "replica_lost", "the replica has ended, and this is not to be sent again")
            self.counts.replays += 1
            log.info("request %s is sent again (%s)", sent.request_id, why)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_BACKOFF_S)
        self.counts.refused += 1
        wait_s = waiting.retry_after_s(time.monotonic())
        raise RequestError(
            503, "no_replica", "no replica answered in time", f"try again in {wait_s} s", retry_after_s=wait_s
        )

    async def _once(
        self, sent: _Sent, base_url: str, extra: Mapping[str, str], limit: asyncio.Timeout
    ) -> web.StreamResponse | None:
        """The answer, passed on; None where it is a failure of Serve's own."""
        if self._session is None:
            raise RuntimeError("the server has not been started")
        url = URL(base_url + sent.request.raw_path, encoded=True)
        headers = {**_passed_on(sent.request.headers), "X-Request-Id": sent.request_id, **extra}
        async with self._session.request(
            sent.request.method, url, headers=headers, data=sent.body, allow_redirects=False
        ) as answer:
            if is_serves_own(answer.status, answer.headers):
                return None
            if answer.content_type == "text/event-stream":
                limit.reschedule(None)  # it has begun: its length is the application's affair
                return await self._stream(sent, answer)
            body = await answer.read()
            return web.Response(status=answer.status, body=body, headers=_passed_on(answer.headers))

    async def _stream(self, sent: _Sent, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
        await response.prepare(sent.request)
        try:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            self.counts.cut_streams += 1
            log.info("the stream of request %s was cut", sent.request_id)
            event = json.dumps(_CUT.body(sent.request_id))
            await response.write(f"\n\ndata: {event}\n\n".encode())
        await response.write_eof()
        return response


@dataclass(frozen=True)
class _Sent:
    """A request, read whole."""

    request: web.Request
    body: bytes
    request_id: str
    until: float
    """On time.monotonic."""

    @property
    def only_once(self) -> bool:
        return self.request.headers.get(REPLAY, "").lower() == "never"


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers without those of the connection and without our own."""
    kept = CIMultiDict(headers)
    for name in list(kept):
        if name.lower() in _HOP_BY_HOP or name.lower() in (HOLD, RELAYED, HELD):
            kept.popall(name, None)
    return kept


def _refusal(error: RequestError, request_id: str) -> web.Response:
    headers = {**error.headers, "X-Request-Id": request_id}
    return web.json_response(error.body(request_id), status=error.status, headers=headers)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load()
    hold = Hold(
        settings, front_url=settings.serve_url, proxy_url=f"http://127.0.0.1:{os.environ['HELIOSTAT_SERVE_PROXY_PORT']}"
    )
    web.run_app(
        hold.application(), host="127.0.0.1", port=int(os.environ["HELIOSTAT_HOLD_PORT"]), access_log=None, print=None,
        handler_cancellation=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
