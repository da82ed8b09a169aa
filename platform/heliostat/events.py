"""Facts as small frozen records: a local spool per process, shipped as immutable segments into the store.

Whoever acts appends what happened; whoever counts reads it back. A spool file is one writer's and only grows, a line is
on disk before `emit` returns, and a line torn by a kill is never read. In the store a segment is
`events/<day>/<source>/<seq>.jsonl`, created if absent: S3 cannot append.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.errors import ObjectExists
from heliostat.files import put_file
from heliostat.names import check_segment

if TYPE_CHECKING:
    from heliostat.store import Store

log = logging.getLogger(__name__)

SCHEMA = 1
HELD_EVENTS = 10_000  # of one process, in memory, while the disk takes none: some 3 MB
RETRY_S = 1.0
_PIECE = 100  # events: some 30 KB
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
CLOCK_MARGIN = timedelta(hours=1)
_OFFSET = ".shipped"  # beside a spool file: "<bytes shipped> <next segment>"
# Of the envelope; an event's own fields may not have these names.
_LATEST_S = 253402300799  # the end of the year 9999, after which no calendar of Python's goes
_WORD = 100  # longer texts differ
_RESERVED = frozenset({"id", "schema", "time_s", "monotonic_s", "source", "kind"})

KINDS = {
    "node_started": "A worker node was asked for.",
    "node_ready": "It has joined Ray.",
    "node_ended": "It is gone, by reclaim, for idleness or by itself.",
    "reclaim_notice": "A spot node is told that it will be taken.",
    "reclaimed": "It was taken.",
    "app_awake": "An application is in use again.",
    "app_idle": "It was idle for its time and goes to zero.",
    "replica_ready": "A replica answers; where the seconds of its start went.",
    "replica_ended": "A replica has ended; what it did in its life.",
    "team_use": "What a replica has answered, by team.",
    "version_live": "A replica has taken over another version.",
    "keeper_ready": "The process that holds a node's GPU for a training is there.",
    "keeper_lost": "It is gone, with its node or by itself.",
    "notice_seen": "A training has seen that one of its nodes will be taken.",
    "leave": "A training is told to save and go on elsewhere.",
    "attempt": "A gang of workers begins to train.",
    "attempt_ended": "It has ended, and why.",
    "worker_started": "A rank holds its GPU.",
    "worker_ended": "A rank has given its GPU back.",
    "worker_failed": "A rank has ended with an error.",
    "train_started": "A training begins at its first step.",
    "train_resumed": "A training goes on from a checkpoint.",
    "train_left": "A training has saved and left, to go on elsewhere.",
    "train_finished": "A training has its result.",
    "step": "A step is done.",
    "checkpoint": "A checkpoint is committed.",
    "checkpoint_stall": "A step waited for a checkpoint.",
    "checkpoint_trouble": "The store does not take a checkpoint; the training goes on and tries again.",
    "budget_spent": "A team or project has used its budget.",
    "budget_open": "It has some again.",
    "checkpoint_interval": "How often a training saves was reckoned anew.",
    "data_wait": "Steps waited for data.",
    "deadline": "A run with a deadline has ended; what it cost against on-demand alone.",
    "market": "A run with a deadline moves between spot and on-demand.",
    "gang_started": "A driver takes up a run; what an earlier driver held is free.",
    "keeper_ended": "The process that held a node's GPU for a training is ended.",
    "run_paused": "A training has given its nodes back, since its budget is spent.",
    "run_unpaused": "It goes on.",
    "node_sample": "What a node's GPUs were doing.",
    "replica_busy": "Seconds in which a replica answered, by team.",
    "goodput": "Where the GPU-seconds of a finished run went.",
    "job_admitted": "A job has left the queue; how long it waited.",
    "job_asked_to_leave": "A job of a team above its share is asked to save and give its nodes back.",
    "job_returns": "It may have its nodes again.",
    "job_lost": "Ray knows nothing of a job that was started; its run can be submitted again.",
    "peak_bound": "A training is bound to fewer nodes while serving has its peak; none: the bound is lifted.",
    "market_dry": "A group's market has no machines; its fallback takes over.",
    "fallback_began": "A node is asked for from a group's fallback.",
    "fallback_ended": "The group's own market has machines again.",
    "node_sick": "A node is taken out of use, and by what evidence.",
    "release": "A release has taken a step: proposed, shadow, canary, live or rolled_back.",
    "waste_found": "What is held does no useful work, for longer than the definition allows.",
    "waste_warned": "It will be ended, and when.",
    "waste_acted": "It was scaled to zero or ended; with dry_run it would have been.",
    "waste_ended": "It works again, or is gone.",
}
"""Every kind that the package emits, and what happened. The reference is made from it."""


@dataclass(frozen=True, slots=True)
class Event:
    """`time_s` is seconds since the epoch, `monotonic_s` the writer's machine's; `fields` are the kind's own."""

    id: str
    kind: str
    source: str
    time_s: float
    monotonic_s: float
    fields: dict[str, Any]  # Any: JSON, checked where a kind is read


class Spool:
    """One process's file of events. Several threads may emit.

    A full disk ends no work: what it does not take is held in memory, in order, and written as soon as it does. Of
    more than HELD_EVENTS the oldest are lost, and the log says so; so is what is held by a process that is killed.
    """

    def __init__(self, folder: Path, source: str) -> None:
        check_segment(source, what="event source")
        folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._path = folder / f"{source}.jsonl"
        self._lock = threading.Lock()
        self._held: deque[bytes] = deque(maxlen=HELD_EVENTS)
        self._retrying = False

    def emit(self, kind: str, **fields: Any) -> Event:
        """Append one event; it is on disk when this returns, or held if the disk is full.

        Raises ValueError for a field with a reserved name.
        """
        if taken := _RESERVED & set(fields):
            raise ValueError(f"{sorted(taken)[0]!r} belongs to the event's envelope; name the field otherwise")
        event = Event(uuid.uuid4().hex, kind, self._source, time.time(), time.monotonic(), fields)
        with self._lock:
            if len(self._held) == HELD_EVENTS:
                log.error("an event is lost: %s holds %d that the disk does not take", self._source, HELD_EVENTS)
            self._held.append(json.dumps(_record(event), separators=(",", ":")).encode() + b"\n")
            try:
                self._write()
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    self._held.pop()
                    raise
                self._retry_later(error)
        return event

    def flush(self) -> None:
        """Write what is held. Raises OSError while the disk does not take it."""
        with self._lock:
            self._write()

    def close(self, *, limit_s: float = 10.0) -> None:
        """Before its process ends: wait for room for what is held. What is lost is said in the log."""
        until = time.monotonic() + limit_s
        while True:
            try:
                self.flush()
                return
            except OSError as error:
                if time.monotonic() > until:
                    log.error("%d events of %s are lost: %s", len(self._held), self._source, error)
                    return
            time.sleep(RETRY_S)

    def _write(self) -> None:
        if not self._held:
            return
        with self._path.open("ab+") as file:
            # Whoever wrote before was cut in the middle of its line, by a kill or by the end of the disk.
            if _ends_torn(file.fileno()):
                file.write(b"\n")
            while self._held:
                # In small pieces, so that a little room helps. What of a piece was written whole before the disk was
                # full is written again: readers drop a repeated event by its id.
                piece = list(itertools.islice(self._held, _PIECE))
                file.write(b"".join(piece))
                file.flush()
                os.fsync(file.fileno())
                for _ in piece:
                    self._held.popleft()

    def _retry_later(self, error: OSError) -> None:
        if self._retrying:
            return
        log.error("events of %s are held in memory: %s", self._source, error)
        self._retrying = True
        threading.Thread(target=self._retry, name="held-events", daemon=True).start()

    def _retry(self) -> None:
        while True:
            time.sleep(RETRY_S)
            with self._lock:
                try:
                    self._write()
                except OSError:
                    continue
                self._retrying = False
                log.warning("events of %s are on disk again", self._source)
                return


def read_spool(folder: Path) -> list[Event]:
    """Every whole event in the folder's spool files, by time."""
    lines: list[bytes] = []
    for path in folder.glob("*.jsonl"):
        lines += _whole_lines(path.read_bytes())
    return _fold(lines)


def ship_spool(store: Store, folder: Path, *, every_s: float = 0.0) -> int:
    """Ship what is new in every spool file of the folder; returns how many segments were written.

    `every_s`: of one file no more often than that, so that one who tells something every second is not an object a
    second in the store. Who was silent for so long is shipped at once.

    Killed at any line it loses nothing: what was shipped but not yet noted is shipped again under the same key, found
    to be there, and noted. Readers drop a repeated event by its id. Raises OSError where a file's end could not be
    noted, after all have been shipped.
    """
    if not folder.is_dir():
        return 0
    with (folder / ".shipping").open("w") as lock:  # the controller and `down` may ship the same folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        shipped, trouble = 0, None
        for path in sorted(folder.glob("*.jsonl")):
            try:
                shipped += _ship_file(store, path, every_s)
            except OSError as error:  # what was shipped cannot be noted; the others' events are wanted all the same
                trouble = error
        if trouble is not None:
            raise trouble
        return shipped


def read_events(store: Store, *, since: datetime | None = None) -> list[Event]:
    """Every event in the store, each once, by time; `since` leaves out what happened before it."""
    # A segment is written after its events, so one that is older than `since` holds none of them. Its day cannot tell:
    # that is the day of its first event. The margin is for clocks that differ.
    oldest = datetime.min.replace(tzinfo=UTC) if since is None else since - CLOCK_MARGIN
    lines: list[bytes] = []
    for info in store.list("events/"):
        if info.modified >= oldest:
            lines += _whole_lines(store.get(info.key).data)
    events = _fold(lines)
    return events if since is None else [event for event in events if event.time_s >= since.timestamp()]


def read_segment(store: Store, key: str) -> list[Event]:
    """Every whole event of one segment, in the order in which they were told."""
    return list(_parse(_whole_lines(store.get(key).data)))


def read_tail(path: Path, *, limit: int) -> list[Event]:
    """The last whole events of a spool file, in the order in which they were told, from its last `limit` bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        data = file.read()
    lines = _whole_lines(data)
    return list(_parse(lines[1:] if size > limit else lines))


def _ship_file(store: Store, path: Path, every_s: float) -> int:
    noted = path.with_suffix(_OFFSET)
    if noted.exists() and 0 <= time.time() - noted.stat().st_mtime < every_s:
        return 0
    offset, sequence = map(int, noted.read_text().split()) if noted.exists() else (0, 0)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return 0
    # The day of the segment's first event, so that a repeat after midnight finds the same key.
    first = next(_parse(data.splitlines()), None)
    day = datetime.fromtimestamp(0 if first is None else first.time_s, UTC)
    shipped, sequence = _create_segment(store, f"events/{day:%Y-%m-%d}/{path.stem}", sequence, data)
    put_file(noted, f"{offset + shipped} {sequence + 1}")
    return 1


def _create_segment(store: Store, prefix: str, sequence: int, data: bytes) -> tuple[int, int]:
    """(bytes of `data` that are in the store now, the number of the segment that holds them)."""
    while True:
        key = f"{prefix}/{sequence:08d}.jsonl"
        try:
            store.create(key, data)
            return len(data), sequence
        except ObjectExists:
            there = store.get(key).data
        if data.startswith(there):
            # Ours, from before a kill. The file may have grown since: the rest goes into the next segment.
            return len(there), sequence
        sequence += 1  # another machine's, whose process has the same name


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _whole_lines(data: bytes) -> list[bytes]:
    return data[: data.rfind(b"\n") + 1].splitlines()


def _fold(lines: Iterable[bytes]) -> list[Event]:
    unique = {event.id: event for event in _parse(lines)}
    return sorted(unique.values(), key=lambda event: (event.time_s, event.monotonic_s))


def _parse(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            record = json.loads(line)
            envelope = {key: record.pop(key) for key in _RESERVED}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            continue  # torn by a kill
        if not _is_sound(envelope):
            continue  # not ours: one such line must not hide the others
        del envelope["schema"]
        envelope |= {name: sys.intern(envelope[name]) for name in ("source", "kind")}
        yield Event(**envelope, fields=_shared(record))


def _shared(record: dict[str, Any]) -> dict[str, Any]:
    """With one copy of each name and word for all events: a day of them is held in memory."""
    return {
        sys.intern(key): sys.intern(value) if type(value) is str and len(value) <= _WORD else value
        for key, value in record.items()
    }


def _is_sound(envelope: dict[str, Any]) -> bool:
    times = (envelope["time_s"], envelope["monotonic_s"])
    return all(isinstance(envelope[key], str) for key in ("id", "source", "kind")) and all(
        type(time_s) in (int, float) and abs(time_s) <= _LATEST_S for time_s in times
    )


def _record(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "schema": SCHEMA,
        "time_s": event.time_s,
        "monotonic_s": event.monotonic_s,
        "source": event.source,
        "kind": event.kind,
        **event.fields,
    }
