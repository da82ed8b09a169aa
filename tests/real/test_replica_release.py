"""A replica through releases, without a cluster: the deployment's own class, its watcher, the controller's duty and a
real store, asked over ASGI as fast as it answers. `tests/benchmarks/releases.py` does the same as deployed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from heliostat.controller.duty import World
from heliostat.controller.releases import Releases
from heliostat.definition import Application, ReleaseRules
from heliostat.events import Spool
from heliostat.flow import steps
from heliostat.promote.release import Release
from heliostat.registry import Artifact, publish
from heliostat.serve.desired import DesiredApp
from heliostat.settings import Settings
from heliostat.store import Store
from tests.faults.kill_points import META
from tests.faults.release_points import PASSED
from tests.support.faulty import WEIGHT
from tests.support.faulty_files import faulty_files

pytestmark = [pytest.mark.cluster, pytest.mark.real, pytest.mark.timeout(120)]
APP = "intents"
THINGS = ("light", "fan", "old big lamp by the door of the hall")
TEXTS = [f"{verb} the {thing}" for verb in ("turn on", "switch off", "dim") for thing in THINGS]
RULES = ReleaseRules(requests=10)


class NoMetrics:
    """Ray's own need a cluster."""

    def __init__(self, app: str) -> None: ...

    def tell(self, *_: object, **__: object) -> None: ...


class OneReplica:
    """One replica, its controller, and clients that never stop asking."""

    def __init__(self, store: Store, folder: Path, *, vram_bytes: int | None) -> None:
        from heliostat.serve import deployment

        self.store = store
        self._settings = Settings(
            cluster="c", store=store.settings, state_dir=folder, spool=folder / "spool", gcs_address="127.0.0.1:3",
            dashboard_url="http://127.0.0.1:1", serve_url="http://127.0.0.1:2",
        )  # fmt: skip
        spec = Application.model_validate(
            {
                "recipe": "tests.support.faulty:Faulty", "model": f"{APP}@production", "group": "serve", "route": "/a",
                "replicas": "1..1", "release": {"requests": RULES.requests},
            }
        )  # fmt: skip
        desired = DesiredApp(name=APP, spec=spec, package="")
        store.put(f"apps/{APP}/desired.json", desired.model_dump_json().encode())
        self._vram_bytes = vram_bytes
        self._class: Any = deployment.ModelDeployment.func_or_class  # type: ignore[attr-defined]  # Serve's decorator
        self._arguments = deployment.AppArguments(
            app=APP, recipe=spec.recipe, model=spec.model, max_queue_s=60, cpus=1, gpus=1, label_selector={},
            vram_bytes=vram_bytes,
        )  # fmt: skip
        self._stop = threading.Event()
        self.replica: Any = None
        self.answers: list[httpx.Response] = []

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from heliostat.serve import deployment

        monkeypatch.setattr(deployment, "load", lambda: self._settings)
        monkeypatch.setattr(deployment, "ReplicaMetrics", NoMetrics)
        monkeypatch.setattr(deployment, "_replica_id", lambda: "replica-1")
        self.replica = self._class(self._arguments)
        for target in (self._control, self._ask):
            threading.Thread(target=target, daemon=True).start()

    def end(self) -> None:
        self._stop.set()
        if self.replica is not None:
            self.replica._stop.set()
            self.replica._watcher.join(30)
            self.replica._end_trial()
            self.replica._api.close()
            del self.replica._stop  # else it would say good-bye to a store that is gone

    def _control(self) -> None:
        spool = Spool(self._settings.spool, "controller-1")
        nobody: Any = None  # the duty asks nothing of Serve
        world = World(settings=self._settings, store=self.store, serve=nobody, spool=spool)
        while not self._stop.wait(0.3):
            Releases().act(world, time.time())

    def _ask(self) -> None:
        asyncio.run(self._ask_until_stopped())

    async def _ask_until_stopped(self) -> None:
        transport = httpx.ASGITransport(app=self.replica._endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client:

            async def one_after_another(first: int) -> None:
                index = first
                while not self._stop.is_set():
                    self.answers.append(await client.post("/", json={"text": TEXTS[index % len(TEXTS)]}))
                    index += 1
                    await asyncio.sleep(0.02)

            await asyncio.gather(*(one_after_another(first) for first in (0, 4)))

    def publish(self, seed: int, fault: str = "") -> Artifact:
        return publish(self.store, name=APP, files=faulty_files(seed, fault), metadata=META)

    def release(self, artifact: Artifact) -> Release:
        return steps.release(self.store, APP, artifact, PASSED, rules=RULES, who="ann", why="better")

    def over(self, limit_s: float = 60) -> Release:
        deadline = time.monotonic() + limit_s
        while (record := steps.must_read_release(self.store, APP)).is_under_way:
            assert time.monotonic() < deadline, record.last
            time.sleep(0.1)
        return record

    def settled_on(self, artifact: Artifact) -> None:
        deadline = time.monotonic() + 30
        while self.answers[-1].json().get("digest") != artifact.digest or self.replica._second is not None:
            assert time.monotonic() < deadline, self.answers[-1].text
            time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def _ray_ends() -> Iterator[None]:
    """Serve's metrics start a Ray of this process's own."""
    yield
    ray.shutdown()


@pytest.fixture
def world(
    request: pytest.FixtureRequest, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OneReplica]:
    made = OneReplica(store, tmp_path, vram_bytes=getattr(request, "param", None))
    first = made.publish(1)
    assert made.release(first).state == "live"
    made.start(monkeypatch)
    try:
        yield made
    finally:
        made.end()


def test_versions_come_and_go_back_and_every_answer_is_whole(world: OneReplica) -> None:
    first, second = world.publish(1), world.publish(2)
    for artifact in (second, first):
        world.release(artifact)
        record = world.over()
        assert (record.state, record.stable) == ("live", artifact.version), record.last
        world.settled_on(artifact)
    assert Counter(answer.status_code for answer in world.answers) == {200: len(world.answers)}
    digests = {"v1": first.digest, "v2": second.digest}
    assert all(a.json()["digest"] == digests[a.json()["version"]] == a.headers["x-model-digest"] for a in world.answers)
    assert {answer.json()["version"] for answer in world.answers} == {"v1", "v2"}
    states = [entry.state for entry in steps.must_read_release(world.store, APP).history]
    assert states[-10:] == ["proposed", "shadow", "canary", "live", "live"] * 2


BAD = {
    "raises-on-load": "cannot be loaded: RuntimeError: head.weight is missing",
    "raises-every-10th": "failed at",
    "nan": "cannot be loaded: ValueError",
    "nan-of-long-texts": "not finite numbers",
    "slow": "medians",
    "wrong-labels": "otherwise than the version before",
    "too-large": "of GPU memory",
}


@pytest.mark.parametrize("world", [WEIGHT * 20 * 2**20], indirect=True)
def test_bad_versions_are_rolled_back_and_no_client_notices(world: OneReplica) -> None:
    first = world.publish(1)
    for fault, reason in BAD.items():
        deadline = time.monotonic() + 30
        while len(world.answers) < 60:  # the replica has something to try a version with
            assert time.monotonic() < deadline
            time.sleep(0.1)
        world.release(world.publish(1, fault))
        record = world.over()
        assert (record.state, record.stable) == ("rolled_back", 1), (fault, record.last)
        assert reason in record.last.why, (fault, record.last.why)
    world.settled_on(first)
    assert Counter(answer.status_code for answer in world.answers) == {200: len(world.answers)}


@pytest.mark.parametrize("world", [WEIGHT * 6 * 2**20], indirect=True)
def test_a_version_that_fits_alone_takes_over_while_requests_wait(world: OneReplica) -> None:
    second = world.publish(2)
    world.release(second)
    record = world.over()
    assert (record.state, record.stable) == ("live", 2), record.last
    world.settled_on(second)
    assert any("holds its requests for about" in entry.why for entry in record.history)
    bad = world.publish(2, "raises-on-load")
    world.release(bad)
    assert (world.over().state, steps.must_read_release(world.store, APP).stable) == ("rolled_back", 2)
    world.settled_on(second)
    assert Counter(answer.status_code for answer in world.answers) == {200: len(world.answers)}
