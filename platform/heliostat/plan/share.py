"""Whose job runs next: a queue with a share for each team, priorities, and gangs that start whole. Pure.

    order      between teams by how much of its share each has had (GPU-seconds, the recent ones counting most); within
               a team by priority, then by age. So no team gains by calling all of its jobs urgent.
    gangs      a job gets all of its nodes at once or none. Nobody holds nodes while waiting for more: two gangs that
               each need every node cannot stop one another.
    parts      a job that needs a part of one node's GPUs goes where another has left room for it, and onto a whole free
               node where none has.
    backfill   what fits may pass a job that does not, until that one has waited for `patience_s`. Then free nodes are
               kept for it, so that a stream of small jobs does not starve a large one.
    leaving    a team below its share that has waited for `patience_s` may ask jobs of teams above theirs to leave at
               their next checkpoint; the fewest that make room, and never for a job that would not fit then.

The idea of charging for what was used, divided by the share, and serving the least charged first is that of weighted
fair queueing (Demers, Keshav, Shenker, 1989); forgetting with a half-life is what batch schedulers do with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from heliostat.errors import UsageError
from heliostat.units import Duration


@dataclass(frozen=True)
class Policy:
    """`shares`: weights by team; a team without one has `default_share`."""

    shares: Mapping[str, float]
    default_share: float = 1.0
    patience_s: float = 300.0
    half_life_s: float = 3600.0
    quantum_s: float = 60.0
    """A job that starts is charged for this much at once, so that one team does not take all nodes of one moment."""

    def __post_init__(self) -> None:
        for team, share in {**self.shares, "default": self.default_share}.items():
            if not 0 < share < float("inf"):
                raise UsageError(f"the share of {team} is {share:g}", do="write a number above 0")

    def share(self, team: str) -> float:
        return self.shares.get(team, self.default_share)


@dataclass(frozen=True)
class Request:
    """A job that waits, or ran and was asked to leave. All of its `nodes` are of `group`."""

    job: str
    team: str
    group: str
    nodes: int
    gpus_per_node: float
    submitted_at: float
    priority: int = 0
    """Higher goes first, among the team's own."""
    node_gpus: float = 0.0
    """All GPUs of a node of the group, where the job may share one; 0: its nodes are its own."""

    @property
    def gpus(self) -> float:
        return self.nodes * self.gpus_per_node

    @property
    def is_part(self) -> bool:
        return self.gpus_per_node < self.node_gpus

    @property
    def size(self) -> float:
        """In nodes."""
        return self.gpus_per_node / self.node_gpus if self.is_part else float(self.nodes)


@dataclass(frozen=True)
class Running:
    request: Request
    started_at: float
    leaving: bool = False
    """Asked to leave at its next checkpoint already."""
    on: str = ""
    """Of a part: its node, once that is known."""


@dataclass(frozen=True)
class Wait:
    """Why a job does not run yet, in words for the queue's table. `hopeless`: no waiting helps."""

    job: str
    why: str
    hopeless: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do now: start these jobs, in this order; ask these to leave; and why each of the others waits."""

    start: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    waits: tuple[Wait, ...] = ()


def charge(
    usage: Mapping[str, float], running: Iterable[Running], seconds: float, *, half_life_s: float
) -> dict[str, float]:
    """GPU-seconds by team after `seconds` more of what runs; older ones forgotten by half each half-life."""
    kept = 0.5 ** (seconds / half_life_s)
    charged = {team: used * kept for team, used in usage.items()}
    for one in running:
        team = one.request.team
        charged[team] = charged.get(team, 0.0) + one.request.gpus * seconds
    return charged


@dataclass
class _Room:
    """What is free in one group: whole nodes, and GPUs of those that are shared, by node."""

    nodes: int
    """Below 0 where more runs than there should be: a reclaimed node whose jobs have not said so yet."""
    shared: dict[str, float] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    """The node of each job with a part."""

    def copy(self) -> _Room:
        return _Room(self.nodes, dict(self.shared), dict(self.parts))

    @property
    def largest(self) -> float:
        """GPUs free on one shared node, at most."""
        return max(self.shared.values(), default=0.0)

    def fits(self, request: Request) -> bool:
        if request.is_part and request.gpus_per_node <= self.largest:
            return request.gpus_per_node <= self.nodes * request.node_gpus + sum(self.shared.values())
        return request.nodes <= self.nodes

    def take(self, request: Request, on: str = "") -> None:
        if not request.is_part:
            self.nodes -= request.nodes
            return
        on = on or self._fullest(request)
        self.parts[request.job] = on
        if on not in self.shared:
            self.nodes -= 1
            self.shared[on] = request.node_gpus
        self.shared[on] -= request.gpus_per_node

    def give(self, request: Request) -> str:
        """Back what `take` took; returns the node of a part."""
        if not request.is_part:
            self.nodes += request.nodes
            return ""
        on = self.parts.pop(request.job)
        self.shared[on] += request.gpus_per_node
        if on not in self.parts.values():
            self.nodes += 1
            del self.shared[on]
        return on

    def _fullest(self, request: Request) -> str:
        able = [(left, node) for node, left in self.shared.items() if left >= request.gpus_per_node]
        return min(able)[1] if able else f"of {request.job}"


@dataclass
class _State:
    """What the loop below keeps: what is free in each group, and what each team has been charged."""

    rooms: dict[str, _Room]
    capacity: Mapping[str, int]
    most: Mapping[str, int]
    charged: dict[str, float]
    kept_for: dict[str, str] = field(default_factory=dict)
    start: list[str] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)


def decide(
    queue: Sequence[Request],
    running: Sequence[Running],
    capacity: Mapping[str, int],
    usage: Mapping[str, float],
    policy: Policy,
    *,
    now: float,
    most: Mapping[str, int] | None = None,
) -> Decision:
    """`capacity`: nodes by group, those in use and those that may be started. `usage`: of `charge`.

    `most`: nodes that a group may ever have, where some of them are somebody else's now; else `capacity`.

    The same in whatever order queue and running are given. Raises UsageError for a job that stands twice.
    """
    _check(queue, running)
    state = _State(_rooms(running, capacity), capacity, capacity if most is None else most, dict(usage))
    left = list(queue)
    while left:
        request = min(left, key=lambda r: _rank(r, state.charged, policy))
        left.remove(request)
        _consider(request, state, policy, now)
    started = set(state.start)
    waiting = [request for request in queue if request.job not in started]
    leave = _who_leaves(waiting, running, state, policy, now)
    waits = tuple(state.waits[request.job] for request in sorted(waiting, key=lambda r: (r.submitted_at, r.job)))
    return Decision(tuple(state.start), leave, waits)


def _check(queue: Sequence[Request], running: Sequence[Running]) -> None:
    seen: set[str] = set()
    for request in (*queue, *(one.request for one in running)):
        if request.job in seen:
            raise UsageError(f"job {request.job!r} stands twice in the queue", do="give each job a name of its own")
        if request.nodes < 1:
            raise UsageError(f"job {request.job!r} asks for {request.nodes} nodes", do="write 1 or more")
        if request.is_part and not (request.nodes == 1 and request.gpus_per_node > 0):
            asked = f"{request.gpus_per_node:g} GPUs of {_nodes(request.nodes)}"
            raise UsageError(f"job {request.job!r} asks for {asked}", do="a part is of one node, and more than none")
        seen.add(request.job)


def _rooms(running: Iterable[Running], capacity: Mapping[str, int]) -> dict[str, _Room]:
    rooms = {group: _Room(nodes) for group, nodes in capacity.items()}
    parts = []
    for one in running:
        if one.request.is_part:
            parts.append(one)
        else:
            rooms.setdefault(one.request.group, _Room(0)).nodes -= one.request.nodes
    # Those whose node is known, then the largest of the others: so they are packed as well as they can be.
    for one in sorted(parts, key=lambda one: (not one.on, -one.request.gpus_per_node, one.request.job)):
        rooms.setdefault(one.request.group, _Room(0)).take(one.request, one.on)
    return rooms


def _rank(request: Request, charged: Mapping[str, float], policy: Policy) -> tuple[float, str, int, float, str]:
    """The least charged team first. Its name decides between equals, so that a choice does not flicker."""
    spent = charged.get(request.team, 0.0) / policy.share(request.team)
    return spent, request.team, -request.priority, request.submitted_at, request.job


def _consider(request: Request, state: _State, policy: Policy, now: float) -> None:
    group, most = request.group, state.most.get(request.group, 0)
    room = state.rooms.setdefault(group, _Room(0))
    keeper = state.kept_for.get(group)
    if request.nodes > most:
        why = f"needs {_asked(request)} of {group}, which never has more than {most}"
        state.waits[request.job] = Wait(request.job, why, hopeless=True)
    elif keeper is not None:
        state.waits[request.job] = Wait(request.job, f"free nodes of {group} are kept for {keeper}")
    elif not room.fits(request):
        waited = now - request.submitted_at
        free = f"{room.largest:g} free on one" if request.is_part else f"at once, {max(0, room.nodes)} free"
        why = f"needs {_asked(request)} of {group}{', ' if request.is_part else ' '}{free}; waits {_time(waited)}"
        state.waits[request.job] = Wait(request.job, why)
        # Not where strangers hold what it needs: nobody of the queue could make the room.
        if waited >= policy.patience_s and request.nodes <= state.capacity.get(group, 0):
            state.kept_for[group] = request.job
    else:
        state.start.append(request.job)
        room.take(request)
        state.charged[request.team] = state.charged.get(request.team, 0.0) + request.gpus * policy.quantum_s


def _who_leaves(
    waiting: Sequence[Request],
    running: Sequence[Running],
    state: _State,
    policy: Policy,
    now: float,
) -> tuple[str, ...]:
    """For the first patient job of each group whose team is below its share: whom to ask. At most one at a time."""
    leaving: list[str] = []
    for group in sorted({request.group for request in waiting}):
        patient = [
            request
            for request in waiting
            if request.group == group
            and now - request.submitted_at >= policy.patience_s
            and request.nodes <= state.capacity.get(group, 0)
        ]
        if patient:
            first = min(patient, key=lambda r: _rank(r, state.charged, policy))
            leaving += _make_room(first, waiting, running, state, policy)
    return tuple(leaving)


def _make_room(
    request: Request,
    waiting: Sequence[Request],
    running: Sequence[Running],
    state: _State,
    policy: Policy,
) -> list[str]:
    mine = [one for one in running if one.request.group == request.group]
    due = _due(request.group, waiting, running, state.capacity, policy)
    held = _held(mine)
    if held.get(request.team, 0) + request.size > due.get(request.team, 0.0) + 1e-9:
        return []  # it would be above its own share
    room = state.rooms[request.group].copy()
    for one in mine:
        if one.leaving:
            room.give(one.request)
    others = sorted((o for o in mine if not o.leaving and o.request.team != request.team), key=_cost)
    asked: dict[str, tuple[Running, str]] = {}
    for unit in _units(request, others, room, held, due):
        if room.fits(request):
            break
        fresh = [one for one in unit if one.request.job not in asked]
        if _stays_due(fresh, held, due):
            for one in fresh:
                held[one.request.team] -= one.request.size
                asked[one.request.job] = one, room.give(one.request)
    return _needed(asked, request, room) if room.fits(request) else []


def _cost(one: Running) -> tuple[int, float, str]:
    """Those of the least priority first, then the youngest: they lose the least."""
    return one.request.priority, -one.started_at, one.request.job


def _units(
    request: Request, others: Sequence[Running], room: _Room, held: Mapping[str, float], due: Mapping[str, float]
) -> list[list[Running]]:
    """Sets of jobs, the cheapest first: each makes some room by leaving together, and none would by less."""
    able = {one.request.job: one for one in others if _stays_due([one], held, due)}
    units = [[one] for one in able.values() if not one.request.is_part]
    for node, free in room.shared.items():
        jobs = [job for job, on in room.parts.items() if on == node]
        parts = sorted((able[job] for job in jobs if job in able), key=_cost)
        if request.is_part:
            units.append(_fewest(parts, request.gpus_per_node - free))
        elif len(parts) == len(jobs):  # a whole node comes free with the last of its jobs
            units.append(parts)
    return sorted((unit for unit in units if unit), key=lambda unit: max(map(_cost, unit)))


def _fewest(parts: Sequence[Running], gpus: float) -> list[Running]:
    """Of these, the cheapest that hold so many together, without any that need not; [] where all are too few."""
    found: list[Running] = []
    for one in parts:
        if _gpus(found) < gpus:
            found.append(one)
    if _gpus(found) < gpus:
        return []
    for one in list(found):
        if _gpus(found) - one.request.gpus >= gpus:
            found.remove(one)
    return found


def _gpus(running: Iterable[Running]) -> float:
    return sum(one.request.gpus for one in running)


def _stays_due(leaving: Sequence[Running], held: Mapping[str, float], due: Mapping[str, float]) -> bool:
    """Whether each team keeps what is its share without these."""
    left = dict(held)
    for one in leaving:
        left[one.request.team] -= one.request.size
    return all(left[team] >= due.get(team, 0.0) - 1e-9 for team in {one.request.team for one in leaving})


def _needed(asked: Mapping[str, tuple[Running, str]], request: Request, room: _Room) -> list[str]:
    """Without those that need not leave, since others who were thought of later make all the room."""
    needed = []
    for job, (one, on) in reversed(list(asked.items())):
        room.take(one.request, on)
        if not room.fits(request):
            room.give(one.request)
            needed.append(job)
    return needed[::-1]


def _due(
    group: str, waiting: Sequence[Request], running: Sequence[Running], capacity: Mapping[str, int], policy: Policy
) -> dict[str, float]:
    """Nodes of the group that are each team's, of those that want any."""
    teams = {r.team for r in waiting if r.group == group} | {
        o.request.team for o in running if o.request.group == group
    }
    whole = sum(policy.share(team) for team in teams)
    return {team: capacity.get(group, 0) * policy.share(team) / whole for team in teams}


def _held(running: Iterable[Running]) -> dict[str, float]:
    held: dict[str, float] = {}
    for one in running:
        if not one.leaving:
            held[one.request.team] = held.get(one.request.team, 0) + one.request.size
    return held


def _asked(request: Request) -> str:
    if request.is_part:
        return f"{request.gpus_per_node:g} GPU{'s' * (request.gpus_per_node != 1)} of a node"
    return _nodes(request.nodes)


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def _time(seconds: float) -> str:
    return str(Duration(max(0, round(seconds)) * 1000))
