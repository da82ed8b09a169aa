"""A real HTTP proxy on loopback in front of the S3 server, which misbehaves as it is told to.

It knows just enough of HTTP/1.1 to tell one request from the next on a kept connection. Signatures stay valid, since
the client signs the proxy's address as Host and the proxy changes nothing.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n%sContent-Length: 112\r\n\r\n"
    + b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>".ljust(112)
)


class Action(Enum):
    """What happens to one request."""

    PASS = auto()
    SLOW_DOWN = auto()  # answered 503, the server never sees it
    RESET = auto()  # the connection is reset before the server sees it
    RESET_HALFWAY = auto()  # the server sees half of it
    RESET_AFTER = auto()  # the server has done it, its answer is lost


@dataclass(frozen=True)
class Request:
    """`number` counts from 1 over all connections; `head` is the request line and the headers."""

    number: int
    verb: str
    path: str
    head: bytes


@dataclass
class StoreProxy:
    """Give it `decide` (called once per request, before anything of it is forwarded) and `after` (once the server
    has answered, or has half of the request, before the client is told). Either may kill the client.
    """

    upstream: tuple[str, int]
    decide: Callable[[Request], Action] = lambda request: Action.PASS
    after: Callable[[Request], None] = lambda request: None
    retry_after_s: int | None = None
    seen: list[Request] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    def count(self, verb: str, part: str = "") -> int:
        """How many requests of that verb had `part` in their path."""
        with self._lock:
            return sum(1 for request in self.seen if request.verb == verb and part in request.path)

    def forget(self) -> None:
        with self._lock:
            self.seen.clear()

    @contextmanager
    def running(self) -> Iterator[StoreProxy]:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        accepting = threading.Thread(target=self._accept, name="store-proxy", daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            self._listener.close()
            accepting.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming = _Reader(client)
        try:
            while (head := incoming.head()) is not None:
                request = self._note(head)
                action = self.decide(request)
                body = incoming.body(head, is_answer=False)
                if action is Action.SLOW_DOWN:
                    wait = b"" if self.retry_after_s is None else b"Retry-After: %d\r\n" % self.retry_after_s
                    client.sendall(SLOW_DOWN % wait)
                    continue
                if action is Action.RESET:
                    return _reset(client)
                if server is None:
                    server = socket.create_connection(self.upstream, timeout=120)
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    answers = _Reader(server)
                if action is Action.RESET_HALFWAY:
                    whole = head + body
                    server.sendall(whole[: len(whole) // 2])
                    self.after(request)
                    return _reset(client)
                server.sendall(head + body)
                answer = answers.answer(request.verb)
                self.after(request)
                if action is Action.RESET_AFTER:
                    return _reset(client)
                client.sendall(answer)
        except OSError:
            return _reset(client)  # the server was killed, or the client was
        except Exception as error:  # noqa: BLE001  # a thread's boundary: the test looks at them
            self.errors.append(error)
            return _reset(client)
        finally:
            client.close()
            if server is not None:
                server.close()

    def _note(self, head: bytes) -> Request:
        verb, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        with self._lock:
            request = Request(len(self.seen) + 1, verb, path, head)
            self.seen.append(request)
        return request


def upstream_of(endpoint: str | None) -> tuple[str, int]:
    parts = urlsplit(endpoint or "")
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class _Reader:
    """Whole HTTP messages from a socket."""

    def __init__(self, source: socket.socket) -> None:
        self._source, self._buffer = source, bytearray()

    def head(self) -> bytes | None:
        """Up to and including the empty line; None when the peer has closed between two messages."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._fill():
                if self._buffer:
                    raise ConnectionError("closed within a head")
                return None
        return self._take(end + 4)

    def body(self, head: bytes, *, is_answer: bool) -> bytes:
        length = _header(head, b"content-length")
        if length is not None:
            return self._exactly(int(length))
        if (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
            return self._chunks()
        if is_answer:
            while self._fill():
                pass
            return self._take(len(self._buffer))
        return b""

    def answer(self, verb: str) -> bytes:
        """The final answer; an interim 100 Continue goes along before it."""
        whole = b""
        while True:
            head = self.head()
            if head is None:
                raise ConnectionError("the server closed before it answered")
            status = int(head.split(b" ", 2)[1])
            whole += head
            if status >= 200:
                break
        has_body = verb != "HEAD" and status not in (204, 304)
        return whole + (self.body(head, is_answer=True) if has_body else b"")

    def _chunks(self) -> bytes:
        whole = b""
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._must_fill()
            line = self._take(end + 2)
            size = int(line.split(b";")[0], 16)
            whole += line + self._exactly(size + 2)
            if size == 0:
                return whole

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._must_fill()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _must_fill(self) -> None:
        if not self._fill():
            raise ConnectionError("closed within a message")

    def _fill(self) -> bool:
        data = self._source.recv(1 << 18)
        self._buffer += data
        return bool(data)


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _reset(client: socket.socket) -> None:
    """Close with RST, as a broken network does, not with a polite end."""
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
