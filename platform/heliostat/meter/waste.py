"""GPUs that are held and do no useful work, and what the policy wants done about each. Pure.

Useful is a request answered, a step reported, a call made, or a device at work; that a process lives, or burns its
processor, is not. What nobody can measure is not judged: a holder whose `last_useful` is None is never waste.

Each GPU is in one finding at most. Holders come first (an idle application, a run without steps, a forgotten actor),
then nodes whose GPUs nobody holds and an actor keeps, then groups with nodes although nothing useful ran on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from heliostat.definition.model import WasteRules
from heliostat.units import human_seconds

Kind = Literal["idle-app", "no-steps", "stalled-rank", "idle-actor", "pinned-node", "kept-group"]
Act = Literal["tell", "scale to zero", "stop"]
Phase = Literal["found", "warned", "acted", "ended"]

ACTS: Mapping[Kind, Act] = {
    "idle-app": "scale to zero",
    "no-steps": "stop",
    "stalled-rank": "stop",
    "idle-actor": "stop",
    "pinned-node": "stop",
    "kept-group": "tell",
}
QUIET_S = 600.0
"""In quiet hours nothing has to be idle for longer than this to be waste, nor is warned for longer."""
GAP_S = 300.0
"""What was seen before a gap of this length without a look is not taken for having lasted through it."""
BUSY_SHARE = 0.05
"""A device that works for less than this share of the time does nothing."""


@dataclass(frozen=True)
class Rank:
    """What a rank of a run says of itself once it makes no progress.

    `collectives`: how many it has entered. The rank that has entered the fewest is the one that the others wait for.
    """

    rank: int
    node: str
    collectives: int | None
    doing: str  # file, line and function of its main thread


@dataclass(frozen=True)
class Holder:
    """Something that holds GPUs.

    `last_useful`: when it last did what `measure` counts, in seconds since the epoch; its own start where it has done
    none yet; None where nothing can tell. `duty`: share of the last while in which its devices worked, if measured.
    """

    kind: Literal["app", "job", "actor"]
    name: str
    target: str  # what an action names: the application, the submission id, the actor's id
    group: str
    gpus: float
    since: float
    last_useful: float | None
    measure: str  # such as "a request"
    team: str = ""
    project: str = ""
    nodes: tuple[str, ...] = ()
    note: str = ""  # further evidence
    duty: float | None = None
    ranks: tuple[Rank, ...] = ()
    world: int = 1
    keep_until: date | None = None


@dataclass(frozen=True)
class SeenNode:
    """A node that is up. `keepers`: (id, name) of the actors that live there and hold no GPU."""

    name: str
    group: str
    gpus: float
    free: float
    since: float
    keepers: tuple[tuple[str, str], ...] = ()
    keep_until: date | None = None  # of its keepers


@dataclass(frozen=True)
class SeenGroup:
    """`usd_per_gpu_hour` None: no price is known."""

    name: str
    low: int
    usd_per_gpu_hour: float | None = None


@dataclass(frozen=True)
class Seen:
    """One look at the cluster, `at` seconds since the epoch."""

    at: float
    holders: tuple[Holder, ...] = ()
    nodes: tuple[SeenNode, ...] = ()
    groups: tuple[SeenGroup, ...] = ()


@dataclass(frozen=True)
class Memory:
    """What one look cannot tell: since when a thing has been so without a break. Kept from look to look."""

    at: float = 0.0
    pinned: Mapping[str, float] = field(default_factory=dict)  # by node: since when its GPUs are free, and it is kept
    useless: Mapping[str, float] = field(default_factory=dict)  # by group: since when it has nodes without useful work


@dataclass(frozen=True)
class Finding:
    """`since`: when the waste began. `usd` None: no price is known for the group."""

    kind: Kind
    name: str
    target: str
    group: str
    gpus: float
    since: float
    evidence: str
    gpu_hours: float
    usd: float | None
    act: Act
    team: str = ""
    project: str = ""
    exempt_until: date | None = None

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.target}"


@dataclass(frozen=True)
class Told:
    """How far the ladder has gone with one finding; times in seconds since the epoch."""

    found_at: float
    warned_at: float | None = None
    acted_at: float | None = None
    dry: bool = False  # it was only said


@dataclass(frozen=True)
class Step:
    """`phase` is what happens now. `dry`: it would happen, but for the dry run."""

    phase: Phase
    finding: Finding
    act: Act
    dry: bool
    at: float
    due: float | None = None  # of a warning: when it is acted on


# --- looking


def remember(seen: Seen, before: Memory) -> Memory:
    """The memory after this look."""
    known = before if seen.at - before.at <= GAP_S else Memory()
    pinned = {node.name: known.pinned.get(node.name, seen.at) for node in seen.nodes if _is_pinned(node)}
    useless = {}
    for group in {node.group for node in seen.nodes}:
        useful = max((h.last_useful or 0.0 for h in seen.holders if h.group == group and _is_useful(h)), default=0.0)
        unknown = any(h.group == group and h.last_useful is None for h in seen.holders)
        # A group that is met for the first time has been seen useless for no time, whatever its nodes' age.
        useless[group] = seen.at if unknown else max(useful, known.useless.get(group, seen.at))
    return Memory(seen.at, pinned, useless)


def _is_useful(holder: Holder) -> bool:
    return holder.last_useful is not None and holder.last_useful > holder.since


def _is_pinned(node: SeenNode) -> bool:
    return node.gpus > 0 and node.free >= node.gpus and bool(node.keepers)


def find(seen: Seen, memory: Memory, rules: WasteRules) -> tuple[Finding, ...]:
    """What is waste now, the dearest first. `memory` is that after this look (`remember`)."""
    after = _after_s(rules, seen.at)
    found = [made for holder in seen.holders if (made := _holder(seen, holder, rules, after)) is not None]
    found += [made for node in seen.nodes if (made := _pinned(seen, node, memory, rules, after)) is not None]
    for group in seen.groups:
        made = _kept(seen, group, memory, rules, after, claimed=[finding.group for finding in found])
        found += [made] if made is not None else []
    return tuple(sorted(found, key=lambda finding: (-(finding.usd or 0.0), -finding.gpu_hours, finding.id)))


def _holder(seen: Seen, holder: Holder, rules: WasteRules, after: float) -> Finding | None:
    if holder.gpus <= 0 or holder.last_useful is None:
        return None
    if holder.duty is not None and holder.duty >= BUSY_SHARE and holder.kind == "actor":
        return None
    since = max(holder.last_useful, holder.since)
    if seen.at - since < after:
        return None
    idle = human_seconds(seen.at - since)
    never = holder.last_useful <= holder.since
    what = f"no {holder.measure.removeprefix('a ')} for {idle}" + (", nor ever" if never else "")
    kind: Kind = {"app": "idle-app", "job": "no-steps", "actor": "idle-actor"}[holder.kind]  # type: ignore[assignment]
    if holder.kind == "job" and (guilty := stalled_rank(holder)):
        kind, what = "stalled-rank", f"{guilty}; {what}"
    evidence = "; ".join(part for part in (what, holder.note, _duty(holder)) if part)
    return _finding(
        kind, holder.name, holder.target, holder.group, holder.gpus, since, evidence, seen, rules,
        team=holder.team, project=holder.project, keep_until=holder.keep_until,
    )  # fmt: skip


def _duty(holder: Holder) -> str:
    return "" if holder.duty is None else f"device busy {holder.duty:.0%}"


def stalled_rank(holder: Holder) -> str | None:
    """Which rank of a run without steps holds the others up, in words; None where nothing tells it apart.

    The others have entered a collective that it has not; or they all say where they wait, and it says nothing.
    """
    if holder.world < 2 or not holder.ranks:
        return None
    counted = {rank.rank: rank.collectives for rank in holder.ranks if rank.collectives is not None}
    behind = [rank for rank in holder.ranks if counted and rank.collectives == min(counted.values())]
    if len(counted) == holder.world and len(behind) == 1:
        one = behind[0]
        return (
            f"rank {one.rank} on {one.node or 'its node'} has not joined collective {max(counted.values())} "
            f"that the others wait in; it is in {one.doing}"
        )
    silent = sorted(set(range(holder.world)) - {rank.rank for rank in holder.ranks})
    if len(silent) == 1:
        return f"rank {silent[0]} says nothing, and the others wait"
    return None


def _pinned(seen: Seen, node: SeenNode, memory: Memory, rules: WasteRules, after: float) -> Finding | None:
    since = memory.pinned.get(node.name)
    if since is None or seen.at - since < after:
        return None
    names = ", ".join(name for _, name in node.keepers)
    which = "its GPU" if node.gpus == 1 else f"all its {node.gpus:g} GPUs"
    evidence = f"{which} free for {human_seconds(seen.at - since)}; kept by {names}"
    target = ",".join(actor for actor, _ in node.keepers)
    return _finding(
        "pinned-node", node.name, target, node.group, node.gpus, since, evidence, seen, rules,
        keep_until=node.keep_until, also=tuple(name for _, name in node.keepers),
    )  # fmt: skip


def _kept(
    seen: Seen, group: SeenGroup, memory: Memory, rules: WasteRules, after: float, *, claimed: Sequence[str]
) -> Finding | None:
    """Nodes without useful work that no finding above explains: a lower bound, or what keeps them is not known."""
    since = memory.useless.get(group.name)
    nodes = [node for node in seen.nodes if node.group == group.name and node.gpus > 0]
    if since is None or not nodes or group.name in claimed or seen.at - since < after:
        return None
    held = any(holder.group == group.name and holder.gpus > 0 for holder in seen.holders)
    if held or any(node.name in memory.pinned for node in nodes):
        return None  # somebody keeps it whose own window is not over
    gpus = sum(node.gpus for node in nodes)
    why = f"its lower bound is {group.low}" if group.low else "it may go to zero and does not"
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    evidence = f"{count} up and nothing useful on them for {human_seconds(seen.at - since)}; {why}"
    return _finding("kept-group", group.name, group.name, group.name, gpus, since, evidence, seen, rules)


def _finding(
    kind: Kind,
    name: str,
    target: str,
    group: str,
    gpus: float,
    since: float,
    evidence: str,
    seen: Seen,
    rules: WasteRules,
    *,
    team: str = "",
    project: str = "",
    keep_until: date | None = None,
    also: tuple[str, ...] = (),
) -> Finding:
    hours = gpus * max(0.0, seen.at - since) / 3600
    price = next((one.usd_per_gpu_hour for one in seen.groups if one.name == group), None)
    until = exempt_until(rules, (name, target, *also, group, f"team:{team}", f"project:{project}"), keep_until)
    today = datetime.fromtimestamp(seen.at, UTC).date()
    return Finding(
        kind, name, target, group, gpus, since, evidence, hours, None if price is None else price * hours,
        _allowed(ACTS[kind], rules), team, project, until if until is not None and until >= today else None,
    )  # fmt: skip


def exempt_until(rules: WasteRules, names: Iterable[str], own: date | None = None) -> date | None:
    """The last day on which one of the names, or the thing's own tag, exempts it."""
    days = [date.fromisoformat(rules.exempt[name]) for name in names if name in rules.exempt]
    return max([*days, *([own] if own else [])], default=None)


def _allowed(act: Act, rules: WasteRules) -> Act:
    """What the rules let happen of it: tell < scale to zero < stop."""
    order: tuple[Act, ...] = ("tell", "scale to zero", "stop")
    most: Act = {"tell": "tell", "scale-to-zero": "scale to zero", "stop": "stop"}[rules.act]  # type: ignore[assignment]
    return act if order.index(act) <= order.index(most) else "tell"


# --- acting


def next_steps(
    findings: Sequence[Finding], told: Mapping[str, Told], rules: WasteRules, now: float
) -> tuple[tuple[Step, ...], dict[str, Told]]:
    """(what happens now, how far each finding has come then). Asked again at the same moment, nothing happens.

    Each is told once. An idle application goes to zero at once, for a request wakes it; what is stopped is warned of
    first. What is exempt is told and left alone. A finding that is gone ends, and begins anew if it comes back.
    """
    steps: list[Step] = []
    after: dict[str, Told] = {}
    for finding in findings:
        so_far = told.get(finding.id)
        if so_far is None:
            so_far = Told(now)
            steps.append(Step("found", finding, finding.act, rules.dry_run, now))
        if so_far.dry and not rules.dry_run:
            so_far = Told(so_far.found_at)  # what was only said has not been done, nor was anybody warned of it
        so_far = replace(so_far, dry=rules.dry_run)
        step, so_far = _ladder(finding, so_far, rules, now)
        steps += [step] if step is not None else []
        after[finding.id] = so_far
    return tuple(steps), after


def _ladder(finding: Finding, so_far: Told, rules: WasteRules, now: float) -> tuple[Step | None, Told]:
    if finding.act == "tell" or finding.exempt_until is not None or so_far.acted_at is not None:
        return None, so_far
    if finding.act == "stop":
        wait = min(rules.warn.seconds, QUIET_S) if is_quiet(rules, now) else rules.warn.seconds
        if so_far.warned_at is None:
            warned = replace(so_far, warned_at=now)
            return Step("warned", finding, "stop", rules.dry_run, now, now + wait), warned
        if now - so_far.warned_at < wait:
            return None, so_far
    return Step("acted", finding, finding.act, rules.dry_run, now), replace(so_far, acted_at=now)


def _after_s(rules: WasteRules, now: float) -> float:
    return min(rules.after.seconds, QUIET_S) if is_quiet(rules, now) else rules.after.seconds


# --- quiet hours

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_HOURS = re.compile(rf"^({'|'.join(DAYS)})(?:-({'|'.join(DAYS)}))?(?: (\d\d):(\d\d)-(\d\d):(\d\d))?$")


def is_quiet(rules: WasteRules, now: float) -> bool:
    """Whether the moment lies in one of the quiet hours, which are in UTC. Hours over midnight belong to the day on
    which they begin."""
    moment = datetime.fromtimestamp(now, UTC)
    return any(_covers(text, moment) for text in rules.quiet)


def _covers(text: str, moment: datetime) -> bool:
    match = _HOURS.match(text)
    if match is None:
        return False  # the definition takes no such text
    first, last = DAYS.index(match[1]), DAYS.index(match[2] or match[1])
    days = {day % 7 for day in range(first, (last if last >= first else last + 7) + 1)}
    if match[3] is None:
        return moment.weekday() in days
    begin, end = int(match[3]) * 60 + int(match[4]), int(match[5]) * 60 + int(match[6])
    minute = moment.hour * 60 + moment.minute
    if begin < end:
        return moment.weekday() in days and begin <= minute < end
    yesterday = (moment - timedelta(days=1)).weekday()
    return (moment.weekday() in days and minute >= begin) or (yesterday in days and minute < end)
