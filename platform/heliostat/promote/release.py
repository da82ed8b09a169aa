"""One application's release: a record, and the steps that it takes. Pure; `records.py` keeps it in the store.

    proposed ──> shadow ──> canary ──> live ──> live, proven
        └───────────┴──────────┴─────────┴──> rolled_back

- *proposed*: every replica loads the candidate beside the stable version and has it answer recent requests.
- *shadow*: requests are copied to it; its answers are compared and never returned.
- *canary*: it answers a share of the requests, sticky by session. What it fails at, the stable version answers.
- *live*: `production` points at it and it answers everything. The version before stays warm and answers what the new
  one fails at, until enough requests have proven it; only then is `previous` empty.
- Where the two do not fit into a replica's memory together, one replica after the other gives up the old version for
  the new one (`turn`), and its requests wait meanwhile: the history says for how long before it begins.
- *rolled_back*: at any time before that, by a fault that is written into the history with its numbers.

The alias is the commit: it is moved first, and the record follows. Whoever is killed between the two finds the alias
where it should be and writes the record (`step` reads both).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from heliostat.definition import ReleaseRules
from heliostat.errors import ReleaseConflict
from heliostat.names import version_name
from heliostat.promote.tally import Tally, add, least_share

State = Literal["proposed", "shadow", "canary", "live", "rolled_back"]

SURE = 3.29
"""Standard deviations for a fault of degree: one in 2,000 harmless releases is taken for it by chance."""
LEAST_TIMES = 10
"""Answers before a latency is judged."""
LEAST_MS = 10.0
"""A version that is slower by less is never too slow: below lies the noise of a busy machine."""
LOAD_S = 180.0
"""A candidate that is not loaded everywhere after this long is rolled back."""
IDLE_S = 2.0
"""Without a request for this long, a stage that waits for requests learns nothing and ends."""
AGAIN = 5
"""How many times the requests of a canary prove a version that is live."""
MAX_HISTORY = 200


class Entry(BaseModel):
    """One line of the history: who did what, and why, with the numbers that decided."""

    model_config = ConfigDict(frozen=True)

    at: float
    """Seconds since the epoch, like all times here."""
    who: str
    why: str
    release: str
    """Its id: what was one release has one."""
    state: State
    from_version: int | None
    to_version: int | None
    forced: str | None = None
    """The reason for going against the gate's verdict."""
    numbers: dict[str, float] = {}


class Release(BaseModel):
    """An application's record: `apps/<app>/release.json`."""

    model_config = ConfigDict(frozen=True)

    app: str
    model: str
    """The model's name."""
    generation: int
    id: str
    """Of the release that goes on, or was the last."""
    state: State
    stable: int | None
    """The version in production."""
    candidate: int | None = None
    """The version on trial, until it is live or rolled back."""
    previous: int | None = None
    """The version before, kept warm until the stable one is proven."""
    share: float = 0.0
    """Of the requests, that the candidate answers."""
    shadow: float = 0.0
    """Of the others, that it is given as well."""
    turn: tuple[str, ...] = ()
    """Replicas that hold the candidate alone, where both do not fit: one after the other."""
    since: float
    """When the state began."""
    history: tuple[Entry, ...] = ()

    @property
    def is_under_way(self) -> bool:
        """Whether another version than the stable one is still kept."""
        return self.candidate is not None or self.previous is not None

    @property
    def last(self) -> Entry:
        return self.history[-1]

    @property
    def began_at(self) -> float:
        """When this release was proposed."""
        return next((entry.at for entry in self.history if entry.release == self.id), self.since)


@dataclass(frozen=True)
class Trial:
    """What a release asks of a replica: two versions, and who answers what."""

    release: str
    before: int
    """The version known to be good: it answers what the other one fails at."""
    tried: int
    share: float
    """Of the requests, that the tried one is given first."""
    shadow: float
    """Of the requests, that both are given."""
    turn: tuple[str, ...] = ()
    """Replicas that are to hold the tried one alone."""


def trial(record: Release | None) -> Trial | None:
    """What the record asks of replicas now; None where one version is all there is."""
    if record is None:
        return None
    if record.candidate is not None and record.stable is not None:
        return Trial(record.id, record.stable, record.candidate, record.share, record.shadow, record.turn)
    if record.previous is not None and record.stable is not None:
        return Trial(record.id, record.previous, record.stable, 1.0, record.shadow)
    return None


@dataclass(frozen=True)
class Observed:
    """What the living replicas say. `tallies` holds one entry for each, None where it knows nothing of the release."""

    tallies: Sequence[Tally | None] = field(default=())
    idle_s: float = 0.0
    """Since the last request that any of them answered."""
    vanished: int = 0
    """Replicas that were there during the release and ended without saying so, as a process that crashes does."""


def propose(
    record: Release | None,
    *,
    app: str,
    model: str,
    stable: int | None,
    candidate: int,
    who: str,
    why: str,
    forced: str | None,
    rules: ReleaseRules,
    now: float,
) -> Release:
    """A new release. Raises ReleaseConflict, which names the one that goes on, where another candidate is on trial.

    One that is live and being proven gives way: its successor is held against it.
    """
    if record is not None and record.candidate is not None and record.candidate != candidate:
        begun = record.last
        raise ReleaseConflict(
            f"{app} is releasing {version_name(record.candidate)} already: {begun.who} ({begun.why}), {record.state}",
            do="wait for it (heliostat app status), or end it: heliostat app rollback",
        )
    ident = uuid.uuid4().hex[:12]
    entry = Entry(
        at=now, who=who, why=why, release=ident, state="proposed", from_version=stable, to_version=candidate,
        forced=forced,
    )  # fmt: skip
    return Release(
        app=app,
        model=model,
        generation=1 if record is None else record.generation + 1,
        id=ident,
        state="proposed",
        stable=stable,
        candidate=candidate,
        shadow=rules.shadow,
        since=now,
        history=(*(() if record is None else record.history), entry)[-MAX_HISTORY:],
    )


def go_live(record: Release, *, who: str, why: str, now: float, numbers: dict[str, float] | None = None) -> Release:
    """The candidate is in production; what it replaced stays warm."""
    return _enter(
        record, "live", who=who, why=why, now=now, numbers=numbers,
        stable=record.candidate, candidate=None, previous=record.stable, share=1.0, turn=(),
    )  # fmt: skip


def roll_back(record: Release, *, who: str, why: str, now: float, numbers: dict[str, float] | None = None) -> Release:
    """The version known to be good answers everything."""
    good = record.previous if record.previous is not None else record.stable
    return _enter(
        record, "rolled_back", who=who, why=why, now=now, numbers=numbers,
        stable=good, candidate=None, previous=None, share=0.0, turn=(),
    )  # fmt: skip


def settle(record: Release, *, stable: int, who: str, why: str, now: float) -> Release:
    """Production was moved by hand: the record follows, and what was on trial is over."""
    return _enter(
        record,
        "rolled_back",
        who=who,
        why=why,
        now=now,
        stable=stable,
        candidate=None,
        previous=None,
        share=0.0,
        turn=(),
    )


def step(record: Release, seen: Observed, *, production: int | None, rules: ReleaseRules, now: float) -> Release:
    """The record as it should be now; itself where nothing is to be done. `production` is where the alias points.

    Where `stable` comes out changed, the alias has to be moved before the record is written.
    """
    if not record.is_under_way:
        return record
    if record.candidate is not None:
        if production == record.candidate:
            return go_live(record, who="controller", why="production points at it", now=now)
        if production != record.stable:
            return _moved_away(record, production, now)
    elif production != record.stable:
        if production == record.previous:
            fault = _fault(record, seen, rules)
            why = fault[0] if fault else "production was moved back"
            return roll_back(record, who="controller", why=why, now=now, numbers=fault[1] if fault else None)
        return _moved_away(record, production, now)
    fault = _fault(record, seen, rules)
    if fault is not None:
        return roll_back(record, who="controller", why=fault[0], now=now, numbers=fault[1])
    return _advance(record, seen, rules, now)


def _advance(record: Release, seen: Observed, rules: ReleaseRules, now: float) -> Release:
    """The next state, where what this one is for has been seen."""
    own = _own(record, seen)
    passed = now - record.since
    if record.candidate is not None and not seen.tallies and passed >= IDLE_S:
        return go_live(record, who="controller", why="no replica is up: it is tried when one wakes", now=now)
    alone = [tally for tally in own if tally.alone]
    if alone and len(own) == len(seen.tallies) and record.candidate is not None:
        return _one_by_one(record, own, seen, rules, now)
    if not own or len(own) < len(seen.tallies) or not all(tally.digest for tally in own):
        if record.state == "proposed" and passed >= LOAD_S:
            return roll_back(record, who="controller", why=f"not loaded everywhere within {LOAD_S:.0f} s", now=now)
        return record  # some replica is still loading
    total = add(own)
    numbers = figures(total)
    if record.state == "proposed":
        why = f"loaded beside the version in production by {len(own)} of {len(own)} replicas"
        return _enter(record, "shadow", who="controller", why=why, now=now, numbers=numbers)
    if not _has_seen_enough(record, total, seen, rules, passed):
        return record
    if record.state == "shadow":
        why = f"{total.compared} pairs of answers compared"
        return _enter(record, "canary", who="controller", why=why, now=now, numbers=numbers, share=rules.canary)
    if record.state == "canary":
        why = f"it answered {total.requests} requests as the canary"
        return go_live(record, who="controller", why=why, now=now, numbers=numbers)
    why = f"proven by {total.requests} requests"
    return _enter(record, "live", who="controller", why=why, now=now, numbers=numbers, previous=None)


def _one_by_one(record: Release, own: Sequence[Tally], seen: Observed, rules: ReleaseRules, now: float) -> Release:
    """The next replica takes the candidate alone, once those before it have answered enough."""
    there = {tally.replica: tally for tally in own}
    turn = tuple(replica for replica in record.turn if replica in there)
    if any(not there[replica].digest for replica in turn):
        return record  # it is loading
    total = add(own)
    if turn and not _has_seen_enough(record, total, seen, rules, now - record.since):
        return record
    waiting = sorted(replica for replica, tally in there.items() if not tally.digest)
    numbers = figures(total)
    if not waiting:
        why = f"{len(turn)} replicas hold it alone and answered {total.requests} requests"
        return go_live(record, who="controller", why=why, now=now, numbers=numbers)
    hold_s = there[waiting[0]].hold_s
    why = (
        f"both versions do not fit into the memory of a replica: {waiting[0]} takes the new one alone, and holds its "
        f"requests for about {hold_s:.0f} s"
    )
    return _enter(
        record, "canary", who="controller", why=why, now=now, numbers=numbers, turn=(*turn, waiting[0]),
        share=(len(turn) + 1) / len(own),
    )  # fmt: skip


def _has_seen_enough(record: Release, total: Tally, seen: Observed, rules: ReleaseRules, passed: float) -> bool:
    """By requests; where none come, waiting for them would judge nothing."""
    if passed >= rules.patience.seconds or (seen.idle_s >= IDLE_S and passed >= IDLE_S):
        return True
    if record.state == "shadow":
        return rules.shadow == 0 or total.shadowed >= rules.requests
    if record.state == "canary":
        return rules.canary == 0 or total.requests >= rules.requests
    return total.requests >= AGAIN * rules.requests


def _fault(record: Release, seen: Observed, rules: ReleaseRules) -> tuple[str, dict[str, float]] | None:
    """What is wrong with the version on trial, and the numbers that show it."""
    if seen.vanished > (1 if seen.tallies else 0):
        return f"{seen.vanished} replicas ended without a word while they held it", {"vanished": seen.vanished}
    own = _own(record, seen)
    if not own:
        return None
    total = add(own)
    numbers = figures(total)
    tries = total.probed + total.shadowed + total.requests
    if total.error:
        return f"it cannot be loaded: {total.error}", numbers
    if total.nans:
        return f"{total.nans} of {tries} answers were not finite numbers", numbers
    if total.errors > rules.max_error_rate * tries:
        return (
            f"it failed at {total.errors} of {tries} requests that the version before answered: {total.last_error}",
            numbers,
        )
    before, tried = total.before.median_ms, total.tried.median_ms
    if (
        min(total.before.count, total.tried.count) >= LEAST_TIMES
        and tried > rules.max_latency_ratio * before
        and tried > before + LEAST_MS
    ):
        return f"it takes {tried:.0f} ms where the version before takes {before:.0f} ms (medians)", numbers
    if least_share(total.disagreed, total.compared, SURE) > rules.max_disagreement:
        return (
            f"it answers {total.disagreed} of {total.compared} requests otherwise than the version before; "
            f"at most {rules.max_disagreement:.0%} are expected",
            numbers,
        )
    return None


def figures(total: Tally) -> dict[str, float]:
    """What the history keeps of the counts."""
    found = {
        name: float(getattr(total, name))
        for name in ("probed", "shadowed", "requests", "compared", "disagreed", "errors", "nans")
    }
    for name, latencies in (("before_ms", total.before), ("tried_ms", total.tried)):
        if latencies.count:
            found[name] = round(latencies.median_ms, 2)
    if total.compared:
        found["drift"] = round(total.mean_drift, 4)
    return found


def _own(record: Release, seen: Observed) -> list[Tally]:
    return [tally for tally in seen.tallies if tally is not None and tally.release == record.id]


def _moved_away(record: Release, production: int | None, now: float) -> Release:
    where = "nothing" if production is None else version_name(production)
    if production is None:
        return roll_back(record, who="controller", why="the alias production is gone", now=now)
    return settle(record, stable=production, who="controller", why=f"production was moved to {where}", now=now)


def _enter(
    record: Release,
    state: State,
    *,
    who: str,
    why: str,
    now: float,
    numbers: dict[str, float] | None = None,
    **changes: object,
) -> Release:
    tried = record.candidate if record.candidate is not None else record.stable
    before = record.stable if record.candidate is not None else record.previous
    back = state == "rolled_back"
    entry = Entry(
        at=now, who=who, why=why, release=record.id, state=state,
        from_version=tried if back else before, to_version=before if back else tried, numbers=numbers or {},
    )  # fmt: skip
    return record.model_copy(
        update={
            "generation": record.generation + 1,
            "state": state,
            "since": now,
            "history": (*record.history, entry)[-MAX_HISTORY:],
            **changes,
        }
    )
