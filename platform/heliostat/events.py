"""Facts as small frozen records: a local spool per process, shipped as immutable segments into the store.

Whoever acts appends what happened; whoever counts reads it back. A spool file is one writer's and only grows, a line is
on disk before `emit` returns, and a line torn by a kill is never read. In the store a segment is
`events/<day>/<source>/<seq>.jsonl`, created if absent: S3 cannot append.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.errors import ObjectExists
from heliostat.names import check_segment

if TYPE_CHECKING:
    from heliostat.store import Store

SCHEMA = 1
_OFFSET = ".shipped"  # beside a spool file: "<bytes shipped> <next segment>"
# Of the envelope; an event's own fields may not have these names.
_RESERVED = frozenset({"id", "schema", "time_s", "monotonic_s", "source", "kind"})


@dataclass(frozen=True)
class Event:
    """`time_s` is seconds since the epoch, `monotonic_s` the writer's machine's; `fields` are the kind's own."""

    id: str
    kind: str
    source: str
    time_s: float
    monotonic_s: float
    fields: dict[str, Any]  # Any: JSON, checked where a kind is read


class Spool:
    """One process's file of events. Several threads may emit."""

    def __init__(self, folder: Path, source: str) -> None:
        check_segment(source, what="event source")
        folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._path = folder / f"{source}.jsonl"
        self._lock = threading.Lock()

    def emit(self, kind: str, **fields: Any) -> Event:
        """Append one event; it is on disk when this returns. Raises ValueError for a field with a reserved name."""
        if taken := _RESERVED & set(fields):
            raise ValueError(f"{sorted(taken)[0]!r} belongs to the event's envelope; name the field otherwise")
        event = Event(uuid.uuid4().hex, kind, self._source, time.time(), time.monotonic(), fields)
        line = json.dumps(_record(event), separators=(",", ":")).encode() + b"\n"
        with self._lock, self._path.open("ab+") as file:
            if _ends_torn(file.fileno()):
                line = b"\n" + line  # the writer before was killed in the middle of its line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return event


def read_spool(folder: Path) -> list[Event]:
    """Every whole event in the folder's spool files, by time."""
    lines: list[bytes] = []
    for path in folder.glob("*.jsonl"):
        lines += _whole_lines(path.read_bytes())
    return _fold(lines)


def ship_spool(store: Store, folder: Path) -> int:
    """Ship what is new in every spool file of the folder; returns how many segments were written.

    Killed at any line it loses nothing: what was shipped but not yet noted is shipped again under the same key, found
    to be there, and noted. Readers drop a repeated event by its id.
    """
    return sum(_ship_file(store, path) for path in sorted(folder.glob("*.jsonl")))


def read_events(store: Store, *, since: datetime | None = None) -> list[Event]:
    """Every event in the store, each once, by time; `since` leaves out the days before it."""
    first_day = "" if since is None else f"{since.astimezone(UTC):%Y-%m-%d}"
    lines: list[bytes] = []
    for info in store.list("events/"):
        if info.key.split("/")[1] >= first_day:
            lines += _whole_lines(store.get(info.key).data)
    return _fold(lines)


def _ship_file(store: Store, path: Path) -> int:
    noted = path.with_suffix(_OFFSET)
    offset, sequence = map(int, noted.read_text().split()) if noted.exists() else (0, 0)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return 0
    # The day of the spool's first event, so that a repeat after midnight finds the same key.
    day = datetime.fromtimestamp(_first_time(path), UTC)
    key = f"events/{day:%Y-%m-%d}/{path.stem}/{sequence:08d}.jsonl"
    try:
        store.create(key, data)
    except ObjectExists:
        # Ours, from before a kill. The file has grown since, so the rest goes into the next segment.
        data = store.get(key).data
    temporary = noted.with_suffix(".tmp")
    temporary.write_text(f"{offset + len(data)} {sequence + 1}")
    temporary.replace(noted)
    return 1


def _first_time(path: Path) -> float:
    with path.open("rb") as file:
        for line in file:
            for event in _parse([line]):
                return event.time_s
    return time.time()


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
        except (ValueError, KeyError, AttributeError, TypeError):
            continue  # torn by a kill
        del envelope["schema"]
        yield Event(**envelope, fields=record)


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
