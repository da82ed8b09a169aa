"""Training processes as keepers start them, with a real store and real gloo, and without Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from heliostat.cluster import ports, store_server
from heliostat.events import read_spool
from heliostat.settings import StoreSettings, save
from heliostat.store import Store
from heliostat.train import keeper as keeper_module
from heliostat.train import warm
from heliostat.train.checkpoint import newest
from tests.faults.killing_proxy import KillingProxy
from tests.unit.train.conftest import Bench
from tests.unit.train.small_recipe import Config

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]


def folder(tmp_path: Path, name: str) -> str:
    (tmp_path / name).mkdir()
    return str(tmp_path / name)


def losses(where: str, rank: int = 0) -> dict[int, float]:
    path = Path(where) / f"losses-{rank}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(map(tuple, map(json.loads, lines)))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(bench: Bench, tmp_path: Path, workers: int) -> None:
    """Losses of every rank and final weights, over dropout, Adam, a scheduler, a sampler and three kinds of chance."""
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    assert {e.kind for e in bench.attempt("whole", Config(23, whole), workers=workers)} == {"done"}
    for stop in (7, 16):
        assert {e.kind for e in bench.attempt("parts", Config(23, parts, stop), workers=workers)} == {"left"}
    assert {e.kind for e in bench.attempt("parts", Config(23, parts), workers=workers)} == {"done"}
    for rank in range(workers):
        assert losses(parts, rank) == losses(whole, rank)
        lines = (Path(parts) / f"losses-{rank}.jsonl").read_text().splitlines()
        assert len(lines) == 23  # nothing was computed twice
        weights = [(Path(where) / f"weights-{rank}.txt").read_text() for where in (whole, parts)]
        assert weights[0] == weights[1]


def test_a_checkpoint_holds_the_generators_of_every_rank_and_the_state_of_what_was_named(
    bench: Bench, tmp_path: Path
) -> None:
    bench.attempt("one", Config(12, folder(tmp_path, "one"), 6), workers=2)
    found = newest(bench.store, "one")
    assert found is not None
    names = set(found.tensors())
    assert {"random.0.torch", "random.1.torch", "random.1.python", "model.0.weight", "optimizer.0.exp_avg"} <= names
    assert len(found.meta["extras"]["sampler"]["seen"]) == 6
    assert found.meta["extras"]["scheduler"]["last_epoch"] == 6


def test_fsdp2_gives_the_losses_of_ddp_and_its_checkpoints_are_cut_anew_for_other_world_sizes(
    bench: Bench, tmp_path: Path
) -> None:
    """2 ranks save, 1 goes on, 3 go on; against one process that was never cut."""
    alone, cut = folder(tmp_path, "alone"), folder(tmp_path, "cut")
    assert bench.attempt("alone", Config(18, alone, mode="plain"), workers=1)[0].kind == "done"
    for workers, stop in ((2, 6), (1, 12), (3, None)):
        mode = "fsdp" if workers > 1 else "plain"
        ended = bench.attempt("cut", Config(18, cut, stop, mode=mode), workers=workers)
        assert {e.kind for e in ended} == {"left" if stop else "done"}, ended
    weights = [json.loads((Path(where) / "values-0.json").read_text()) for where in (alone, cut)]
    assert weights[1] == pytest.approx(weights[0], rel=1e-3, abs=1e-4)
    both = losses(alone), losses(cut)
    assert both[1][12] == pytest.approx(both[0][12], rel=1e-3)  # the steps in which rank 0 saw the whole batch
    assert len(losses(cut, 1)) == len(losses(cut, 2)) + 6 == 12  # rank 1 took part in the first and the last six


def test_a_rotten_checkpoint_sends_all_ranks_to_the_one_before(bench: Bench, tmp_path: Path) -> None:
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    assert bench.attempt("whole", Config(14, whole), workers=2)[0].kind == "done"
    assert bench.attempt("parts", Config(14, parts, 9), workers=2, every=3)[0].kind == "left"
    found = newest(bench.store, "parts")
    assert found is not None
    assert found.step == 9
    key = found.manifest.key("part-00000.safetensors")
    data = bytearray(bench.store.get(key).data)
    data[-1] ^= 1
    bench.store.put(key, bytes(data))
    assert bench.attempt("parts", Config(14, parts), workers=2)[0].kind == "done"
    resumed = [e for e in read_spool(bench.settings.spool) if e.kind == "train_resumed"]
    assert 0 < resumed[-1].fields["step"] < 9
    for rank in range(2):
        assert losses(parts, rank) == losses(whole, rank)


def test_a_store_that_refuses_every_fifth_request_changes_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, flaky = folder(tmp_path, "whole"), folder(tmp_path, "flaky")
    assert bench.attempt("whole", Config(12, whole), workers=2)[0].kind == "done"
    secret = bench.settings.store.secret_access_key
    assert secret is not None
    proxy = KillingProxy(bench.settings.store.endpoint or "", refuse=0.2)
    with proxy.running() as endpoint:
        monkeypatch.setenv("HELIOSTAT_STORE_ENDPOINT", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", bench.settings.store.access_key_id or "")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret.get_secret_value())
        assert bench.attempt("flaky", Config(12, flaky, 7), workers=2, every=2)[0].kind == "left"
        assert bench.attempt("flaky", Config(12, flaky), workers=2, every=2)[0].kind == "done"
    assert proxy.refused >= 5
    assert losses(flaky) == losses(whole)


def test_a_store_that_is_killed_and_comes_back_holds_up_and_loses_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    assert bench.attempt("whole", Config(40, whole, pause_s=0.02), workers=2)[0].kind == "done"
    port = ports.choose("auto", preferred=None, field="test", taken=set())
    log = tmp_path / "logs" / "store.log"

    def start() -> subprocess.Popen[bytes]:
        process = store_server.start(tmp_path / "s3", port=port, access_key="k", secret_key="s" * 8, log=log)
        store_server.wait_ready(process, port=port, log=log)
        return process

    process = start()
    try:
        here = StoreSettings(
            endpoint=f"http://127.0.0.1:{port}", bucket="own", access_key_id="k", secret_access_key=SecretStr("s" * 8)
        )
        bench.store = Store.connect(here)
        bench.store.ensure_bucket()
        save(bench.settings.model_copy(update={"store": here}), tmp_path / "settings.json")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(bench.attempt, "parts", Config(40, parts, pause_s=0.02), workers=2, every=4)
            while len(losses(parts)) < 12:
                time.sleep(0.02)
            process.kill()
            process.wait()
            time.sleep(3)
            held_at = len(losses(parts))
            process = start()
            assert future.result(timeout=120)[0].kind == "done"
        assert held_at < 40  # it waited rather than put more than the interval at risk
        assert losses(parts) == losses(whole)
    finally:
        store_server.stop(process)


def test_a_frozen_worker_is_a_loss_and_not_a_hang(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "FROZEN_S", 3.0)
    begun = time.monotonic()
    ended = bench.attempt("r", Config(50, folder(tmp_path, "f"), freeze_rank=1), workers=2)
    assert [e.kind for e in ended] == ["lost", "lost"]
    assert "no sign of life" in ended[1].text
    assert time.monotonic() - begun < 40


def test_an_error_of_the_recipe_is_told_apart_from_a_loss(bench: Bench, tmp_path: Path) -> None:
    ended = bench.attempt("r", Config(5, folder(tmp_path, "f")), workers=1, train="broken")
    assert ended[0].kind == "failed"
    assert "KeyError: 'no such column'" in ended[0].text


def test_a_killed_process_is_a_loss_with_its_signal_and_a_dead_keepers_process_ends(
    bench: Bench, tmp_path: Path
) -> None:
    """The training process of a keeper that is gone must not go on: its node's GPU would be held for nothing."""
    where = folder(tmp_path, "f")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(bench.attempt, "r", Config(5, where), workers=1, train="slow")
        while not (Path(where) / "here-0").exists():
            time.sleep(0.05)
        started = [e for e in read_spool(bench.settings.spool) if e.kind == "worker_started"]
        assert len(started) == 1
        process = bench.keepers[0]._process
        assert process is not None
        assert process.warm
        assert process._life is not None
        process._life.close()  # as the kernel does when the keeper is killed
        ended = future.result(timeout=20)
    assert ended[0].kind == "lost"


def test_without_a_warm_process_a_new_python_does_the_same(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_ask_to_fork", lambda *arguments: None)
    where, warm_where = folder(tmp_path, "cold"), folder(tmp_path, "warm")
    assert bench.attempt("cold", Config(6, where), workers=1)[0].kind == "done"
    monkeypatch.undo()
    monkeypatch.setenv("HELIOSTAT_SETTINGS", str(tmp_path / "settings.json"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert bench.attempt("warm", Config(6, warm_where), workers=1)[0].kind == "done"
    assert losses(where) == losses(warm_where)


def test_the_warm_process_ends_with_the_process_it_belongs_to(tmp_path: Path) -> None:
    node = f"test-{uuid.uuid4().hex[:8]}"
    raylet = os.fork()
    if raylet == 0:
        time.sleep(60)
        os._exit(0)
    warm.ensure(node, belongs_to=raylet)
    begin = warm.Start("small_child:main", dict(os.environ), str(tmp_path), [str(tmp_path), *sys.path])
    (tmp_path / "small_child.py").write_text(
        "import os, time\ndef main(channel, payload):\n    channel.send({'pid': os.getpid(), 'parent': os.getppid()})\n"
        "    time.sleep(60)\n"
    )
    process = warm.start(node, begin, b"")
    about = process.channel.receive(30)
    assert about is not None
    assert process.warm
    os.kill(raylet, signal.SIGKILL)
    os.waitpid(raylet, 0)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{about[key]}").exists() for key in ("pid", "parent")):
        assert time.monotonic() < deadline, "it outlived its raylet"
        time.sleep(0.02)


def test_without_an_interval_one_is_found_from_what_a_checkpoint_costs(bench: Bench, tmp_path: Path) -> None:
    where = folder(tmp_path, "found")
    assert bench.attempt("found", Config(60, where, pause_s=0.02), workers=1, every=None)[0].kind == "done"
    events = [event for event in read_spool(bench.settings.spool) if event.fields.get("run") == "found"]
    found = [event.fields for event in events if event.kind == "checkpoint_interval"]
    assert found
    for interval in found:  # on the prior, a reclaim in four hours or so: not before the upload before is there
        assert interval["seconds"] >= interval["upload_s"] * 0.5
        assert 0 < interval["lost_share"] < 1
        assert interval["steps"] == pytest.approx(interval["seconds"] / interval["step_s"], rel=0.01)
    assert newest(bench.store, "found") is not None
    (started,) = [event.fields for event in events if event.kind == "worker_started"]
    assert started["gpus"] == 1.0
