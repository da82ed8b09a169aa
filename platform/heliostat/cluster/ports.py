"""Loopback ports: which are free, and a clear error for one that was asked for and is not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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


@contextmanager
def claims(root: Path, lives: Callable[[str], bool]) -> Iterator[set[int]]:
    """The ports that other embedded clusters of this user have chosen, and may not have opened yet.

    Nobody else chooses while this is held. Each cluster has a folder `hs-...` in `root` with its claim (`claim`);
    `lives(cluster_id)` says whether it counts. Of a cluster that crashed it does not.
    """
    with _own_file(root / f"hs-{os.getuid()}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield {port for path in root.glob("hs-*/claim.json") for port in _claimed(path, lives)}


def claim(folder: Path, cluster_id: str, ports: set[int]) -> None:
    """Told to other clusters until `folder` is removed. Also while this process lives and nothing is started yet."""
    text = json.dumps({"cluster": cluster_id, "by": os.getpid(), "ports": sorted(ports)})
    with _own_file(folder / "claim.json", os.O_TRUNC) as file:
        file.write(text)


def _own_file(path: Path, *flags: int) -> TextIO:
    """Opened for writing; the folder is everybody's, so no link is followed."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | sum(flags), 0o600), "w")


def _claimed(path: Path, lives: Callable[[str], bool]) -> list[int]:
    try:
        if path.stat().st_uid != os.getuid():
            return []
        told = json.loads(path.read_text())
        living = Path(f"/proc/{int(told['by'])}").exists() or lives(str(told["cluster"]))
        return [int(port) for port in told["ports"]] if living else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


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
