"""Which processes belong to an embedded cluster, and how they are ended.

Every process of a cluster is started with `HELIOSTAT_CLUSTER_ID` in its environment, and children inherit it, through
Ray's own process starts as well. So ownership is read from /proc rather than from a list of pids that a crash could
leave out of date, and a process that merely has the same command line is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CLUSTER_ID = "HELIOSTAT_CLUSTER_ID"
NODE_ID = "HELIOSTAT_NODE_ID"


@dataclass(frozen=True)
class OwnedProcess:
    pid: int
    started_ticks: int  # from /proc/<pid>/stat: with the pid it names one process for ever
    command: str
    node_id: str  # the worker node it belongs to; "" for the head, the store and the controller


def owned(cluster_id: str) -> list[OwnedProcess]:
    """Every living process that was started with this cluster's mark, the caller and its parents left out."""
    skip = _self_and_ancestors()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in skip:
            continue
        process = _inspect(entry, cluster_id)
        if process is not None:
            found.append(process)
    return found


def owned_by_node(cluster_id: str, node_id: str) -> list[OwnedProcess]:
    return [p for p in owned(cluster_id) if p.node_id == node_id]


def kill(processes: Iterable[OwnedProcess], signum: int) -> None:
    for process in processes:
        # The pid may have been given to another process since it was listed.
        if _started_ticks(process.pid) == process.started_ticks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signum)


def end_all(cluster_id: str, *, grace_s: float = 3.0, limit_s: float = 20.0) -> list[OwnedProcess]:
    """End every process of the cluster: SIGTERM, then SIGKILL after the grace. Returns what was ended.

    Workers whose head is gone ignore SIGTERM for ever, and a dying raylet may still fork: so SIGKILL is repeated until
    a look at /proc finds nothing.
    """
    ended = {(p.pid, p.started_ticks): p for p in owned(cluster_id)}
    kill(ended.values(), signal.SIGTERM)
    begun = time.monotonic()
    while left := owned(cluster_id):
        ended.update({(p.pid, p.started_ticks): p for p in left})
        waited = time.monotonic() - begun
        if waited > limit_s:
            break
        if waited > grace_s:
            kill(left, signal.SIGKILL)
        time.sleep(0.05)
    return list(ended.values())


def kill_node(cluster_id: str, node_id: str, *, limit_s: float = 10.0) -> int:
    """SIGKILL every process of one worker node, at once, as a reclaim does. Returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + limit_s
    while (left := owned_by_node(cluster_id, node_id)) and time.monotonic() < deadline:
        kill(left, signal.SIGKILL)
        killed.update(p.pid for p in left)
        time.sleep(0.02)
    return len(killed)


def _inspect(entry: Path, cluster_id: str) -> OwnedProcess | None:
    try:
        environ = (entry / "environ").read_bytes()
        if f"{CLUSTER_ID}={cluster_id}\0".encode() not in environ:
            return None
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    ticks = _started_ticks(int(entry.name))
    if ticks is None:
        return None
    return OwnedProcess(int(entry.name), ticks, command, _value(environ, NODE_ID))


def _value(environ: bytes, name: str) -> str:
    for pair in environ.split(b"\0"):
        if pair.startswith(name.encode() + b"="):
            return pair.split(b"=", 1)[1].decode(errors="replace")
    return ""


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _self_and_ancestors() -> set[int]:
    chain = set()
    pid = os.getpid()
    while pid > 1 and pid not in chain:
        chain.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return chain
