"""A relay on loopback in front of a server: counts requests and bytes, and fails some of them on purpose.

Signatures stay valid, since the client signs the relay's address as Host. It finds a request line at the start of what
a client sends, which is right for clients that wait for one answer before the next request, as all here do.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")
_SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 40\r\n\r\n<Error><Code>SlowDown</Code></Error>    "
CUT_AT = 2**19

Fault = Literal["pass", "slow-down", "reset", "cut"]
"""cut: the connection is reset when about half a MiB of the answer is through."""


class Relay:
    """`requests` by verb and path (without its query), `sent_bytes` to clients. `decide` is asked for each request,
    counted from 1.
    """

    def __init__(self, upstream_port: int) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.sent_bytes = 0
        self.faults: Counter[Fault] = Counter()
        self.decide: Callable[[int], Fault] = lambda number: "pass"
        self._upstream = ("127.0.0.1", upstream_port)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])

    def reset(self) -> None:
        with self._lock:
            self.requests.clear()
            self.sent_bytes = 0

    def gets(self, part: str = "") -> int:
        """How many GETs asked for a path with `part` in it."""
        return sum(count for (verb, path), count in self.requests.items() if verb == "GET" and part in path)

    def serve(self) -> None:
        with suppress(OSError):  # closed by the owner
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _connect(self, client: socket.socket) -> None:
        cut = threading.Event()
        server = socket.create_connection(self._upstream)
        threading.Thread(target=self._upwards, args=(client, server, cut), daemon=True).start()
        with suppress(OSError):
            through = 0
            while data := server.recv(2**18):
                with self._lock:
                    self.sent_bytes += len(data)
                client.sendall(data)
                through = through + len(data) if cut.is_set() else 0
                if through > CUT_AT:
                    _reset(client)
                    break
        _shut(client, server)

    def _upwards(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(2**18):
                fault = self._note(data)
                if fault == "slow-down":
                    client.sendall(_SLOW_DOWN)
                    continue
                if fault == "reset":
                    _reset(client)
                    break
                if fault == "cut":
                    cut.set()
                server.sendall(data)
        _shut(client, server)

    def _note(self, data: bytes) -> Fault:
        found = _REQUEST.match(data)
        if found is None:
            return "pass"  # a body goes on
        with self._lock:
            self.requests[found[1].decode(), found[2].decode().partition("?")[0]] += 1
            fault = self.decide(self.requests.total())
            self.faults[fault] += 1
        return fault


def _reset(end: socket.socket) -> None:
    """Close at once, with RST for what comes later. shutdown wakes the thread that reads from it, else nothing ends."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.shutdown(socket.SHUT_RDWR)
    end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def relay(upstream_port: int) -> Iterator[Relay]:
    made = Relay(upstream_port)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join(5)
