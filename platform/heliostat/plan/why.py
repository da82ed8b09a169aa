"""Why work waits: one cause, one next step. Pure: a snapshot of the cluster in, an answer out.

`heliostat.cluster.snapshot` takes the snapshot of a living cluster. What no cluster of processes can show (a quota, an
image that cannot be pulled) comes in as a recorded fact and is judged by the same function.

The order of the questions is the order of certainty: what can never be placed comes before what may be placed later,
and what is on its way before what is refused, for a node that starts ends the wait whatever another group was refused.
A wait that will end by itself is told as such, and blames nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from heliostat.errors import UsageError
from heliostat.units import Duration

CauseId = Literal[
    "no-such-label",
    "too-large",
    "runtime-env",
    "image-pull",
    "quota",
    "node-starting",
    "no-capacity",
    "group-full",
    "gang-waits",
    "queued",
    "unknown",
    # waits that nobody is to blame for
    "running",
    "ended",
    "starting",
    "being-placed",
    "waits-for-itself",
    "waits-for-input",
    "loading",
    "asleep",
]
HEALTHY: frozenset[CauseId] = frozenset(
    ("running", "ended", "starting", "being-placed", "waits-for-itself", "waits-for-input", "loading", "asleep")
)
Phase = Literal["pending", "running", "ended", "failed", "asleep"]
FactKind = Literal["quota", "image-pull", "no-capacity"]

JUST_ASKED_S = 10.0
"""The autoscaler looks every few seconds; a demand younger than this has not been seen by it, perhaps."""
FACT_LIFE_S = 600.0
"""Facts older than this are of another time."""
NOT_DEPLOYED = "not deployed"
PLACING_S = 30.0
"""Between room on a node and work that runs there: a worker process starts, a runtime environment is made."""
DRIVER_START_S = 60.0
"""A driver that has not run for longer than this is not simply starting."""


@dataclass(frozen=True)
class Node:
    """A worker node. `free`: what Ray has left on it; nothing while it starts."""

    name: str
    group: str
    ready: bool
    started_at: float
    free: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    held: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each piece of work, by name, holds of it."""


@dataclass(frozen=True)
class Group:
    """What a group's nodes are like, and how many there may be."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    low: int
    high: int


@dataclass(frozen=True)
class Demand:
    """Equal requests that Ray has not placed. `labels`: what the node has to carry, with Ray's operators (!, in()).

    `moving`: how many equal tasks of the same work run. They end, and make room for these; actors do not.
    `leased`: Ray asks no more nodes for these, so each has one, where a process or a constructor starts.
    """

    what: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    since: float | None = None
    moving: int = 0
    leased: bool = False


@dataclass(frozen=True)
class Gang:
    """A placement group that waits: all of its bundles, or none. `spread`: each on a node of its own."""

    name: str
    bundles: tuple[Demand, ...]
    spread: bool = False
    since: float | None = None


@dataclass(frozen=True)
class Fact:
    """Something that was seen to go wrong with a group: `what`, in the words of whoever refused; last `at`.

    `times` since `first_at`; `every_s`: how far its tries are apart, where they are known to go on.
    """

    kind: FactKind
    group: str
    what: str
    at: float
    times: int = 1
    first_at: float | None = None
    every_s: float | None = None


@dataclass(frozen=True)
class Work:
    """A job or an application, as far as it is known."""

    name: str
    kind: Literal["job", "app"]
    phase: Phase
    message: str = ""
    """Ray's own words about it."""
    since: float | None = None
    """When it came into its phase, or was submitted."""
    demands: tuple[Demand, ...] = ()
    gangs: tuple[Gang, ...] = ()
    running: int = 0
    """Its tasks and actors that run."""
    waiting_for_input: int = 0
    """Its tasks whose arguments are not there yet."""
    loading: int = 0
    """Its actors that have a node and are not ready yet."""
    runtime_env_error: str | None = None
    queued: str = ""
    """Why the queue has not handed it to Ray yet."""
    unreleased: str = ""
    """The model of an application that has no version to answer with."""


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment, `at` seconds since the epoch. `usual_start_s`: the median start of earlier nodes."""

    at: float
    groups: tuple[Group, ...]
    nodes: tuple[Node, ...] = ()
    works: tuple[Work, ...] = ()
    facts: tuple[Fact, ...] = ()
    head: Group | None = None
    head_free: Mapping[str, float] = field(default_factory=dict)
    usual_start_s: float | None = None

    def work(self, name: str) -> Work:
        """A job or an application, or the newest job of a run. Raises UsageError with the names that there are."""
        for one in self.works:
            if one.name == name:
                return one
        of_run = [one for one in self.works if one.kind == "job" and one.name.rpartition("-")[0] == name]
        if of_run:  # a job's name is its run's and four letters
            return max(of_run, key=lambda job: job.since or self.at)
        known = ", ".join(one.name for one in self.works)
        raise UsageError(f"there is no job and no application {name!r}", do=f"one of: {known or 'none yet'}")


@dataclass(frozen=True)
class Cause:
    """Why one piece of work waits, and the one thing to do about it."""

    id: CauseId
    what: str
    do: str

    @property
    def healthy(self) -> bool:
        return self.id in HEALTHY


@dataclass(frozen=True)
class Answer:
    work: str
    kind: str
    cause: Cause


NOTHING = "nothing to do"


def explain_all(snapshot: Snapshot) -> tuple[Answer, ...]:
    """Every job that has not ended and every application: those that wait for somebody first."""
    answers = [
        Answer(work.name, work.kind, explain(snapshot, work)) for work in snapshot.works if work.phase != "ended"
    ]
    return tuple(sorted(answers, key=lambda answer: (answer.cause.healthy, answer.work)))


def explain(snapshot: Snapshot, work: Work) -> Cause:
    """The one cause. A healthy one says that there is nothing to do."""
    if work.runtime_env_error:
        return Cause(
            "runtime-env",
            f"its runtime environment cannot be made: {_short(work.runtime_env_error)}",
            "mend the runtime_env (working_dir, pip, image) and submit it again",
        )
    if work.queued:
        return Cause(
            "queued", f"it waits for its turn in the queue: {work.queued}", "heliostat job list shows the queue"
        )
    if work.phase in ("ended", "failed", "asleep"):
        return _at_rest(work)
    found = [_gang(snapshot, work, gang) for gang in work.gangs]
    found += [_demand(snapshot, work, demand) for demand in work.demands]
    if not found:
        return _unhindered(snapshot, work)
    return min(found, key=lambda cause: _ORDER.index(cause.id))


# What is worth telling first where several requests wait: what no waiting cures.
_ORDER: tuple[CauseId, ...] = (
    "no-such-label", "too-large", "image-pull", "quota", "gang-waits", "queued", "no-capacity", "group-full",
    "node-starting", "unknown", "being-placed", "waits-for-itself", "waits-for-input", "loading", "starting", "running",
    "ended", "asleep", "runtime-env",
)  # fmt: skip


def _at_rest(work: Work) -> Cause:
    if work.phase == "asleep":
        if work.unreleased and work.message != NOT_DEPLOYED:
            model = work.unreleased
            what = f"no version of {model} is released yet, so it has nothing to answer with"
            return Cause("asleep", what, f"heliostat app release {work.name} {model}:vN")
        if work.message:
            return Cause("asleep", f"it has no replicas: {_short(work.message)}", f"heliostat app deploy {work.name}")
        return Cause("asleep", "it has no replicas, for nobody has asked it lately", "a request wakes it")
    if work.phase == "failed":
        return Cause("ended", f"it has failed: {_short(work.message)}", f"heliostat job logs {work.name}")
    return Cause("ended", "it has ended", NOTHING)


def _unhindered(snapshot: Snapshot, work: Work) -> Cause:
    """Nothing that it asked for is unplaced."""
    if work.loading:
        return Cause("loading", f"{_count(work.loading, 'actor')} on a node, loading", NOTHING)
    if work.waiting_for_input and not work.running:
        return Cause("waits-for-input", _inputs(work), NOTHING)
    if work.phase == "pending":
        age = _age(snapshot, work.since)
        if age is None or age < DRIVER_START_S:
            return Cause("starting", f"its driver is being started{_since(age)}", NOTHING)
        return Cause("unknown", f"its driver has not started{_since(age)}: {_short(work.message)}", _look(work))
    if work.waiting_for_input:
        return Cause("waits-for-input", _inputs(work), NOTHING)
    return Cause("running", "it runs; all that it asked for is placed", NOTHING)


def _inputs(work: Work) -> str:
    return f"{_count(work.waiting_for_input, 'task')} of its own wait for what earlier ones make"


def _demand(snapshot: Snapshot, work: Work, demand: Demand) -> Cause:
    suits = _suiting(snapshot, demand)
    if isinstance(suits, Cause):
        return suits
    if demand.leased:
        return Cause("loading", f"{demand.what} has a node, and is being made ready there", NOTHING)
    if demand.moving:
        return Cause(
            "waits-for-itself",
            f"{_count(demand.count, 'task')} wait for {_count(demand.moving, 'task')} of its own that run",
            f"{NOTHING}; to go faster, raise the upper bound of {_names(_only_groups(snapshot, suits))}",
        )
    cause = _on_its_way(snapshot, demand, suits)
    return _in_its_own_way(snapshot, work, demand, suits) or cause if cause.id == "group-full" else cause


def _in_its_own_way(snapshot: Snapshot, work: Work, demand: Demand, suits: Sequence[Group]) -> Cause | None:
    """It holds all nodes that there may be, and asks for more: nobody else can end that wait."""
    names = {group.name for group in suits}
    leaving = any(node.draining for node in snapshot.nodes if node.group in names)
    if leaving or _holders(snapshot, demand, suits) != {work.name}:
        return None
    groups = _only_groups(snapshot, suits)
    most = " and ".join(f"{group.name} has {_count(group.high, 'node')} at most" for group in groups)
    fewer = "submit it with fewer workers" if work.kind == "job" else "give it fewer replicas"
    return Cause(
        "too-large",
        f"{most}; it holds them all, and asks for room for {demand.count} more",
        f"{fewer}, or raise the upper bound of {_names(groups)}",
    )


def _suiting(snapshot: Snapshot, demand: Demand) -> tuple[Group, ...] | Cause:
    """The groups (and the head) one of whose nodes could hold it when empty; or why there are none."""
    every = (*snapshot.groups, *([snapshot.head] if snapshot.head else []))
    labelled = [group for group in every if matches(group.labels, demand.labels)]
    if not labelled:
        wanted = ", ".join(f"{key}={value}" for key, value in demand.labels.items())
        return Cause(
            "no-such-label",
            f"{demand.what} selects nodes labelled {wanted}, which no group has",
            f"correct the label; groups: {', '.join(group.name for group in snapshot.groups)}",
        )
    suits = tuple(group for group in labelled if group.high > 0 and holds(group.resources, demand.resources))
    if suits:
        return suits
    if not any(group.high for group in labelled):
        told = f"{demand.what} could run on {_names(labelled)}, which may have no nodes"
        return Cause("too-large", told, f"raise the upper bound of {_names(labelled)}")
    where = f" of {', '.join(group.name for group in labelled)}" if demand.labels else ""
    lacking = _lacking(demand, labelled)
    return Cause(
        "too-large",
        f"{demand.what} asks for {_amounts(demand.resources)}, and no node{where} has {lacking}",
        "ask for less, or add a group with larger nodes",
    )


def _lacking(demand: Demand, groups: Sequence[Group]) -> str:
    for resource, amount in demand.resources.items():
        most = max(group.resources.get(resource, 0) for group in groups)
        if most < amount:
            return f"more than {most:g} {resource}" if most else f"any {resource}"
    return "all of it together"


def _on_its_way(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause:
    """It could be placed. Why is it not yet?"""
    return _room_now(snapshot, demand, suits) or _node_to_come(snapshot, demand, suits)


def _node_to_come(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause:
    """What there is has no room for it. Why is there not more?"""
    return (
        _stuck_start(snapshot, suits)
        or _starting(snapshot, suits)
        or _refused(snapshot, suits, demand.since)
        or _full(snapshot, demand, suits)
        or _not_yet(snapshot, demand, suits)
    )


def _stuck_start(snapshot: Snapshot, suits: Sequence[Group]) -> Cause | None:
    """A node is there, and cannot come up."""
    fact = _newest(snapshot, suits, "image-pull")
    if fact is None:
        return None
    return Cause(
        "image-pull",
        f"a node of {fact.group} cannot pull its image: {_short(fact.what)}",
        "check the image's name and tag, and that the nodes may read the registry",
    )


def _room_now(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause | None:
    """Ray has not placed it yet, or has and is making ready what it runs in."""
    names = {group.name for group in suits}
    rooms = [
        node
        for node in snapshot.nodes
        if node.group in names and node.ready and not node.draining and holds(_unclaimed(node, suits), demand.resources)
    ]
    on_head = snapshot.head in suits and holds(snapshot.head_free, demand.resources)
    age = _age(snapshot, demand.since)
    if not rooms and not on_head:
        return None
    newest = max((node.started_at for node in rooms), default=0.0)
    if age is not None and min(age, snapshot.at - newest) > PLACING_S:
        return None  # there has been room for long: something else is wrong
    where = rooms[0].name if rooms else "the head"
    return Cause("being-placed", f"{where} has room, and {demand.what} is being placed there", NOTHING)


def _unclaimed(node: Node, suits: Sequence[Group]) -> dict[str, float]:
    """What no known work holds. Ray takes it from what is free before the work is seen to run."""
    total = next(group.resources for group in suits if group.name == node.group)
    return {
        resource: max(node.free.get(resource, 0), amount - sum(held.get(resource, 0) for held in node.held.values()))
        for resource, amount in total.items()
    }


def _starting(snapshot: Snapshot, suits: Sequence[Group]) -> Cause | None:
    names = {group.name for group in suits}
    nodes = [node for node in snapshot.nodes if node.group in names and not node.ready]
    if not nodes:
        return None
    node = min(nodes, key=lambda node: node.started_at)
    age = snapshot.at - node.started_at
    usual = snapshot.usual_start_s
    told = f", usually {_seconds(usual)}" if usual is not None else ""
    late = usual is not None and age > max(3 * usual, 30)
    return Cause(
        "node-starting",
        f"node {node.name} of {node.group} has been starting for {_seconds(age)}{told}",
        "see why it takes so long: its log, or heliostat status" if late else "wait for it",
    )


def _refused(snapshot: Snapshot, suits: Sequence[Group], since: float | None) -> Cause | None:
    """Only if no other suiting group has room that nobody has refused: the autoscaler would try that one."""
    fact = _newest(snapshot, suits, "quota", since=since)
    if fact is not None:
        return Cause(
            "quota",
            f"the quota leaves no more nodes for {fact.group}: {_short(fact.what)}",
            "ask for a higher quota, or end what uses it",
        )
    fact = _newest(snapshot, suits, "no-capacity", since=since)
    if fact is None:
        return None
    return Cause(
        "no-capacity",
        f"the market has no node for {fact.group}: {_short(fact.what)}{_tries(snapshot, fact)}",
        "wait, or let it run on a group of another market, zone or machine",
    )


def _tries(snapshot: Snapshot, fact: Fact) -> str:
    """Since when, and when again."""
    since = f"; refused {_seconds(snapshot.at - fact.at)} ago"
    if fact.times > 1 and fact.first_at is not None:
        since = f"; refused {fact.times} times in {_seconds(fact.at - fact.first_at)}"
    if fact.every_s is None:
        return since
    wait = max(0.0, fact.at + fact.every_s - snapshot.at)
    return f"{since}, the next try {'now' if wait < 1 else f'in {_seconds(wait)}'}"


def _full(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause | None:
    if any(_living(snapshot, group) < group.high for group in _only_groups(snapshot, suits)):
        return None
    return _busy(snapshot, demand, suits)


def _busy(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause:
    """Every node that there may be is in use; by those that hold what the demand lacks there."""
    holders = _holders(snapshot, demand, suits)
    by = f", used by {', '.join(sorted(holders))}" if holders else ""
    groups = _only_groups(snapshot, suits)
    bounds = " and ".join(f"{group.name} at its maximum of {_count(group.high, 'node')}" for group in groups)
    return Cause(
        "group-full",
        f"{bounds or 'the head has no room'}{by}",
        f"wait for one of them, or raise the upper bound of {_names(groups)}" if groups else "wait for one of them",
    )


def _holders(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> set[str]:
    """Whose work holds what the demand lacks on the nodes that suit it."""
    names = {group.name for group in suits}
    return {
        holder
        for node in snapshot.nodes
        if node.group in names
        for holder, held in node.held.items()
        if any(held.get(resource, 0) and node.free.get(resource, 0) < n for resource, n in demand.resources.items())
    }


def _not_yet(snapshot: Snapshot, demand: Demand, suits: Sequence[Group]) -> Cause:
    age = _age(snapshot, demand.since)
    suits = _only_groups(snapshot, suits) or suits
    if age is None or age < JUST_ASKED_S:
        return Cause("node-starting", f"a node of {_names(suits)} is about to be asked for{_since(age)}", "wait for it")
    return Cause(
        "unknown",
        f"{demand.what} could run on {_names(suits)}, where there is room, and is not placed{_since(age)}",
        "see the autoscaler's log: monitor.log of the head",
    )


# --- gangs


def _gang(snapshot: Snapshot, work: Work, gang: Gang) -> Cause:
    for bundle in gang.bundles:
        suits = _suiting(snapshot, bundle)
        if isinstance(suits, Cause):
            return suits
    if too_many := _never_together(snapshot, gang):
        return too_many
    placed, missing = _fill(gang, _ready_rooms(snapshot))
    if missing is None:
        return Cause("being-placed", f"all {len(gang.bundles)} members of {gang.name} have room now", NOTHING)
    possible, never = _fill(gang, [*_ready_rooms(snapshot), *_coming_rooms(snapshot)])
    if never is not None:
        beneath = _busy(snapshot, never, _groups_for(snapshot, never))
        placed = possible
    else:
        beneath = _node_to_come(snapshot, replace(missing, since=gang.since), _groups_for(snapshot, missing))
        if placed == 0:
            return beneath
    left = len(gang.bundles) - placed
    last = "the last one" if left == 1 else f"{left} more"
    return Cause(
        "gang-waits",
        f"{placed} of {len(gang.bundles)} members of {gang.name} have room, and it waits for {last}: {beneath.what}",
        beneath.do,
    )


def _groups_for(snapshot: Snapshot, demand: Demand) -> tuple[Group, ...]:
    suits = _suiting(snapshot, demand)
    return () if isinstance(suits, Cause) else suits


def _never_together(snapshot: Snapshot, gang: Gang) -> Cause | None:
    """Whether the bundles find room on all nodes that the groups may have, were they empty."""
    rooms = [_Room(dict(group.resources), group.labels) for group in snapshot.groups for _ in range(group.high)]
    _, missing = _fill(gang, rooms)
    if missing is None:
        return None
    groups = _groups_for(snapshot, missing)
    most = sum(group.high for group in groups)
    return Cause(
        "too-large",
        f"{gang.name} needs {len(gang.bundles)} {'nodes' if gang.spread else 'bundles'} at once, more than "
        f"{_names(groups)} may ever have ({_count(most, 'node')})",
        f"ask for fewer, or raise the upper bound of {_names(groups)}",
    )


@dataclass
class _Room:
    free: dict[str, float]
    labels: Mapping[str, str]
    used: bool = False


def _ready_rooms(snapshot: Snapshot) -> list[_Room]:
    return [_Room(dict(node.free), node.labels) for node in snapshot.nodes if node.ready and not node.draining]


def _coming_rooms(snapshot: Snapshot) -> list[_Room]:
    """Nodes that start, and those that may still be started."""
    rooms = []
    for group in snapshot.groups:
        ready = sum(node.group == group.name and node.ready for node in snapshot.nodes)
        rooms += [_Room(dict(group.resources), group.labels) for _ in range(group.high - ready)]
    return rooms


def _fill(gang: Gang, rooms: Sequence[_Room]) -> tuple[int, Demand | None]:
    """The largest bundle first, each where it fits most tightly: exact for bundles that are alike, as gangs' are."""
    placed, missing = 0, None
    for bundle in sorted(gang.bundles, key=_size, reverse=True):
        room = min((r for r in rooms if _takes(r, bundle, gang.spread)), key=_slack, default=None)
        if room is None:
            missing = missing or bundle
            continue
        for resource, amount in bundle.resources.items():
            room.free[resource] = room.free.get(resource, 0) - amount
        room.used = True
        placed += 1
    return placed, missing


def _size(bundle: Demand) -> tuple[float, str]:
    return sum(bundle.resources.values()), str(sorted(bundle.labels.items()))


def _slack(room: _Room) -> tuple[float, str]:
    return sum(room.free.values()), str(sorted(room.labels.items()))


def _takes(room: _Room, bundle: Demand, spread: bool) -> bool:
    return not (spread and room.used) and matches(room.labels, bundle.labels) and holds(room.free, bundle.resources)


# --- small parts


def holds(free: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether all of `wanted` is there. Ray counts in ten-thousandths."""
    return all(free.get(resource, 0) >= amount - 1e-6 for resource, amount in wanted.items() if amount > 0)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Ray's selectors: value, !value, in(a,b), !in(a,b). Labels that Ray gives a node by itself are not known here and
    refuse nothing."""
    return all(_matches(labels.get(key), value) for key, value in selector.items() if not _rays_own(key, labels))


def _rays_own(key: str, labels: Mapping[str, str]) -> bool:
    return key.startswith("ray.io/") and key not in labels


def _matches(value: str | None, wanted: str) -> bool:
    negated = wanted.startswith("!")
    rest = wanted.removeprefix("!")
    options = rest[3:-1].split(",") if rest.startswith("in(") and rest.endswith(")") else [rest]
    found = value in [option.strip() for option in options]
    return not found if negated else found


def _newest(snapshot: Snapshot, suits: Sequence[Group], kind: FactKind, *, since: float | None = None) -> Fact | None:
    """The newest fact of the kind, if every suiting group has one that could still give a node: else another one will.

    A fact older than the request, or than a node that its group got since, is of another time.
    """
    facts = {group.name: _fact(snapshot, group, kind, since) for group in suits if group is not snapshot.head}
    room = [
        group.name for group in suits if group is not snapshot.head and _living(snapshot, group) < group.high
    ]  # fmt: skip
    if any(facts[name] is None for name in room):
        return None
    return max((fact for fact in facts.values() if fact is not None), key=lambda fact: fact.at, default=None)


def _fact(snapshot: Snapshot, group: Group, kind: FactKind, since: float | None) -> Fact | None:
    later = max((node.started_at for node in snapshot.nodes if node.group == group.name), default=0.0)
    oldest = max(snapshot.at - FACT_LIFE_S, since or 0.0, 0.0 if kind == "image-pull" else later)
    found = [fact for fact in snapshot.facts if (fact.kind, fact.group) == (kind, group.name) and fact.at >= oldest]
    return max(found, key=lambda fact: fact.at, default=None)


def _only_groups(snapshot: Snapshot, suits: Sequence[Group]) -> list[Group]:
    """Without the head, which no autoscaler makes more of."""
    return [group for group in suits if group is not snapshot.head]


def _living(snapshot: Snapshot, group: Group) -> int:
    return sum(node.group == group.name for node in snapshot.nodes)


def _age(snapshot: Snapshot, since: float | None) -> float | None:
    return None if since is None else max(0.0, snapshot.at - since)


def _since(age: float | None) -> str:
    return "" if age is None else f" (for {_seconds(age)})"


def _seconds(seconds: float) -> str:
    return str(Duration(max(0, round(seconds)) * 1000))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _names(groups: Sequence[Group]) -> str:
    return " or ".join(group.name for group in groups) or "no group"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {resource}" for resource, amount in resources.items()) or "nothing"


def _look(work: Work) -> str:
    return f"heliostat job logs {work.name}" if work.kind == "job" else f"heliostat app status {work.name}"


def _short(text: str, limit: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
