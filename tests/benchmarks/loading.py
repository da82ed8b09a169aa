"""How fast a model gets from the store into tensors, beside the fastest way to read its bytes and beside other loaders.

    python tests/benchmarks/loading.py [--quick] [--rounds 5] [--size-mib 1024] [--threads 4] [--only CASE,CASE]

A model in bfloat16, shaped like a transformer, is published into a real S3 server that this script starts. Every case
runs in a fresh process, the cases one after another, round after round, so that a slow moment hits all of them. The
clock of a case starts when its libraries are imported, its client has answered once, and as much memory as the model
takes was used and given back.

raw: ranges of 16 MiB, as many threads, and the bytes are dropped. There are two, and ratios are to the faster:
`raw-obstore` takes obstore's buffers, `raw-socket` reads into one buffer per thread again and again.

Server and loader share the machine's cores, so what a loader burns it also takes from the server. CPU is of the
loader's process; memory is its peak over what it held before the load. Needs nothing of the other loaders: a row
stands where the package is installed.

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/ is a folder, not an installed package

from heliostat.cluster import ports, store_server
from heliostat.commit import PART_BYTES
from heliostat.registry import Artifact, ArtifactMetadata, Lineage, NodeCache, load_tensors, publish, resolve
from heliostat.settings import StoreSettings
from heliostat.store import Store
from tests.relay import relay

WEIGHTS = "model.safetensors"
KEYS = ("bench-key", "bench-secret")
MIB = 2**20


@dataclass(frozen=True)
class Task:
    """What a case's process is told."""

    case: str
    endpoint: str
    threads: int
    scratch: str
    digest: str  # sha256 of all tensors' bytes by name, "" to leave it out

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings(
            endpoint=self.endpoint,
            bucket="benchmark",
            access_key_id=KEYS[0],
            secret_access_key=SecretStr(KEYS[1]),
        )


@dataclass(frozen=True)
class Sample:
    """One run of one case. `rss_bytes`: the peak over what was held before."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


# --- The cases. Each returns tensors by name, or None where the bytes are dropped.


def raw_obstore(task: Task, store: Store, artifact: Artifact) -> None:
    import obstore

    key, size = _place(artifact)

    def read(start: int) -> None:
        obstore.get_range(store._client, key, start=start, length=min(PART_BYTES, size - start))

    with ThreadPoolExecutor(task.threads) as pool:
        list(pool.map(read, range(0, size, PART_BYTES)))


def raw_socket(task: Task, store: Store, artifact: Artifact) -> None:
    import threading

    key, size = _place(artifact)
    own = threading.local()

    def read(start: int) -> None:
        if not hasattr(own, "room"):
            own.room = memoryview(bytearray(PART_BYTES))
        store.read_into(key, start, own.room[: min(PART_BYTES, size - start)])

    with ThreadPoolExecutor(task.threads) as pool:
        list(pool.map(read, range(0, size, PART_BYTES)))


def unverified(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    return load_tensors(store, artifact, threads=task.threads, verify=False).tensors


def verified(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    return load_tensors(store, artifact, threads=task.threads).tensors


def first_replica(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    cache = NodeCache(Path(tempfile.mkdtemp(dir=task.scratch)))
    return load_tensors(store, artifact, threads=task.threads, cache=cache).tensors


def next_replica(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    cache = NodeCache(Path(task.scratch) / "cache")
    return load_tensors(store, artifact, threads=task.threads, cache=cache).tensors


def boto3_download(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    import safetensors.torch

    path = str(Path(task.scratch) / "boto3.safetensors")
    _boto3(task).download_file("benchmark", _place(artifact)[0], path)
    return dict(safetensors.torch.load_file(path))


def s3torchconnector(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    import safetensors.torch
    from s3torchconnector._s3client import S3Client, S3ClientConfig

    client = S3Client("us-east-1", endpoint=task.endpoint, s3client_config=S3ClientConfig(force_path_style=True))
    return dict(safetensors.torch.load(client.get_object("benchmark", _place(artifact)[0]).read()))


def runai_streamer(task: Task, store: Store, artifact: Artifact) -> dict[str, Any]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(f"s3://benchmark/{_place(artifact)[0]}")
        return {name: tensor.clone() for name, tensor in streamer.get_tensors()}  # its buffer is used again


OURS: dict[str, Callable[[Task, Store, Artifact], dict[str, Any] | None]] = {
    "raw-obstore": raw_obstore,
    "raw-socket": raw_socket,
    "unverified": unverified,
    "verified": verified,
    "first-replica": first_replica,
    "next-replica": next_replica,
    "boto3": boto3_download,
}
RAW = ("raw-obstore", "raw-socket")
OTHERS = {"s3torchconnector": s3torchconnector, "runai-model-streamer": runai_streamer}
CASES = {
    **OURS,
    **{name: case for name, case in OTHERS.items() if find_spec(name.replace("-", "_")) is not None},
}


def run_case(task: Task) -> Sample:
    """In the case's own process: everything imported, then measured, then compared."""
    import boto3  # noqa: F401  # the import is no part of the load
    import numpy  # noqa: F401  # nor this
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    store = Store.connect(task.settings)
    artifact = resolve(store, "bench:v1")
    key, size = _place(artifact)
    store.get_range(key, 0, 8)
    _warm_memory(size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    cpu_s, begun = time.process_time(), time.perf_counter()
    tensors = CASES[task.case](task, store, artifact)
    sample = Sample(time.perf_counter() - begun, time.process_time() - cpu_s, _memory("VmHWM") - before)
    if tensors is not None and task.digest and _digest(tensors) != task.digest:
        raise SystemExit(f"{task.case} gave other tensors than were published")
    return sample


# --- The runs.


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="how often each case runs (default 5)")
    arguments.add_argument("--size-mib", type=int, default=1024, help="of the model (default 1024)")
    arguments.add_argument("--threads", type=int, default=4, help="requests in flight, for raw and ours (default 4)")
    arguments.add_argument("--only", help="these beside raw and our two, separated by commas")
    arguments.add_argument(
        "--quick", action="store_true", help="3 rounds, without the other loaders: less than 3 minutes"
    )
    arguments.add_argument("--case", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.quick:
        options.rounds, options.only = 3, "first-replica,next-replica"
    wanted = set(CASES if options.only is None else options.only.split(",")) | {*RAW, "unverified", "verified"}
    names = [name for name in CASES if name in wanted]
    if options.case:
        print(json.dumps(asdict(run_case(Task(**json.loads(options.case))))))
        return
    with tempfile.TemporaryDirectory(prefix="loading-") as name, server(Path(name)) as port:
        folder = Path(name)
        task = Task("", f"http://127.0.0.1:{port}", options.threads, name, "")
        artifact, digest = publish_model(task, options.size_mib * MIB)
        task = _with(task, digest=digest)
        counts = count_requests(_with(task, digest=""), port, folder)
        samples = run_rounds(task, names, options.rounds)
    size = artifact.manifest.files[WEIGHTS].size
    print_table(samples, size)
    print(json.dumps(summary(samples, counts, size, options)))


@contextmanager
def server(folder: Path) -> Iterator[int]:
    port = ports.choose("auto", preferred=None, field="benchmark", taken=set())
    log = folder / "logs" / "store.log"
    process = store_server.start(folder, port=port, access_key=KEYS[0], secret_key=KEYS[1], log=log)
    try:
        store_server.wait_ready(process, port=port, log=log)
        yield port
    finally:
        store_server.stop(process)


def publish_model(task: Task, size: int) -> tuple[Artifact, str]:
    """Layers of 14 MiB and 2 KiB vectors between two large embeddings; random bits."""
    import safetensors.torch
    import torch

    chance = torch.Generator().manual_seed(0)

    def bits(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=chance).view(torch.bfloat16)

    tensors = {"embed.weight": bits(size // 32, 2), "head.weight": bits(size // 32, 2)}
    layer = 0
    while sum(tensor.nbytes for tensor in tensors.values()) < size - 14 * MIB:
        for part, rows in (("q", 1024), ("k", 256), ("v", 256), ("o", 1024), ("up", 2304), ("down", 2304)):
            tensors[f"layers.{layer}.{part}.weight"] = bits(rows, 1024)
        tensors[f"layers.{layer}.norm.weight"] = bits(1024)
        layer += 1
    store = Store.connect(task.settings)
    store.ensure_bucket()
    metadata = ArtifactMetadata(
        framework="torch",
        lineage=Lineage(job="benchmark", code_version="-", dataset_digest="-"),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtype="bfloat16",
        licence="CC0-1.0",
    )
    files = {WEIGHTS: safetensors.torch.save(tensors)}
    return publish(store, name="bench", files=files, metadata=metadata), _digest(tensors)


def count_requests(task: Task, port: int, folder: Path) -> dict[str, int]:
    """What reaches the store when replicas start one after another, and when ten start at once. Counted by a relay."""
    with relay(port) as between:
        via = _with(task, endpoint=f"http://127.0.0.1:{between.port}", scratch=str(folder))
        counts = {}
        for name in ("first", "second"):
            between.reset()
            spawn(_with(via, case="next-replica"))
            # Every case asks for the model's first 8 bytes before its clock starts.
            counts[f"{name}_replica_gets"] = between.gets(WEIGHTS) - 1
        elsewhere = folder / "ten"
        elsewhere.mkdir()
        between.reset()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: spawn(_with(via, case="next-replica", scratch=str(elsewhere))), range(10)))
        counts["ten_replicas_gets"] = between.gets(WEIGHTS) - 10
    return counts


def run_rounds(task: Task, names: list[str], rounds: int) -> dict[str, list[Sample]]:
    for name in RAW:  # these warm the server and do not count
        spawn(_with(task, case=name))
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        begun = time.perf_counter()
        for name in names:
            samples[name].append(spawn(_with(task, case=name)))
        print(f"round {number + 1} of {rounds}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return samples


def spawn(task: Task) -> Sample:
    env = {**os.environ, "AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1], "AWS_REGION": "us-east-1"}
    env.update({"AWS_ENDPOINT_URL": task.endpoint, "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0"})
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(asdict(task))],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{task.case} failed:\n{done.stderr[-3000:]}")
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def median(samples: list[Sample], field: str) -> float:
    return statistics.median(getattr(sample, field) for sample in samples)


def raw_of(samples: dict[str, list[Sample]]) -> str:
    """The faster of the two raw readers."""
    return min(RAW, key=lambda name: median(samples[name], "wall_s"))


def ratios(samples: dict[str, list[Sample]], name: str) -> list[float]:
    """Raw's time over this case's, round by round."""
    return [raw.wall_s / own.wall_s for raw, own in zip(samples[raw_of(samples)], samples[name], strict=True)]


def fastest(samples: dict[str, list[Sample]], name: str) -> float:
    """The fastest round of raw over the fastest of this case: what noise of the machine leaves."""
    raw, own = (min(sample.wall_s for sample in samples[case]) for case in (raw_of(samples), name))
    return raw / own


def print_table(samples: dict[str, list[Sample]], size: int) -> None:
    print(f"{'case':<22}{'s':>7}{'GiB/s':>7}{'ratio':>7}{'  rounds':<16}{'CPU s/GiB':>10}{'memory/model':>13}")
    for name, own in samples.items():
        wall_s, ratio = median(own, "wall_s"), ratios(samples, name)
        print(
            f"{name:<22}{wall_s:7.2f}{size / 2**30 / wall_s:7.2f}{_ratio(samples, name):7.2f}"
            f"  {min(ratio):.2f} to {max(ratio):.2f}  {median(own, 'cpu_s') / (size / 2**30):10.2f}"
            f"{median(own, 'rss_bytes') / size:13.2f}"
        )


def summary(
    samples: dict[str, list[Sample]], counts: dict[str, int], size: int, options: argparse.Namespace
) -> dict[str, object]:
    """What the last line says."""
    return {
        "benchmark": "loading",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "bytes": size,
        "rounds": options.rounds,
        "threads": options.threads,
        "raw": raw_of(samples),
        "raw_gib_per_s": round(size / 2**30 / median(samples[raw_of(samples)], "wall_s"), 3),
        "ratio_to_raw": round(_ratio(samples, "unverified"), 3),
        "ratio_verified": round(_ratio(samples, "verified"), 3),
        "ratio_spread": {
            name: [round(pick(ratios(samples, name)), 3) for pick in (min, max)] for name in samples if name not in RAW
        },
        "ratio_fastest": {name: round(fastest(samples, name), 3) for name in ("unverified", "verified")},
        "rss_ratio": round(max(sample.rss_bytes for sample in samples["verified"]) / size, 3),
        "cpu_s_per_gib": {name: round(median(own, "cpu_s") / (size / 2**30), 3) for name, own in samples.items()},
        "ratios": {name: round(_ratio(samples, name), 3) for name in samples},
        "hash_gib_per_s": hash_rates(),
        **counts,
    }


def hash_rates() -> dict[str, float]:
    """Of one core, over parts of 16 MiB."""
    import zlib

    from blake3 import blake3

    data = os.urandom(PART_BYTES)
    hashes: dict[str, Callable[[bytes], object]] = {"blake3": blake3, "sha256": hashlib.sha256, "crc32": zlib.crc32}
    rates = {}
    for name, digest in hashes.items():
        times = []
        for _ in range(9):
            begun = time.perf_counter()
            digest(data)
            times.append(time.perf_counter() - begun)
        rates[name] = round(len(data) / 2**30 / statistics.median(times), 2)
    return rates


def _ratio(samples: dict[str, list[Sample]], name: str) -> float:
    return median(samples[raw_of(samples)], "wall_s") / median(samples[name], "wall_s")


def _with(task: Task, **changes: Any) -> Task:
    return Task(**{**asdict(task), **changes})


def _place(artifact: Artifact) -> tuple[str, int]:
    return artifact.manifest.key(WEIGHTS), artifact.manifest.files[WEIGHTS].size


def _warm_memory(size: int) -> None:
    """Have and give back as much memory as the model takes, so that the kernel's free pages are backed.

    A virtual machine is lent memory by its host when it first touches it, at 0.2 to 2 CPU seconds per GiB here and
    differently in every run. Readers that drop their bytes never pay that; a node that serves has paid it long ago.
    """
    import mmap

    with mmap.mmap(-1, size + size // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        room.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(room), mmap.PAGESIZE):
            room[at] = 1


def _memory(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def _digest(tensors: dict[str, Any]) -> str:
    import torch

    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].contiguous().view(torch.int16).numpy())
    return whole.hexdigest()


def _boto3(task: Task) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=task.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEYS[0],
        aws_secret_access_key=KEYS[1],
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


if __name__ == "__main__":
    main()
