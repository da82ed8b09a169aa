"""Waste on a real cluster: a forgotten actor and a pinned node are found and ended, one that is called is left alone.

The five wastes of every kind, found by the controller itself, are tests/benchmarks/waste.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliostat.controller.look import look
from heliostat.controller.waste import carry_out
from heliostat.definition import WasteRules
from heliostat.meter.waste import Finding, Memory, Step, find, remember
from heliostat.sdk import Platform

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.real,
    pytest.mark.timeout(180),
]

NOTEBOOK = """
import ray, time
ray.init(log_to_driver=False, namespace="notebook")
TRAIN = {"heliostat.io/group": "train"}

@ray.remote(num_cpus=1, label_selector=TRAIN)
class Model:
    def predict(self): return 1

forgotten = Model.options(name="forgotten", num_gpus=1).remote()
called = Model.options(name="called", num_gpus=1).remote()
pinning = Model.options(name="pinning").remote()
ray.get([one.predict.remote() for one in (forgotten, called, pinning)])
print("ready", flush=True)
while True:
    ray.get(called.predict.remote())
    time.sleep(0.5)
"""
RULES = WasteRules.model_validate({"after": "5s", "act": "stop", "warn": "1s", "dry_run": False})


@pytest.fixture
def notebook(platform: Platform, tmp_path: Path) -> Iterator[None]:
    settings = platform.settings
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.token_path), "RAY_ADDRESS": settings.gcs_address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    with (tmp_path / "notebook.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", NOTEBOOK], env=env, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    try:
        # Ray prints of nodes between the lines.
        assert "ready\n" in iter(process.stdout.readline, ""), (tmp_path / "notebook.log").read_text()[-2000:]
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("notebook")
def test_what_is_forgotten_is_found_and_ended_and_what_is_used_is_not(platform: Platform) -> None:
    memory, told = Memory(), {}
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * RULES.after.seconds:
        found, memory = judge(platform, memory)
        told |= {finding.kind: finding for finding in found}
        time.sleep(0.5)
    assert set(told) == {"idle-actor", "pinned-node"}
    assert told["idle-actor"].name == "forgotten"
    assert "class Model of a notebook or script" in told["idle-actor"].evidence
    assert "kept by pinning" in told["pinned-node"].evidence
    assert told["idle-actor"].gpu_hours > 0

    for finding in told.values():
        carry_out(platform.settings, platform.store, Step("acted", finding, "stop", False, 0.0), now=0.0)
        carry_out(
            platform.settings, platform.store, Step("acted", finding, "stop", False, 0.0), now=0.0
        )  # gone already
    deadline = time.monotonic() + 20
    while (names := actors(platform)) != {"called"}:
        assert time.monotonic() < deadline, names
        time.sleep(0.3)


def judge(platform: Platform, memory: Memory) -> tuple[tuple[Finding, ...], Memory]:
    seen = look(platform.settings, platform.store, at=time.time(), definition=platform.definition)
    memory = remember(seen, memory)
    return find(seen, memory, RULES), memory


def actors(platform: Platform) -> set[str]:
    seen = look(platform.settings, platform.store, at=time.time(), definition=platform.definition)
    keepers = {name for node in seen.nodes for _, name in node.keepers}
    return {holder.name for holder in seen.holders if holder.kind == "actor"} | keepers
