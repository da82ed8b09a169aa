"""Artifacts from the store into memory: verified on the way, in many ranges at once, without a copy.

A file's parts (commit.py) are fetched by a few threads, each straight to where it will stay, and hashed by the thread
that fetched it while the others wait for the network. Tensors are views of that memory, so the weights exist once. On
CUDA the parts go through pinned staging buffers and a stream of its own, and the host never holds the model.

With a node cache (cache.py) a file is downloaded once per node; its memory is then the page cache, shared by all
processes that have it open. A process verifies a cached file each time it opens it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from heliostat.commit import PART_BYTES, FileEntry
from heliostat.errors import CorruptArtifact, ObjectMissing, UnsafeArtifact
from heliostat.names import check_path
from heliostat.registry.artifacts import Artifact
from heliostat.registry.cache import CachedFile, NodeCache
from heliostat.registry.formats import check_content, read_header
from heliostat.store import Store

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Result = TypeVar("Result")

MOST_THREADS = 16
_HUGE_PAGE = 2 * 2**20
_LENGTH_BYTES = 8  # of the number that a safetensors file begins with
_LONGEST_HEADER = 100 * 2**20  # safetensors' own limit
_INDEX = ".safetensors.index.json"
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

Progress = Callable[[int, int], None]
"""Is told how many bytes have arrived, of how many. Called from several threads, one at a time."""


@dataclass(frozen=True)
class Phases:
    """Where the time of a load went. The phases overlap: they are summed over the threads, `wall_s` is not."""

    wall_s: float
    connect_s: float  # to the first byte of the first answer
    read_s: float
    verify_s: float
    to_device_s: float
    threads: int
    bytes: int
    bytes_from_cache: int


@dataclass(frozen=True)
class Loaded:
    """A model's tensors on one device, by the names that they have in the files."""

    tensors: dict[str, torch.Tensor]
    phases: Phases


class ArtifactFiles(Mapping[str, bytes]):
    """The verified files of one version. An item is a copy of a file's bytes; `tensors` copies nothing."""

    def __init__(self, contents: Mapping[str, memoryview], phases: Phases) -> None:
        self._contents = dict(contents)
        self.phases = phases

    def __getitem__(self, path: str) -> bytes:
        return bytes(self._contents[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)

    def view(self, path: str) -> memoryview:
        """A file's bytes without a copy."""
        return self._contents[path]

    def tensors(self, path: str | None = None) -> dict[str, torch.Tensor]:
        """The tensors of one safetensors file, or of all of them together, as views of the memory they were read
        into: on the CPU, writable, alive as long as one of them is.
        """
        if path is not None:
            return _host_tensors(path, self._contents[path])
        return _merge({name: self.tensors(name) for name in _weight_files(self)}, self)


def load_file(store: Store, artifact: Artifact, path: str, *, cache: NodeCache | None = None) -> bytes:
    """One file, verified. Raises CorruptArtifact that names it, and where in it the damage is."""
    artifact.manifest.key(path)  # a name that it does not hold is refused
    return _Load(store, artifact, cache).files([path])[path]


def load_files(
    store: Store, artifact: Artifact, *, cache: NodeCache | None = None, progress: Progress | None = None
) -> ArtifactFiles:
    """Every file, verified, in this process's memory once. Raises CorruptArtifact."""
    return _Load(store, artifact, cache, progress=progress).files(list(artifact.manifest.files))


def load_tensors(
    store: Store,
    artifact: Artifact,
    *,
    device: torch.device | str = "cpu",
    cache: NodeCache | None = None,
    verify: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """The tensors of all safetensors files of a version, on the device. The host holds them once on the CPU, and a
    few parts of 16 MiB at a time for any other device.

    `verify` False is for measuring what the digests cost, and for nothing else. Raises CorruptArtifact.
    """
    load = _Load(store, artifact, cache, verify=verify, threads=threads, progress=progress)
    return load.tensors(device)


def download(store: Store, artifact: Artifact, folder: Path, *, cache: NodeCache | None = None) -> None:
    """Every file, verified, into the folder; a file appears there whole. In memory a few parts at a time."""
    load = _Load(store, artifact, cache)
    for path in artifact.manifest.files:
        target = folder / check_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        load.to_disk(path, target)


def on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """The module with the shapes of its weights and no memory behind them, for `load_into`."""
    import torch

    with torch.device("meta"):
        return build()


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make the tensors the module's own weights, without a copy; their dtypes and device become the module's.

    Weights that the module shares between two names may be in the file under one of them. Raises CorruptArtifact if a
    weight is missing, unknown, of another shape, or in no file at all (a buffer that is not saved).
    """
    tied = _tied_names(module)
    given = dict(tensors)
    for names in tied:
        there = next((name for name in names if name in given), None)
        if there is not None:
            given.update(dict.fromkeys(names, given[there]))
    try:
        module.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:
        raise CorruptArtifact(f"the weights do not fit the model: {error}", do="compare its config") from error
    for first, *others in tied:
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, module.get_parameter(first))
    left = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if left:
        raise CorruptArtifact(
            f"no file holds {', '.join(left)}", do="build the module so that it makes them itself, off the meta device"
        )


# --- The parts of a file, where they come from and where they go.


@dataclass(frozen=True)
class _Piece:
    """One range that is fetched and verified by itself. `blake3` None: the file has only a digest of the whole."""

    path: str
    start: int
    end: int
    blake3: str | None


class _Source(Protocol):
    @property
    def where(self) -> str: ...

    def read(self, start: int, into: memoryview) -> None: ...


class _Target(Protocol):
    def room(self, piece: _Piece) -> AbstractContextManager[memoryview]:
        """Memory for one piece. It is kept when the block ends, and forgotten when an exception ends it."""


@dataclass(frozen=True)
class _StoreSource:
    store: Store
    key: str
    path: str
    size: int

    @property
    def where(self) -> str:
        return self.key

    def read(self, start: int, into: memoryview) -> None:
        try:
            total = self.store.read_into(self.key, start, into)
        except ObjectMissing as error:
            raise CorruptArtifact(f"{self.path} is gone from the store", where=self.key, do=_AGAIN) from error
        if total != self.size:
            raise _wrong_size(self.path, self.key, total, self.size)


@dataclass(frozen=True)
class _DiskSource:
    fd: int
    where: str

    @classmethod
    def of(cls, cached: CachedFile) -> _DiskSource:
        return cls(cached.fd, str(cached.path))

    def read(self, start: int, into: memoryview) -> None:
        _read_at(self.fd, start, into)


@dataclass(frozen=True)
class _MappedSource:
    """The memory is the file: reading it is left to the page faults of whoever verifies it."""

    where: str

    def read(self, start: int, into: memoryview) -> None:
        pass


@dataclass(frozen=True)
class _HostTarget:
    """Pieces lie in memory as they lie in the file."""

    memory: memoryview

    @contextmanager
    def room(self, piece: _Piece) -> Iterator[memoryview]:
        yield self.memory[piece.start : piece.end]


class _DiskTarget:
    def __init__(self, fd: int, staging: _HostStaging) -> None:
        self._fd, self._staging = fd, staging

    @contextmanager
    def room(self, piece: _Piece) -> Iterator[memoryview]:
        with self._staging.lend(piece.end - piece.start) as memory:
            yield memory
            _write_at(self._fd, piece.start, memory)


class _HostStaging:
    """Buffers of one part, made when first needed and used again; never more than threads that ask at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    @contextmanager
    def lend(self, length: int) -> Iterator[memoryview]:
        try:
            memory = self._free.get_nowait()
        except queue.Empty:
            memory = _allocate(self._size)
        try:
            yield memory[:length]
        finally:
            self._free.put(memory)


class _Copier:
    """Pinned buffers and a stream beside the others, which copies from them to the device. One for a whole load: as
    many buffers as threads, however many files there are.
    """

    def __init__(self, device: torch.device, *, slots: int, slot_bytes: int, clock: _Clock) -> None:
        import torch

        self.device, self._clock = device, clock
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]  # torch's
        self._free: queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Event | None]] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put((torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=on_cuda), None))

    def allocate(self, size: int) -> torch.Tensor:
        """[size] bytes on the device, which this stream may write to."""
        import torch

        flat = torch.empty(size, dtype=torch.uint8, device=self.device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return flat

    @contextmanager
    def lend(self, room: torch.Tensor) -> Iterator[memoryview]:
        """Host memory as long as `room`, whose content goes to `room` when the block ends."""
        slot, copied = self._free.get()
        try:
            if copied is not None:
                with self._clock.phase("to_device"):
                    copied.synchronize()  # the copy out of this buffer may still be under way
            copied = None
            yield memoryview(slot.numpy())[: len(room)]  # type: ignore[arg-type]  # arrays are buffers
            with self._clock.phase("to_device"):
                copied = self._copy(slot[: len(room)], room)
        finally:
            self._free.put((slot, copied))

    def finish(self) -> None:
        """Until everything has arrived."""
        if self._stream is not None:
            with self._clock.phase("to_device"):
                self._stream.synchronize()

    def _copy(self, part: torch.Tensor, room: torch.Tensor) -> torch.cuda.Event | None:
        import torch

        if self._stream is None:
            room.copy_(part)
            return None
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        with torch.cuda.stream(self._stream):
            room.copy_(part, non_blocking=True)
            copied.record(self._stream)
        return copied


@dataclass(frozen=True)
class _DeviceTarget:
    """Pieces lie in `flat`, which is [lead + file size] bytes. `lead` puts the first tensor on a round address."""

    copier: _Copier
    flat: torch.Tensor
    lead: int

    def room(self, piece: _Piece) -> AbstractContextManager[memoryview]:
        return self.copier.lend(self.flat[self.lead + piece.start : self.lead + piece.end])


# --- One load.


class _Clock:
    """Adds up phases over threads."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._begun = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._total_bytes, self._progress = total_bytes, progress
        self._bytes = 0
        self._cached_bytes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + took

    def arrived(self, count: int, *, from_disk: bool) -> None:
        with self._lock:
            self._bytes += count
            self._cached_bytes += count if from_disk else 0
            if self._progress is not None:
                self._progress(self._bytes, self._total_bytes)

    def phases(self, threads: int) -> Phases:
        seconds = {f"{name}_s": self._seconds.get(name, 0.0) for name in ("connect", "read", "verify", "to_device")}
        return Phases(
            wall_s=time.perf_counter() - self._begun,
            threads=threads,
            bytes=self._bytes,
            bytes_from_cache=self._cached_bytes,
            **seconds,
        )


class _Load:
    """One load of one version: its threads, its clock, and the way of a file from the store to where it stays."""

    def __init__(
        self,
        store: Store,
        artifact: Artifact,
        cache: NodeCache | None,
        *,
        verify: bool = True,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store, self._manifest, self._cache, self._verify = store, artifact.manifest, cache, verify
        self._entries = artifact.manifest.files
        self._threads = threads or default_threads()
        self._progress = progress
        largest = max((piece.end - piece.start for p, e in self._entries.items() for piece in _pieces(p, e)), default=0)
        self._part_bytes = max(1, largest)
        self._staging = _HostStaging(self._part_bytes)
        self._clock = _Clock(0, None)

    def files(self, paths: Sequence[str]) -> ArtifactFiles:
        with self._running(paths) as pool:
            contents = self._each(paths, lambda path: self._to_host(path, pool))
            for path, content in contents.items():
                _refuse_unsafe(path, content)
            return ArtifactFiles(contents, self._clock.phases(self._threads))

    def tensors(self, device: torch.device | str) -> Loaded:
        import torch

        place = torch.device(device)
        weights = _weight_files(self._entries)
        indexes = [path for path in self._entries if path.endswith(_INDEX)]
        if not weights:
            raise UnsafeArtifact("it holds no safetensors file", where=self._manifest.prefix, do="publish the weights")
        with self._running([*weights, *indexes], connect=True) as pool:
            read = {path: bytes(self._to_host(path, pool)) for path in indexes}
            copier = None if _lies_on_the_host(place) else self._copier(place)

            def load(path: str) -> dict[str, torch.Tensor]:
                if copier is None:
                    return _host_tensors(path, self._to_host(path, pool))
                return self._to_device(path, copier, pool)

            merged = _merge(self._each(weights, load), read)
            return Loaded(merged, self._clock.phases(self._threads))

    def _copier(self, device: torch.device) -> _Copier:
        return _Copier(device, slots=self._threads, slot_bytes=self._part_bytes, clock=self._clock)

    def to_disk(self, path: str, target: Path) -> None:
        half = target.with_name(f".{target.name}.{os.getpid()}.half")
        fd = os.open(half, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        out = _DiskTarget(fd, self._staging)
        try:
            with self._running([path]) as pool:
                self._read(
                    path,
                    pool,
                    from_disk=lambda cached: self._transfer(path, _DiskSource.of(cached), out, pool),
                    from_store=lambda: self._transfer(path, self._source(path), out, pool),
                )
                self._check_disk_whole(path, fd)
            half.rename(target)
        finally:
            os.close(fd)
            half.unlink(missing_ok=True)

    @contextmanager
    def _running(self, paths: Sequence[str], *, connect: bool = False) -> Iterator[ThreadPoolExecutor]:
        """The threads that move parts. When something fails, what has not begun is dropped."""
        self._clock = _Clock(sum(self._entries[path].size for path in paths), self._progress)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="load")
        try:
            if connect and self._cache is None:
                self._connect(paths)
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    def _connect(self, paths: Sequence[str]) -> None:
        """One byte: an unreachable store is told at once, and what a connection costs is seen by itself."""
        first = next((path for path in paths if self._entries[path].size), None)
        if first is not None:
            with self._clock.phase("connect"):
                self._source(first).read(0, memoryview(bytearray(1)))

    def _each(self, paths: Sequence[str], load: Callable[[str], Any]) -> dict[str, Any]:
        """`load` for every file, several at once: a folder of small files is not read one after another.

        Threads of their own, since they wait for those that move parts. Any: what `load` gives.
        """
        with ThreadPoolExecutor(min(self._threads, len(paths)) or 1, thread_name_prefix="load-file") as pool:
            return _gather({path: pool.submit(load, path) for path in paths})

    def _source(self, path: str) -> _StoreSource:
        return _StoreSource(self._store, self._manifest.key(path), path, self._entries[path].size)

    def _to_host(self, path: str, pool: ThreadPoolExecutor) -> memoryview:
        return self._read(
            path,
            pool,
            from_disk=lambda cached: self._map(path, cached, pool),
            from_store=lambda: self._fetch(path, pool),
        )

    def _fetch(self, path: str, pool: ThreadPoolExecutor) -> memoryview:
        memory = _allocate(self._entries[path].size)
        self._transfer(path, self._source(path), _HostTarget(memory), pool)
        self._check_whole(path, memory)
        return memory

    def _map(self, path: str, cached: CachedFile, pool: ThreadPoolExecutor) -> memoryview:
        """The page cache itself, private to this process where it is written to. The mapping keeps the lock."""
        size = self._entries[path].size
        if size == 0:
            return memoryview(b"")
        memory = memoryview(mmap.mmap(cached.fd, size, access=mmap.ACCESS_COPY))
        if not cached.fresh:
            self._transfer(path, _MappedSource(str(cached.path)), _HostTarget(memory), pool)
            self._check_whole(path, memory)
        return memory

    def _to_device(self, path: str, copier: _Copier, pool: ThreadPoolExecutor) -> dict[str, torch.Tensor]:
        if self._entries[path].parts is None:  # only the whole can be verified, so the whole is needed first
            host = _host_tensors(path, self._to_host(path, pool))
            with self._clock.phase("to_device"):
                return {name: tensor.to(copier.device) for name, tensor in host.items()}
        return self._read(
            path,
            pool,
            from_disk=lambda cached: self._stream(path, _DiskSource.of(cached), copier, pool),
            from_store=lambda: self._stream(path, self._source(path), copier, pool),
        )

    def _stream(self, path: str, source: _Source, copier: _Copier, pool: ThreadPoolExecutor) -> dict[str, torch.Tensor]:
        size = self._entries[path].size
        header = _read_header(path, source, size)
        lead = -len(header) % 256
        target = _DeviceTarget(copier, copier.allocate(lead + size), lead)
        self._transfer(path, source, target, pool)
        copier.finish()
        # The header was read once more, ahead of its digest: only the verified one is believed.
        data = lead + len(header)
        if bytes(target.flat[lead:data].cpu().numpy()) != header:
            raise CorruptArtifact(f"{path} changed while it was read", where=source.where, do=_AGAIN)
        return {tensor.name: tensor.of(target.flat[data:]) for tensor in _parse_header(path, header, size)}

    # --- With the cache.

    def _read(
        self,
        path: str,
        pool: ThreadPoolExecutor,
        *,
        from_disk: Callable[[CachedFile], Result],
        from_store: Callable[[], Result],
    ) -> Result:
        """Through the node cache if there is one. A file that went bad on its disk is replaced, once."""
        if self._cache is None:
            return from_store()
        for last in (False, True):
            cached = self._cache.open(self._entries[path], lambda fd: self._fill(path, fd, pool))
            if cached is None:
                return from_store()
            with closing(cached):
                try:
                    return from_disk(cached)
                except CorruptArtifact as error:
                    self._cache.discard(cached)
                    if last:
                        raise
                    log.warning("a file of the node cache went bad and is replaced from the store: %s", error)
        raise AssertionError("the second round returns or raises")

    def _fill(self, path: str, fd: int, pool: ThreadPoolExecutor) -> None:
        """Write what the disk lacks of the file: parts that a killed process left there and that are right, stay."""
        target = _DiskTarget(fd, self._staging)
        missing = [piece for piece in _pieces(path, self._entries[path]) if not self._is_there(piece, fd)]
        self._transfer(path, self._source(path), target, pool, pieces=missing)
        self._check_disk_whole(path, fd)

    def _is_there(self, piece: _Piece, fd: int) -> bool:
        if piece.blake3 is None or not _has_data(fd, piece):
            return False
        with self._staging.lend(piece.end - piece.start) as memory:
            _read_at(fd, piece.start, memory)
            if _blake3(memory) != piece.blake3:
                return False
        self._clock.arrived(piece.end - piece.start, from_disk=True)
        return True

    def _check_whole(self, path: str, content: memoryview) -> None:
        entry = self._entries[path]
        if self._verify and entry.parts is None:
            with self._clock.phase("verify"):
                _verify_whole(content, entry, path, self._manifest.key(path))

    def _check_disk_whole(self, path: str, fd: int) -> None:
        entry = self._entries[path]
        if self._verify and entry.parts is None and entry.size:
            with closing(mmap.mmap(fd, entry.size, access=mmap.ACCESS_READ)) as mapping, memoryview(mapping) as view:
                self._check_whole(path, view)

    # --- Parts.

    def _transfer(
        self,
        path: str,
        source: _Source,
        target: _Target,
        pool: ThreadPoolExecutor,
        *,
        pieces: Sequence[_Piece] | None = None,
    ) -> None:
        wanted = _pieces(path, self._entries[path]) if pieces is None else pieces

        def move(piece: _Piece) -> None:
            with target.room(piece) as memory:
                with self._clock.phase("read"):
                    source.read(piece.start, memory)
                if self._verify:
                    with self._clock.phase("verify"):
                        _verify(piece, memory, source.where)
            self._clock.arrived(piece.end - piece.start, from_disk=not isinstance(source, _StoreSource))

        _gather({piece: pool.submit(move, piece) for piece in wanted})


def default_threads() -> int:
    """Requests in flight: enough to fill a network card, few enough to stay small in memory."""
    return max(4, min(MOST_THREADS, 2 * len(os.sched_getaffinity(0))))


def _lies_on_the_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _gather(futures: Mapping[Any, Future[Any]]) -> dict[Any, Any]:  # Any: whatever the work gives
    """The results. The first failure is raised once nothing of the rest runs any more."""
    try:
        return {key: future.result() for key, future in futures.items()}
    except BaseException:
        for future in futures.values():
            future.cancel()
        for future in futures.values():
            if not future.cancelled():
                future.exception()
        raise


def _pieces(path: str, entry: FileEntry) -> list[_Piece]:
    size = PART_BYTES if entry.parts is None else entry.parts.size
    return [
        _Piece(
            path,
            start,
            min(start + size, entry.size),
            None if entry.parts is None else entry.parts.blake3[number],
        )
        for number, start in enumerate(range(0, entry.size, size))
    ]


# --- Digests.

_AGAIN = "publish it again"


def _blake3(content: memoryview) -> str:
    from blake3 import blake3

    return str(blake3(content).hexdigest())


def _verify(piece: _Piece, content: memoryview, where: str) -> None:
    if piece.blake3 is not None and _blake3(content) != piece.blake3:
        raise _damaged(piece.path, where, piece.start, piece.end)


def _verify_whole(content: memoryview, entry: FileEntry, path: str, where: str) -> None:
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise _damaged(path, where, 0, entry.size)


def _damaged(path: str, where: str, start: int, end: int) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is not what was written: the digest of bytes {start}..{end - 1} differs", where=where, do=_AGAIN
    )


def _wrong_size(path: str, where: str, found: int, wanted: int) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is not what was written: it has {found} bytes, and {wanted} were published", where=where, do=_AGAIN
    )


# --- Memory and disk.


def _allocate(size: int) -> memoryview:
    """Zeroed memory; large ones lie in huge pages, where the kernel has them, which saves most page faults."""
    if size < _HUGE_PAGE:
        return memoryview(bytearray(size))
    room = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    lead = -_address(memoryview(room)) % _HUGE_PAGE
    return memoryview(room)[lead : lead + size]


def _address(memory: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _read_at(fd: int, start: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], start + done)
        if count == 0:
            raise OSError(f"the file ends at {start + done}")
        done += count


def _write_at(fd: int, start: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], start + done)


def _has_data(fd: int, piece: _Piece) -> bool:
    """False where the disk knows that nothing was ever written there."""
    try:
        return os.lseek(fd, piece.start, os.SEEK_DATA) < piece.end
    except OSError:  # ENXIO: no data from here on
        return False


# --- Safetensors.


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies, in bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def of(self, data: torch.Tensor) -> torch.Tensor:
        """A view of `data`, which is [bytes after the header]; a copy where it does not lie on a multiple of its
        element's size.
        """
        import torch

        dtype = getattr(torch, self.dtype)
        raw = data[self.begin : self.end]
        if raw.data_ptr() % dtype.itemsize or raw.storage_offset() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(self.shape)


def _weight_files(paths: Mapping[str, object]) -> list[str]:
    return sorted(path for path in paths if path.endswith(".safetensors"))


def _refuse_unsafe(path: str, content: memoryview) -> None:
    """Raises UnsafeArtifact for what `publish` would refuse: a pickle under a safe name that got in by another way."""
    if path.endswith(".safetensors"):
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        read_header(path, bytes(content[: _LENGTH_BYTES + min(length, len(content))]), len(content))
    else:
        check_content(path, bytes(content))


def _host_tensors(path: str, content: memoryview) -> dict[str, torch.Tensor]:
    import numpy as np
    import torch

    length = _header_bytes(path, bytes(content[:_LENGTH_BYTES]), len(content))
    tensors = _parse_header(path, bytes(content[:length]), len(content))
    if content.readonly:
        raise UnsafeArtifact(f"{path} is empty", do="save it with safetensors")
    data = torch.from_numpy(np.frombuffer(content, np.uint8))[length:]
    return {tensor.name: tensor.of(data) for tensor in tensors}


def _read_header(path: str, source: _Source, size: int) -> bytes:
    start = bytearray(_LENGTH_BYTES)
    if size >= _LENGTH_BYTES:
        source.read(0, memoryview(start))
    header = bytearray(_header_bytes(path, bytes(start), size))
    source.read(0, memoryview(header))
    return bytes(header)


def _header_bytes(path: str, start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, size - _LENGTH_BYTES):
        raise UnsafeArtifact(f"{path} is not safetensors: its header of {length} bytes does not fit", do=_AGAIN)
    return _LENGTH_BYTES + length


def _parse_header(path: str, header: bytes, size: int) -> list[_Tensor]:
    try:
        found = [
            _Tensor(name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in json.loads(header[_LENGTH_BYTES:]).items()
            if name != "__metadata__"
        ]
        for tensor in found:
            _check_place(tensor, size - len(header))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeArtifact(f"{path} is not safetensors that can be loaded: {error!r}", do=_AGAIN) from error
    return found


def _check_place(tensor: _Tensor, room: int) -> None:
    import torch

    needed = math.prod(tensor.shape) * int(getattr(torch, tensor.dtype).itemsize)
    if any(side < 0 for side in tensor.shape) or not 0 <= tensor.begin <= tensor.end <= room:
        raise ValueError(f"{tensor.name} lies at {tensor.begin}..{tensor.end} of {room}")
    if tensor.end - tensor.begin != needed:
        raise ValueError(f"{tensor.name} has {tensor.end - tensor.begin} bytes and needs {needed}")


def _merge(by_file: Mapping[str, Mapping[str, torch.Tensor]], files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """All tensors under one roof, checked against the index of a sharded model where there is one."""
    merged: dict[str, torch.Tensor] = {}
    for path, tensors in by_file.items():
        twice = merged.keys() & tensors.keys()
        if twice:
            raise UnsafeArtifact(f"{path} holds {min(twice)}, which another file holds too", do="load one file by name")
        merged.update(tensors)
    for path in (name for name in files if name.endswith(_INDEX)):
        folder = path.rpartition("/")[0]
        for name, shard in json.loads(files[path])["weight_map"].items():
            if name not in by_file.get(f"{folder}/{shard}" if folder else shard, ()):
                raise CorruptArtifact(f"{shard} lacks {name}, which the index promises", where=path, do=_AGAIN)
    return merged


def _tied_names(module: torch.nn.Module) -> list[list[str]]:
    """Groups of names that mean one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
