"""Loopback ports: which are free, and a clear error for one that was asked for and is not."""

from __future__ import annotations

import random
import socket

from heliostat.errors import PortInUse

LOOPBACK = "127.0.0.1"
_OURS = range(30000, 32768)
"""Above the replicas' blocks (embedded.py), below where Linux's own range begins."""


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(wanted: int | str, *, preferred: int | None, field: str, taken: set[int]) -> int:
    """The port to use; it is added to `taken`.

    A number is used or refused (PortInUse); "auto" takes the preferred one if it is free, else any free one.
    """
    if isinstance(wanted, int):
        if not is_free(wanted) or wanted in taken:
            raise PortInUse(
                f"port {wanted} is already in use",
                where=field,
                do=f'end what listens there (ss -ltnp "sport = :{wanted}"), or write {field}: auto',
            )
        port = wanted
    elif preferred is not None and preferred not in taken and is_free(preferred):
        port = preferred
    else:
        port = _any_free(taken)
    taken.add(port)
    return port


def _any_free(taken: set[int]) -> int:
    """A free port, of those that the kernel gives nobody by itself where one is left.

    Ours are chosen at once and opened one after the other, Serve's much later: one of the kernel's own range may by
    then be what another process of the cluster was given for its metrics.
    """
    for port in random.sample(_OURS, len(_OURS)):
        if port not in taken and is_free(port):
            return port
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        # The S3 server uses port + 10000 for gRPC: keep below what would overflow.
        if port not in taken and port < 55000:
            return port
