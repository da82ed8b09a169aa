"""A proxy on loopback between a process and the S3 server, which kills the process or refuses its requests."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class KillingProxy:
    """Kills the process `pid` before or after the store has seen request number `at`; 0 for never."""

    upstream: str
    at: int = 0
    when: str = "after"
    pid: int = 0
    refuse: float = 0.0  # the share of requests that are answered 503
    seen: int = 0
    refused: int = 0
    killed: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> int:
        with self.lock:
            self.seen += 1
            return self.seen

    def kill(self) -> None:
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    @contextmanager
    def running(self) -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: KillingProxy

    def _forward(self) -> None:
        number = self.proxy.count()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if number == self.proxy.at and self.proxy.when == "before":
            return self.proxy.kill()
        if self.proxy.chance.random() < self.proxy.refuse:
            self.proxy.refused += 1
            self.send_response_only(503, "Slow Down")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        parts = urlsplit(self.proxy.upstream)
        upstream = http.client.HTTPConnection(parts.hostname or "", parts.port)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if number == self.proxy.at:
            return self.proxy.kill()
        try:
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # killed meanwhile
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass
