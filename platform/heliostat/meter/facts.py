"""What the ledger is folded from: events, as small facts in the ledger's own terms. Pure.

A *node* holds GPUs from its start to its end. A *seat* is what one unit holds on one node; a *unit* is an attempt of a
run (`<run>/<number>`) or a replica of an application (`<app>/<replica>`). A *mark* tells what a unit did: a full mark
at `at` names the class of all its time since the full mark before, a partial one only `span` microseconds of it, and
the next full mark takes what is left. A *sample* tells how many GPUs of a node Ray could still give away.

Times are whole microseconds since the epoch, so that durations add up exactly. Marks and samples are columns, for
there are many; nodes and seats are records, for there are few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heliostat.events import Event

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND = 1_000_000
"""Microseconds."""

_RUN = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{4}$")


class Use(IntEnum):
    """The classes of a GPU-second. Each is in exactly one of those up to UNEXPLAINED."""

    SERVING = 0  # answering requests
    TRAINING = 1  # steps that the result is made of
    RECOMPUTED = 2  # steps done before, and what was under way when a worker was lost
    CHECKPOINT = 3  # steps that waited for a checkpoint, or for the output to be written
    LOADING = 4  # from the start of a worker or replica until it can work
    WAITING = 5  # for data, or for other workers
    RESERVED = 6  # held by somebody who did nothing with it
    UNALLOCATED = 7  # free to be given away
    STARTING = 8  # the node was starting or stopping
    UNEXPLAINED = 9  # nothing tells
    OVERLAP = 10  # not a class: what was told beyond the time there was, and is in no sum

    @property
    def label(self) -> str:
        return self.name.lower()


CLASSES = tuple(use for use in Use if use is not Use.OVERLAP)


@dataclass(frozen=True)
class Place:
    """Where a node is, as the price and the reports see it."""

    group: str = ""
    market: str = ""
    instance: str = ""
    zone: str = ""


@dataclass(frozen=True)
class Owner:
    """Who a GPU-second is for. `kind` is job or app, empty for time that nobody held."""

    kind: str = ""
    name: str = ""
    team: str = ""
    project: str = ""
    version: str = ""
    user: str = ""


@dataclass(frozen=True)
class NodeFact:
    at: int
    what: Literal["started", "ready", "stopping", "ended"]
    node: str
    place: Place
    gpus: float
    alias: str = ""  # Ray's own id of the node
    share: float = 1.0  # of a whole device that one of `gpus` is: a MIG slice is a part of one


@dataclass(frozen=True)
class SeatFact:
    """`close` ends one seat, `end` all seats of the unit, or of all units of a run where `unit` is a run's name.
    An `open` ends the seat before it in its slot.

    `gpus` None: all of the node's. `steady` is the class of a holder that has one only, and gives no marks.
    """

    id: int
    at: int
    what: Literal["open", "close", "end"]
    unit: str
    node: str = ""
    slot: str = ""
    gpus: float | None = None
    owner: Owner = Owner()
    steady: Use | None = None


@dataclass(frozen=True)
class Marks:
    """Columns of equal length; `unit` and `team` count into the lists, team -1 is the unit's own.

    `id` tells duplicates: equal (unit, at, id) are one mark. `span` -1: a full mark. `step` counts from 1 where a
    TRAINING mark is a completed step, else -1.
    """

    id: NDArray[np.uint64]
    at: Ints
    unit: NDArray[np.int32]
    use: NDArray[np.int8]
    span: Ints
    step: Ints
    team: NDArray[np.int32]
    units: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, str, Use, int, int, str]]) -> Marks:
        """From (id, at, unit, use, span, step, team) each; team "" is the unit's own."""
        units: dict[str, int] = {}
        teams: dict[str, int] = {"": -1}
        found = [
            (i, at, units.setdefault(unit, len(units)), int(use), span, step, teams.setdefault(team, len(teams) - 1))
            for i, at, unit, use, span, step, team in rows
        ]
        columns = list(zip(*found, strict=True)) or [()] * 7
        return cls.from_columns(
            [np.array(column, dtype=kind) for column, kind in zip(columns, _KINDS, strict=True)],
            units=tuple(units),
            teams=tuple(list(teams)[1:]),
        )

    @classmethod
    def from_columns(cls, columns: Sequence[NDArray[Any]], *, units: tuple[str, ...], teams: tuple[str, ...]) -> Marks:
        """From the seven in order."""
        number, at, unit, use, span, step, team = columns
        return cls(number, at, unit, use, span, step, team, units, teams)

    @property
    def columns(self) -> list[NDArray[Any]]:
        return [self.id, self.at, self.unit, self.use, self.span, self.step, self.team]

    def pick(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Marks:
        """Those marks, in that order."""
        return Marks.from_columns([column[which] for column in self.columns], units=self.units, teams=self.teams)


_KINDS = (np.uint64, np.int64, np.int32, np.int8, np.int64, np.int64, np.int32)


@dataclass(frozen=True)
class Samples:
    """Columns: GPUs of a node that were free. `node` counts into `nodes`."""

    at: Ints
    node: NDArray[np.int32]
    free: Floats
    nodes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[int, str, float]]) -> Samples:
        """From (at, node, free) each."""
        nodes: dict[str, int] = {}
        found = [(at, nodes.setdefault(node, len(nodes)), free) for at, node, free in rows]
        at, node, free = zip(*found, strict=True) if found else ((), (), ())
        return cls(
            np.array(at, dtype=np.int64),
            np.array(node, dtype=np.int32),
            np.array(free, dtype=np.float64),
            nodes=tuple(nodes),
        )


@dataclass(frozen=True)
class Facts:
    nodes: tuple[NodeFact, ...] = ()
    seats: tuple[SeatFact, ...] = ()
    marks: Marks = field(default_factory=lambda: Marks.of(()))
    samples: Samples = field(default_factory=lambda: Samples.of(()))
    unread: int = 0  # events of a known kind that lack what their kind must tell


# --- from events


def facts_of(events: Iterable[Event], *, start: int = 0, end: int = 2**62) -> Facts:
    """The facts of the events that took effect in [start, end). Kinds that tell of no GPU are passed over.

    When something took effect is not when it was told: a node's end is told by whoever finds it gone.
    """
    made = _Made()
    for event in events:
        reader = _READERS.get(event.kind)
        if reader is None:
            continue
        try:
            reader(made, event)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            made.unread += 1  # of another release, or not ours: the rest must still be counted
    return Facts(
        tuple(fact for fact in made.nodes if start <= fact.at < end),
        tuple(fact for fact in made.seats if start <= fact.at < end),
        Marks.of(row for row in made.marks if start <= row[1] < end),
        Samples.of(row for row in made.samples if start <= row[0] < end),
        made.unread,
    )


@dataclass
class _Made:
    nodes: list[NodeFact] = field(default_factory=list)
    seats: list[SeatFact] = field(default_factory=list)
    marks: list[tuple[int, int, str, Use, int, int, str]] = field(default_factory=list)
    samples: list[tuple[int, str, float]] = field(default_factory=list)
    unread: int = 0

    def full(self, event: Event, unit: str, use: Use, *, step: int = -1) -> None:
        self.marks.append((event_number(event.id), _time(event), unit, use, -1, _fitting(step), ""))

    def partial(self, event: Event, unit: str, use: Use, seconds: float, *, team: str = "", part: int = 1) -> None:
        # Several parts of one event are no duplicates of one another.
        number = (event_number(event.id) + part) % 2**64
        self.marks.append((number, _time(event), unit, use, _fitting(max(0, round(seconds * SECOND))), -1, team))


def event_number(text: str) -> int:
    """64 of an event id's bits: enough, since duplicates must agree in unit and time as well."""
    try:
        return int(text[:16], 16)
    except ValueError:
        from hashlib import blake2b

        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _fitting(number: int) -> int:
    """For a column of 64 bits. Raises OverflowError."""
    if abs(number) >= 2**62:
        raise OverflowError("no such count")
    return number


def _time(event: Event) -> int:
    """When it took effect: `at`, where somebody tells of it afterwards."""
    at = event.fields.get("at")
    return round((event.time_s if at is None else float(at)) * SECOND)


def _text(event: Event, name: str) -> str:
    value = event.fields.get(name)
    return "" if value is None else str(value)


def _node(made: _Made, event: Event) -> None:
    """Each node event tells all that is known of the node."""
    given = event.fields
    place = Place(_text(event, "group"), _text(event, "market"), _text(event, "instance"), _text(event, "zone"))
    times: tuple[tuple[Literal["started", "ready", "stopping", "ended"], Any], ...] = (
        ("started", given.get("started_at")),
        ("ready", given.get("ready_at")),
        ("stopping", given.get("stopping_at")),
        ("ended", given.get("ended_at")),
    )
    alias, share = _text(event, "ray_node_id"), float(given.get("share") or 1.0)
    made.nodes += [
        NodeFact(round(at * SECOND), what, str(given["node"]), place, float(given["gpus"]), alias, share)
        for what, at in times
        if at is not None
    ]


def _node_sample(made: _Made, event: Event) -> None:
    made.samples.append((_time(event), str(event.fields["node"]), float(event.fields["free"])))


def _training(event: Event) -> str:
    """The unit: workers name the attempt "<number>-<random>", its driver the number alone."""
    number = event.fields["number"] if "number" in event.fields else str(event.fields["attempt"]).partition("-")[0]
    return f"{event.fields['run']}/{int(number)}" if str(number).isdigit() else f"{event.fields['run']}/{number}"


def job_owner(event: Event) -> Owner:
    """A submitted run is named <job>-<day>-<time>-<random>, one that a person named is its own job."""
    run = _text(event, "run")
    name = _text(event, "job") or _RUN.sub("", run)
    return Owner("job", name, _text(event, "team"), _text(event, "project"), run, _text(event, "user"))


def _worker_started(made: _Made, event: Event) -> None:
    given = event.fields
    slot = _worker_slot(event)
    at = round(float(given.get("began_at") or event.time_s) * SECOND)
    gpus = given.get("gpus")
    made.seats.append(
        SeatFact(
            event_number(event.id),
            at,
            "open",
            _training(event),
            str(given["node"]),
            slot,
            None if gpus is None else float(gpus),
            job_owner(event),
        )
    )


def _worker_slot(event: Event) -> str:
    """A worker sits in its keeper's slot."""
    given = event.fields
    return _keeper_slot(event) if given.get("keeper") else f"{given['run']}#{given.get('rank', 0)}@{given['node']}"


def _keeper_slot(event: Event) -> str:
    return f"{event.fields['run']}@{event.fields['keeper']}"


def _worker_ended(made: _Made, event: Event) -> None:
    unit, node = _training(event), str(event.fields["node"])
    if not event.fields.get("keeper"):  # else the keeper holds the GPU on, until the attempt has ended
        made.seats.append(SeatFact(event_number(event.id), _time(event), "close", unit, node, _worker_slot(event)))
    if event.fields.get("rank", 0) == 0:
        made.full(event, unit, Use.WAITING)  # for its peers, that are not done yet


def _attempt_ended(made: _Made, event: Event) -> None:
    """What its workers did last is lost with them; after a good end they waited for one another."""
    unit = _training(event)
    made.full(event, unit, Use.RECOMPUTED if event.fields.get("outcome") == "lost" else Use.WAITING)
    made.seats.append(SeatFact(event_number(event.id), _time(event), "end", unit))
    for number, keeper in enumerate(event.fields.get("keepers") or ()):
        _keep(made, replace(event, fields={**event.fields, **keeper}), _time(event), part=number)


def _attempt(made: _Made, event: Event) -> None:
    """What the attempt before did last is lost, where nobody was left to say so."""
    before = replace(event, fields={**event.fields, "number": int(event.fields["number"]) - 1})
    made.full(before, _training(before), Use.RECOMPUTED)


def _keep(made: _Made, event: Event, at: int, *, part: int = 0) -> None:
    """A keeper without a training process holds its GPUs all the same, for its peers."""
    given, number = event.fields, (event_number(event.id) + part) % 2**64
    unit, owner = f"{given['run']}/{given['keeper']}", job_owner(event)
    seat = SeatFact(number, at, "open", unit, str(given["node"]), _keeper_slot(event), float(given["gpus"]), owner)
    made.seats.append(replace(seat, steady=Use.WAITING))


def _keeper_ready(made: _Made, event: Event) -> None:
    """It held them from the start of its process on."""
    _keep(made, event, round(float(event.fields["began_at"]) * SECOND))


def _keeper_ended(made: _Made, event: Event) -> None:
    unit = f"{event.fields['run']}/{event.fields['keeper']}"
    made.seats.append(SeatFact(event_number(event.id), _time(event), "end", unit))


def _gang_started(made: _Made, event: Event) -> None:
    """What an earlier driver of the run held is gone with it, whether it said so or not."""
    made.seats.append(SeatFact(event_number(event.id), _time(event), "end", str(event.fields["run"])))


def _restored(made: _Made, event: Event) -> None:
    made.full(event, _training(event), Use.LOADING)


def _step(made: _Made, event: Event) -> None:
    made.full(event, _training(event), Use.TRAINING, step=int(event.fields["step"]))


def _checkpoint(made: _Made, event: Event) -> None:
    seconds = event.fields.get("stall_s", event.fields.get("seconds", 0.0))
    made.partial(event, _training(event), Use.CHECKPOINT, float(seconds))


def _data_wait(made: _Made, event: Event) -> None:
    made.partial(event, _training(event), Use.WAITING, float(event.fields["seconds"]))


def _written(made: _Made, event: Event) -> None:
    made.full(event, _training(event), Use.CHECKPOINT)


def _replica(event: Event) -> str:
    return f"{event.fields['app']}/{event.fields['replica']}"


def replica_owner(event: Event) -> Owner:
    version = _text(event, "version")
    name = str(event.fields["app"])
    return Owner("app", name, _text(event, "team"), _text(event, "project"), f"v{version}" if version else "", "")


def _replica_seat(event: Event, at: int, what: Literal["open", "close"]) -> SeatFact:
    given, unit = event.fields, _replica(event)
    gpus = given.get("gpus")
    return SeatFact(
        event_number(event.id),
        at,
        what,
        unit,
        str(given["node"]),
        unit,
        None if gpus is None else float(gpus),
        replica_owner(event),
    )


def _replica_ready(made: _Made, event: Event) -> None:
    """Its GPUs are its own from the start of its process on; loading begins with the imports."""
    told = event.fields.get("process_at")
    begun = round(float(event.time_s - event.fields.get("seconds", 0) if told is None else told) * SECOND)
    made.seats.append(_replica_seat(event, begun, "open"))
    made.full(event, _replica(event), Use.LOADING)


def _version_live(made: _Made, event: Event) -> None:
    """The new version loads beside the old one, which serves on: from here on the time is the new one's."""
    made.seats.append(_replica_seat(event, _time(event), "open"))


def _replica_busy(made: _Made, event: Event) -> None:
    """`busy_s`: seconds of answering since the event before, by team. The rest it stood ready."""
    for part, (team, seconds) in enumerate(sorted(event.fields["busy_s"].items()), start=1):
        made.partial(event, _replica(event), Use.SERVING, float(seconds), team=team, part=part)
    made.full(event, _replica(event), Use.RESERVED)


def _replica_ended(made: _Made, event: Event) -> None:
    if "busy_s" in event.fields:
        _replica_busy(made, event)
    made.seats.append(_replica_seat(event, _time(event), "close"))


_READERS = {
    "node_started": _node,
    "node_ready": _node,
    "node_stopping": _node,
    "node_ended": _node,
    "reclaim_notice": _node,
    "reclaimed": _node,
    "node_sample": _node_sample,
    "worker_started": _worker_started,
    "worker_ended": _worker_ended,
    "worker_failed": _worker_ended,
    "attempt": _attempt,
    "attempt_ended": _attempt_ended,
    "gang_started": _gang_started,
    "keeper_ready": _keeper_ready,
    "keeper_ended": _keeper_ended,
    "train_started": _restored,
    "train_resumed": _restored,
    "step": _step,
    "checkpoint": _checkpoint,
    "checkpoint_stall": _checkpoint,
    "data_wait": _data_wait,
    "train_left": _written,
    "train_finished": _written,
    "replica_ready": _replica_ready,
    "version_live": _version_live,
    "replica_busy": _replica_busy,
    "replica_ended": _replica_ended,
}
