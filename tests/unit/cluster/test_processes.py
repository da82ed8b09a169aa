"""Real processes: the cluster's own are found and ended, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliostat.cluster import processes
from heliostat.cluster.processes import CLUSTER_ID, NODE_ID, Mark

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Ignores SIGTERM, as a Ray worker without its head does, and blanks what /proc shows of its environment, as a
# `ray::` process does: by writing over the memory where the kernel reads it.
STUBBORN_PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["bash", "-c", 'trap "" TERM; exec -a ray::worker sleep 60'], env={"PATH": "/usr/bin:/bin"})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def mark(tmp_path: Path) -> Mark:
    return Mark(uuid.uuid4().hex, tmp_path / "sessions")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def start(mark: Mark, command: list[str], node: str = "", **more: object) -> subprocess.Popen[bytes]:
    env = {**os.environ, CLUSTER_ID: mark.cluster_id, NODE_ID: node}
    return subprocess.Popen(command, env=env, start_new_session=True, **more)  # type: ignore[call-overload,no-any-return]


def wait_found(mark: Mark, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(processes.owned(mark)) != count:
        assert time.monotonic() < deadline, processes.owned(mark)
        time.sleep(0.02)


def test_only_marked_processes_are_found_and_ended(mark: Mark, started: list[subprocess.Popen[bytes]]) -> None:
    mine = start(mark, SLEEP)
    other = start(Mark("another", mark.sessions), SLEEP)
    plain = subprocess.Popen(SLEEP)
    started += [mine, other, plain]
    wait_found(mark, 1)
    assert [process.pid for process in processes.end_all(mark)] == [mine.pid]
    assert mine.wait(5) is not None
    assert other.poll() is None
    assert plain.poll() is None


def test_a_renamed_child_is_found_by_its_session_and_killed_though_it_ignores_sigterm(
    mark: Mark, started: list[subprocess.Popen[bytes]]
) -> None:
    parent = start(mark, [sys.executable, "-c", STUBBORN_PARENT], stdout=subprocess.PIPE)
    started.append(parent)
    assert parent.stdout is not None
    parent.stdout.readline()
    processes.note_session(mark, parent.pid)
    wait_found(mark, 2)
    parent.kill()
    parent.wait()
    (orphan,) = processes.owned(mark)  # its parent is gone and its environment never had the mark
    assert orphan.command.startswith("ray::worker")
    processes.end_all(mark, grace_s=0.2)
    assert processes.owned(mark) == []


def test_killing_a_node_leaves_the_others(mark: Mark, started: list[subprocess.Popen[bytes]]) -> None:
    one, two = start(mark, SLEEP, "node-1"), start(mark, SLEEP, "node-2")
    started += [one, two]
    wait_found(mark, 2)
    assert processes.kill_node(mark, "node-1") == 1
    assert one.wait(5) == -9
    assert two.poll() is None


def test_the_caller_and_its_parents_are_never_ended(mark: Mark, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"from heliostat.cluster.processes import *; print(owned(Mark({mark.cluster_id!r}, {mark.sessions!r})))"
    env = {**os.environ, CLUSTER_ID: mark.cluster_id}
    command = "from pathlib import Path, PosixPath; " + command
    found = subprocess.run([sys.executable, "-c", command], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_another_s_workers_in_the_caller_s_session_are_not_the_cluster_s(mark: Mark) -> None:
    """As from a shell in which somebody runs a Ray of his own."""
    look = f"print(owned(Mark({mark.cluster_id!r}, Path({str(mark.sessions)!r}))))"
    command = f"from pathlib import Path; from heliostat.cluster.processes import *; {look}"
    script = f'(exec -a ray::worker sleep 20) & other=$!; {CLUSTER_ID}={mark.cluster_id} "$0" -c "$1"; kill $other'
    found = subprocess.run(
        ["bash", "-c", script, sys.executable, command], capture_output=True, text=True, check=True,
        start_new_session=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"
