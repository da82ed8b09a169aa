"""A training state as files, and back: safetensors for what is a tensor, JSON for the rest. No pickle.

    checkpoints/<run>/<generation>-<step>/manifest.json                    the commit
    checkpoints/<run>/<generation>-<step>/<attempt>/part-00000.safetensors a rank's tensors
    checkpoints/<run>/<generation>-<step>/<attempt>/state.json             step, and what is no tensor

*Fencing.* A generation is claimed by each attempt of a run (`claim_generation`), and folders sort by generation first.
A worker that was taken for dead and comes back writes under its own, lower one, so what it commits is never preferred
to what the living attempt has committed, whatever its step.

*Copies.* The step pays for one: into a buffer that is the file already, kept from one checkpoint to the next. Hashing
and upload go on behind it.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.commit import FileEntry, Manifest, read_file, read_manifest
from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing, StoreError, SwapLost, TrainingSuperseded
from heliostat.store import Store, json_bytes

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

META = "state.json"
KEEP = 2
"""Complete checkpoints kept: the newest, and the one before in case a byte of the newest rots."""
STORE_PATIENCE_S = 600.0
"""How long an upload is tried again while the store fails. The training waits only when its interval is used up."""
PARTS_LIMIT_S = 300.0
FETCH_LIMIT = 2 * 2**30
_JITTER = random.Random()  # not the global generator: the training's results follow from that one
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a rank's piece lies in the whole tensor."""

    shape: tuple[int, ...]  # of the whole
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What one rank adds to a checkpoint. Tensors without a place are whole, and rank 0's alone."""

    tensors: Mapping[str, torch.Tensor]
    places: Mapping[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """`step` is the number of steps completed when it was taken."""

    step: int
    meta: dict[str, Any]  # Any: JSON that was given to `save`
    manifest: Manifest
    _store: Store
    _fetched: dict[str, bytes] = field(default_factory=dict)

    def fetch(self) -> None:
        """Read and verify the parts now, where they are small enough to be held; what reads them later waits less."""
        size = sum(entry.size for entry in self.manifest.files.values())
        if size <= FETCH_LIMIT:
            for name in self.manifest.files:
                if name.endswith(".safetensors"):
                    self._fetched[name] = read_file(self._store, self.manifest, name)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every whole tensor, on the CPU, verified; pieces are put together."""
        import torch

        whole: dict[str, torch.Tensor] = {}
        for tensors, places in self._parts():
            for name, tensor in tensors.items():
                place = places.get(name)
                if place is None:
                    whole[name] = tensor
                else:
                    into = whole.setdefault(name, torch.empty(place.shape, dtype=tensor.dtype))
                    into[_slices(place.offset, tensor.shape)] = tensor
        return whole

    def read_pieces(self, wanted: Mapping[str, tuple[torch.Tensor, Place]]) -> dict[str, torch.Tensor]:
        """Fill each wanted local piece, however the checkpoint was cut; returns the whole tensors beside them.

        Holds one part at a time in memory. This is how a state that was saved by two ranks is loaded by three.
        """
        rest: dict[str, torch.Tensor] = {}
        for tensors, places in self._parts():
            for name, tensor in tensors.items():
                if name not in wanted:
                    rest[name] = tensor
                    continue
                local, place = wanted[name]
                have = places.get(name) or Place(tuple(tensor.shape), (0,) * tensor.dim())
                _copy_overlap(tensor, have.offset, local, place.offset)
        return rest

    def _parts(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Place]]]:
        import safetensors.torch

        places = self.meta["places"]
        for name in sorted(self.manifest.files):
            if name.endswith(".safetensors"):
                of_part = {key: Place(tuple(p["shape"]), tuple(p["offset"])) for key, p in places[name].items()}
                data = self._fetched.pop(name, None) or read_file(self._store, self.manifest, name)
                yield safetensors.torch.load(data), of_part


def prefix(run: str) -> str:
    return f"checkpoints/{run}/"


def patiently(work: Callable[[], Result], *, what: str, warn: Callable[[str], None]) -> Result:
    """`work()`, again and again while the store fails, for STORE_PATIENCE_S. What a working store answers is final."""
    deadline = time.monotonic() + STORE_PATIENCE_S
    pause = 0.25
    while True:
        try:
            return work()
        except (ObjectExists, ObjectMissing, SwapLost):
            raise
        except StoreError as error:
            if time.monotonic() > deadline:
                raise
            warn(f"{what} is tried again: {error}")
        time.sleep(_JITTER.uniform(pause / 2, pause))
        pause = min(pause * 2, 5.0)


def claim_generation(store: Store, run: str) -> int:
    """The number of a new attempt of the run, higher than every one before. Exact: two callers never get the same."""
    folder = f"runs/{run}/generations"
    taken = [int(info.key.rsplit("/", 1)[-1]) for info in store.list(folder)]
    number = max(taken, default=0) + 1
    while True:
        try:
            store.create(_generation_key(run, number), b"")
            return number
        except ObjectExists:
            number += 1


def complete(store: Store, run: str, *, warn: Callable[[str], None] = lambda _: None) -> Iterator[Checkpoint]:
    """The run's complete checkpoints, newest first. What a crash left half done has no manifest and is not among them.

    One whose files are gone is passed over with a warning. Rotten bytes are found when they are read: CorruptArtifact.
    """
    keys = sorted((i.key for i in store.list(prefix(run)) if i.key.endswith("/manifest.json")), reverse=True)
    for key in keys:
        try:
            yield at(store, key.removesuffix("/manifest.json"))
        except CorruptArtifact as error:
            warn(f"passing over a damaged checkpoint: {error}")


def at(store: Store, folder: str) -> Checkpoint:
    """The complete checkpoint in that folder. Raises CorruptArtifact where there is none."""
    manifest = read_manifest(store, f"{folder}/manifest.json")
    if manifest is None:
        raise CorruptArtifact("the checkpoint is gone", where=folder, do="resume again")
    about = json.loads(read_file(store, manifest, META))
    return Checkpoint(about["step"], about, manifest, store)


def newest(store: Store, run: str) -> Checkpoint | None:
    """The newest complete checkpoint of the run; None if there is none yet."""
    return next(complete(store, run), None)


class CheckpointWriter:
    """Writes one rank's part of every checkpoint behind the training's back; rank 0 commits.

    One checkpoint is under way at a time. A store that fails is asked again for STORE_PATIENCE_S; what then still fails
    is raised by the next call.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        generation: int,
        attempt: str,
        rank: int = 0,
        ranks: int = 1,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._run, self._generation, self._attempt = store, run, generation, attempt
        self._rank, self._ranks = rank, ranks
        self._on_trouble = on_trouble
        # Its thread is started here and kept: one that is started without memory may never come, and is waited for.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writer.submit(int)
        self._writing: Future[None] | None = None
        self._image: _FileImage | None = None
        self.started: int | None = None
        """The step of the newest checkpoint that was begun."""
        self.committed: int | None = None
        """The step of the newest one that is in the store."""
        self.seconds: float = 0.0
        """From the beginning of the last one to its commit."""

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, part: Part, meta: Mapping[str, Any], *, sharded: bool = False) -> None:
        """Begin the checkpoint of a step; returns when its state is copied. Waits for the one before.

        `sharded`: every rank calls this, and the commit names a part of each. Otherwise rank 0 alone does.
        """
        self.wait()
        if self.started == step:
            return
        begun = time.monotonic()
        if self._image is None or not self._image.fits(part.tensors):
            self._image = _FileImage(part.tensors)
        self._image.fill(part.tensors)
        self.started = step
        arguments = (step, self._image, dict(part.places), dict(meta), self._ranks if sharded else 1, begun)
        self._writing = self._writer.submit(self._run_write, *arguments)

    def wait(self) -> None:
        """Until the checkpoint under way is in the store. Raises what its upload raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _run_write(self, step: int, *arguments: Any) -> None:  # Any: the rest of _write's
        what = f"the checkpoint of step {step}"
        patiently(lambda: self._write(step, *arguments), what=what, warn=self._on_trouble)

    def _write(
        self,
        step: int,
        image: _FileImage,
        places: dict[str, Place],
        meta: dict[str, Any],
        parts: int,
        begun: float,
    ) -> None:
        folder = f"{prefix(self._run)}{self._generation:06d}-{step:012d}"
        mine = f"{folder}/{self._attempt}"
        name = _part_name(self._rank)
        entry = _upload(self._store, f"{mine}/{name}", image.data)
        where = {key: {"shape": place.shape, "offset": place.offset} for key, place in places.items()}
        if self._rank != 0:
            note = {"entry": entry.model_dump(), "places": where}
            self._store.put(f"{mine}/{name}.json", json_bytes(note))
        else:
            files, all_places = {name: entry}, {name: where}
            for rank in range(1, parts):
                note = self._note_of(f"{mine}/{_part_name(rank)}.json")
                files[_part_name(rank)] = FileEntry(**note["entry"])
                all_places[_part_name(rank)] = note["places"]
            about = {**meta, "step": step, "places": all_places}
            files[META] = _upload(self._store, f"{mine}/{META}", json_bytes(about))
            self._refuse_if_superseded()
            self._commit(folder, files)
            self._retire(folder)
        self.committed, self.seconds = step, time.monotonic() - begun

    def _note_of(self, key: str) -> dict[str, Any]:
        """What another rank says of its part, once it is uploaded."""
        deadline = time.monotonic() + PARTS_LIMIT_S
        while True:
            try:
                return dict(json.loads(self._store.get(key).data))
            except ObjectMissing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _refuse_if_superseded(self) -> None:
        """An early end for a worker that was taken for dead. That it does no harm does not hang on this look."""
        try:
            self._store.head(_generation_key(self._run, self._generation + 1))
        except ObjectMissing:
            return
        raise TrainingSuperseded(
            f"a newer attempt of run {self._run} has taken over from generation {self._generation}",
            do="nothing: the newer one goes on",
        )

    def _commit(self, folder: str, files: dict[str, FileEntry]) -> None:
        manifest = Manifest(prefix=folder, attempt=self._attempt, files=files)
        try:
            self._store.create(f"{folder}/manifest.json", manifest.model_dump_json().encode())
        except ObjectExists:
            there = read_manifest(self._store, f"{folder}/manifest.json")
            if there is None or there.attempt != self._attempt:  # generations are claimed once: cannot be
                raise

    def _retire(self, newest_folder: str) -> None:
        """Delete all that lies below the newest KEEP complete ones, manifests first: no reader sees half of one."""
        infos = self._store.list(prefix(self._run))
        complete = sorted({i.key.rsplit("/", 1)[0] for i in infos if i.key.endswith("/manifest.json")}, reverse=True)
        kept = [folder for folder in complete if folder <= newest_folder][:KEEP]
        if len(kept) < KEEP:
            return
        old = [info.key for info in infos if info.key.split("/")[2] < kept[-1].split("/")[2]]
        for key in sorted(old, key=lambda key: not key.endswith("/manifest.json")):
            self._store.delete(key)


class _FileImage:
    """A safetensors file in memory, laid out once for given names, types and shapes, and filled again and again."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        header: dict[str, Any] = {}
        at = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _DTYPES[str(tensor.dtype).removeprefix("torch.")],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 64)  # so that every tensor of 64-byte size stays aligned
        start = 8 + len(text)
        # One buffer, pinned where there is CUDA: copies from the device then run at the bus's speed.
        self._buffer = torch.empty(start + at, dtype=torch.uint8, pin_memory=_on_cuda(tensors))
        self._buffer[:start] = torch.frombuffer(bytearray(struct.pack("<Q", len(text)) + text), dtype=torch.uint8)
        self._shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        self._views = {
            name: self._buffer[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            for name, entry in header.items()
        }

    @property
    def data(self) -> memoryview:
        return memoryview(self._buffer.numpy())  # type: ignore[arg-type]  # numpy's arrays are buffers before 3.12, too

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        return self._shapes == {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        for name, tensor in tensors.items():
            source = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            self._views[name].copy_(source, non_blocking=True)
        if _on_cuda(tensors):
            torch.cuda.current_stream().synchronize()


def _upload(store: Store, key: str, data: bytes | memoryview) -> FileEntry:
    # As it lies: to copy it would hold the interpreter's lock, and with it the step, for half a second a gigabyte.
    store.put(key, data)
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.safetensors"


def _generation_key(run: str, number: int) -> str:
    return f"runs/{run}/generations/{number:06d}"


def _slices(offset: tuple[int, ...], shape: Any) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def _copy_overlap(
    source: torch.Tensor, source_offset: tuple[int, ...], target: torch.Tensor, target_offset: tuple[int, ...]
) -> None:
    """Copy what two pieces of one tensor share."""
    import torch

    from_source, to_target = [], []
    for dim in range(source.dim()):
        low = max(source_offset[dim], target_offset[dim])
        high = min(source_offset[dim] + source.shape[dim], target_offset[dim] + target.shape[dim])
        if high <= low:
            return
        from_source.append(slice(low - source_offset[dim], high - source_offset[dim]))
        to_target.append(slice(low - target_offset[dim], high - target_offset[dim]))
    with torch.no_grad():
        target[tuple(to_target)].copy_(source[tuple(from_source)])


def _on_cuda(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(tensor.is_cuda for tensor in tensors.values())
