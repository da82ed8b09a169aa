"""Kill -9 at every request to the store: for each operation of the registry, before, in the middle of and after each
request, a real process is killed by the proxy that its requests go through. Then the world is looked at.

`python tests/benchmarks/registry_faults.py` runs all of it; `make test` a sample.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from heliostat.registry import (
    Artifact,
    ArtifactMetadata,
    Damaged,
    Deleted,
    Lineage,
    Retention,
    get_alias,
    list_aliases,
    move_alias,
    plan_sweep,
    publish,
    resolve,
    scan,
    sweep,
    verify,
)
from heliostat.settings import StoreSettings
from heliostat.store import Store
from tests.faults import flow_points, release_points
from tests.faults.store_proxy import Action, Request, StoreProxy, upstream_of

META = ArtifactMetadata(
    framework="torch",
    lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
    licence="Apache-2.0",
)
LIMIT_S = 60.0
STRICT = Retention(newest=1, age=timedelta(0), rollbacks=0)
MODES = ("before", "halfway", "after")


def small(number: int) -> dict[str, Path | bytes]:
    return {"config.json": b'{"n": %d}' % number, "labels.txt": b"a\nb\n"}


def large(number: int) -> dict[str, Path | bytes]:
    """Large enough for a multipart upload."""
    payload = bytes([number]) * (9 * 2**20)
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}).encode()
    return {**small(number), "model.safetensors": len(header).to_bytes(8, "little") + header + payload}


def _prepare_publish(store: Store, model: str) -> None:
    publish(store, name=model, files=small(1), metadata=META)


def _publish(store: Store, model: str) -> None:
    publish(store, name=model, files=large(2), metadata=META)


def _published(store: Store, model: str) -> Iterator[str]:
    versions = scan(store, model)
    if sorted(versions) != [1, 2]:
        yield f"after the second run there are versions {sorted(versions)}"


def _prepare_promote(store: Store, model: str) -> None:
    for number in (1, 2):
        publish(store, name=model, files=small(number), metadata=META)
    move_alias(store, name=model, alias="production", to_version=1, expected_version=None, who="a", why="first")


def _promote(store: Store, model: str) -> None:
    alias = get_alias(store, model, "production")
    if alias is None or alias.version != 2:
        move_alias(store, name=model, alias="production", to_version=2, expected_version=1, who="b", why="better")


def _promoted(store: Store, model: str) -> Iterator[str]:
    alias = get_alias(store, model, "production")
    if alias is None or (alias.version, alias.generation, len(alias.history)) != (2, 2, 2):
        yield f"after the second run the alias is {alias}"


def _prepare_sweep(store: Store, model: str) -> None:
    for number in (1, 2, 3):
        publish(store, name=model, files=small(number), metadata=META)
    move_alias(store, name=model, alias="production", to_version=3, expected_version=None, who="a", why="first")
    store.put(f"models/{model}/files/dead/config.json", b"{}")  # of a publisher that was killed


def _sweep(store: Store, model: str) -> None:
    sweep(store, who="c", models=[model], retention=STRICT, grace=timedelta(0))


def _swept(store: Store, model: str) -> Iterator[str]:
    versions = scan(store, model)
    kept = [number for number, each in versions.items() if isinstance(each, Artifact)]
    if kept != [3] or not isinstance(versions[1], Deleted):
        yield f"after the second run {kept} are left"


@dataclass(frozen=True)
class Operation:
    """`prepare` makes a world, `run` is what gets killed and is then run again, `done` says what is wrong after."""

    prepare: Callable[[Store, str], None]
    run: Callable[[Store, str], None]
    done: Callable[[Store, str], Iterator[str]]


def _prepare_release(store: Store, model: str) -> None:
    _prepare_promote(store, model)
    release_points.deploy(store, model)


def _prepare_flow(store: Store, model: str) -> None:
    _prepare_release(store, model)
    flow_points.prepare(store, model)


OPERATIONS = {
    "publish": Operation(_prepare_publish, _publish, _published),
    "promote": Operation(_prepare_promote, _promote, _promoted),
    "sweep": Operation(_prepare_sweep, _sweep, _swept),
    "release": Operation(_prepare_release, release_points.release, release_points.released),
    "flow": Operation(_prepare_flow, flow_points.run, flow_points.done),
    "roll-back": Operation(_prepare_release, release_points.roll_back, release_points.rolled_back),
}


@dataclass
class Tally:
    kill_points: int = 0
    requests: int = 0
    failures: list[str] = field(default_factory=list)


def kill_at_every_request(
    store: Store, operation_name: str, *, every: int = 1, progress: Callable[[str], None] = lambda _: None
) -> Tally:
    """Kill the operation before, halfway through and after its 1st, 2nd, ... last request.

    `every`: only each so manieth of these points.
    """
    tally, operation = Tally(), OPERATIONS[operation_name]
    proxy = StoreProxy(upstream_of(store.settings.endpoint))
    with proxy.running(), _Zygote() as zygote:
        elsewhere = store.settings.model_copy(update={"endpoint": proxy.endpoint})

        def run(number: int, mode: str) -> tuple[str, Request | None]:
            model = f"m-{uuid.uuid4().hex[:12]}"
            operation.prepare(store, model)
            return model, _kill_once(zygote, proxy, elsewhere, operation_name, model, number, mode)

        run(0, "before")  # kills nothing: how many requests are there?
        tally.requests = len(proxy.seen)
        for number, mode in list(product(range(1, tally.requests + 1), MODES))[::every]:
            model, request = run(number, mode)
            if request is None:
                continue  # two runs may differ by a request
            tally.kill_points += 1
            wrong = _look(store, operation, model)
            where = f"{operation_name}, killed {mode} request {number} ({request.verb} {request.path[:120]})"
            tally.failures += [f"{where}: {text}" for text in wrong]
            progress(f"{where}: {'; '.join(wrong) or 'whole'}")
    return tally


def _kill_once(
    zygote: _Zygote, proxy: StoreProxy, settings: StoreSettings, name: str, model: str, number: int, mode: str
) -> Request | None:
    """Run the operation in a process of its own and kill it there. Returns the request; None if it came through."""
    hit: list[Request] = []
    dead = threading.Event()

    def kill(request: Request) -> None:
        hit.append(request)
        os.kill(zygote.child, signal.SIGKILL)
        dead.wait(LIMIT_S)  # only then does the connection break

    def decide(request: Request) -> Action:
        if hit:
            return Action.RESET  # what else it had under way
        if request.number == number and mode == "halfway":
            return Action.RESET_HALFWAY
        if request.number == number and mode == "before":
            kill(request)
            return Action.RESET
        return Action.PASS

    def after(request: Request) -> None:
        if request.number == number and mode in ("after", "halfway") and not hit:
            kill(request)

    proxy.forget()
    proxy.decide, proxy.after = decide, after
    status = zygote.run(settings, name, model, dead)
    if not hit:
        if status != 0:
            raise RuntimeError(f"{name} failed by itself with {status}")
        return None
    if status != -signal.SIGKILL:
        raise RuntimeError(f"{name} was not killed: {status}")
    return hit[0]


def _look(store: Store, operation: Operation, model: str) -> list[str]:
    """What is wrong: right after the kill, after a second run, and after a sweep of what was left behind."""
    wrong = [f"right after: {text}" for text in _whole(store, model)]
    operation.run(store, model)
    wrong += [*operation.done(store, model), *_whole(store, model)]
    sweep(store, who="c", models=[model], retention=Retention(), grace=timedelta(0))
    wrong += [f"after a sweep: {text}" for text in (*_whole(store, model), *_litter(store, model))]
    return wrong


def _whole(store: Store, model: str) -> Iterator[str]:
    """Every version that can be seen is whole, numbers have no gap, and aliases point at what is there."""
    versions = scan(store, model)
    if sorted(versions) != list(range(1, len(versions) + 1)):
        yield f"versions {sorted(versions)}"
    for version in versions.values():
        if isinstance(version, Damaged):
            yield f"v{version.version} is damaged: {version.error}"
        if isinstance(version, Artifact):
            yield from (f"v{version.version}: {finding}" for finding in verify(store, version))
    for alias in list_aliases(store, model):
        resolve(store, f"{model}@{alias.alias}")


def _litter(store: Store, model: str) -> Iterator[str]:
    """Objects that nothing names."""
    plan = plan_sweep(store, models=[model], grace=timedelta(0))
    named = {
        artifact.manifest.key(path)
        for artifact in scan(store, model).values()
        if isinstance(artifact, Artifact)
        for path in artifact.manifest.files
    }
    # A hold whose owner was killed ends by itself; those of deleted versions must be gone.
    dead = {info.key for info in plan.holds}
    for info in store.list(f"models/{model}"):
        kept = any(part in info.key for part in ("/aliases/", "/verdicts/"))
        known = info.key in named or info.key.endswith("/manifest.json") or kept
        if not known and ("/holds/" not in info.key or info.key in dead):
            yield f"{info.key} is left"
    if plan.uploads:
        yield f"{plan.uploads} unfinished uploads are left"


class _Zygote:
    """A process that has imported everything and forks for each run: a fresh client process in 20 ms.

    It never talks to the store itself, so that no thread is lost in a fork.
    """

    def __init__(self) -> None:
        self.child = 0

    def __enter__(self) -> _Zygote:
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root / "platform"), str(root)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kill_points"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, settings: StoreSettings, name: str, model: str, dead: threading.Event) -> int:
        """The exit status of one run; negative for a signal."""
        secret = settings.secret_access_key
        order = {
            "settings": settings.model_dump(mode="json", exclude={"secret_access_key"}),
            "secret": secret.get_secret_value() if secret else None,
            "operation": name,
            "model": model,
        }
        self._tell(json.dumps(order))
        self.child = int(self._hear())
        self._tell("go")
        status = int(self._hear())
        dead.set()
        return status

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the forking process has ended")
        return line


def _fork_for_ever() -> None:
    import boto3  # noqa: F401  # imported once, for all children
    import obstore  # noqa: F401
    from blake3 import blake3  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(_run(order))
        os.close(read)
        print(child, flush=True)  # noqa: T201  # the pipe to the test
        sys.stdin.readline()
        os.write(write, b"g")
        os.close(write)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _run(order: dict[str, Any]) -> int:  # Any: JSON of `_Zygote.run`
    try:
        settings = StoreSettings.model_validate(
            {**dict(order["settings"]), "secret_access_key": SecretStr(order["secret"])}
        )
        OPERATIONS[order["operation"]].run(Store.connect(settings), order["model"])
    except BaseException as error:  # noqa: BLE001  # the child's boundary
        print(f"{time.time():.3f} {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    _fork_for_ever()
