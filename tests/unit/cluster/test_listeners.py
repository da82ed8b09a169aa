from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from heliostat.cluster import listeners as module
from heliostat.cluster.listeners import Listener
from heliostat.cluster.processes import Mark, OwnedProcess


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_counts_as_loopback(address: str, expected: bool) -> None:
    assert Listener(address, 1, 1, "x").on_loopback is expected


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listening_socket_is_found_with_its_address(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    me = OwnedProcess(os.getpid(), 0, "python test", "")
    monkeypatch.setattr(module, "owned", lambda mark: [me])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        found = [entry for entry in module.listeners(Mark("x", Path())) if entry.port == port]
        assert [entry.address for entry in found] == [host]
