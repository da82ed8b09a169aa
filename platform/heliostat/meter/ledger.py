"""The ledger in the store: GPU-seconds by hour, place, owner and class, folded day by day from the events.

    ledger/<day>/<number>.json               manifest of an entry (heliostat.commit): the day, as known when it was made
    ledger/<day>/<attempt>/entries.parquet   its rows
    ledger/<day>/<attempt>/counts.parquet    what was done in them: requests, tokens, steps
    ledger/<day>/<attempt>/state.json        what is open at its end, where the next day begins

Entries are never changed. The newest of a day counts; what came late, or was told otherwise since, is in it and not in
those before, which stay as the record of what was believed; those made before the day was over are swept. So a day can
be folded any number of times, by any number of processes, killed at any line, and nothing counts twice. A row may lie
in an hour of the day before: what could not be told by midnight is unexplained there until the next day's entry moves
it, with a minus.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from heliostat.commit import Manifest, commit, read_file, read_manifest
from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing, StoreError
from heliostat.events import CLOCK_MARGIN, Event, read_segment
from heliostat.store import ObjectInfo, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from heliostat.meter.counts import Counts
    from heliostat.meter.fold import Entries
    from heliostat.meter.pieces import NodeTold, Piece
    from heliostat.meter.state import State

FOLDER = "ledger"
DAY_US = 86_400_000_000
READERS = 16
_ROWS = "entries.parquet"
_STATE = "state.json"
_COUNTS = "counts.parquet"
_DAY = timedelta(days=1)
LATE = timedelta(days=2)
"""Events of days before the last whole one are looked for so far back, unless all are asked for."""
SETTLED_US = 600_000_000
"""So long after its end a piece of a day is kept and gone on from: few events take longer to arrive."""
_BEFORE_S = 120.0  # a sample of power is reckoned from the one before

OWNER_COLUMNS = ("kind", "name", "team", "project", "version", "user")
PLACE_COLUMNS = ("group", "market", "instance", "zone")


@dataclass(frozen=True)
class DayEntry:
    """The newest entry of a day."""

    day: date
    number: int
    manifest: Manifest
    listed: str  # digest of the segments it was folded from
    state_in: str  # digest of the state it began with
    state_out: str
    until: int  # microseconds since the epoch
    lifetime: float  # node GPU-seconds
    total: float  # GPU-seconds of all classes


def update(store: Store, *, now: float, full: bool = False, progress: Callable[[str], None] = lambda _: None) -> int:
    """Fold what is new, up to `now` in seconds since the epoch; returns how many days were folded.

    Repeating it, or killing it, does no harm. `full` looks for late events of any day; else of the last few.
    """
    return Folder(store).update(now=now, full=full, progress=progress)


class Folder:
    """Folds again and again, and goes on from where it was: an update costs what is new, however long the day is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._segments = _Segments(store)
        self._known: dict[str, ObjectInfo] = {}
        self._done: dict[date, _Done] = {}
        self._begun: _Begun | None = None
        self._entries: dict[tuple[date, int], DayEntry] = {}

    def update(self, *, now: float, full: bool = False, progress: Callable[[str], None] = lambda _: None) -> int:
        """As `update` of this module."""
        today = datetime.fromtimestamp(now, UTC).date()
        newest = newest_entries(self._store, known=self._entries)
        self._entries = {(day, entry.number): entry for day, entry in newest.items()}
        whole = [day for day, entry in newest.items() if entry.until == _start(day + _DAY)]
        since = None if full or not whole else min(max(whole), today) - LATE
        self._list(since, today)
        if not self._known:
            return 0
        chain = _Chain(self._store)
        before = [day for day in newest if since is not None and day < since]
        if before:
            chain.take(newest[max(before)])
        by_day = _by_day(self._known.values())
        first = min(by_day) if since is None else since
        folded = 0
        for day in _days(first, today):
            until = min(_start(day + _DAY), _us(now))
            self._forget_before(day)
            folded += self._fold_day(day, by_day.get(day, []), chain, newest.get(day), until=until, progress=progress)
            if folded and (day - first).days % 10 == 9:
                progress(f"folded up to {day}")
        return folded

    def _forget_before(self, day: date) -> None:
        """What no fold of this day or a later one reads again."""
        folded = frozenset[str]() if self._begun is None else self._begun.folded
        needed = {key for key in self._segments.parsed() if key in self._known and _last_day(self._known[key]) >= day}
        self._segments.keep(needed - folded)

    def _list(self, since: date | None, today: date) -> None:
        """Every segment whose events may lie in those days."""
        far = since is None or today - since > timedelta(days=7)  # one listing, then
        prefixes = ["events/"] if since is None or far else [f"events/{d}/" for d in _days(since - _DAY, today + _DAY)]
        self._known = {info.key: info for prefix in prefixes for info in self._store.list(prefix)}

    def _fold_day(
        self,
        day: date,
        inputs: list[ObjectInfo],
        chain: _Chain,
        newest: DayEntry | None,
        *,
        until: int,
        progress: Callable[[str], None],
    ) -> bool:
        """Whether it had to be folded. What tomorrow's segments do not tell of today need not be folded again."""
        from heliostat.meter.pieces import is_late

        keys, done = frozenset(info.key for info in inputs), self._done.get(day)
        if done is not None and done.fits(chain.digest, newest):
            fresh = self._segments.events([info for info in inputs if info.key not in done.keys])
            same = until == done.until or (done.idle and until < _start(day + _DAY))
            if same and not is_late(fresh, start=_start(day), end=_start(day + _DAY), told=done.told):
                if newest is not None:
                    chain.take(newest)
                self._done[day] = replace(done, keys=keys)
                return False
        state_in = chain.digest
        entry, told = self._bring_up(day, inputs, chain, newest, until=until, progress=progress)
        self._done[day] = _Done(keys, state_in, until, entry is not None, not chain.state().nodes, told or frozenset())
        return entry is not None and told is not None

    def _bring_up(
        self,
        day: date,
        inputs: Sequence[ObjectInfo],
        chain: _Chain,
        newest: DayEntry | None,
        *,
        until: int,
        progress: Callable[[str], None],
    ) -> tuple[DayEntry | None, frozenset[NodeTold] | None]:
        """(the day's entry, what was told of the nodes where it had to be folded)."""
        listed = _digest("\n".join(sorted(info.key for info in inputs)).encode())
        if newest is not None and (newest.listed, newest.state_in, newest.until) == (listed, chain.digest, until):
            chain.take(newest)
            return newest, None
        piece = self._piece(day, inputs, chain, until)
        if piece.unread:
            progress(f"warning: {piece.unread} events of {day} lack what their kind must tell, and are left out")
        if newest is None and not len(piece.entries.hour) and not piece.state.nodes:
            # No node at all: such a day has no entry, and the next one goes on from the day before it.
            return None, piece.told
        number = 1 if newest is None else newest.number + 1
        entry = _write(self._store, day, number, piece, listed=listed, state_in=chain.digest)
        if entry is None:  # another process has written this number: what it knew may be more, or less
            newest = _read_entry(self._store, day, number)
            return self._bring_up(day, inputs, chain, newest, until=until, progress=progress)
        chain.take(entry, piece.state)
        _sweep_provisional(self._store, entry)
        return entry, piece.told

    def _piece(self, day: date, inputs: Sequence[ObjectInfo], chain: _Chain, until: int) -> Piece:
        """The day up to then. Of a day under way what has settled is kept, and its events are not needed again."""
        from heliostat.meter.pieces import empty_piece, go_on

        begun, under_way = self._begun, until < _start(day + _DAY)
        if begun is None or not begun.fits(day, chain.digest, until) or self._tells_late(begun, inputs):
            begun = _Begun(day, chain.digest, empty_piece(chain.state(), _start(day)))
        if under_way and until - begun.piece.until >= 2 * SETTLED_US:
            fresh = [info for info in inputs if info.key not in begun.folded]
            piece = go_on(begun.piece, self._segments.events(fresh), until - SETTLED_US)
            settled = piece.until / 1_000_000 - _BEFORE_S
            folded = {info.key for info in fresh if self._segments.newest_s(info) < settled}
            begun = replace(begun, piece=piece, folded=begun.folded | folded)
        if under_way:
            self._begun = replace(begun, known=frozenset(info.key for info in inputs))
        rest = [info for info in inputs if info.key not in begun.folded]
        return go_on(begun.piece, self._segments.events(rest), until)

    def _tells_late(self, begun: _Begun, inputs: Sequence[ObjectInfo]) -> bool:
        """Whether what has arrived since tells of the time that was folded."""
        from heliostat.meter.pieces import is_late

        fresh = self._segments.events([info for info in inputs if info.key not in begun.known])
        return is_late(fresh, start=begun.piece.start, end=begun.piece.until, told=begun.piece.told)


@dataclass(frozen=True)
class _Begun:
    """The day under way, as far as it has settled."""

    day: date
    state_in: str
    piece: Piece
    folded: frozenset[str] = frozenset()  # segments that are wholly in the piece
    known: frozenset[str] = frozenset()  # segments that were there when it was looked at last

    def fits(self, day: date, state_in: str, until: int) -> bool:
        """Whether the day up to `until` goes on from it."""
        return (self.day, self.state_in) == (day, state_in) and self.piece.until <= until


@dataclass(frozen=True)
class _Done:
    """A day as this process folded it last."""

    keys: frozenset[str]
    state_in: str
    until: int
    has_entry: bool  # a day without any node has none
    idle: bool  # without a node at its end
    told: frozenset[NodeTold]

    def fits(self, state_in: str, newest: DayEntry | None) -> bool:
        """Whether it was folded from that state, and the entry is still the one."""
        same = not self.has_entry if newest is None else self.has_entry and newest.until == self.until
        return same and state_in == self.state_in


def _by_day(segments: Iterable[ObjectInfo]) -> dict[date, list[ObjectInfo]]:
    """Of each day the segments that may tell of it, by what a listing says.

    A segment's key has the day of its first event; it was written after its last. What took effect on a day may be
    told on the next one (a node's end, found in the morning).
    """
    found: dict[date, list[ObjectInfo]] = {}
    for info in segments:
        for day in _days(_segment_day(info.key) - _DAY, _last_day(info)):
            found.setdefault(day, []).append(info)
    return found


def _last_day(info: ObjectInfo) -> date:
    """The last one that the segment may tell of."""
    return (info.modified + CLOCK_MARGIN).date()


def newest_entries(
    store: Store, *, since: date | None = None, known: Mapping[tuple[date, int], DayEntry] = MappingProxyType({})
) -> dict[date, DayEntry]:
    """Of each day that was ever folded, from `since` on. `known`: entries by day and number, which never change."""
    for last in (False, False, True):
        keys = _newest_numbers(store, since)
        with ThreadPoolExecutor(READERS, thread_name_prefix="ledger") as pool:
            try:
                found = list(pool.map(lambda item: known.get(item) or _read_entry(store, *item), sorted(keys.items())))
            except CorruptArtifact:  # swept since it was listed, as there are newer ones
                if last:
                    raise
            else:
                return {entry.day: entry for entry in found}
    raise AssertionError("the last attempt returns or raises")


def _newest_numbers(store: Store, since: date | None) -> dict[date, int]:
    keys: dict[date, int] = {}
    for info in store.list(f"{FOLDER}/"):
        day, _, name = info.key.removeprefix(f"{FOLDER}/").partition("/")
        number, _, kind = name.partition(".")
        if kind == "json" and number.isdigit():
            with suppress(ValueError):
                at = date.fromisoformat(day)
                if since is None or at >= since:
                    keys[at] = max(int(number), keys.get(at, 0))
    return keys


def read(
    store: Store, *, since: date | None = None, until: date | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Every row whose hour lies in the days from `since` to `until`, both included, in the form of `table_of`.

    `columns`: those of it alone, "hour" among them; a report says which it needs (`report.columns_of`).
    """
    import pyarrow as pa

    parts = _read_parts(store, since, lambda manifest: _read_rows(store, manifest, columns))
    rows = pa.concat_tables([empty_table(columns), *parts]).unify_dictionaries()
    return _within(rows, since, until)


def read_counts(store: Store, *, since: date | None = None, until: date | None = None) -> pa.Table:
    """What was done in the days from `since` to `until`, both included, in the form of `counts_table`."""
    import pyarrow as pa

    def rows(manifest: Manifest) -> pa.Table:
        if _COUNTS not in manifest.files:  # an entry of an earlier release
            return counts_table({})
        return _parquet(read_file(store, manifest, _COUNTS), _counts_schema())

    parts = _read_parts(store, since, rows)
    return _within(pa.concat_tables([counts_table({}), *parts]).unify_dictionaries(), since, until)


def _read_parts(store: Store, since: date | None, rows: Callable[[Manifest], pa.Table]) -> list[pa.Table]:
    """From the newest entry of each day. The rows of a day's hours are in its own, and moved ones in later ones."""
    for last in (False, False, True):
        wanted = [entry for _, entry in sorted(newest_entries(store, since=since).items())]
        with ThreadPoolExecutor(READERS, thread_name_prefix="ledger") as pool:
            try:
                return list(pool.map(lambda entry: rows(entry.manifest), wanted))
            except (ObjectMissing, CorruptArtifact):  # newer ones have taken their place, and they were swept
                if last:
                    raise
    return []


def _within(rows: pa.Table, since: date | None, until: date | None) -> pa.Table:
    import pyarrow.compute as pc

    for limit, compare in ((since, pc.greater_equal), (until and until + _DAY, pc.less)):
        if limit is not None:
            rows = rows.filter(compare(rows["hour"], _start(limit) // (DAY_US // 24)))
    return rows


def corrections(store: Store, day: date) -> list[pa.Table]:
    """Of each entry of the day after the first: the rows by which it differs from the one before."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found, before = [], None
    for number in _numbers(store, day):
        rows = _read_rows(store, _read_entry(store, day, number).manifest)
        if before is not None:
            minus = before.set_column(before.num_columns - 1, "gpu_seconds", pc.negate(before["gpu_seconds"]))
            both = pa.concat_tables([rows, minus]).unify_dictionaries()
            keys = [name for name in both.column_names if name != "gpu_seconds"]
            change = both.group_by(keys).aggregate([("gpu_seconds", "sum")])
            change = change.rename_columns([*keys, "gpu_seconds"])
            found.append(change.filter(pc.greater(pc.abs(change["gpu_seconds"]), 1e-6)))
        before = rows
    return found


# --- rows as a table


def _schema(columns: Sequence[str] | None = None) -> pa.Schema:
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    names = (*PLACE_COLUMNS, *OWNER_COLUMNS, "use")
    fields = [("hour", pa.int64()), *((name, text) for name in names), ("gpu_seconds", pa.float64())]
    return pa.schema([field for field in fields if columns is None or field[0] in columns])


def empty_table(columns: Sequence[str] | None = None) -> pa.Table:
    return _schema(columns).empty_table()


def table_of(entries: Entries) -> pa.Table:
    """Columns: hour (since the epoch), those of Place, those of Owner, use, gpu_seconds."""
    import pyarrow as pa

    from heliostat.meter.facts import Use

    def column(codes: Any, values: Sequence[str]) -> pa.DictionaryArray:  # Any: an array of codes
        distinct = list(dict.fromkeys(values))
        rename = pa.array([distinct.index(value) for value in values], type=pa.int32())
        return pa.DictionaryArray.from_arrays(rename.take(pa.array(codes)), pa.array(distinct, type=pa.string()))

    columns = [pa.array(entries.hour)]
    columns += [column(entries.place, [getattr(place, name) for place in entries.places]) for name in PLACE_COLUMNS]
    columns += [column(entries.owner, [getattr(owner, name) for owner in entries.owners]) for name in OWNER_COLUMNS]
    columns += [column(entries.use, [use.label for use in Use]), pa.array(entries.gpu_seconds)]
    return pa.Table.from_arrays(columns, schema=_schema())


def to_parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    return _parquet(data, _schema(columns))


def _parquet(data: bytes, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    # One thread: many files are read at once.
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    return file.read(columns=schema.names, use_threads=False).cast(schema)


def _counts_schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    fields = [("hour", pa.int64()), *((name, text) for name in (*OWNER_COLUMNS, "what")), ("amount", pa.float64())]
    return pa.schema(fields)


def counts_table(counts: Counts) -> pa.Table:
    """Columns: hour (since the epoch), those of Owner, what, amount."""
    import pyarrow as pa

    keys = sorted(counts, key=lambda key: (key[0], key[2], tuple(asdict(key[1]).values())))
    rows = [
        {"hour": hour, **asdict(owner), "what": what, "amount": counts[hour, owner, what]} for hour, owner, what in keys
    ]
    return pa.Table.from_pylist(rows, schema=_counts_schema())


# --- one day


class _Segments:
    """Parsed segments, read once while somebody needs them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parsed: dict[str, list[Event]] = {}

    def parsed(self) -> frozenset[str]:
        """Those in memory."""
        return frozenset(self._parsed)

    def keep(self, keys: Set[str]) -> None:
        """Forget the others."""
        self._parsed = {key: events for key, events in self._parsed.items() if key in keys}

    def events(self, inputs: Sequence[ObjectInfo]) -> Iterator[Event]:
        self._read([info.key for info in inputs])
        for key in sorted(info.key for info in inputs):
            yield from self._parsed[key]

    def newest_s(self, info: ObjectInfo) -> float:
        """No event of it took effect later."""
        self._read([info.key])
        return max((at for event in self._parsed[info.key] for at in _instants(event)), default=0.0)

    def _read(self, keys: Sequence[str]) -> None:
        missing = sorted(set(keys) - set(self._parsed))
        if missing:
            with ThreadPoolExecutor(READERS, thread_name_prefix="segments") as pool:
                parsed = pool.map(lambda key: read_segment(self._store, key), missing)
                self._parsed |= zip(missing, parsed, strict=True)


def _instants(event: Event) -> Iterator[float]:
    yield event.time_s
    for name in ("at", "started_at", "ready_at", "stopping_at", "ended_at", "began_at", "process_at"):
        if isinstance(told := event.fields.get(name), int | float):
            yield float(told)


class _Chain:
    """The state at the end of the day before; read from the store only when a day is folded from it."""

    def __init__(self, store: Store) -> None:
        from heliostat.meter.state import State

        self._store = store
        self._state: State | None = State()
        self._manifest: Manifest | None = None
        self.digest = ""

    def state(self) -> State:
        if self._state is None and self._manifest is not None:
            self._state = load_state(read_file(self._store, self._manifest, _STATE))
        if self._state is None:
            raise AssertionError("a chain has a state or knows where it lies")
        return self._state

    def take(self, entry: DayEntry, state: State | None = None) -> None:
        self._state, self._manifest, self.digest = state, entry.manifest, entry.state_out


def _sweep_provisional(store: Store, newest: DayEntry) -> None:
    """An entry that was made before its day was over is no record of anything once there are two newer ones."""
    for number in _numbers(store, newest.day):
        if number < newest.number - 1:
            with suppress(CorruptArtifact, StoreError):
                entry = _read_entry(store, newest.day, number)
                if entry.until < _start(newest.day + _DAY):
                    store.delete(_manifest_key(newest.day, number))
                    for name in entry.manifest.files:
                        store.delete(f"{entry.manifest.folder}/{name}")


def _numbers(store: Store, day: date) -> list[int]:
    names = [info.key.rpartition("/")[2] for info in store.list(f"{FOLDER}/{day}/") if info.key.count("/") == 2]
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())


def _write(store: Store, day: date, number: int, piece: Piece, *, listed: str, state_in: str) -> DayEntry | None:
    """None where the number is taken."""
    entries, data = piece.entries, dump_state(piece.state)
    body = {
        "listed": listed,
        "state_in": state_in,
        "state_out": _digest(data),
        "until": piece.until,
        "lifetime": entries.lifetime,
        "total": entries.total,
    }
    try:
        manifest = commit(
            store,
            f"{FOLDER}/{day}",
            {_ROWS: to_parquet(table_of(entries)), _COUNTS: to_parquet(counts_table(piece.counts)), _STATE: data},
            manifest_key=_manifest_key(day, number),
            attempt=uuid.uuid4().hex,
            body=json.dumps(body),
        )
    except ObjectExists:
        return None
    return _entry(day, number, manifest)


def _read_entry(store: Store, day: date, number: int) -> DayEntry:
    key = _manifest_key(day, number)
    manifest = read_manifest(store, key)
    if manifest is None:
        raise CorruptArtifact("an entry of the ledger is gone", where=key, do="fold the day again: delete its entries")
    return _entry(day, number, manifest)


def _entry(day: date, number: int, manifest: Manifest) -> DayEntry:
    body = json.loads(manifest.body)
    return DayEntry(day, number, manifest, **body)


def _read_rows(store: Store, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
    return from_parquet(read_file(store, manifest, _ROWS), columns)


def _manifest_key(day: date, number: int) -> str:
    return f"{FOLDER}/{day}/{number:06d}.json"


def _segment_day(key: str) -> date:
    return date.fromisoformat(key.split("/")[1])


def _days(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + number * _DAY


def _start(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_US


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the state as JSON


def dump_state(state: State) -> bytes:
    """In one form only, so that equal states are equal bytes."""
    seats = sorted((asdict(seat) for seat in state.seats), key=lambda seat: json.dumps(seat, sort_keys=True))
    value = {**asdict(state), "seats": seats, "partial": sorted(state.partial)}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def load_state(data: bytes) -> State:
    from heliostat.meter.facts import Owner, Place, Use
    from heliostat.meter.state import NodeState, Seat, State

    value = json.loads(data)

    def seat(given: dict[str, Any]) -> Seat:  # Any: JSON
        steady = given["steady"]
        return Seat(**{**given, "owner": Owner(**given["owner"]), "steady": None if steady is None else Use(steady)})

    return State(
        {name: NodeState(**{**node, "place": Place(**node["place"])}) for name, node in value["nodes"].items()},
        tuple(seat(given) for given in value["seats"]),
        value["since"],
        tuple((unit, at, use, span, team) for unit, at, use, span, team in value["partial"]),
        {run: (step, at) for run, (step, at) in value["reached"].items()},
        value["until"],
    )
