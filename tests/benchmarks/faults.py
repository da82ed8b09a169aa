"""The fault table: faults, one after another, while a cluster serves, trains, releases and meters at once.

    make faults
    python tests/benchmarks/faults.py [--only "replica killed,store down"] [--times 1] [--seed 0] [--list]

One embedded cluster whose every process reaches the store by way of a proxy (tests/faults/store_proxy.py). All the
time requests come in, a training steps and saves, and versions are published and released. Each fault is begun at a
seeded random moment, lasts, and ends; then everything must work again by itself: requests answered, steps done, the
controller's lease renewed. What must hold is looked at after every fault, and once more when the cluster is down:

- recovers: within RECOVERY_LIMIT_S of the fault's end;
- lost: no request ends without an answer, or with a failure that is no 503 (or 429) with Retry-After;
- version: no answer from a version that was neither in production nor on trial at that time;
- torn: every version that can be found, and the newest checkpoint, are what was written, byte for byte;
- back: no training goes on from before a checkpoint that was committed;
- one: the alias, the release record and the living replicas agree on one version, once no release goes on;
- ledger: the GPU-seconds of all classes add up to the lives of the nodes (at the end);
- leak: no process and no node is left (at the end).

Prints the table, fault by invariant, with the seconds to recover, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

from tests.faults.store_proxy import Action, Request, StoreProxy, upstream_of

ROOT = Path(__file__).parents[2]
APP, JOB = "echo", "steady"
RATE = 5.0
RECOVERY_LIMIT_S = 150.0
INVARIANTS = ("recovers", "lost", "version", "torn", "back", "one", "ledger", "leak")

DEFINITION = """
name: faults
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 10m}}
  train: {{role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 20s}}
store: {{kind: s3, bucket: heliostat, endpoint: "{endpoint}"}}
applications:
  echo:
    recipe: serve_apps.echo:Echo
    model: echo@production
    group: serve
    route: /echo
    replicas: 1..1
    idle_timeout: 10m
    max_queue: 60s
    gate: {{min_accuracy: 0.5}}
    release: {{requests: 5, patience: 5s}}
jobs:
  steady: {{entrypoint: "python -m train_jobs.steady", group: train, nodes: 1, publishes: steady}}
tags: {{team: bench, project: faults}}
"""
NOT_HERE = {
    "network lost between nodes": "all nodes are processes on one loopback; no nft here, and a rule on ports cannot "
    "tell one node's connection to the head from another's. The nearest that runs: a node hung, a store cut off",
    "head killed and taken up with GCS fault tolerance": "the embedded head keeps its state in memory (no Redis); "
    "what runs instead: the whole cluster killed and resumed (tests/faults/test_training.py)",
    "a disk that is slow": "there is no rate for one folder without a block device of its own; a slow store runs",
    "certificate expired": "the embedded cluster has none that others see; the store's inner one lives ten years",
    "kernel out of memory": "it would end others' processes on this machine; a limit of the process's own runs, and "
    "SIGKILL, which is what the kernel sends",
}  # fmt: skip


@dataclass
class Bench:
    """What a fault acts on."""

    platform: Any
    proxy: StoreProxy
    direct: Any
    """The store without the proxy: what looks on must not be struck by the fault."""
    folder: Path
    draw: random.Random
    run: str
    timeline: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    """When which versions were in production or on trial."""
    released: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    """Exceptions out of the SDK that are no HeliostatError."""
    disk: Path | None = None
    """A small file system of its own, with all that the cluster writes but Ray's logs and the store."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def mark(self) -> Any:
        from heliostat.cluster import embedded

        record = embedded.read_record(self.platform.settings.cluster)
        assert record is not None
        return embedded.mark(record)

    def processes(self, part: str) -> list[Any]:
        from heliostat.cluster import processes

        return [process for process in processes.owned(self.mark) if part in process.command]

    def node(self, group: str) -> Any:
        """A node with work on it, of those that are ready."""
        nodes = [node for node in self.platform.nodes() if node.group == group and node.ray_node_id]
        return self.draw.choice(nodes)

    def worker(self) -> list[Any]:
        """The process that trains, first: the youngest fork of a node's warm one."""
        return sorted(self.processes("heliostat/train/warm.py --serve"), key=lambda process: -process.started_ticks)

    def signal(self, victims: Sequence[Any], number: int) -> None:
        from heliostat.cluster import processes

        if not victims:
            raise RuntimeError("there is nothing to strike")
        processes.kill(victims, number)

    def hang(self, victims: Sequence[Any], seconds: float) -> None:
        self.signal(victims, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self.signal(victims, signal.SIGCONT)


# ---- the faults -----------------------------------------------------------------------------------------------------


def _replica_killed(bench: Bench) -> None:
    bench.signal(world.replicas(bench.platform, APP)[:1], signal.SIGKILL)


def _replica_hung(bench: Bench) -> None:
    bench.hang(world.replicas(bench.platform, APP)[:1], 5)


def _node_killed(group: str) -> Callable[[Bench], None]:
    def strike(bench: Bench) -> None:
        from heliostat.cluster.reclaim import reclaim

        reclaim(bench.platform.settings, group, notice_s=0, node_id=bench.node(group).node_id)

    return strike


def _node_told(group: str) -> Callable[[Bench], None]:
    def strike(bench: Bench) -> None:
        from heliostat.cluster.reclaim import reclaim

        reclaim(bench.platform.settings, group, notice_s=10, node_id=bench.node(group).node_id)

    return strike


def _node_hung(group: str) -> Callable[[Bench], None]:
    def strike(bench: Bench) -> None:
        from heliostat.cluster import processes

        bench.hang(processes.owned_by_node(bench.mark, bench.node(group).node_id), 6)

    return strike


def _worker_killed(bench: Bench) -> None:
    bench.signal(bench.worker()[:1], signal.SIGKILL)


def _ours_killed(module: str) -> Callable[[Bench], None]:
    def strike(bench: Bench) -> None:
        from heliostat import sdk

        bench.signal(bench.processes(module), signal.SIGKILL)
        time.sleep(4)
        sdk.up(bench.folder / "project" / "faults.yaml")  # what somebody does who sees it

    return strike


def _ours_hung(module: str) -> Callable[[Bench], None]:
    return lambda bench: bench.hang(bench.processes(module), 6)


def _store(seconds: float, decide: Callable[[random.Random, Request], Action]) -> Callable[[Bench], None]:
    """The store misbehaves as `decide` says."""

    def strike(bench: Bench) -> None:
        bench.proxy.decide = lambda request: decide(bench.draw, request)
        try:
            time.sleep(seconds)
        finally:
            bench.proxy.decide = lambda _: Action.PASS

    return strike


def _slow(draw: random.Random, _: Request) -> Action:
    time.sleep(0.3 + 0.4 * draw.random())
    return Action.PASS


def _some(share: float, action: Action) -> Callable[[random.Random, Request], Action]:
    return lambda draw, _: action if draw.random() < share else Action.PASS


def _corrupting(bench: Bench) -> None:
    """A newly published version arrives with one bit turned, and is released: it must never answer."""
    from heliostat.errors import HeliostatError
    from heliostat.registry import delete_version

    artifact = publish(bench.direct, f"rotten {bench.draw.random()}")
    key = artifact.manifest.key("words.txt")
    whole = bench.direct.get(key).data
    bench.direct.put(key, bytes([whole[0] ^ 1]) + whole[1:])
    with contextlib.suppress(HeliostatError):
        bench.platform.apps.release(APP, artifact, why="a rotten one", limit_s=40)
    if any(report.version == artifact.version for report in bench.platform.apps.replicas(APP)):
        bench.crashes.append("a version that is not what was published has been loaded")
    bench.direct.put(key, whole)
    with contextlib.suppress(HeliostatError):
        delete_version(bench.direct, APP, artifact.version, who="bench", why="it was rotten")


@contextlib.contextmanager
def _full_disk(bench: Bench) -> Iterator[None]:
    """No byte more where events, nodes and logs are written."""
    if bench.disk is None:
        raise Impossible("a file system of its own cannot be mounted here")
    filler = bench.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:  # what is left to write fails as it is closed
        while True:
            file.write(b"x" * 4096)
            file.flush()
    try:
        yield
    finally:
        filler.unlink()


def _disk_full(bench: Bench) -> None:
    with _full_disk(bench):
        time.sleep(6)


def _node_lost_on_a_full_disk(bench: Bench) -> None:
    """The node that takes its place cannot be written down before there is room."""
    from heliostat.cluster import processes

    node = bench.node("train")
    with _full_disk(bench):
        processes.kill_node(bench.mark, node.node_id)
        time.sleep(15)


def _no_memory(find: Callable[[Bench], list[Any]]) -> Callable[[Bench], None]:
    """The process may not have more address space than it has now."""

    def strike(bench: Bench) -> None:
        victims = find(bench)[:1]
        if not victims:
            raise RuntimeError("there is nothing to strike")
        pid = victims[0].pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
        time.sleep(6)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)

    return strike


def _object_store_full(bench: Bench) -> None:
    from heliostat.train.submit import _client

    code = "import ray, time; ray.init(); kept = [ray.put(bytes(40 << 20)) for _ in range(8)]; time.sleep(5)"
    client = _client(bench.platform.settings)
    job = client.submit_job(entrypoint=f'python -c "{code}"')
    world.until(lambda: str(client.get_job_status(job).value) in ("SUCCEEDED", "FAILED"), "the filler ends", limit_s=60)


def _token_replaced(bench: Bench) -> None:
    """Whoever reads the new token is refused by the processes that have the old one, and told so."""
    from heliostat.errors import HeliostatError

    path = bench.platform.settings.token_path
    before = path.read_text()
    path.write_text("f" * len(before))
    try:
        bench.platform.jobs.list()
        bench.crashes.append("a token that is not the cluster's was taken")
    except HeliostatError:
        pass
    except Exception as error:  # noqa: BLE001  # it must be one of ours
        bench.crashes.append(f"a refused token is told as {type(error).__name__}: {str(error)[:120]}")
    finally:
        time.sleep(3)
        path.write_text(before)


def _clock_ahead(bench: Bench) -> None:
    """The controller's own clock is two minutes ahead."""
    from heliostat.cluster import embedded

    settings = bench.platform.settings
    [victim] = bench.processes("heliostat.controller")
    environ = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{victim.pid}/environ").read_text().split("\0") if "=" in pair
    )
    bench.signal([victim], signal.SIGKILL)
    code = "import time, runpy; real = time.time; time.time = lambda: real() + 120; " \
        "runpy.run_module('heliostat.controller', run_name='__main__')"  # fmt: skip
    skewed = embedded._spawn([sys.executable, "-c", code], "controller", settings.state_dir, environ)
    time.sleep(12)
    skewed.kill()
    skewed.wait()
    from heliostat import sdk

    sdk.up(bench.folder / "project" / "faults.yaml")


def _port_taken(bench: Bench) -> None:
    """A second cluster that is told to take a port of the first one's changes nothing."""
    from heliostat import sdk
    from heliostat.errors import PortInUse

    other = bench.folder / "project" / "other.yaml"
    text = (bench.folder / "project" / "faults.yaml").read_text().replace("name: faults", "name: other")
    other.write_text(f"{text}\nports: {{serve: {bench.platform.settings.serve_url.rsplit(':', 1)[1]}}}\n")
    try:
        sdk.up(other).down()
        bench.crashes.append("a port that is taken was taken again")
    except PortInUse:
        pass


class Impossible(Exception):
    """The fault cannot be made on this machine."""


FAULTS: dict[str, Callable[[Bench], None]] = {
    "replica killed": _replica_killed,
    "replica hung 5 s": _replica_hung,
    "replica out of memory": _no_memory(lambda bench: world.replicas(bench.platform, APP)),
    "serving node killed": _node_killed("serve"),
    "serving node drained": _node_told("serve"),
    "training worker killed": _worker_killed,
    "training worker out of memory": _no_memory(lambda bench: bench.worker()),
    "training node killed": _node_killed("train"),
    "training node reclaimed": _node_told("train"),
    "training node hung 6 s": _node_hung("train"),
    "controller killed": _ours_killed("heliostat.controller"),
    "controller hung 6 s": _ours_hung("heliostat.controller"),
    "controller's clock ahead": _clock_ahead,
    "holding server killed": _ours_killed("heliostat.serve.hold"),
    "store down 8 s": _store(8, lambda *_: Action.RESET),
    "store slow": _store(10, _slow),
    "store throttling": _store(10, _some(0.5, Action.SLOW_DOWN)),
    "store's answers lost": _store(10, _some(0.2, Action.RESET_AFTER)),
    "store cut half way": _store(10, _some(0.2, Action.RESET_HALFWAY)),
    "store corrupting": _corrupting,
    "disk full": _disk_full,
    "node lost on a full disk": _node_lost_on_a_full_disk,
    "object store full": _object_store_full,
    "token replaced": _token_replaced,
    "port taken": _port_taken,
}


# ---- the work -------------------------------------------------------------------------------------------------------


def publish(store: Any, words: str) -> Any:
    from heliostat.registry import ArtifactMetadata, Lineage, publish

    metadata = ArtifactMetadata(
        framework="torch", parameters=1, dtype="float32", licence="Apache-2.0",
        metrics={"accuracy": 0.9, "macro_f1": 0.9},
        lineage=Lineage(job="bench", code_version="bench", dataset_digest="sha256:bench"),
    )  # fmt: skip
    return publish(store, name=APP, files={"words.txt": words.encode()}, metadata=metadata)


def _guard(bench: Bench, act: Callable[[], object]) -> str:
    """What came of it, in a word; what is no error of ours is kept."""
    from heliostat.errors import HeliostatError

    try:
        act()
    except HeliostatError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001  # looked for
        bench.crashes.append(f"{type(error).__name__}: {str(error)[:200]}")
        return "crash"
    return "done"


def _release_on_and_on(bench: Bench) -> None:
    number = 0
    while not bench.stop.wait(6):
        number += 1

        def one(number: int = number) -> None:
            artifact = publish(bench.platform.store, f"number {number} {bench.draw.random()}")
            bench.platform.apps.release(APP, artifact, why="bench", limit_s=60)

        bench.released[_guard(bench, one)] += 1


def _watch(bench: Bench) -> None:
    from heliostat.errors import HeliostatError
    from heliostat.promote.records import read_release
    from heliostat.registry import get_alias

    while not bench.stop.wait(0.25):
        with contextlib.suppress(HeliostatError):
            found, alias = read_release(bench.direct, APP), get_alias(bench.direct, APP, "production")
            versions = {alias.version} if alias else set()
            if found:
                versions |= {found[0].stable, found[0].candidate, found[0].previous}  # type: ignore[arg-type]
            bench.timeline.append((time.time(), frozenset(v for v in versions if v)))


def allowed(bench: Bench, sent: float, answered: float) -> frozenset[int]:
    """The versions that could answer between the two, with the margin of the replicas' own look at the record."""
    margin = 6.0
    before = [versions for at, versions in bench.timeline if at < sent - margin][-1:]
    within = [versions for at, versions in bench.timeline if sent - margin <= at <= answered + margin]
    return frozenset().union(*before, *within)


# ---- what must hold -------------------------------------------------------------------------------------------------


def judge_requests(bench: Bench, begun: float, rows: Sequence[Sequence[Any]], broken: dict[str, list[str]]) -> None:
    for row in rows:
        due, took, status, retry_after = row[0], row[1], row[2], row[3]
        if status in (503, 429) and retry_after:
            continue
        if status != 200:
            broken["lost"].append(f"{status} {retry_after} after {took:.1f} s")
            continue
        version = int(str(row[5]).removeprefix("v")) if row[5] else 0
        may = allowed(bench, begun + due, begun + due + took)
        if version not in may:
            broken["version"].append(f"v{version} answered while {sorted(may)} might")


def judge_store(bench: Bench, broken: dict[str, list[str]]) -> None:
    from heliostat.commit import newest_complete, read_file
    from heliostat.errors import HeliostatError
    from heliostat.registry import Artifact, Damaged, scan, verify

    for version in scan(bench.direct, APP).values():
        if isinstance(version, Damaged):
            broken["torn"].append(f"v{version.version}: {version.error}")
        elif isinstance(version, Artifact):
            broken["torn"] += [f"v{version.version}: {finding}" for finding in verify(bench.direct, version)]
    try:
        manifest = newest_complete(bench.direct, f"checkpoints/{bench.run}/")
        for name in manifest.files if manifest else ():
            read_file(bench.direct, manifest, name)  # type: ignore[arg-type]
    except HeliostatError as error:
        broken["torn"].append(f"checkpoint: {error}")


def judge_steps(bench: Bench, broken: dict[str, list[str]]) -> None:
    """No attempt goes on from before a checkpoint that was whole in the store when it began to look for one."""
    manifests = [
        (int(match[1]), info.modified.timestamp())
        for info in bench.direct.list(f"checkpoints/{bench.run}/")
        if (match := re.search(r"/\d+-(\d+)/manifest\.json$", info.key))
    ]
    for event in _of_run(bench):
        if event.kind == "train_resumed":
            step, looked = int(event.fields["step"]), float(event.fields.get("restore_at") or event.time_s)
            newer = [saved for saved, at in manifests if saved > step and at < looked - 1]
            broken["back"] += [f"went on from step {step} though {saved} was saved" for saved in newer]


def judge_release(bench: Bench, broken: dict[str, list[str]]) -> None:
    from heliostat.promote.records import read_release
    from heliostat.registry import get_alias

    def agree() -> bool:
        found, alias = read_release(bench.direct, APP), get_alias(bench.direct, APP, "production")
        if found is None or alias is None:
            return alias is not None
        record = found[0]
        if record.candidate is not None:
            return True  # it goes on
        reports = bench.platform.apps.replicas(APP)
        return record.stable == alias.version and {report.version for report in reports} <= {alias.version}

    with contextlib.suppress(RuntimeError):
        world.until(agree, "one version", limit_s=20)
        return
    broken["one"].append("alias, record and replicas do not agree")


def judge_end(bench: Bench, broken: dict[str, list[str]]) -> dict[str, float]:
    """When the cluster is down: the ledger, and what is left."""
    from heliostat.cluster import processes
    from heliostat.events import ship_spool
    from heliostat.meter import ledger
    from heliostat.meter.report import report

    broken["leak"] += [f"process {process.command[:80]}" for process in processes.owned(bench.mark)]
    broken["leak"] += [f"node {node.node_id}" for node in _all_nodes(bench) if node.ended_at is None]
    ship_spool(bench.direct, bench.platform.settings.spool)
    ledger.update(bench.direct, now=time.time())
    total = report(ledger.read(bench.direct)).total
    lives = sum((node.ended_at or time.time()) - node.started_at for node in _all_nodes(bench))
    if abs(total.held - lives) > 0.01 + 1e-4 * lives:
        broken["ledger"].append(f"{total.held:.2f} GPU-seconds are in classes, the nodes lived {lives:.2f}")
    if total.overlap_gpu_seconds > 0.01:
        broken["ledger"].append(f"{total.overlap_gpu_seconds:.2f} GPU-seconds are counted twice")
    return {"gpu_seconds": round(lives, 1), "ledger_gpu_seconds": round(total.held, 1)}


def _all_nodes(bench: Bench) -> list[Any]:
    from heliostat.cluster.nodes import read_nodes

    return [node for node in read_nodes(bench.platform.settings.state_dir) if node.gpus]


def _of_run(bench: Bench) -> list[Any]:
    from heliostat.events import read_spool

    return [event for event in read_spool(bench.platform.settings.spool) if event.fields.get("run") == bench.run]


# ---- running --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standing(folder: Path, seed: int) -> Iterator[Bench]:
    """The cluster at work: it answers, trains and releases."""
    from heliostat import sdk
    from heliostat.cluster import ports, store_server
    from heliostat.registry import move_alias
    from heliostat.settings import StoreSettings
    from heliostat.store import Store

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    os.environ["HELIOSTAT_HOME"] = str(folder / "home")
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret-of-no-worth"}
    project = folder / "project"
    for part in ("serve_apps", "train_jobs"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "serve_apps" / "echo.py").write_text(world.ECHO)
    shutil.copy(ROOT / "tests" / "support" / "steady_job.py", project / "train_jobs" / "steady.py")
    port = ports.choose("auto", preferred=None, field="store", taken=set())
    log = folder / "store" / "logs" / "store.log"
    server = store_server.start(
        folder / "store", port=port, access_key="bench", secret_key=os.environ["AWS_SECRET_ACCESS_KEY"], log=log
    )
    proxy = StoreProxy(upstream_of(f"http://127.0.0.1:{port}"))
    with contextlib.ExitStack() as stack:
        stack.callback(store_server.stop, server)
        store_server.wait_ready(server, port=port, log=log)
        stack.enter_context(proxy.running())
        limited = stack.enter_context(_own_file_system(folder / "home" / "clusters" / "faults"))
        (project / "faults.yaml").write_text(DEFINITION.format(endpoint=proxy.endpoint))
        platform = sdk.up(project / "faults.yaml", progress=lambda line: print(f"  {line}", file=sys.stderr))
        stack.callback(platform.down)
        settings = platform.settings.store.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"})
        assert isinstance(settings, StoreSettings)
        direct = Store.connect(settings)
        first = publish(direct, "first")
        move_alias(
            direct, name=APP, alias="production", to_version=first.version, expected_version=None, who="b", why="b"
        )
        platform.apps.deploy(APP)
        job = platform.jobs.submit(JOB, arguments=["--workers", "1", "--steps", "1000000", "--pause", "0.1"])
        bench = Bench(platform, proxy, direct, folder, random.Random(seed), job.run, disk=limited)
        try:
            world.wait_answered(platform, platform.apps.url(APP), {"text": "ready"}, limit_s=200)
            world.until(lambda: any(event.kind == "checkpoint" for event in _of_run(bench)), "a checkpoint")
        except RuntimeError:
            _tell_state(bench)
            raise
        threads = [threading.Thread(target=act, args=(bench,), daemon=True) for act in (_watch, _release_on_and_on)]
        for thread in threads:
            thread.start()
        yield bench
        bench.stop.set()
        for thread in threads:
            thread.join(70)


def _tell_state(bench: Bench) -> None:
    """On stderr, before the folder with the logs is gone."""
    from heliostat.cluster import embedded

    print(bench.platform.apps.list(), bench.platform.jobs.list(), bench.proxy.errors[:3], file=sys.stderr)
    record = embedded.read_record(bench.platform.settings.cluster)
    assert record is not None
    logs = [*Path(record.temp_dir).glob("session_latest/logs/serve/*"), *(bench.folder / "home").rglob("logs/c*.log")]
    for path in logs:
        if path.is_file():
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}", file=sys.stderr)


@contextlib.contextmanager
def _own_file_system(folder: Path) -> Iterator[Path | None]:
    """A small one of its own for the folder, where this machine lets us mount; None elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "heliostat-faults", str(folder)],
        capture_output=True,
        check=False,
    )
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def recovered(bench: Bench, since: float) -> bool:
    """Everything works again: an answer, a new step, and the controller's lease."""
    from heliostat.controller.lease import read_lease

    body, headers = {"text": "again"}, dict([world.header(bench.platform).split(": ", 1)])
    if world._status(bench.platform.apps.url(APP), headers, body) != 200:
        return False
    if not any(event.kind == "step" and event.time_s > since for event in _of_run(bench)):
        return False
    lease = read_lease(bench.direct)
    return lease is not None and lease.expires_at > time.time()


def one(bench: Bench, name: str) -> dict[str, Any]:
    """One fault, with the requests around it."""
    broken: dict[str, list[str]] = {invariant: [] for invariant in INVARIANTS}
    crashes = len(bench.crashes)
    spec = {
        "seed": bench.draw.randrange(2**31), "rate": RATE, "seconds": 22.0, "most": 500, "limit_s": 100,
        "kinds": [{"name": "echo", "url": bench.platform.apps.url(APP), "share": 1.0, "bodies": [{"text": 500}],
                   "header": world.header(bench.platform), "field": "version"}],
    }  # fmt: skip
    sending, begun = world.Sending(bench.folder, spec), time.time()
    time.sleep(2 + 2 * bench.draw.random())
    struck = time.time()
    possible, took = "", float("nan")
    try:
        FAULTS[name](bench)
    except Impossible as why:
        possible = str(why)
    ended = time.time()
    try:
        world.until(lambda: recovered(bench, ended), f"recovery from {name}", limit_s=RECOVERY_LIMIT_S)
        took = time.time() - ended
    except RuntimeError as error:
        broken["recovers"].append(str(error))
    judge_requests(bench, begun, sending.rows(), broken)
    judge_store(bench, broken)
    judge_steps(bench, broken)
    judge_release(bench, broken)
    broken["lost"] += bench.crashes[crashes:]
    return {"fault": name, "lasted_s": ended - struck, "recovered_s": took, "broken": broken, "impossible": possible}


def show(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table; returns its rows."""
    rows = []
    print(
        f"{'fault':<30} {'times':>5} "
        + " ".join(f"{name:>8}" for name in INVARIANTS[:6])
        + "  recovered in (median, most)"
    )
    for name in dict.fromkeys(run["fault"] for run in runs):
        mine = [run for run in runs if run["fault"] == name]
        if mine[0]["impossible"]:
            print(f"{name:<30} not run here: {mine[0]['impossible']}")
            continue
        took = [run["recovered_s"] for run in mine]
        counts = {inv: sum(len(run["broken"][inv]) for run in mine) for inv in INVARIANTS[:6]}
        print(
            f"{name:<30} {len(mine):>5} " + " ".join(f"{counts[inv]:>8}" for inv in counts)
            + f"  {statistics.median(took):.1f} s, {max(took):.1f} s", flush=True,
        )  # fmt: skip
        for run in mine:
            for inv, found in run["broken"].items():
                for said in found[:3]:
                    print(f"    {inv}: {said}")
        rows.append(
            {"fault": name, "times": len(mine), "violations": counts, "recovered_s": round(statistics.median(took), 1),
             "recovered_most_s": round(max(took), 1)}
        )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults by name, with commas between")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=1e9, help="begin no fault after so long")
    parser.add_argument("--list", action="store_true")
    parsed = parser.parse_args()
    if parsed.list:
        print("\n".join([*FAULTS, *(f"not here: {name}: {why}" for name, why in NOT_HERE.items())]))
        return 0
    names = [name for name in parsed.only.split(",") if name] or list(FAULTS)
    plan = [name for name in names for _ in range(parsed.times)]
    random.Random(parsed.seed).shuffle(plan)
    begun, runs = time.monotonic(), []
    end: dict[str, list[str]] = {invariant: [] for invariant in INVARIANTS}
    with tempfile.TemporaryDirectory(prefix="hl") as folder:
        stack = contextlib.ExitStack()
        with stack:
            bench = stack.enter_context(standing(Path(folder), parsed.seed))
            for name in plan:
                if time.monotonic() - begun > parsed.limit_s:
                    break
                runs.append(one(bench, name))
                print(f"  {name}: {json.dumps(runs[-1], default=str)[:600]}", file=sys.stderr, flush=True)
            bench.stop.set()
            bench.platform.down()
            sums = judge_end(bench, end)
    rows = show(runs)
    for name, why in NOT_HERE.items():
        print(f"{name:<30} not run here: {why}")
    print(f"at the end: {end['leak'] or 'nothing left'}; {end['ledger'] or 'the ledger adds up'}; {sums}")
    violations = sum(sum(row["violations"].values()) for row in rows) + len(end["leak"]) + len(end["ledger"])
    result = {
        "benchmark": "faults", "machine": world.this_machine(), "seed": parsed.seed, "faults": rows,
        "runs": sum(row["times"] for row in rows), "planned": len(plan), "violations": violations,
        "leaks": end["leak"], "ledger": end["ledger"], **sums, "releases": dict(bench.released),
        "not_here": list(NOT_HERE), "seconds": round(time.monotonic() - begun),
    }  # fmt: skip
    print(json.dumps(result))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
