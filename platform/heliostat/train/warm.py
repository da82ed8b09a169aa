"""A warm process for each node: it has imported what trainings import, and forks a ready one when asked.

Most of a restart is new Python processes importing torch. This process pays for that once, ahead of time, and a fork
takes milliseconds. It imports other people's packages only, never the job's: the job's own code is loaded after the
fork, from the job's folder, so what runs is always what was submitted.

    keeper (Ray actor) --unix socket--> warm process --fork--> training process
           \\___________________ channel (a socket pair) ______________/

Nobody outlives what it belongs to: the training process ends with the warm process (parent-death signal) and with its
keeper (its connection closes, the warm process kills it); the warm process ends with the raylet it was started under.
Where there is none, or it cannot fork safely, a new Python process does the same work, slower.

This file imports the standard library alone, because it is also run as a script.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# What trainings import, dearest first. sklearn is left out: it starts a thread, and a fork must have one only.
IMPORTS = (
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch._dynamo",  # the first optimizer imports it, for a second
    "torch.distributed.tensor",
    "numpy",
    "safetensors.torch",
    "tokenizers",
    "obstore.store",
    "pydantic.main",  # pydantic itself imports nothing before it is asked
    "pydantic.types",
    "ray.cloudpickle",
)
# For the warm process alone; see `_become`.
QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
OUR_PACKAGE = "heliostat"
CONNECT_LIMIT_S = 20.0
_LENGTH = struct.Struct("!I")
_SO_PEERCRED = struct.Struct("3i")
_PR_SET_PDEATHSIG = 1


class ChannelClosed(ConnectionError):
    """The other end is gone."""


class Channel:
    """Messages over a connected socket: JSON, or bytes. One reader at a time; several threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        self.send_bytes(json.dumps(message).encode())

    def send_bytes(self, data: bytes) -> None:
        """Raises ChannelClosed."""
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None where none came in time. Raises ChannelClosed."""
        data = self.receive_bytes(timeout_s)
        return None if data is None else dict(json.loads(data))

    def receive_bytes(self, timeout_s: float | None = None) -> bytes | None:
        if timeout_s is not None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._socket, selectors.EVENT_READ)
                if not ready.select(timeout_s):
                    return None
        try:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            return self._exactly(length)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def close(self) -> None:
        """Both ends see it at once, also one that is waiting in another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise ChannelClosed("the other end closed")
            parts += part
        return bytes(parts)


@dataclass(frozen=True)
class Start:
    """How a training process begins: `main` is "module:function" and is called with (channel, payload)."""

    main: str
    env: dict[str, str]
    folder: str
    path: list[str]  # sys.path


class TrainingProcess:
    """The keeper's side of one training process."""

    def __init__(
        self, channel: Channel, *, life: socket.socket | None, process: subprocess.Popen[bytes] | None
    ) -> None:
        self.channel = channel
        self._life = life
        self._process = process

    @property
    def warm(self) -> bool:
        return self._process is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; again does no harm."""
        self.channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._life is not None:
            with contextlib.suppress(OSError):
                self._life.shutdown(socket.SHUT_WR)  # the warm process sees it, kills, and answers with the status
                self._life.settimeout(5)
                self._life.recv(64)
            self._life.close()

    def exit_status(self, timeout_s: float = 2.0) -> int | None:
        """As subprocess gives it: negative for a signal. None where it is not known in time."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout_s)
            return None
        if self._life is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            self._life.settimeout(timeout_s)
            return int(self._life.recv(64))
        return None


def start(node: str, begin: Start, payload: bytes) -> TrainingProcess:
    """A training process, forked by the node's warm one if it answers, else a new Python."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    try:
        made = _ask_to_fork(node, channel, theirs)
        if made is None:
            command = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **begin.env})
            made = TrainingProcess(channel, life=None, process=process)
    finally:
        theirs.close()
    with contextlib.suppress(ChannelClosed):  # it died at once: the first receive says so
        channel.send({"main": begin.main, "env": begin.env, "folder": begin.folder, "path": begin.path})
        channel.send_bytes(payload)
    return made


def ensure(node: str, *, belongs_to: int) -> None:
    """Start the node's warm process if there is none. It ends with the process `belongs_to`, the node's raylet.

    Returns at once; a `start` that comes too early waits for the imports.
    """
    folder = _socket_path(node).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        return  # somebody else's folder under /tmp: the slow way is safe
    with (folder / f"{node}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # the warm process holds the lock as long as it lives
        # Twice, so that it is no child of the keeper: Ray ends a worker's children with the worker.
        command = [
            sys.executable,
            "-P",
            str(Path(__file__).resolve()),
            "--serve",
            node,
            str(belongs_to),
            str(lock.fileno()),
        ]
        subprocess.run(
            command,
            env={**os.environ, **QUIET},
            cwd="/",
            pass_fds=[lock.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )


def _socket_path(node: str) -> Path:
    # Short: a unix socket's path takes 107 bytes at most.
    return Path(tempfile.gettempdir()) / f"heliostat-warm-{os.getuid()}" / f"{node}.sock"


def _ask_to_fork(node: str, channel: Channel, theirs: socket.socket) -> TrainingProcess | None:
    life = socket.socket(socket.AF_UNIX)
    life.settimeout(CONNECT_LIMIT_S)
    try:
        life.connect(str(_socket_path(node)))
        socket.send_fds(life, [b"fork"], [theirs.fileno(), 1, 2])
        if life.recv(2) == b"ok":
            return TrainingProcess(channel, life=life, process=None)
    except OSError:
        pass
    life.close()
    return None


# --- the warm process ---------------------------------------------------------------------------------------------


class _Warm:
    """Serves forks until the raylet that it belongs to is gone. Single-threaded, as a process that forks must be."""

    def __init__(self, listener: socket.socket, raylet: int) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._children: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> (pid, the connection it lives by)
        self._lives: dict[socket.socket, int] = {}  # the reverse
        self._events.register(listener, selectors.EVENT_READ, self._accept)
        self._events.register(raylet, selectors.EVENT_READ, self._end)

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._events.select():
                key.data()

    def _end(self) -> None:
        path = Path(self._listener.getsockname())
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
        sys.exit(0)

    def _accept(self) -> None:
        life, _ = self._listener.accept()
        life.settimeout(2)
        handles: list[int] = []
        try:
            _, uid, _ = _SO_PEERCRED.unpack(life.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size))
            _, handles, _, _ = socket.recv_fds(life, 16, 3)
            if uid != os.getuid() or len(handles) != 3:
                raise OSError("not one of ours")
            self._fork(life, handles)
        except OSError:
            life.close()
        finally:
            for handle in handles:
                os.close(handle)

    def _fork(self, life: socket.socket, handles: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._close_all(life)
            _die_with_parent(parent)
            os.dup2(handles[1], 1)
            os.dup2(handles[2], 2)
            _become(socket.socket(fileno=os.dup(handles[0])))
        pidfd = os.pidfd_open(pid)
        self._children[pidfd], self._lives[life] = (pid, life), pidfd
        self._events.register(pidfd, selectors.EVENT_READ, lambda: self._ended(pidfd))
        self._events.register(life, selectors.EVENT_READ, lambda: self._abandoned(life))
        with contextlib.suppress(OSError):
            life.sendall(b"ok")

    def _abandoned(self, life: socket.socket) -> None:
        """The keeper closed its end, or is dead."""
        pidfd = self._lives.get(life)
        if pidfd is None:
            return  # its process ended in this very round
        self._events.unregister(life)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _ended(self, pidfd: int) -> None:
        pid, life = self._children.pop(pidfd)
        del self._lives[life]
        self._events.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            life.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        with contextlib.suppress(KeyError):
            self._events.unregister(life)
        life.close()

    def _close_all(self, life: socket.socket) -> None:
        """In the child: what belongs to the parent, or to its other children."""
        self._events.close()
        self._listener.close()
        life.close()
        for other in self._lives:
            other.close()
        for pidfd in self._children:
            os.close(pidfd)


def _serve(node: str, belongs_to: int) -> int:
    if os.fork() > 0:
        return 0
    raylet = os.pidfd_open(belongs_to)
    path = _socket_path(node)
    path.unlink(missing_ok=True)
    _sweep(path.parent)
    os.umask(0o077)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)  # from here on a `start` waits for the imports
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        path.unlink(missing_ok=True)  # a fork with threads may hang: the slow way instead
        return 1
    return _Warm(listener, raylet).serve()


def _sweep(folder: Path) -> None:
    """Remove what warm processes left that were killed, as a reclaimed node's are."""
    for lock in folder.glob("*.lock"):
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its owner is gone
            lock.with_suffix(".sock").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _become(connection: socket.socket) -> NoReturn:
    """Turn this process into the training process that is described on the connection. Never returns."""
    code = 1
    try:
        channel = Channel(connection)
        about = channel.receive()
        payload = channel.receive_bytes()
        if about is not None and payload is not None:
            _take_on(about["env"], about["folder"], about["path"])
            module, _, function = about["main"].partition(":")
            getattr(importlib.import_module(module), function)(channel, payload)
            code = 0
    except ChannelClosed:
        pass
    except BaseException:  # noqa: BLE001  # the process's last line: told on its standard error
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _take_on(env: dict[str, str], folder: str, path: list[str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    with contextlib.suppress(OSError):
        os.chdir(folder)
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == OUR_PACKAGE]:
        del sys.modules[name]
    importlib.invalidate_caches()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keeper decides
    if "torch" in sys.modules:
        # The warm process has one thread; the number is a part of a result, bit for bit, so it is set either way.
        import torch

        torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--child"]:
        _die_with_parent(os.getppid())
        _become(socket.socket(fileno=int(arguments[1])))
    if arguments[:1] == ["--serve"]:
        return _serve(arguments[1], int(arguments[2]))
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
