"""Ranges over HTTP and TLS against a small server of Python's own, which answers as it is told."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from heliostat import ranges
from heliostat.ranges import Answer, Connections, Interrupted, needs_proxy

CONTENT = bytes(range(256)) * 40_000  # 10 MB: many TLS records


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.clients.add(self.client_address)
        self.server.asked.append(self.headers["Range"])
        status = self.server.statuses.pop(0) if self.server.statuses else 206
        start, end = (int(text) for text in self.headers["Range"].removeprefix("bytes=").split("-"))
        if start >= len(CONTENT):
            status = 416
        body = CONTENT[start : end + 1] if status == 206 else b"<Code>Because</Code>"
        self.send_response(status)
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cut_at.pop(0) if self.server.cut_at and status == 206 else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = cut < len(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.clients: set[object] = set()
        self.asked: list[str] = []
        self.statuses: list[int] = []
        self.cut_at: list[int] = []
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}/a/b?X-Amz-Signature=1"


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)


def test_the_bytes_arrive_where_they_were_wanted_over_one_connection(server: Server) -> None:
    connections, room = Connections(), bytearray(100)
    assert connections.read_range(server.url, 7, memoryview(room)[10:30]) == Answer(20, len(CONTENT))
    assert room == bytes(10) + CONTENT[7:27] + bytes(70)
    assert connections.read_range(server.url, len(CONTENT) - 5, memoryview(room)) == Answer(5, len(CONTENT))
    assert connections.read_range(server.url, len(CONTENT), memoryview(room)).count == 0
    assert len(server.clients) == 1


def test_what_is_cut_off_goes_on_where_it_broke(server: Server) -> None:
    server.cut_at = [1000, 0, 500]
    room = bytearray(len(CONTENT))
    assert Connections().read_range(server.url, 0, memoryview(room)).count == len(CONTENT)
    assert room == CONTENT
    assert [text.partition("-")[0] for text in server.asked] == [f"bytes={at}" for at in (0, 1000, 1000, 1500)]


@pytest.mark.parametrize("status", ranges.BUSY)
def test_a_busy_server_is_asked_again_a_few_times(server: Server, status: int) -> None:
    server.statuses = [status] * ranges.RETRIES
    assert Connections().read_range(server.url, 0, memoryview(bytearray(5))).count == 5
    server.statuses = [status] * 100
    with pytest.raises(Interrupted, match=f"status: {status}"):
        Connections().read_range(server.url, 0, memoryview(bytearray(5)))


@pytest.mark.parametrize(("status", "error"), [(404, FileNotFoundError), (403, PermissionError), (200, OSError)])
def test_an_answer_that_will_not_change_is_told_at_once(server: Server, status: int, error: type[OSError]) -> None:
    server.statuses = [status]
    with pytest.raises(error, match=rf"status: {status} <Code>Because"):
        Connections().read_range(server.url, 0, memoryview(bytearray(5)))
    assert len(server.asked) == 1


def test_nothing_listens() -> None:
    with running() as server:
        url = server.url
    with pytest.raises(OSError, match="ConnectionRefused"):
        Connections().read_range(url, 0, memoryview(bytearray(5)))


def test_tls_is_spoken_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running(context) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            Connections().read_range(server.url, 0, memoryview(bytearray(5)))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        room = bytearray(len(CONTENT))
        assert Connections().read_range(server.url, 0, memoryview(room)) == Answer(len(CONTENT), len(CONTENT))
        assert room == CONTENT


@pytest.mark.parametrize(
    ("variable", "url", "needed"),
    [
        ("HTTPS_PROXY", "https://bucket.s3.amazonaws.com/a", True),
        ("HTTPS_PROXY", "http://127.0.0.1/a", False),
        ("UNRELATED", "https://bucket.s3.amazonaws.com/a", False),
    ],
)
def test_a_proxy_of_the_environment_is_seen(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, needed: bool
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    assert needs_proxy(url) is needed
    monkeypatch.setenv("NO_PROXY", "*")
    assert needs_proxy(url) is False


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path
