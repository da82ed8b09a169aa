"""A process that writes checkpoints is killed before and after every request it makes of the store."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from heliostat.errors import TrainingSuperseded
from heliostat.store import Store
from heliostat.train import warm
from heliostat.train.checkpoint import (
    KEEP,
    CheckpointWriter,
    Part,
    claim_generation,
    complete,
    newest,
    prefix,
)
from tests.faults.checkpoint_child import STEPS, tensors_of
from tests.faults.killing_proxy import KillingProxy

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def warm_node() -> Iterator[str]:
    """The warm process of Heliostat itself: a fork for each kill instead of an import of torch."""
    node = f"test-{uuid.uuid4().hex[:8]}"
    warm.ensure(node, belongs_to=os.getpid())
    return node


def run_child(node: str, store: Store, run: str, proxy: KillingProxy) -> int:
    """The step of the last checkpoint that the child was told is in the store, 0 for none."""
    with proxy.running() as endpoint:
        secret = store.settings.secret_access_key
        assert secret is not None
        about = {
            "endpoint": endpoint,
            "bucket": store.settings.bucket,
            "access_key_id": store.settings.access_key_id,
            "secret_access_key": secret.get_secret_value(),
        }
        begin = warm.Start("tests.faults.checkpoint_child:main", dict(os.environ), str(Path.cwd()), list(sys.path))
        process = warm.start(node, begin, json.dumps({"store": about, "run": run}).encode())
        acknowledged = 0
        try:
            while True:
                message = process.channel.receive(60)
                assert message is not None, "the child hangs"
                proxy.pid = message.get("pid", proxy.pid)
                acknowledged = message.get("committed", acknowledged)
        except warm.ChannelClosed:
            pass
        process.kill()
        return acknowledged


@pytest.mark.timeout(900)  # a minute on a quiet machine
def test_killed_around_every_request_it_leaves_a_whole_verified_checkpoint(
    store: Store, warm_node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, points, failures = time.monotonic(), 0, []
    for when in ("before", "after"):
        at = 0
        while True:
            at += 1
            run = f"sweep-{when}-{at}"
            proxy = KillingProxy(store.settings.endpoint or "", at, when)
            acknowledged = run_child(warm_node, store, run, proxy)
            if not proxy.killed:
                assert acknowledged == STEPS[-1]
                break
            points += 1
            failures += _wrong(store, run, acknowledged, f"{when} request {at}")
            assert at < 500
    with capsys.disabled():
        took = time.monotonic() - begun
        print(  # noqa: T201  # the figure that the sweep is for
            f"\n{points} kill points over {len(STEPS)} checkpoints, {len(failures)} failures, {took:.0f} s"
        )
    assert failures == []
    assert points >= 2 * 25


def _wrong(store: Store, run: str, acknowledged: int, where: str) -> list[str]:
    found = newest(store, run)
    if found is None:
        return [f"{where}: nothing is left of step {acknowledged}"] if acknowledged else []
    if found.step < acknowledged:
        return [f"{where}: step {found.step} is older than what was acknowledged, {acknowledged}"]
    tensors = found.tensors()  # verified, or it raises
    whole = torch.cat([tensors_of(found.step, rank)["sharded"] for rank in range(2)])
    equal = torch.equal(tensors["sharded"], whole) and torch.equal(tensors["whole"], tensors_of(found.step, 0)["whole"])
    return [] if equal else [f"{where}: the state of step {found.step} is not what was saved"]


def write(store: Store, run: str, generation: int, step: int, value: float) -> CheckpointWriter:
    writer = CheckpointWriter(store, run, generation=generation, attempt=f"a{generation}")
    writer.save(step, Part({"x": torch.full((5,), value)}), {"world_size": 1})
    writer.wait()
    return writer


def test_old_checkpoints_are_deleted_with_what_crashes_left_beside_them(store: Store) -> None:
    store.put(f"{prefix('r')}000001-000000000005/dead/part-00000.safetensors", b"half")
    for step in (10, 20, 30):
        write(store, "r", 1, step, step)
    folders = {info.key.split("/")[2] for info in store.list(prefix("r"))}
    assert folders == {"000001-000000000020", "000001-000000000030"}
    assert len(folders) == KEEP


def test_a_worker_taken_for_dead_neither_wins_nor_deletes(store: Store) -> None:
    """The zombie is further than the attempt that took over, and still what it commits is not preferred."""
    assert claim_generation(store, "r") == 1
    write(store, "r", 1, 10, 1.0)
    zombie = CheckpointWriter(store, "r", generation=1, attempt="zombie")
    assert claim_generation(store, "r") == 2
    write(store, "r", 2, 20, 2.0)
    zombie.save(900, Part({"x": torch.zeros(5)}), {"world_size": 1})
    with pytest.raises(TrainingSuperseded, match="newer attempt"):
        zombie.wait()
    # And if its look came before the claim, and its commit after it:
    zombie._refuse_if_superseded = lambda: None  # type: ignore[method-assign]
    zombie.started = None
    zombie.save(901, Part({"x": torch.zeros(5)}), {"world_size": 1})
    zombie.wait()
    found = newest(store, "r")
    assert found is not None
    assert (found.step, float(found.tensors()["x"][0])) == (20, 2.0)


def test_a_rotten_byte_is_found_and_the_checkpoint_before_is_left(store: Store) -> None:
    write(store, "r", 1, 10, 1.0)
    write(store, "r", 1, 20, 2.0)
    key = next(info.key for info in store.list(prefix("r")) if "-000000000020/a1/part" in info.key)
    data = bytearray(store.get(key).data)
    data[-1] ^= 1
    store.put(key, bytes(data))
    found = list(complete(store, "r"))
    with pytest.raises(Exception, match="sha256 differs"):
        found[0].tensors()
    assert float(found[1].tensors()["x"][0]) == 1.0


def test_two_drivers_never_get_the_same_generation(store: Store) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(claim_generation(store, "r"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


def test_a_checkpoint_needs_no_new_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is started without memory may die before it says that it began, and Python waits for that for ever: a
    training worker that had been out of memory for some seconds stood at its next checkpoint until it was killed.
    """
    writer = CheckpointWriter(store, "memory", generation=claim_generation(store, "memory"), attempt="a")

    def no_memory(_: threading.Thread) -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", no_memory)
    for step in (1, 2):
        writer.save(step, Part({"w": torch.ones(3)}), {})
    writer.wait()
    found = newest(store, "memory")
    assert found is not None
    assert found.step == 2
