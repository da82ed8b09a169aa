"""Byte ranges over HTTP, straight into memory that the caller owns: a socket writes where the tensors will lie.

A client that hands out buffers of its own costs a copy, or a model that lies in pieces; this one costs half the
processor time of it (docs/decisions/0009-loading.md). It reads signed links and nothing else. A few quick retries
are made here, as obstore makes them; more patience, and what a failure means to people, are the store's (store.py).
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

CONNECT_S = 2.0
SILENCE_S = 30.0
"""A server that sends nothing for so long is asked again."""
RETRIES = 5
"""In a row without a byte arriving, with pauses of 0.1 to 1 s."""
BUSY = (429, 500, 502, 503, 504)
IDLE_CONNECTIONS = 32
_ERROR_BYTES = 4096  # of an answer that is no range: enough for S3's error document


@dataclass(frozen=True)
class Answer:
    """`count` bytes arrived; the whole object has `total`, of which fewer may be left than were asked for."""

    count: int
    total: int


class Interrupted(OSError):
    """The server was busy, or the connection ended or fell silent. `count` bytes had arrived and are good."""

    def __init__(self, reason: str, count: int) -> None:
        super().__init__(f"HTTP error: {reason}")
        self.reason = reason
        self.count = count


def needs_proxy(url: str) -> bool:
    """Whether the environment sends requests for this host through a proxy."""
    parts = urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


class Connections:
    """Open connections, lent to one request at a time. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}

    def read_range(self, url: str, start: int, into: memoryview) -> Answer:
        """The bytes from `start` on into `into`, as many as it holds.

        Raises Interrupted when retries did not help, FileNotFoundError, PermissionError, and OSError for a refused
        connection ("ConnectionRefused") and any other answer ("status: N").
        """
        count, failures = 0, 0
        while True:
            try:
                answer = self._ask(urlsplit(url), start + count, into[count:])
            except Interrupted as error:
                count += error.count
                failures = 0 if error.count else failures + 1
                if failures > RETRIES:
                    raise Interrupted(error.reason, count) from error
                time.sleep(random.uniform(0, min(1.0, 0.1 * 2**failures)))
            else:
                return Answer(count + answer.count, answer.total)

    def _ask(self, parts: SplitResult, start: int, into: memoryview) -> Answer:
        """One request. A server may close a connection that lay idle: that says nothing of its health."""
        while True:
            connection, used = self._take(parts)
            try:
                answer = _request(connection, parts, start, into)
            except BaseException as error:
                connection.close()
                if used and isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
                    continue
                if isinstance(error, ConnectionRefusedError):
                    raise OSError(f"HTTP error: ConnectionRefused: {error}") from error
                if isinstance(error, TimeoutError | ConnectionError | http.client.HTTPException | socket.gaierror):
                    raise Interrupted(f"{type(error).__name__}: {error}", 0) from error
                raise
            self._give_back(parts, connection)
            return answer

    def _take(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get((parts.scheme, parts.netloc))
            if idle:
                return idle.pop(), True
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=CONNECT_S), False

    def _give_back(self, parts: SplitResult, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault((parts.scheme, parts.netloc), [])
            if connection.sock is not None and len(idle) < IDLE_CONNECTIONS:
                idle.append(connection)
                return
        connection.close()


def _request(connection: http.client.HTTPConnection, parts: SplitResult, start: int, into: memoryview) -> Answer:
    if connection.sock is None:
        connection.connect()
    if connection.sock is not None:
        connection.sock.settimeout(SILENCE_S)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection.request("GET", target, headers={"Range": f"bytes={start}-{start + len(into) - 1}"})
    response = connection.getresponse()
    if response.status == 416:
        response.read()
        return Answer(0, _total(response))
    if response.status != 206:
        raise _refusal(response)
    wanted = response.length
    if wanted is None or wanted > len(into):
        raise OSError(f"HTTP error: status: 206, but {wanted} bytes where {len(into)} were asked for")
    count = 0
    try:
        while count < wanted:
            arrived = response.readinto(into[count:wanted])
            if arrived == 0:
                raise ConnectionResetError(f"{count} of {wanted} bytes arrived")
            count += arrived
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"{type(error).__name__}: {error}", count) from error
    return Answer(count, _total(response))


def _total(response: http.client.HTTPResponse) -> int:
    _, _, total = (response.getheader("Content-Range") or "").rpartition("/")
    return int(total) if total.isdecimal() else 0


def _refusal(response: http.client.HTTPResponse) -> OSError:
    text = f"status: {response.status} {response.read(_ERROR_BYTES).decode(errors='replace')}"
    if response.status == 404:
        return FileNotFoundError(text)
    if response.status == 403:
        return PermissionError(text)
    return Interrupted(text, 0) if response.status in BUSY else OSError(f"HTTP error: {text}")
