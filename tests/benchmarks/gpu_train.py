"""`gpu.py train`: what of training only a card shows, with a real S3 server and the processes that keepers start.

    stall       what `CheckpointWriter.save` holds a step up for state on the card, beside copies to ordinary memory
    resumed     the language model in bf16 with accumulation: interrupted and resumed beside uninterrupted runs
    fsdp2       the same sharded by FSDP2 over NCCL on one rank, saved, and resumed

The last two run train_jobs/language_model.py. Attention's backward on CUDA adds up in no fixed order, so two
uninterrupted runs are compared as well: a resumed one can be no nearer to them than they are to each other.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat.settings import StoreSettings
from heliostat.store import Store
from heliostat.train.checkpoint import CheckpointWriter, Part
from tests.benchmarks import loading


@dataclass(frozen=True)
class Order:
    """What a training process is told. `stop_after`: leave as if the node were taken away."""

    steps: int
    width: int
    stop_after: int | None = None
    sharding: str = "ddp"
    exact: bool = False
    """Only kernels that add up in a fixed order."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-train-") as name, loading.server(Path(name)) as port:
        settings = loading.Task("", f"http://127.0.0.1:{port}", 4, name, "").settings
        store = Store.connect(settings)
        store.ensure_bucket()
        if options.device == "cuda":
            found["stall"] = stall(store, 8 if options.tiny else 1000)
        with bench(store, settings, Path(name)) as made:
            found["resumed"] = resumed(made, options)
    return found


# --- a run that is interrupted


@contextmanager
def bench(store: Store, settings: StoreSettings, folder: Path) -> Iterator[Any]:
    """The same stand-in for the gang as in tests/unit/train: everything below it is real, and nothing needs Ray."""
    import pytest

    from heliostat.settings import Settings, save
    from tests.unit.train.conftest import Bench

    whole = Settings(
        cluster="test",
        dashboard_url="http://127.0.0.1:1",
        gcs_address="127.0.0.1:1",
        serve_url="http://127.0.0.1:1",
        store=settings,
        spool=folder / "spool",
        state_dir=folder,
    )
    save(whole, folder / "settings.json")
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(f"gpu-{time.time_ns()}", store, whole, patch)


def resumed(made: Any, options: argparse.Namespace) -> dict[str, Any]:
    steps, width = (6, 64) if options.tiny else (30, 512)
    found = {}
    print(f"{'language model, bf16':<34}{'losses as uninterrupted':>24}{'weights':>20}{'largest difference':>20}")
    for title, order in (
        ("one rank", Order(steps, width)),
        ("one rank, fixed order", Order(steps, width, exact=True)),
        ("FSDP2 over NCCL on one rank", Order(steps, width, sharding="fsdp2")),
    ):
        if options.only not in title:
            continue
        key = title.replace(" ", "-").replace(",", "")
        begun = time.perf_counter()
        for run_name in ("whole", "again"):
            go(made, f"{key}-{run_name}", order)
        for stop in (steps // 3, 2 * steps // 3):
            go(made, f"{key}-cut", Order(order.steps, width, stop, order.sharding, order.exact))
        go(made, f"{key}-cut", order)
        runs = {name: output(made, f"{key}-{name}") for name in ("whole", "again", "cut")}
        row = {
            "again": compared(runs["whole"], runs["again"]),
            "cut": compared(runs["whole"], runs["cut"]),
            "test_loss": [round(runs[name][0], 5) for name in runs],
            "seconds": round(time.perf_counter() - begun, 1),
            "spans": spans(made, f"{key}-again"),
        }
        found[title] = row
        for name in ("again", "cut"):
            row_ = row[name]
            print(
                f"{title + ', ' + name:<34}{row_['losses']:>24}{row_['weights']:>20}{row_['difference']:>20.2e}"
                f"  {row['seconds']} s, test loss {row['test_loss']}, {row['spans']}",
                flush=True,
            )
    return found


def go(made: Any, name: str, order: Order) -> None:
    ended = made.attempt(name, order, workers=1, every=7, train=train)
    wanted = "left" if order.stop_after else "done"
    if ended[0].kind != wanted:
        raise RuntimeError(f"{name} ended with {ended[0].kind}: {ended[0].text}")


def output(made: Any, name: str) -> tuple[float, dict[str, torch.Tensor], dict[int, float]]:
    """(loss on held-out text, weights, loss by step) of a run that is done."""
    import json

    import safetensors.torch

    from heliostat.commit import read_file, read_manifest
    from heliostat.events import read_spool

    manifest = read_manifest(made.store, f"runs/{name}/output/manifest.json")
    assert manifest is not None
    metrics = json.loads(read_file(made.store, manifest, "run.json"))["metrics"]
    weights = safetensors.torch.load(read_file(made.store, manifest, "model.safetensors"))
    steps = (e.fields for e in read_spool(made.settings.spool) if e.kind == "step" and e.fields.get("run") == name)
    return metrics["test_loss"], weights, {fields["step"]: fields["loss"] for fields in steps}


def spans(made: Any, name: str) -> dict[str, float]:
    """Seconds from the process's begin to each of these, for the warm second run."""
    from heliostat.events import read_spool

    events = [event for event in read_spool(made.settings.spool) if event.fields.get("run") == name]
    begun = next(event.fields["began_at"] for event in events if event.kind == "worker_started")
    kinds = ("worker_started", "train_started", "step", "train_finished")
    return {kind: round(min(e.time_s for e in events if e.kind == kind) - begun, 2) for kind in kinds} | {
        "last_step": round(max(e.time_s for e in events if e.kind == "step") - begun, 2)
    }


def compared(one: Any, other: Any) -> dict[str, Any]:
    same = sum(loss == other[2].get(step) for step, loss in one[2].items())
    equal = sum(torch.equal(value, other[1][name]) for name, value in one[1].items())
    return {
        "losses": f"{same} of {len(one[2])}",
        "weights": f"{equal} of {len(one[1])} equal",
        "difference": max(float((value - other[1][name]).abs().max()) for name, value in one[1].items()),
    }


def train(context: Any, order: Order) -> None:
    """train_jobs/language_model.py in the training process, told to leave after a step."""
    from train_jobs import language_model

    if order.exact:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    if order.sharding == "fsdp2":
        _shard_on_one_rank(language_model)
    done = context.step_done

    def step_done(step: int, total: int, **figures: Any) -> None:
        if step == order.stop_after:
            context._wishes._wish = 2.0  # as the keeper's "leave" would
        done(step, total, **figures)

    context.step_done = step_done
    config = language_model.Config(
        steps=order.steps, batch=16, accumulate=2, context=256, width=order.width, layers=6, heads=order.width // 64
    )
    language_model.train(context, config)


def _shard_on_one_rank(language_model: Any) -> None:
    """The recipe shards for two ranks and more; two cannot share a card under NCCL, so one rank is sharded here."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)  # type: ignore[attr-defined]
    kind = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(kind, store=store, rank=0, world_size=1)
    build = language_model.transformer

    def sharded(config: Any) -> Any:
        model = build(config).to("cuda" if torch.cuda.is_available() else "cpu")
        language_model.shard(model)
        return model

    language_model.transformer = sharded


# --- how long a step waits


def stall(store: Store, megabytes: int) -> dict[str, Any]:
    """Of a state on the card: a model and its two moments, in 36 tensors."""
    count = megabytes * 10**6 // 4 // 36
    tensors = {
        f"{kind}.{layer}": torch.randn(count, device="cuda")
        for layer in range(12)
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    before = loading._memory("VmRSS")
    writer = CheckpointWriter(store, "stall", generation=1, attempt="a")
    waits, commits = [], []
    for step in range(6):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        writer.save(step, Part(tensors), {"world_size": 1})
        waits.append(time.perf_counter() - begun)
        writer.wait()
        commits.append(time.perf_counter() - begun)
    held = loading._memory("VmRSS") - before
    pageable, saves = [], []
    for _ in range(4):
        begun = time.perf_counter()
        copies = {name: tensor.cpu() for name, tensor in tensors.items()}
        pageable.append(time.perf_counter() - begun)
        del copies
        begun = time.perf_counter()
        torch.save(tensors, io.BytesIO())
        saves.append(time.perf_counter() - begun)
    found = {
        "bytes": size,
        "first_s": round(waits[0], 4),
        "stall_s": round(statistics.median(waits[1:]), 4),
        "stall_spread": [round(min(waits[1:]), 4), round(max(waits[1:]), 4)],
        "commit_s": round(statistics.median(commits[1:]), 3),
        "pageable_s": round(statistics.median(pageable[1:]), 4),
        "torch_save_to_memory_s": round(statistics.median(saves[1:]), 3),
        "host_bytes_held": held,
        "pinned_bytes": int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)),
    }
    print(
        f"\na checkpoint of {size / 1e9:.2f} GB on the card: the step waits {found['stall_s'] * 1e3:.1f} ms "
        f"({size / found['stall_s'] / 1e9:.1f} GB/s), the first time {found['first_s'] * 1e3:.0f} ms; committed after "
        f"{found['commit_s']:.2f} s. To ordinary memory {found['pageable_s'] * 1e3:.0f} ms, torch.save into memory "
        f"{found['torch_save_to_memory_s'] * 1e3:.0f} ms. Pinned: {found['pinned_bytes'] / size:.2f} of the state."
    )
    return found
