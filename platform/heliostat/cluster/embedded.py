"""A whole cluster on this machine: S3 store, Ray head with its autoscaler, controller.

Everything it owns lies in one folder, `<home>/clusters/<name>/`, and every process carries the cluster's mark (see
`processes.py`). `cluster.json` is written before anything is started, so whatever point `up` dies at, a second `up`
or a `down` finds what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from heliostat.cluster import ports as port_choice
from heliostat.cluster import processes, ray_env
from heliostat.cluster.applies import ignored_when_embedded
from heliostat.definition import ClusterDefinition, definition_files
from heliostat.errors import ClusterBusy, ClusterError, ClusterNotUp
from heliostat.files import put_file
from heliostat.settings import Settings, StoreSettings, home, make_current, save
from heliostat.version import VERSION

HEAD_START_LIMIT_S = 120.0
# No upload of somebody who lives takes so long on one machine.
ABANDONED = timedelta(hours=1)
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ClusterRecord:
    """`cluster.json`: what this folder's cluster is, and how far `up` has come."""

    cluster_id: str
    name: str
    phase: str  # starting | up | down
    definition_path: str
    definition_digest: str
    project_root: str
    ports: dict[str, int]
    temp_dir: str
    started_at: float


@dataclass(frozen=True)
class ClusterStatus:
    record: ClusterRecord
    head_alive: bool
    process_count: int


def cluster_dir(name: str) -> Path:
    return home() / "clusters" / name


def mark(record: ClusterRecord) -> processes.Mark:
    return processes.Mark(record.cluster_id, cluster_dir(record.name) / "sessions")


def up(definition: ClusterDefinition, path: Path, *, progress: Progress = lambda _: None) -> Settings:
    """Start the cluster of `definition`, or find it running. Safe to run twice, also after a crash.

    Raises PortInUse before anything is started, ClusterBusy while another `up` or `down` works on the same cluster,
    ClusterError with the log's path when a part does not come up; then nothing is left running.
    """
    folder = cluster_dir(definition.name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):
        before = read_record(definition.name)
        if before is not None and before.phase == "up" and _head_alive(before):
            _refuse_change(before, path)
            settings = _read_settings(folder)
            _revive(definition, settings, before, folder, progress)
            return settings
        if before is not None:
            _end(before, folder)
        record = _new_record(definition, path, folder)
        _write_record(folder, record)
        for note in ignored_when_embedded(definition):
            progress(f"not used here, {note}")
        make_current(definition.name)  # now, so that `down` finds it if this process is killed
        try:
            settings = _start_all(definition, record, folder, progress)
        except BaseException:
            _end(record, folder)
            raise
        _write_record(folder, replace(record, phase="up"))
        return settings


def down(name: str, *, progress: Progress = lambda _: None) -> list[processes.OwnedProcess]:
    """End every process of the cluster and nothing else. The store's data stays. Returns what was ended."""
    record = read_record(name)
    if record is None:
        raise ClusterNotUp(
            f"there is no cluster {name!r}", where=str(cluster_dir(name)), do="heliostat up cluster/laptop.yaml"
        )
    folder = cluster_dir(name)
    with _locked(folder):
        progress("ending processes")
        ended = _end(record, folder)
        left = processes.owned(mark(record))
        if left:
            raise ClusterError(
                f"{len(left)} processes would not end: {', '.join(str(p.pid) for p in left)}", do="run down again"
            )
        return ended


def status(name: str) -> ClusterStatus:
    record = read_record(name)
    if record is None:
        raise ClusterNotUp(f"there is no cluster {name!r}", do="heliostat up cluster/laptop.yaml")
    return ClusterStatus(record, _head_alive(record), len(processes.owned(mark(record))))


def read_record(name: str) -> ClusterRecord | None:
    path = cluster_dir(name) / "cluster.json"
    if not path.exists():
        return None
    return ClusterRecord(**json.loads(path.read_text()))


def definition_of(state_dir: Path) -> ClusterDefinition:
    """What the cluster in this folder was started with: its file may have changed since, and then `up` says so."""
    from heliostat.definition import load

    record = ClusterRecord(**json.loads((state_dir / "cluster.json").read_text()))
    return load(Path(record.definition_path))


def _new_record(definition: ClusterDefinition, path: Path, folder: Path) -> ClusterRecord:
    cluster_id = uuid.uuid4().hex
    # Unix socket names are limited to 107 bytes and Ray's are long: so a short folder of our own.
    user = hashlib.sha256(f"{os.getuid()}:{folder}".encode()).hexdigest()[:8]
    temp = Path(f"/tmp/hs-{user}")  # noqa: S108  # private: made 0700 and checked for its owner
    _make_private(temp)
    with port_choice.claims(temp.parent, processes.lives) as taken:
        try:
            ports = _choose_ports(definition, taken)
        except ClusterError:
            temp.rmdir()
            raise
        port_choice.claim(temp, cluster_id, set(ports.values()))
    return ClusterRecord(
        cluster_id=cluster_id,
        name=definition.name,
        phase="starting",
        definition_path=str(path.resolve()),
        definition_digest=_digest(path),
        project_root=str(_project_root(path)),
        ports=ports,
        temp_dir=str(temp),
        started_at=time.time(),
    )


def _choose_ports(definition: ClusterDefinition, taken: set[int]) -> dict[str, int]:
    wanted = definition.ports
    chosen = {
        "dashboard": port_choice.choose(wanted.dashboard, preferred=8265, field="ports.dashboard", taken=taken),
        "serve": port_choice.choose(wanted.serve, preferred=8000, field="ports.serve", taken=taken),
        "store": port_choice.choose(wanted.store, preferred=None, field="ports.store", taken=taken),
    }
    for inner in (
        "gcs",
        "ray_client",
        "agent",
        "metrics",
        "haproxy_metrics",
        "haproxy_stats",
        "hold",
        "proxy",
        "proxy_grpc",
        "controller_metrics",
    ):
        chosen[inner] = port_choice.choose("auto", preferred=None, field=inner, taken=taken)
    chosen["serve_http_min"] = _free_block(1000, taken)
    return chosen


def _free_block(size: int, taken: set[int]) -> int:
    """The start of a block of ports for replicas, another one for each cluster on the machine."""
    for start in range(20000, 30000, size):
        if start not in taken and port_choice.is_free(start) and port_choice.is_free(start + 1):
            return start
    raise ClusterError("no free block of ports between 20000 and 30000", do="end other embedded clusters")


def _start_all(definition: ClusterDefinition, record: ClusterRecord, folder: Path, progress: Progress) -> Settings:
    _prepare_folders(folder, record)
    settings = _make_settings(definition, record, folder)
    env = _environment(definition, record, folder)
    if definition.store.kind == "embedded":
        progress("starting the S3 store")
        _start_store(settings, folder, record, env)
    _ensure_bucket(settings)
    progress("starting the Ray head")
    head = _start_head(definition, record, folder, env)
    processes.note_session(mark(record), head.pid)
    _wait_for_head(head, settings, folder)
    progress("starting the controller")
    _start_module("heliostat.serve.hold", "hold", record, folder, env)
    _start_module("heliostat.controller", "controller", record, folder, env)
    return settings


def _revive(
    definition: ClusterDefinition, settings: Settings, record: ClusterRecord, folder: Path, progress: Progress
) -> None:
    """A store or a controller that has died is started again; the head, its nodes and their work go on meanwhile."""
    commands = [process.command for process in processes.owned(mark(record))]
    env = _environment(definition, record, folder)
    if definition.store.kind == "embedded" and not any(" mini " in command for command in commands):
        progress("starting the S3 store again")
        _start_store(settings, folder, record, env)
    for module, name in (("heliostat.serve.hold", "hold"), ("heliostat.controller", "controller")):
        if not any(module in command for command in commands):
            progress(f"starting the {name} again")
            _start_module(module, name, record, folder, env)
    progress("already up")


def _environment(definition: ClusterDefinition, record: ClusterRecord, folder: Path) -> dict[str, str]:
    return ray_env.head_environment(
        dict(os.environ),
        cluster_id=record.cluster_id,
        token_path=folder / "token",
        settings_path=folder / "settings.json",
        state_dir=folder,
        temp_dir=Path(record.temp_dir),
        ports=record.ports,
        cuda_devices=_cuda_devices(),
        tags=definition.tags,
        waste=definition.waste,
    )


def _start_module(module: str, name: str, record: ClusterRecord, folder: Path, env: dict[str, str]) -> None:
    """By name: what is started here stands above this file."""
    targets = ray_env.alert_targets(os.environ) if name == "controller" else {}
    process = _spawn([sys.executable, "-m", module], name, folder, env | targets)
    processes.note_session(mark(record), process.pid)


def _prepare_folders(folder: Path, record: ClusterRecord) -> None:
    for of_before in ("capacity", "refusals"):  # limits of an earlier game day
        shutil.rmtree(folder / of_before, ignore_errors=True)
    for name in ("logs", "nodes", "spool", "bin", "store", "packages"):
        (folder / name).mkdir(exist_ok=True)
    for old in (folder / "nodes").glob("*.json"):  # of an earlier `up`: their ends are in the events
        old.unlink()


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user", do="remove it, then run up again")


def _make_settings(definition: ClusterDefinition, record: ClusterRecord, folder: Path) -> Settings:
    _secret(folder / "token")
    ports = record.ports
    embedded = definition.store.kind == "embedded"
    settings = Settings(
        cluster=definition.name,
        dashboard_url=f"http://127.0.0.1:{ports['dashboard']}",
        gcs_address=f"127.0.0.1:{ports['gcs']}",
        token_path=folder / "token",
        serve_url=f"http://127.0.0.1:{ports['serve']}",
        api_key=_secret(folder / "api-key"),
        store=StoreSettings(
            endpoint=f"http://127.0.0.1:{ports['store']}" if embedded else definition.store.endpoint,
            bucket=definition.store.bucket,
            region=os.environ.get("AWS_REGION", definition.store.region),
            access_key_id="heliostat" if embedded else os.environ.get("AWS_ACCESS_KEY_ID"),
            secret_access_key=_secret(folder / "store-key") if embedded else os.environ.get("AWS_SECRET_ACCESS_KEY"),
        ),
        spool=folder / "spool",
        state_dir=folder,
        project_root=Path(record.project_root),
        written_by=VERSION,
    )
    save(settings, folder / "settings.json")
    return settings


def _secret(path: Path) -> str:
    """A random key kept in a file that only its owner reads; made once."""
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(24))
    return path.read_text().strip()


def _start_store(settings: Settings, folder: Path, record: ClusterRecord, env: dict[str, str]) -> None:
    from heliostat.cluster import store_server

    keys = settings.store
    if keys.access_key_id is None or keys.secret_access_key is None:
        raise ClusterError("the embedded store has no keys", where=str(folder), do="run up again")
    process = store_server.start(
        folder / "store",
        port=record.ports["store"],
        access_key=keys.access_key_id,
        secret_key=keys.secret_access_key.get_secret_value(),
        log=folder / "logs" / "store.log",
        env=env,
    )
    processes.note_session(mark(record), process.pid)
    store_server.wait_ready(process, port=record.ports["store"], log=folder / "logs" / "store.log")


def _ensure_bucket(settings: Settings) -> None:
    from heliostat.store import Store

    store = Store.connect(settings.store)
    store.ensure_bucket()
    if settings.store.is_loopback:
        # What killed writers left half uploaded. In a bucket on S3, `heliostat model sweep` sees to it.
        store.abort_uploads(older_than=ABANDONED)


def _start_head(
    definition: ClusterDefinition, record: ClusterRecord, folder: Path, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    from heliostat.cluster.autoscaling import CONFIG_FILE, autoscaling_config
    from heliostat.cluster.haproxy import write_wrapper

    write_wrapper(folder / "bin" / "haproxy", hold_port=record.ports["hold"])
    gcs_address = f"127.0.0.1:{record.ports['gcs']}"
    config = autoscaling_config(
        definition,
        cluster_id=record.cluster_id,
        state_dir=folder,
        spool=folder / "spool",
        temp_dir=Path(record.temp_dir),
        gcs_address=gcs_address,
        cuda_devices=_cuda_devices(),
    )
    config_path = folder / CONFIG_FILE
    config_path.write_text(json.dumps(config, indent=1))
    command = [
        *(sys.executable, "-P", "-m", "heliostat.cluster.head"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={record.ports['gcs']}",
        f"--dashboard-port={record.ports['dashboard']}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={record.ports['ray_client']}",
        f"--dashboard-agent-listen-port={record.ports['agent']}",
        f"--metrics-export-port={record.ports['metrics']}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={definition.head.cpus}",
        "--num-gpus=0",
        f"--object-store-memory={200 * 2**20}",
        f"--temp-dir={record.temp_dir}",
        f"--autoscaling-config={config_path}",
        "--labels=heliostat.io/role=head",
        "--disable-usage-stats",
    ]
    return _spawn(command, "head", folder, env)


def _spawn(command: list[str], name: str, folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "logs" / f"{name}.log").open("ab") as output:
        return subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for_head(head: subprocess.Popen[bytes], settings: Settings, folder: Path) -> None:
    import httpx

    headers = {"Authorization": f"Bearer {(folder / 'token').read_text().strip()}"}
    deadline = time.monotonic() + HEAD_START_LIMIT_S
    last = "no answer yet"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{settings.dashboard_url}/api/jobs/", headers=headers, timeout=5)
            # The dashboard answers before the head is a node, and a head that never becomes one ends 30 s later.
            if answer.status_code == 200 and _has_node(settings.dashboard_url, headers):
                return
            last = f"HTTP {answer.status_code}" if answer.status_code != 200 else "the head is no node yet"
        except httpx.HTTPError as error:
            last = str(error)
        if head.poll() is not None:
            last = f"it ended with code {head.returncode}"
            break
        time.sleep(0.1)
    raise ClusterError(
        f"the Ray head did not come up within {HEAD_START_LIMIT_S:.0f} s: {last}",
        where=str(folder / "logs" / "head.log"),
        do="read that log, then run up again",
    )


def _has_node(dashboard_url: str, headers: dict[str, str]) -> bool:
    import httpx

    answer = httpx.get(f"{dashboard_url}/api/v0/nodes?limit=10", headers=headers, timeout=5)
    if answer.status_code != 200:
        return False
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return any(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"])
    return False


def _head_alive(record: ClusterRecord) -> bool:
    return any("gcs_server" in process.command.split(" ")[0] for process in processes.owned(mark(record)))


def _refuse_change(record: ClusterRecord, path: Path) -> None:
    if record.definition_digest != _digest(path):
        raise ClusterBusy(
            f"cluster {record.name!r} is up with another definition",
            where=f"{record.definition_path} (changed since, or another file)",
            do=f"heliostat down --cluster {record.name}, then up again",
        )


def _end(record: ClusterRecord, folder: Path) -> list[processes.OwnedProcess]:
    living = {process.node_id for process in processes.owned(mark(record))}
    ended = processes.end_all(mark(record))
    shutil.rmtree(record.temp_dir, ignore_errors=True)
    try:
        _close_nodes(folder, living)
        _write_record(folder, replace(record, phase="down"))
    except OSError as error:
        raise ClusterError(
            f"every process of cluster {record.name!r} is ended, but that cannot be written down: {error}",
            where=str(folder),
            do=f"make room there, then run `heliostat down --cluster {record.name}` again",
        ) from error
    return ended


def _close_nodes(folder: Path, living: set[str]) -> None:
    """Nodes that were ended with the cluster: their end is an event too, or the meter would let them run for ever.

    One that was gone before, with the machine perhaps, ended when the cluster last wrote anything.
    """
    from heliostat.cluster.nodes import emit_node_event, read_nodes, write_node
    from heliostat.events import Spool

    heard = max((path.stat().st_mtime for path in (folder / "spool").glob("*.jsonl")), default=time.time())
    spool = Spool(folder / "spool", "down")
    for node in read_nodes(folder):
        if node.ended_at is None:
            at = time.time() if node.node_id in living else max(heard, node.started_at)
            ended = replace(node, ended_at=at, reason=node.reason or "cluster down")
            emit_node_event(spool, "node_ended", ended)
            spool.flush()  # told before it is marked: what is marked is told no second time
            write_node(folder, ended)


def _cuda_devices() -> int:
    """How many CUDA devices this machine has, without importing torch: the driver lists them here."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def _write_record(folder: Path, record: ClusterRecord) -> None:
    put_file(folder / "cluster.json", json.dumps(asdict(record), indent=1))


def _read_settings(folder: Path) -> Settings:
    return Settings.model_validate_json((folder / "settings.json").read_text())


def _digest(path: Path) -> str:
    """Of the file, and of those that it is laid over."""
    digest = hashlib.sha256()
    for file in definition_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _project_root(path: Path) -> Path:
    """The folder that holds the recipes: the nearest one above the definition with `serve_apps` or `train_jobs`."""
    for folder in path.resolve().parents:
        if (folder / "serve_apps").is_dir() or (folder / "train_jobs").is_dir():
            return folder
    return path.resolve().parent


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """One `up` or `down` at a time. The lock goes with its process, however that ends."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterBusy(
                "another `heliostat up` or `down` is working on this cluster",
                where=str(folder),
                do="wait for it, or end it and run this again",
            ) from error
        yield file
