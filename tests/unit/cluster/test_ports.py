from __future__ import annotations

import socket

import pytest

from heliostat.cluster.ports import choose, is_free
from heliostat.errors import PortInUse


def test_a_port_in_use_is_refused_with_its_field() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(PortInUse, match=rf"port {port} is already in use \(ports.serve\)"):
            choose(port, preferred=None, field="ports.serve", taken=set())


def test_auto_takes_the_usual_one_or_any_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        chosen: set[int] = set()
        assert choose("auto", preferred=busy, field="p", taken=chosen) != busy
        assert len(chosen) == 1
