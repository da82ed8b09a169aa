"""Samples streamed from the object store, in an order that resumes exactly, ahead of the device.

    write_samples(store, "data/commands", (record for record in ...))        once
    stream = Stream(store, "data/commands", batch_size=32, seed=0, rank=context.rank, world=context.world_size)
    start = context.restore(model, optimizer, data=stream)
    for batch in stream:                                                      # this rank's records, for ever
        ...

A sample is bytes; a *shard* holds some thousand of them and is read whole. The order of an epoch follows from seed and
epoch alone: shards in random order, and samples shuffled within a *block* of `window` shards that lie next to each
other in it. Memory stays bounded by two blocks, the one that is given and the one that is read meanwhile. Rank r takes
every `world`-th sample of each global batch: with another number of workers the same samples come in the same batches,
and none is seen twice or missed.

Next to what exists (mosaicml-streaming, litdata, Ray Data): those bring an S3 client each and write index files without
a commit; here it is one manifest, the same as a checkpoint's, and 150 lines. See docs/decisions/0013-recovery.md.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import random
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.commit import Manifest, commit, read_file, read_manifest
from heliostat.errors import CorruptArtifact, UsageError
from heliostat.files import put_file
from heliostat.store import Store, json_bytes

INDEX = "index.json"
SHARD_SAMPLES = 2048
READERS = 2  # at once, of one stream
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


@dataclass(frozen=True)
class _Epoch:
    """The shards of each block, in order, and the number of each block's first sample."""

    blocks: list[list[int]]
    starts: list[int]

    def find(self, sample: int) -> tuple[int, int]:
        """(block, how far into it)."""
        block = bisect.bisect_right(self.starts, sample) - 1
        return block, sample - self.starts[block]


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
        if not self._counts:
            raise UsageError("the data set has no samples", where=prefix, do="write one that has under another prefix")
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._window, self._cache = window, cache
        self._at = _Position(0, 0)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="data")
        self._shards: dict[int, Future[list[bytes]]] = {}
        self._epochs: dict[int, _Epoch] = {}
        self._mixes: dict[tuple[int, int], Future[list[tuple[int, int]]]] = {}
        self._around: tuple[int, int] | None = None  # the block that is given, whose next one is asked for
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
        begun = time.monotonic()
        low = self._at.batch * self._batch_size
        self._prefetch(low)
        mine = self._places(self._at.epoch, low, self._batch_size)[self._rank :: self._world]
        shards = {shard: self._shard(shard).result() for shard in {shard for shard, _ in mine}}
        samples = [shards[shard][index] for shard, index in mine]
        self.waited_s += time.monotonic() - begun
        self.gave += 1
        last = self._at.batch + 1 >= self.batches_per_epoch
        self._at = _Position(self._at.epoch + 1, 0) if last else _Position(self._at.epoch, self._at.batch + 1)
        return samples

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

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            shards = list(range(len(self._counts)))
            random.Random(f"{self._seed}/{number}").shuffle(shards)
            blocks = [shards[at : at + self._window] for at in range(0, len(shards), self._window)]
            sizes = [sum(self._counts[shard] for shard in block) for block in blocks]
            self._epochs[number] = _Epoch(blocks, list(itertools.accumulate(sizes[:-1], initial=0)))
        return self._epochs[number]

    def _mix(self, epoch: int, block: int) -> list[tuple[int, int]]:
        """(shard, index) of every sample of a block, shuffled."""
        mix = [(shard, index) for shard in self._epochs[epoch].blocks[block] for index in range(self._counts[shard])]
        random.Random(f"{self._seed}/{epoch}/{block}").shuffle(mix)
        return mix

    def _places(self, epoch: int, low: int, count: int) -> list[tuple[int, int]]:
        """So many samples' from there on; fewer at the end of the epoch."""
        block, into = self._epoch(epoch).find(low)
        found: list[tuple[int, int]] = []
        while len(found) < count and block < len(self._epoch(epoch).blocks):
            found += self._ask(epoch, block).result()[into : into + count - len(found)]
            block, into = block + 1, 0
        return found

    def _prefetch(self, low: int) -> None:
        """Ask for this block and the next one, over the epoch's end; forget those behind.

        Of the next one all, since its first batch takes from each of its shards.
        """
        epoch = self._at.epoch
        block, _ = self._epoch(epoch).find(low)
        if (epoch, block) == self._around:
            return
        self._around = epoch, block
        following = (epoch, block + 1) if block + 1 < len(self._epoch(epoch).blocks) else (epoch + 1, 0)
        wanted = [(epoch, block), following]
        for each in wanted:
            self._ask(*each)
        shards = {shard for number, at in wanted for shard in self._epoch(number).blocks[at]}
        self._shards = {shard: read for shard, read in self._shards.items() if shard in shards}
        self._mixes = {each: mix for each, mix in self._mixes.items() if each in wanted}
        self._epochs = {number: each for number, each in self._epochs.items() if epoch <= number <= following[0]}

    def _ask(self, epoch: int, block: int) -> Future[list[tuple[int, int]]]:
        """The block's order, to come; its shards are asked for as well."""
        if (epoch, block) not in self._mixes:
            shards = self._epoch(epoch).blocks[block]
            self._mixes[epoch, block] = self._pool.submit(self._mix, epoch, block)
            for shard in shards:
                self._shard(shard)
        return self._mixes[epoch, block]

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
        put_file(path, data)
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
