"""Which processes belong to an embedded cluster, and how they are ended.

Every process of a cluster is started with `HELIOSTAT_CLUSTER_ID` in its environment, which children inherit, through
Ray's own process starts as well. So ownership is read from /proc rather than from a list of pids that a crash could
leave out of date, and a process that merely has the same command line is never touched.

Ray's workers rename themselves (`ray::...`) and thereby blank the environment that /proc shows. They stay in the
session of the node that started them, so a `ray::` process belongs to the cluster if a marked process of its session
was seen, or if the session was noted when it was started (`note_session`); and children belong where their parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

CLUSTER_ID = "HELIOSTAT_CLUSTER_ID"
NODE_ID = "HELIOSTAT_NODE_ID"


@dataclass(frozen=True)
class Mark:
    """How a cluster's processes are told: its id, and the folder where its sessions are noted."""

    cluster_id: str
    sessions: Path


@dataclass(frozen=True)
class OwnedProcess:
    pid: int
    started_ticks: int  # from /proc/<pid>/stat: with the pid it names one process for ever
    command: str
    node_id: str  # the worker node it belongs to; "" for the head, the store and the controller


@dataclass(frozen=True)
class _Seen:
    pid: int
    parent: int
    session: int
    started_ticks: int
    command: str
    marked: bool
    node_id: str


def note_session(mark: Mark, leader: int, *, node_id: str = "") -> None:
    """Remember a session that was started for the cluster; `leader` is the pid that leads it."""
    ticks = _stat(leader)
    if ticks is not None:
        mark.sessions.mkdir(parents=True, exist_ok=True)
        (mark.sessions / f"{leader}.json").write_text(json.dumps({"ticks": ticks[2], "node_id": node_id}))


def forget_sessions(mark: Mark) -> None:
    for path in mark.sessions.glob("*.json"):
        path.unlink(missing_ok=True)


def lives(cluster_id: str) -> bool:
    """Whether any process of that cluster does."""
    return any(process.marked for process in _look(cluster_id))


def owned(mark: Mark) -> list[OwnedProcess]:
    """Every living process of the cluster, the caller and its ancestors left out."""
    seen = {process.pid: process for process in _look(mark.cluster_id)}
    skip = _self_and_ancestors()
    sessions = _sessions(mark, seen, skip)
    found: dict[int, _Seen] = {}
    for process in seen.values():
        renamed = process.command.startswith("ray::") and process.session in sessions
        if process.marked or renamed:
            found[process.pid] = replace(process, node_id=process.node_id or sessions.get(process.session, ""))
    _add_children(found, seen)
    return [
        OwnedProcess(process.pid, process.started_ticks, process.command, process.node_id)
        for process in found.values()
        if process.pid not in skip
    ]


def owned_by_node(mark: Mark, node_id: str) -> list[OwnedProcess]:
    return [process for process in owned(mark) if process.node_id == node_id]


def kill(processes: Iterable[OwnedProcess], signum: int) -> None:
    for process in processes:
        # The pid may have been given to another process since it was listed.
        now = _stat(process.pid)
        if now is not None and now[2] == process.started_ticks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signum)


def end_all(mark: Mark, *, grace_s: float = 3.0, limit_s: float = 20.0) -> list[OwnedProcess]:
    """End every process of the cluster: SIGTERM, then SIGKILL after the grace. Returns what was ended.

    Workers whose head is gone ignore SIGTERM for ever, and a dying raylet may still fork: so SIGKILL is repeated until
    a look at /proc finds nothing.
    """
    ended = {(process.pid, process.started_ticks): process for process in owned(mark)}
    kill(ended.values(), signal.SIGTERM)
    begun = time.monotonic()
    while left := owned(mark):
        ended.update({(process.pid, process.started_ticks): process for process in left})
        waited = time.monotonic() - begun
        if waited > limit_s:
            return list(ended.values())
        if waited > grace_s:
            kill(left, signal.SIGKILL)
        time.sleep(0.05)
    forget_sessions(mark)
    return list(ended.values())


def kill_node(mark: Mark, node_id: str, *, limit_s: float = 10.0) -> int:
    """SIGKILL every process of one worker node, at once, as a reclaim does. Returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + limit_s
    while (left := owned_by_node(mark, node_id)) and time.monotonic() < deadline:
        kill(left, signal.SIGKILL)
        killed.update(process.pid for process in left)
        time.sleep(0.02)
    return len(killed)


def _look(cluster_id: str) -> list[_Seen]:
    wanted = f"{CLUSTER_ID}={cluster_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        stat = _stat(int(entry.name))
        if stat is None:
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # gone, or another user's
            continue
        parent, session, ticks = stat
        found.append(_Seen(int(entry.name), parent, session, ticks, command, wanted in environ, _node_id(environ)))
    return found


def _sessions(mark: Mark, seen: dict[int, _Seen], caller: set[int]) -> dict[int, str]:
    """The cluster's sessions and the worker node of each, "" where it is none's."""
    # The caller's own session tells nothing: it may be a shell's, with another Ray's workers in it.
    sessions = {
        process.session: process.node_id for process in seen.values() if process.marked and process.pid not in caller
    }
    for path in mark.sessions.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            noted = json.loads(path.read_text())
            leader = seen.get(int(path.stem))
            # A session's number is not given again while it has members; a leader that started at another moment
            # says that it was.
            if leader is None or leader.started_ticks == noted["ticks"]:
                sessions.setdefault(int(path.stem), noted["node_id"])
    return sessions


def _add_children(found: dict[int, _Seen], seen: dict[int, _Seen]) -> None:
    grown = True
    while grown:
        grown = False
        for process in seen.values():
            if process.pid not in found and process.parent in found:
                found[process.pid] = replace(process, node_id=process.node_id or found[process.parent].node_id)
                grown = True


def _node_id(environ: list[bytes]) -> str:
    prefix = NODE_ID.encode() + b"="
    return next((pair[len(prefix) :].decode(errors="replace") for pair in environ if pair.startswith(prefix)), "")


def _stat(pid: int) -> tuple[int, int, int] | None:
    """(parent, session, start in ticks) from /proc/<pid>/stat; None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[3]), int(fields[19]))


def _self_and_ancestors() -> set[int]:
    chain: set[int] = set()
    pid = os.getpid()
    while pid > 1 and pid not in chain:
        chain.add(pid)
        stat = _stat(pid)
        if stat is None:
            break
        pid = stat[0]
    return chain
