"""Whose job runs next: a queue with a share for each team, priorities, and gangs that start whole. Pure.

    order      between teams by how much of its share each has had (GPU-seconds, the recent ones counting most); within
               a team by priority, then by age. So no team gains by calling all of its jobs urgent.
    gangs      a job gets all of its nodes at once or none. Nobody holds nodes while waiting for more: two gangs that
               each need every node cannot stop one another.
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

    @property
    def gpus(self) -> float:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Running:
    request: Request
    started_at: float
    leaving: bool = False
    """Asked to leave at its next checkpoint already."""


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
class _State:
    """What the loop below keeps: nodes free in each group, and what each team has been charged."""

    free: dict[str, int]
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
) -> Decision:
    """`capacity`: nodes by group, those in use and those that may be started. `usage`: of `charge`.

    The same in whatever order queue and running are given. Raises UsageError for a job that stands twice.
    """
    _check(queue, running)
    state = _State(_free(running, capacity), dict(usage))
    left = list(queue)
    while left:
        request = min(left, key=lambda r: _rank(r, state.charged, policy))
        left.remove(request)
        _consider(request, state, capacity, policy, now)
    started = set(state.start)
    waiting = [request for request in queue if request.job not in started]
    leave = _who_leaves(waiting, running, state, capacity, policy, now)
    waits = tuple(state.waits[request.job] for request in sorted(waiting, key=lambda r: (r.submitted_at, r.job)))
    return Decision(tuple(state.start), leave, waits)


def _check(queue: Sequence[Request], running: Sequence[Running]) -> None:
    seen: set[str] = set()
    for request in (*queue, *(one.request for one in running)):
        if request.job in seen:
            raise UsageError(f"job {request.job!r} stands twice in the queue", do="give each job a name of its own")
        if request.nodes < 1:
            raise UsageError(f"job {request.job!r} asks for {request.nodes} nodes", do="write 1 or more")
        seen.add(request.job)


def _free(running: Iterable[Running], capacity: Mapping[str, int]) -> dict[str, int]:
    free = dict(capacity)
    for one in running:
        free[one.request.group] = free.get(one.request.group, 0) - one.request.nodes
    return free


def _rank(request: Request, charged: Mapping[str, float], policy: Policy) -> tuple[float, str, int, float, str]:
    """The least charged team first. Its name decides between equals, so that a choice does not flicker."""
    spent = charged.get(request.team, 0.0) / policy.share(request.team)
    return spent, request.team, -request.priority, request.submitted_at, request.job


def _consider(request: Request, state: _State, capacity: Mapping[str, int], policy: Policy, now: float) -> None:
    group, most = request.group, capacity.get(request.group, 0)
    free = state.free.get(group, 0)
    keeper = state.kept_for.get(group)
    if request.nodes > most:
        why = f"needs {_nodes(request.nodes)} of {group}, which never has more than {most}"
        state.waits[request.job] = Wait(request.job, why, hopeless=True)
    elif keeper is not None:
        state.waits[request.job] = Wait(request.job, f"free nodes of {group} are kept for {keeper}")
    elif request.nodes > free:
        waited = now - request.submitted_at
        state.waits[request.job] = Wait(
            request.job, f"needs {_nodes(request.nodes)} of {group} at once, {max(0, free)} free; waits {_time(waited)}"
        )
        if waited >= policy.patience_s:
            state.kept_for[group] = request.job
    else:
        state.start.append(request.job)
        state.free[group] = free - request.nodes
        state.charged[request.team] = state.charged.get(request.team, 0.0) + request.gpus * policy.quantum_s


def _who_leaves(
    waiting: Sequence[Request],
    running: Sequence[Running],
    state: _State,
    capacity: Mapping[str, int],
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
            and request.nodes <= capacity.get(group, 0)
        ]
        if patient:
            first = min(patient, key=lambda r: _rank(r, state.charged, policy))
            leaving += _make_room(first, waiting, running, state, capacity, policy)
    return tuple(leaving)


def _make_room(
    request: Request,
    waiting: Sequence[Request],
    running: Sequence[Running],
    state: _State,
    capacity: Mapping[str, int],
    policy: Policy,
) -> list[str]:
    mine = [one for one in running if one.request.group == request.group]
    due = _due(request.group, waiting, running, capacity, policy)
    held = _held(mine)
    if held.get(request.team, 0) + request.nodes > due.get(request.team, 0.0) + 1e-9:
        return []  # it would be above its own share
    missing = request.nodes - state.free.get(request.group, 0) - sum(o.request.nodes for o in mine if o.leaving)
    asked: list[str] = []
    # Those of the least priority first, then the youngest: they lose the least.
    for one in sorted(mine, key=lambda o: (o.request.priority, -o.started_at, o.request.job)):
        team = one.request.team
        if missing <= 0:
            break
        if one.leaving or team == request.team or held[team] - one.request.nodes < due.get(team, 0.0) - 1e-9:
            continue  # it has no more than its share itself
        held[team] -= one.request.nodes
        missing -= one.request.nodes
        asked.append(one.request.job)
    return asked if missing <= 0 else []


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
            held[one.request.team] = held.get(one.request.team, 0) + one.request.nodes
    return held


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def _time(seconds: float) -> str:
    return str(Duration(max(0, round(seconds)) * 1000))
