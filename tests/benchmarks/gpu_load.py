"""`gpu.py load`: a model from the embedded cluster's S3 server into the card's memory, beside other ways to get there.

    ours             registry/loading.py: ranges into pinned memory, verified there, copied while others are read
    ours, unverified the same without digests
    by the CPU       registry/loading.py into host memory, verified, then each tensor `.to("cuda")`
    boto3            download_file with its own threads, then safetensors' load_file onto the card
    raw              the bytes are read by as many threads and dropped

One machine is server, network and loader. Each way runs in a fresh process, one after another, round after round; its
clock starts when CUDA is up and the client has answered once, and ends when the card has everything. Host memory is
the peak of the process over what it held before; pinned memory counts. In the last round the tensors are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat.registry import Artifact, ArtifactMetadata, Lineage, load_tensors, publish, resolve
from heliostat.registry.loading import default_threads
from heliostat.store import Store
from tests.benchmarks import loading
from tests.benchmarks.loading import MIB, Task

SHARDS = 2
LIMIT_S = 90.0


@dataclass(frozen=True)
class Sample:
    wall_s: float
    host_bytes: int
    phases: dict[str, float]
    digest: str


Load = Callable[[Task, Store, Artifact, str], tuple[Mapping[str, torch.Tensor] | None, dict[str, float]]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    size = 32 * MIB if options.tiny else options.size_mib * MIB
    with tempfile.TemporaryDirectory(prefix="gpu-load-") as name, loading.server(Path(name)) as port:
        task = Task("", f"http://127.0.0.1:{port}", default_threads(), name, "")
        told = in_a_fork(published, task, size, options.device)
        print(f"published {told['bytes'] / 2**30:.2f} GiB in {told['seconds']:.1f} s, {task.threads} threads")
        samples: dict[str, list[Sample]] = {name: [] for name in WAYS}
        for number in range(options.rounds + 1):
            for name in WAYS:
                sample = in_a_fork(timed, name, task, options.device, number == options.rounds)
                if number:  # the first round warms the server
                    samples[name].append(sample)
    return summary(samples, told, task)


def summary(samples: dict[str, list[Sample]], told: Mapping[str, Any], task: Task) -> dict[str, Any]:
    rows = {}
    print(f"{'way':<20}{'s':>7}{'GB/s':>7}  slowest to fastest{'ratio to raw':>14}{'host MiB':>10}  right")
    raw = statistics.median(sample.wall_s for sample in samples["raw"])
    for name, own in samples.items():
        walls = [sample.wall_s for sample in own]
        middle = statistics.median(walls)
        digest = own[-1].digest
        right = {"": "dropped", told["digest"]: "yes"}.get(digest, "NO")
        rows[name] = {
            "wall_s": round(middle, 3),
            "gb_per_s": round(told["bytes"] / middle / 1e9, 2),
            "spread": [round(told["bytes"] / value / 1e9, 2) for value in (max(walls), min(walls))],
            "ratio_to_raw": round(raw / middle, 3),
            "host_mib": round(max(sample.host_bytes for sample in own) / MIB),
            "right": right,
            "phases": own[-1].phases,
        }
        low, high = rows[name]["spread"]
        print(
            f"{name:<20}{middle:>7.2f}{rows[name]['gb_per_s']:>7.2f}  {low:>6.2f} to {high:<8.2f}{raw / middle:>14.2f}"
            f"{rows[name]['host_mib']:>10}  {right}  {own[-1].phases}"
        )
    return {"bytes": told["bytes"], "threads": task.threads, "ways": rows}


# --- the ways; each returns what lies on the device


def ours(task: Task, store: Store, artifact: Artifact, device: str) -> Any:
    loaded = load_tensors(store, artifact, device=device, threads=task.threads)
    return loaded.tensors, _phases(loaded.phases)


def unverified(task: Task, store: Store, artifact: Artifact, device: str) -> Any:
    loaded = load_tensors(store, artifact, device=device, threads=task.threads, verify=False)
    return loaded.tensors, _phases(loaded.phases)


def by_the_cpu(task: Task, store: Store, artifact: Artifact, device: str) -> Any:
    loaded = load_tensors(store, artifact, threads=task.threads)
    return {name: tensor.to(device) for name, tensor in loaded.tensors.items()}, _phases(loaded.phases)


def boto3_download(task: Task, store: Store, artifact: Artifact, device: str) -> Any:
    import safetensors.torch

    client, found, spent = loading._boto3(task), {}, 0.0
    for path in artifact.manifest.files:
        local, begun = str(Path(task.scratch) / path), time.perf_counter()
        client.download_file("benchmark", artifact.manifest.key(path), local)
        spent += time.perf_counter() - begun
        found |= safetensors.torch.load_file(local, device=device)
    return found, {"download_s": round(spent, 3)}


def raw(task: Task, store: Store, artifact: Artifact, device: str) -> Any:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from heliostat.commit import PART_BYTES

    own = threading.local()
    places = [
        (artifact.manifest.key(path), start, min(PART_BYTES, entry.size - start))
        for path, entry in artifact.manifest.files.items()
        for start in range(0, entry.size, PART_BYTES)
    ]

    def read(place: tuple[str, int, int]) -> None:
        if not hasattr(own, "room"):
            own.room = memoryview(bytearray(PART_BYTES))
        store.read_into(place[0], place[1], own.room[: place[2]])

    with ThreadPoolExecutor(task.threads) as pool:
        list(pool.map(read, places))
    return None, {}


WAYS: dict[str, Load] = {
    "raw": raw,
    "ours": ours,
    "ours, unverified": unverified,
    "by the CPU": by_the_cpu,
    "boto3": boto3_download,
}


def _phases(phases: Any) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(phases).items() if name.endswith("_s")}


# --- one run, in its own process


def timed(name: str, task: Task, device: str, compared: bool) -> Sample:
    import boto3  # noqa: F401  # imports are no part of the load
    import safetensors.torch  # noqa: F401

    if device == "cuda":
        torch.zeros(1, device=device)
    store = Store.connect(task.settings)
    artifact = resolve(store, "bench:v1")
    store.get_range(artifact.manifest.key(next(iter(artifact.manifest.files))), 0, 8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = loading._memory("VmRSS")
    begun = time.perf_counter()
    tensors, phases = WAYS[name](task, store, artifact, device)
    _wait(device)
    wall_s = time.perf_counter() - begun
    host = loading._memory("VmHWM") - before
    return Sample(wall_s, host, phases, digest_of(tensors) if compared and tensors is not None else "")


def published(task: Task, size: int, device: str) -> dict[str, Any]:
    """Random bits in bfloat16: matrices of 32 MiB, vectors of 8 KiB, in files of equal size."""
    import safetensors.torch

    each = 4 * MIB if size < 2**30 else 32 * MIB
    torch.manual_seed(0)
    files, digests, parameters = {}, {}, 0
    for shard in range(SHARDS):
        tensors = {}
        for layer in range(size // SHARDS // each):
            bits = torch.randint(-(2**15), 2**15, (each // 8192, 4096), dtype=torch.int16, device=device).cpu()
            tensors[f"{shard}.{layer}.weight"] = bits.view(torch.bfloat16)
            tensors[f"{shard}.{layer}.norm"] = bits[0].clone().view(torch.bfloat16)
        parameters += sum(tensor.numel() for tensor in tensors.values())
        digests |= _digests(tensors)
        files[f"model-{shard}.safetensors"] = safetensors.torch.save(tensors)
    store = Store.connect(task.settings)
    store.ensure_bucket()
    metadata = ArtifactMetadata(
        framework="torch",
        lineage=Lineage(job="benchmark", code_version="-", dataset_digest="-"),
        parameters=parameters,
        dtype="bfloat16",
        licence="CC0-1.0",
    )
    begun = time.perf_counter()
    artifact = publish(store, name="bench", files=files, metadata=metadata)
    seconds = time.perf_counter() - begun
    total = sum(entry.size for entry in artifact.manifest.files.values())
    return {"bytes": total, "seconds": seconds, "digest": _whole(digests)}


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    return _whole(_digests(tensors))


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    from blake3 import blake3

    return {
        name: blake3(tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy()).hexdigest()
        for name, tensor in tensors.items()
    }


def _whole(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}{digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_a_fork(work: Callable[..., Any], *arguments: Any) -> Any:
    """This process has no CUDA and no client yet, so that its children may begin with both."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def child() -> None:
        try:
            there.send(work(*arguments))
        except BaseException:  # noqa: BLE001  # the process's boundary: told, and seen by its parent as an end
            traceback.print_exc()
            sys.exit(1)

    process = fork.Process(target=child)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(LIMIT_S) else _gone(process)
    except EOFError:
        return _gone(process)
    finally:
        process.join(10)


def _gone(process: Any) -> Any:
    process.kill()
    raise RuntimeError("a case ended without a result, or took too long")
