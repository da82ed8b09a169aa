"""Samples streamed from the object store, in an order that resumes exactly, ahead of the device.

    write_samples(store, "data/commands", (record for record in ...))        once
    stream = Stream(store, "data/commands", batch_size=32, seed=0, rank=context.rank, world=context.world_size)
    start = context.restore(model, optimizer, data=stream)
    for batch in stream:                                                      # this rank's records, for ever
        ...

A sample is bytes; a *shard* holds some thousand of them and is read whole. The order of an epoch follows from seed and
epoch alone: shards in random order, and samples shuffled among `window` shards that lie next to each other in it, so
that memory stays bounded. Rank r takes every `world`-th sample of each global batch: with another number of workers
the same samples come in the same batches, and none is seen twice or missed.

Next to what exists (mosaicml-streaming, litdata, Ray Data): those bring an S3 client each and write index files without
a commit; here it is one manifest, the same as a checkpoint's, and 150 lines. See docs/decisions/0013-recovery.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import struct
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.commit import Manifest, commit, read_file, read_manifest
from heliostat.errors import CorruptArtifact, UsageError
from heliostat.store import Store, json_bytes

INDEX = "index.json"
SHARD_SAMPLES = 2048
_COUNT = struct.Struct("<I")


def write_samples(
    store: Store, prefix: str, samples: Iterable[bytes], *, shard_samples: int = SHARD_SAMPLES
) -> Manifest:
    """Write a data set, whole or not at all. Raises ObjectExists where there is one under that prefix."""
    files: dict[str, bytes] = {}
    counts: list[int] = []
    source = iter(samples)
    while shard := list(itertools.islice(source, shard_samples)):
        files[_shard_name(len(counts))] = b"".join(_COUNT.pack(len(sample)) + sample for sample in shard)
        counts.append(len(shard))
    files[INDEX] = json_bytes({"counts": counts})
    prefix = prefix.rstrip("/")
    return commit(store, prefix, files, manifest_key=f"{prefix}/manifest.json", attempt=uuid.uuid4().hex[:12])


@dataclass(frozen=True)
class _Position:
    epoch: int
    batch: int  # of the epoch, the next to be given


class Stream:
    """An endless iterator of batches, this rank's share of each. Its state is two numbers and what they belong to.

    `waited_s` is the time in which the training waited for data, `gave` the number of batches since it was made.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        window: int = 4,
        ahead: int = 2,
        cache: Path | None = None,
    ) -> None:
        prefix = prefix.rstrip("/")
        manifest = read_manifest(store, f"{prefix}/manifest.json")
        if manifest is None:
            raise UsageError("there is no data set", where=prefix, do="write one with write_samples(...)")
        if batch_size < 1 or window < 1 or not 0 <= rank < world:
            given = f"batch_size {batch_size}, window {window}, rank {rank} of {world}"
            raise UsageError(f"{given}: each must count from 1, the rank from 0", where="Stream(...)")
        self._store, self._manifest = store, manifest
        self._counts: list[int] = json.loads(read_file(store, manifest, INDEX))["counts"]
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._window, self._cache = window, cache
        self._at = _Position(0, 0)
        self._pool = ThreadPoolExecutor(max(1, ahead), thread_name_prefix="data")
        self._ahead = ahead
        self._shards: OrderedDict[int, Future[list[bytes]]] = OrderedDict()
        self._cut: tuple[int, list[list[int]]] | None = None
        self._mixes: OrderedDict[tuple[int, int], list[tuple[int, int]]] = OrderedDict()
        self.waited_s = self._taken_s = 0.0
        self.gave = 0

    @property
    def epoch(self) -> int:
        return self._at.epoch

    @property
    def batches_per_epoch(self) -> int:
        return -(-sum(self._counts) // self._batch_size)

    def __iter__(self) -> Iterator[list[bytes]]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> list[bytes]:
        """This rank's samples of the next global batch; fewer, or none, in the last one of an epoch."""
        low = self._at.batch * self._batch_size
        self._prefetch(low)
        begun = time.monotonic()
        places = itertools.islice(self._places(self._at.epoch, low), self._batch_size)
        batch = [
            self._shard(shard).result()[index]
            for number, (shard, index) in enumerate(places)
            if number % self._world == self._rank
        ]
        self.waited_s += time.monotonic() - begun
        self.gave += 1
        last = self._at.batch + 1 >= self.batches_per_epoch
        self._at = _Position(self._at.epoch + 1, 0) if last else _Position(self._at.epoch, self._at.batch + 1)
        return batch

    def take_waited(self) -> float:
        """Seconds that the training has waited since this was last asked."""
        waited, self._taken_s = self.waited_s - self._taken_s, self.waited_s
        return waited

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._at.epoch,
            "batch": self._at.batch,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "window": self._window,
            "data": self._manifest.attempt,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UsageError where the position belongs to another data set, seed or batch size."""
        mine = self.state_dict()
        for key in ("data", "seed", "batch_size", "window"):
            if state[key] != mine[key]:
                raise UsageError(
                    f"the checkpoint's data position is for {key} {state[key]!r}, this run has {mine[key]!r}",
                    where=self._manifest.prefix,
                    do="keep it, or begin a new run",
                )
        self._at = _Position(state["epoch"], state["batch"])

    def _blocks(self, epoch: int) -> list[list[int]]:
        """The epoch's shards in its order, `window` by `window`."""
        if self._cut is None or self._cut[0] != epoch:
            shards = list(range(len(self._counts)))
            random.Random(f"{self._seed}/{epoch}").shuffle(shards)
            self._cut = (epoch, [shards[at : at + self._window] for at in range(0, len(shards), self._window)])
        return self._cut[1]

    def _mixed(self, epoch: int, block: int) -> list[tuple[int, int]]:
        """(shard, index) of every sample of a block, shuffled."""
        if (epoch, block) not in self._mixes:
            mix = [(shard, index) for shard in self._blocks(epoch)[block] for index in range(self._counts[shard])]
            random.Random(f"{self._seed}/{epoch}/{block}").shuffle(mix)
            self._mixes[epoch, block] = mix
            if len(self._mixes) > 2:  # a batch may lie across two
                self._mixes.popitem(last=False)
        return self._mixes[epoch, block]

    def _find(self, epoch: int, low: int) -> tuple[int, int]:
        """(block, how far into it) of the epoch's sample number `low`."""
        for number, shards in enumerate(self._blocks(epoch)):
            size = sum(self._counts[shard] for shard in shards)
            if low < size:
                return number, low
            low -= size
        return len(self._blocks(epoch)), 0

    def _places(self, epoch: int, low: int) -> Iterator[tuple[int, int]]:
        block, into = self._find(epoch, low)
        while block < len(self._blocks(epoch)):
            mix = self._mixed(epoch, block)
            yield from itertools.islice(mix, into, None)
            block, into = block + 1, 0

    def _prefetch(self, low: int) -> None:
        """Ask for the shards of this block and the `ahead` next ones, over the epoch's end; forget those behind."""
        epoch = self._at.epoch
        block, _ = self._find(epoch, low)
        rest = [shard for shards in self._blocks(epoch)[block:] for shard in shards]
        wanted = rest[: self._window + self._ahead]
        if len(wanted) < self._window + self._ahead:
            coming = [shard for shards in self._blocks(epoch + 1) for shard in shards]
            wanted += [shard for shard in coming if shard not in wanted][: self._ahead]
        for shard in wanted:
            self._shard(shard)
        for shard in [shard for shard in self._shards if shard not in wanted]:
            del self._shards[shard]

    def _shard(self, number: int) -> Future[list[bytes]]:
        if number not in self._shards:
            self._shards[number] = self._pool.submit(self._read, number)
        return self._shards[number]

    def _read(self, number: int) -> list[bytes]:
        name = _shard_name(number)
        if self._cache is None:
            return _split(read_file(self._store, self._manifest, name))
        entry = self._manifest.files[name]
        path = self._cache / f"{entry.sha256}.shard"
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == entry.sha256:
                return _split(data)
        except FileNotFoundError:
            pass
        data = read_file(self._store, self._manifest, name)
        self._cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
        return _split(data)


def _split(data: bytes) -> list[bytes]:
    samples, at = [], 0
    while at < len(data):
        (size,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        samples.append(data[at : at + size])
        at += size
    if at != len(data):
        raise CorruptArtifact("a shard ends within a sample", where="a data set", do="write it again")
    return samples


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.bin"
