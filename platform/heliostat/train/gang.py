"""Keeps a training running on a spot group: places its workers, sees losses and notices, starts the next attempt.

Runs in the job's driver. A gang has between `low` and `high` keepers (Ray actors, see `keeper.py`), one per worker. An
*attempt* is one training over those that are there; when it ends by a loss, a notice or a new node, the next one
follows from the newest checkpoint. What of it a node's death takes away is the node's own keeper alone.

A gang with a deadline moves between two groups, spot and on-demand, or waits with no node at all, as its chooser says
(`market.py`); it leaves a group when it is whole in the other, after a checkpoint.

Why not Ray Train's own controller, and what each costs in seconds: docs/decisions/0013-recovery.md.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.errors import JobFailed
from heliostat.events import Spool
from heliostat.plan.fallback import is_away
from heliostat.plan.policy.deadline import Market
from heliostat.store import Store
from heliostat.train.bounds import Reins
from heliostat.train.checkpoint import claim_generation, patiently
from heliostat.train.context import RunSpec
from heliostat.train.goodput import Goodput, Span, reckon
from heliostat.train.keeper import Keeper, warm_up
from heliostat.train.market import Chooser
from heliostat.train.progress import Curve, Progress
from heliostat.train.reclaims import LABEL_GROUP
from heliostat.train.seat import About, Ended, Seat

# Losses in a row after none of which a single step was completed.
FRUITLESS_LIMIT = 8
# How long an elastic gang waits for its full size before it begins, or goes on, smaller.
FIRST_PATIENCE_S = 30.0
PATIENCE_S = 3.0
# A part of a gang is held for so long by the one that may; then it is given back, and another's turn comes.
GANG_LIMIT_S = 120.0
# A gang that has lost a member gets it back within seconds, or has to be the one that may hold a part.
REPLACE_S = 10.0
# Before a deadline, beside what the way into the store takes.
MARGIN_S = 5.0
LOOK_S = 0.3
CHOOSE_S = 0.5
TELL_S = 10.0
ANSWER_S = 1.0
PACE_S = 3.0
PREPARE_LIMIT_S = 90.0

Outcome = Literal["done", "left", "lost", "failed"]


@dataclass(eq=False)
class _Place:
    """One keeper, from the moment it is asked for. `about` is None until it lives."""

    actor: Any  # Any: Ray's actor handle
    answer: Any  # Any: the reference to its first answer
    asked_at: float
    group: str
    asked_wall: float  # the same, since the epoch
    slot: _Slot | None = None
    about: About | None = None
    line: socket.socket | None = None  # open as long as its process lives
    deadline: float | None = None  # of its node, since the epoch; None without a notice

    def is_cut(self) -> bool:
        """Whether its process is gone, for sure."""
        if self.line is None:
            return False
        try:
            return self.line.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


@dataclass(eq=False)
class _Slot:
    """Of one node, the GPUs of a gang that shares it with other jobs: Ray puts all of them there, or none."""

    group: str
    bundles: Any  # Any: Ray's placement group
    left: bool = False  # its node is gone or is to be left: nobody more is asked onto it


@dataclass(frozen=True)
class GangSpec:
    """What a gang asks of the cluster."""

    low: int
    high: int
    group: str
    standby: int = 0  # workers held beside, for the moment when one is lost
    cpus: float = 1
    gpus: float = 1
    fallback: str = ""  # the group to go to while `group` has no nodes to be had; "": none
    a_node: Mapping[str, int] = field(default_factory=dict)  # workers on one node of a group; 1 where it is not told
    part: int = 0  # GPUs of the one node that it shares with other jobs; 0: its nodes are its own
    job_id: str = ""  # of the queue's job that it belongs to


@dataclass
class _Attempt:
    """One training under way."""

    places: list[_Place]
    name: str
    group: str
    began_at: float  # since the epoch
    pending: dict[Any, _Place] = field(default_factory=dict)  # Any: Ray's reference to an Ended
    ended: list[Ended] = field(default_factory=list)
    leaving: str = ""  # why, once all were told to leave
    seen: dict[str, float] = field(default_factory=dict)  # the last progress that was heard of
    asked: Any = None  # Any: Ray's reference to a progress
    told_at: float = 0.0
    paces: dict[Any, _Place] = field(default_factory=dict)  # Any: Ray's reference to a progress
    paces_at: float = 0.0
    saved: bool = False  # whether a notice has made it save at once


class Gang:
    """`order` is a pickled `heliostat.train.child.Order`, the same for every worker."""

    def __init__(
        self,
        spec: RunSpec,
        gang: GangSpec,
        order: bytes,
        store: Store,
        spool: Spool,
        on_progress: Callable[[dict[str, float]], None] = lambda _: None,
        chooser: Chooser | None = None,
        curve: Curve | None = None,
        pause: Callable[[], str] = lambda: "",
    ) -> None:
        self._pause = pause  # why it is to pause; "" while it is not
        self._spec, self._gang, self._order, self._store, self._spool = spec, gang, order, store, spool
        self._on_progress = on_progress
        self._chooser = chooser
        self._group: str | None = gang.group  # where the gang is to be; None: nowhere, it waits for spot
        self._asked: frozenset[str] = frozenset({gang.group})  # the groups in which it asks for nodes
        self._chose_at = 0.0
        self._now: _Attempt | None = None
        self._curve = curve or Curve()
        self._losses = self._notices = 0
        self._state = "waiting for nodes"
        self._total = 0.0
        self._places: list[_Place] = []
        self._slots: list[_Slot] = []
        self._reins = Reins(store, spec.run, gang.group, gang.low, gang.high, a_node=gang.a_node, job_id=gang.job_id)
        self._away = False  # on the fallback
        self._missing_since: float | None = None
        self._warmed: set[str] = set()  # nodes
        self._draining: dict[str, float] = {}
        self._upload_s = 0.0  # of a checkpoint, the last that was heard of
        self._looked_at = 0.0
        self._waited_s = 0.0
        self.spans: list[Span] = []

    def goodput(self) -> Goodput:
        """Of the attempts so far, and of the one under way: a job that is stopped has one."""
        attempt = self._now
        return reckon([*self.spans, *([] if attempt is None else [_span(attempt, attempt.seen, self._waited_s)])])

    def progress(self) -> Progress:
        """How far it is. May be called from another thread."""
        attempt, made = self._now, self.goodput()
        seen: dict[str, float] = {} if attempt is None else attempt.seen
        points = self._curve.points
        return Progress(
            run=self._spec.run,
            state=self._state,
            at=time.time(),
            step=int(seen.get("step", made.steps)),
            total=int(seen.get("total", self._total)),
            loss=points[-1][1] if points else None,
            steps_per_s=round(_pace(seen), 4),
            group=self._group or "",
            nodes=() if attempt is None else tuple(dict.fromkeys(_node(place) for place in attempt.places)),
            gpu_seconds=round(made.held, 3),
            useful=round(made.share, 4),
            losses=self._losses,
            notices=self._notices,
            steps_again=made.steps_again,
            attempts=made.attempts,
            deadline=None if self._chooser is None else self._chooser.ends_at,
            curve=points,
        )

    def run(self) -> str:
        """Until it is done. Returns "" or, where the training function is wrong, its traceback."""
        fruitless, best = 0, -1.0
        self._emit("gang_started")  # what an earlier driver of this run held is free
        self._reins.start()
        try:
            while True:
                places = self._gather()
                outcome, text, reached = self._attempt(places)
                if outcome in ("done", "failed"):
                    self._state = outcome
                    return text
                fruitless, best = (0, reached) if reached > best else (fruitless + (outcome == "lost"), best)
                if fruitless >= FRUITLESS_LIMIT:
                    raise JobFailed(
                        f"{fruitless} attempts in a row were lost before they completed a step; the last: {text}",
                        where=f"run {self._spec.run}",
                        do="read the job's log above; the same run name resumes from the last checkpoint",
                    )
        finally:
            self._reins.stop()
            for place in list(self._places):
                self._remove(place)

    # --- the keepers --------------------------------------------------------------------------------------------------

    def _wait_while_paused(self) -> None:
        """Without a node: what was trained is in the store."""
        if not (reason := self._pause()):
            return
        _say(f"paused: {reason}")
        self._emit("run_paused", reason=reason)
        for place in list(self._places):
            self._remove(place)
        while self._pause():
            time.sleep(1)
        _say("going on")
        self._emit("run_unpaused")

    def _gather(self) -> list[_Place]:
        """Wait for the keepers of the next attempt: all of them, or after some patience the lowest number at least."""
        begun = told = time.monotonic()
        patience = PATIENCE_S if self.spans else FIRST_PATIENCE_S
        while True:
            self._wait_while_paused()
            self._look()
            group = self._group
            self._choose()
            if self._group != group:
                begun = time.monotonic()
            self._drop_noticed()
            waited = time.monotonic() - begun
            if not self._may_ask(waited):
                begun = time.monotonic() if self._reins.most == 0 else begun
                time.sleep(0.5)
                continue
            self._fill()
            self._answers()
            living = self._living()
            self._state = "waiting for nodes" if self._group else "waiting for spot"
            if self._group is None:
                begun = time.monotonic()
            elif len(living) >= max(self._gang.low, self._reins.most) or (
                len(living) >= self._gang.low and waited > patience
            ):
                self._waited_s = waited
                self._settle(living)
                return living
            if living and waited > GANG_LIMIT_S:
                _say(f"giving {len(living)} of {self._gang.high} workers back, and asking again")
                self._give_back()
                time.sleep(random.uniform(1, 10))
                begun = time.monotonic()
            if time.monotonic() - told > 10:
                told = time.monotonic()
                have = f"{len(living)} of {self._gang.high} workers are placed"
                _say(f"waiting for nodes of group {self._group or self._gang.group!r}: {have}")
            time.sleep(0.02)

    def _may_ask(self, waited: float) -> bool:
        """Not while the controller lets it hold nothing, nor while another gang of the group holds a part of itself."""
        if self._reins.most > 0:
            whole = self._gang.low == 1 or (bool(self.spans) and waited < REPLACE_S)
            if whole or self._reins.may_place():
                return True
        if self._places:
            _say(f"giving all workers back: {self._reins.why or 'another gang is being placed'}")
        self._give_back()
        return False

    def _give_back(self) -> None:
        for place in list(self._places):
            self._remove(place)
        self._reins.release()
        self._reins.hold(self._gang.group, 0)

    def _settle(self, chosen: list[_Place]) -> None:
        """The next attempt is on these: what is held of the other group is not needed."""
        group = chosen[0].group
        if self._away and group == self._gang.group:
            _say(f"back on group {group!r}")
            self._emit("fallback_ended", group=group)
            self._away = False
        room = self._reins.most + self._gang.standby - len(chosen)
        for place in [place for place in self._places if place not in chosen]:
            room -= place.group == group
            elsewhere = place.group != group and place.group not in self._asked
            if (elsewhere and not self._away) or (place.group == group and room < 0):
                self._remove(place)
        self._reins.release()
        self._reins.hold(group, len(chosen), _node(chosen[0]) if self._gang.part else "")

    def _fill(self) -> None:
        """Ask for what is missing: a pending actor is what makes the autoscaler start a node."""
        self._consider_fallback()
        away = (self._gang.fallback,) if self._away else ()
        for group in (*self._asked, *away):
            standby = self._gang.standby if self._chooser is None or group == self._group else 0
            wanted = self._reins.most + standby
            while sum(place.deadline is None and place.group == group for place in self._places) < wanted:
                self._ask(group)

    def _ask(self, group: str) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        slot = self._slot(group) if self._gang.part else None
        where: dict[str, Any] = {
            "label_selector": {LABEL_GROUP: group},
            "scheduling_strategy": "DEFAULT",  # not into the placement group of a Tune trial that drives us
        }
        if slot is not None:
            where = {"scheduling_strategy": PlacementGroupSchedulingStrategy(slot.bundles)}
        options = {"num_cpus": self._gang.cpus, "num_gpus": self._gang.gpus, "max_concurrency": 8, **where}
        actor = ray.remote(Keeper).options(**options).remote()
        self._places.append(_Place(actor, actor.about.remote(), time.monotonic(), group, time.time(), slot))

    def _slot(self, group: str) -> _Slot:
        """Of a node that is not to be left, with room for one worker more."""
        from ray.util import placement_group

        for slot in self._slots:
            places = [place for place in self._places if place.slot is slot]
            if slot.group == group and len(places) < self._gang.part and not slot.left:
                return slot
        bundles = placement_group(
            [{"CPU": self._gang.cpus, "GPU": self._gang.gpus}] * self._gang.part,
            strategy="STRICT_PACK",
            bundle_label_selector=[{LABEL_GROUP: group}] * self._gang.part,
        )
        self._slots.append(_Slot(group, bundles))
        return self._slots[-1]

    def _drop(self, place: _Place) -> None:
        """The gang has it no longer, and nothing of its node's slot where it was the last one there."""
        self._places.remove(place)
        slot = place.slot
        if slot is not None and not any(other.slot is slot for other in self._places):
            from ray.util import remove_placement_group

            self._slots.remove(slot)
            remove_placement_group(slot.bundles)

    def _consider_fallback(self) -> None:
        """Go to the fallback where the own group's market refuses. It is left once the own group has all."""
        if self._chooser is not None or not self._gang.fallback or self._away:
            return  # a deadline has a choice of its own
        home = len(self._ready_on(self._gang.group))
        self._missing_since = None if home >= self._gang.low else self._missing_since or time.monotonic()
        if self._is_away(home):
            self._away, self._missing_since = True, None
            _say(f"group {self._gang.group!r} has no nodes to be had: going to {self._gang.fallback!r}")
            self._emit("fallback_began", group=self._gang.fallback, instead_of=self._gang.group)

    def _is_away(self, at_home: int) -> bool:
        missing_s = 0.0 if self._missing_since is None else time.monotonic() - self._missing_since
        return is_away(
            away=self._away,
            low=self._gang.low,
            wanted=self._reins.most,
            at_home=at_home,
            missing_s=missing_s,
            dry=self._reins.is_dry(),
        )

    def _choose(self) -> None:
        """Where a gang with a deadline is to be; places in groups that it asks nothing of any more are given up."""
        if self._chooser is None or time.monotonic() - self._chose_at < CHOOSE_S:
            return
        self._chose_at, now = time.monotonic(), time.time()
        attempt, busy = self._now, [] if self._now is None else self._now.places
        self._chooser.saw_spot(len(self._living(self._gang.group)) >= self._gang.low, now)
        seen = {} if attempt is None else attempt.seen
        if seen.get("step"):
            made = seen["step"] - seen["from_step"] - 1
            self._chooser.saw_steps(seen["step"], seen["total"], made=made, seconds=seen["last_at"] - seen["first_at"])
        before = self._chooser.market
        wanted = self._chooser.choose(now)
        groups = {Market.SPOT: self._gang.group, Market.ON_DEMAND: self._chooser.terms.on_demand}
        self._group = groups.get(wanted.market)
        asked = {self._group, self._gang.group if wanted.ask_spot else None, attempt.group if attempt else None}
        self._asked = frozenset(group for group in asked if group is not None)
        for place in [p for p in self._places if p.group not in self._asked and p not in busy]:
            self._remove(place)
        if wanted.market != before:
            spent = self._chooser.held_s
            _say(f"deadline: from {before} to {wanted.market}")
            self._emit("market", before=before, market=wanted.market, spot_s=spent[Market.SPOT],
                       on_demand_s=spent[Market.ON_DEMAND], step=seen.get("step"))  # fmt: skip

    def _answers(self, busy: Sequence[_Place] = ()) -> None:
        """Take in which keepers have come to life, and which died beside the attempt or before they lived."""
        import ray

        for place in [place for place in self._places if place.is_cut() and place not in busy]:
            self._lose(place)
        for place in [place for place in self._places if place.about is None]:
            ready, _ = ray.wait([place.answer], timeout=0)
            if ready:
                try:
                    place.about = ray.get(place.answer)
                    self._warmed.add(place.about.node_id)
                    place.line = _connect(place.about)
                    self._emit(
                        "keeper_ready",
                        seconds=time.monotonic() - place.asked_at,
                        began_at=max(place.about.began_at, place.asked_wall),
                        **self._held(place),
                    )
                except ray.exceptions.RayError:
                    self._drop(place)

    def _living(self, group: str | None = None) -> list[_Place]:
        """Those that may train, all of one group: that one, or where a deadline puts the gang; else the gang's own
        group, or its fallback if more are there.
        """
        if group is not None or self._chooser is not None:
            group = group or self._group
            return self._ready_on(group) if group else []
        home = self._ready_on(self._gang.group)
        other = self._ready_on(self._gang.fallback) if self._away else []
        return other if len(other) > len(home) else home

    def _ready_on(self, group: str) -> list[_Place]:
        """Without a notice; those that share a node with most others first, then as they were asked for.

        So a gang that gets smaller leaves whole nodes.
        """
        ready = [p for p in self._places if p.about is not None and p.deadline is None and p.group == group]
        on = Counter(map(_node, ready))  # in the order in which they come first, which sorting keeps
        order = {node: place for place, (node, _) in enumerate(on.most_common())}
        return sorted(ready, key=lambda place: order[_node(place)])[: self._reins.most]

    def _drop_noticed(self) -> None:
        for place in [place for place in self._places if place.deadline is not None]:
            self._remove(place)

    def _remove(self, place: _Place) -> None:
        _kill(place)
        if place.about is not None:
            self._emit("keeper_ended", **self._held(place))
        self._drop(place)

    def _look(self) -> bool:
        """Notices, a few times a second."""
        from ray._private.state import state

        if time.monotonic() - self._looked_at < LOOK_S:
            return False
        self._looked_at = time.monotonic()
        self._draining = {node: at_ms / 1000 for node, at_ms in state.get_draining_nodes().items()}
        for place in self._places:
            if place.about is not None and place.deadline is None and place.about.node_id in self._draining:
                place.deadline = self._draining[place.about.node_id] or time.time() + 30
                if place.slot is not None:
                    place.slot.left = True
                _say(f"node {place.about.node_id[:8]} is to be left within {place.deadline - time.time():.0f} s")
                self._notices += 1
                self._emit("notice_seen", node=place.about.node_id, deadline=place.deadline)
        return True

    def _warm_up_others(self) -> None:
        """Nodes that might be needed: a warm process and the job's folder."""
        import ray

        for node in ray.nodes():
            name, group = node["NodeID"], node["Labels"].get(LABEL_GROUP)
            if not node["Alive"] or group not in self._asked:
                continue
            if name not in self._warmed:
                options = {LABEL_GROUP: group, "ray.io/node-id": name}
                self._warmed.add(name)
                ray.remote(warm_up).options(num_cpus=0, label_selector=options).remote()

    # --- one attempt --------------------------------------------------------------------------------------------------

    def _attempt(self, places: list[_Place]) -> tuple[Outcome, str, float]:
        """(how it ended, why, the step it reached)."""
        generation = patiently(lambda: claim_generation(self._store, self._spec.run), what="the attempt", warn=_say)
        attempt = _Attempt(places, f"{generation:06d}-{uuid.uuid4().hex[:6]}", places[0].group, time.time())
        self._now, self._state = attempt, "starting"
        nodes = [_node(place) for place in places]
        self._emit("attempt", number=generation, workers=len(places), nodes=nodes, group=attempt.group)
        try:
            outcome, text = self._start(attempt, generation)
            if outcome is None:
                outcome, text = self._follow(attempt)
        except BaseException:  # the driver is told to end
            self._emit("attempt_ended", number=generation, outcome="lost", why="the driver was stopped", keepers=[])
            raise
        known = max([attempt.seen, *(e.progress for e in attempt.ended)], key=lambda p: p.get("step", -1.0))
        reached = known.get("step", -1.0)
        self.spans.append(_span(attempt, known, self._waited_s))
        self._now = None
        keepers = [self._held(place) for place in self._places if place.about is not None]
        self._emit(
            "attempt_ended", number=generation, outcome=outcome, why=text[:200], reached=reached, keepers=keepers
        )
        if outcome in ("left", "lost"):
            _say(f"attempt {generation} ended: {text or outcome}")
        if outcome == "lost":
            self._bury(attempt)
        self._stop_all(attempt)
        return outcome, text, reached

    def _start(self, attempt: _Attempt, generation: int) -> tuple[Outcome | None, str]:
        """Prepare a process on every keeper, let rank 0's port be known, and let all go."""
        import ray

        count = len(attempt.places)
        nodes = len({_node(place) for place in attempt.places})
        seats = [Seat(rank, count, attempt.name, generation, nodes) for rank in range(count)]
        try:
            ports = ray.get(
                [
                    place.actor.prepare.remote(seat, self._order, self._spec.run)
                    for place, seat in zip(attempt.places, seats, strict=True)
                ],
                timeout=PREPARE_LIMIT_S,
            )
        except (ray.exceptions.RayError, TimeoutError) as error:
            return "lost", f"a worker was lost before it began: {type(error).__name__}"
        host = attempt.places[0].about.address if attempt.places[0].about else ""
        attempt.pending = {place.actor.train.remote(host, ports[0]): place for place in attempt.places}
        return None, ""

    def _follow(self, attempt: _Attempt) -> tuple[Outcome, str]:
        import ray

        while True:
            ready, _ = ray.wait(list(attempt.pending), num_returns=1, timeout=0.1)
            for reference in ready:
                place = attempt.pending.pop(reference)
                ended = _result(reference)
                attempt.ended.append(ended)
                if ended.kind in ("lost", "failed"):
                    return self._why(attempt, place, ended)
            if not attempt.pending:
                kinds = {ended.kind for ended in attempt.ended}
                return ("done", "") if kinds == {"done"} else ("left", attempt.leaving)
            if any(place.is_cut() for place in attempt.places):
                return "lost", "a worker's process is gone"
            if self._look():
                self._ask_progress(attempt)
                self._consider_leaving(attempt)

    def _why(self, attempt: _Attempt, place: _Place, first: Ended) -> tuple[Outcome, str]:
        """A rank that fails by its own error is a loss to the others: hear all that have something to say."""
        import ray

        kind, text = first.kind, first.text
        deadline = time.monotonic() + 0.3
        while kind == "lost" and attempt.pending and time.monotonic() < deadline:
            if any(place.is_cut() for place in attempt.places):
                break
            ready, _ = ray.wait(list(attempt.pending), num_returns=1, timeout=0.05)
            for reference in ready:
                attempt.pending.pop(reference)
                ended = _result(reference)
                attempt.ended.append(ended)
                if ended.kind == "failed":
                    kind, text = ended.kind, ended.text
        if kind == "failed":
            return "failed", text
        return "lost", f"{text} (first seen by the worker on node {_node(place)[:8]})"

    def _ask_progress(self, attempt: _Attempt) -> None:
        """For the log, and for the goodput of an attempt of which nobody is left to tell."""
        import ray

        if attempt.asked is not None:
            ready, _ = ray.wait([attempt.asked], timeout=0)
            if not ready:
                return
            try:
                attempt.seen = ray.get(attempt.asked) or attempt.seen
            except ray.exceptions.RayError:
                return
            step = attempt.seen.get("step", 0.0)
            if step:
                self._upload_s = attempt.seen.get("upload_s") or self._upload_s
                self._state, self._total = "training", attempt.seen["total"]
                self._curve.add(int(step), attempt.seen["loss"])
                self._on_progress(attempt.seen)
            if step and not attempt.told_at:
                attempt.told_at = time.monotonic()
            if step and time.monotonic() - attempt.told_at > TELL_S:
                attempt.told_at = time.monotonic()
                _say(
                    f"step {step:.0f} of {attempt.seen['total']:.0f}, loss {attempt.seen['loss']:.4f}, "
                    f"{_pace(attempt.seen):.2f} steps/s on {len(attempt.places)} nodes"
                )
            if step and not attempt.leaving:
                self._warm_up_others()
                self._ask_paces(attempt)
        attempt.asked = _progress_of(attempt.places[0])

    def _ask_paces(self, attempt: _Attempt) -> None:
        """What a step's own work takes on each node, for whoever looks for slow ones."""
        import ray

        if len(attempt.places) < 2:
            return
        if attempt.paces:
            ready, waiting = ray.wait(list(attempt.paces), num_returns=len(attempt.paces), timeout=0)
            if waiting and time.monotonic() - attempt.paces_at < ANSWER_S * 10:
                return
            told = {_node(attempt.paces[ref]): _own_pace(ref) for ref in ready}
            self._reins.paced({node: took for node, took in told.items() if took})
            attempt.paces = {}
        if time.monotonic() - attempt.paces_at > PACE_S:
            attempt.paces_at = time.monotonic()
            attempt.paces = {_progress_of(place): place for place in attempt.places}

    def _consider_leaving(self, attempt: _Attempt) -> None:
        """Leave nodes with a notice once there are others, at the latest before the deadline; grow when one can."""
        if attempt.leaving:
            return
        if reason := self._pause():
            self._leave(attempt, f"paused: {reason}")
            return
        self._choose()
        self._fill()
        self._answers(attempt.places)
        noticed = [place.deadline for place in attempt.places if place.deadline is not None]
        most = self._reins.most
        ready = len(self._living() if self._chooser is None else self._living(attempt.group))
        if most < len(attempt.places):
            self._leave(attempt, f"from {len(attempt.places)} to {most} workers: {self._reins.why}")
        elif self._chooser is not None and self._group is None:
            self._leave(attempt, "waiting for spot is cheaper than going on")
        elif self._chooser is not None and self._group != attempt.group and len(self._living()) >= most:
            self._leave(attempt, f"moving from {attempt.group} to {self._group}")
        elif noticed:
            if ready >= most:
                self._leave(attempt, "notice, and the replacement is there")
            elif time.time() > min(noticed) - self._leave_lead_s():
                self._leave(attempt, "notice, and its deadline is near")
            elif not attempt.saved:
                attempt.saved = True
                attempt.places[0].actor.tell.remote(
                    attempt.name, "save"
                )  # at once: a deadline is the cloud's best guess
        elif self._returns(attempt):
            self._leave(attempt, f"returning to group {self._gang.group!r}")
        elif ready > len(attempt.places):
            self._leave(attempt, f"growing from {len(attempt.places)} to {ready} workers")

    def _leave_lead_s(self) -> float:
        """Two uploads fit: a regular checkpoint may have begun just before, and the one that is left with follows."""
        return MARGIN_S + 2 * self._upload_s

    def _returns(self, attempt: _Attempt) -> bool:
        """From the fallback; where a deadline chooses, it has chosen before."""
        away = self._chooser is None and attempt.group != self._gang.group
        return away and not self._is_away(len(self._ready_on(self._gang.group)))

    def _leave(self, attempt: _Attempt, why: str) -> None:
        attempt.leaving = why
        self._emit("leave", why=why)
        for place in attempt.places:
            place.actor.tell.remote(attempt.name, "leave")

    def _bury(self, attempt: _Attempt) -> None:
        """Find the keepers that are gone, without waiting until Ray declares their node dead."""
        import ray

        cut = [place for place in attempt.places if place.is_cut()]
        for place in cut:
            self._lose(place)
        if cut:
            return
        asked = {place.actor.about.remote(): place for place in attempt.places}
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        for reference in answered:
            try:
                ray.get(reference)
            except ray.exceptions.RayError:
                silent.append(reference)
        for reference in silent:
            self._lose(asked[reference])

    def _lose(self, place: _Place) -> None:
        if place not in self._places:
            return  # it has gone with another one of its slot
        _say(f"the worker on node {_node(place)[:8]} is lost")
        self._losses += 1
        self._emit("keeper_lost", node=_node(place))
        self._reins.lost(_node(place))
        self._remove(place)
        if place.slot is not None:  # who else is on that node goes too, so that all are asked for together elsewhere
            place.slot.left = True
            for other in [other for other in self._places if other.slot is place.slot]:
                self._remove(other)

    def _stop_all(self, attempt: _Attempt) -> None:
        for place in attempt.places:
            if place in self._places:
                place.actor.stop.remote(attempt.name)

    def _held(self, place: _Place) -> dict[str, Any]:
        """What a keeper holds, for the meter."""
        return {"node": _node(place), "keeper": place.about.name if place.about else "", "gpus": self._gang.gpus}

    def _emit(self, kind: str, **fields: Any) -> None:
        self._spool.emit(kind, run=self._spec.run, **self._spec.tags, **fields)


def _connect(about: About) -> socket.socket | None:
    """A line to the keeper; None where the network between them does not allow it, and Ray's word must do."""
    try:
        line = socket.create_connection((about.address, about.port), timeout=1.0)
    except OSError:
        return None
    line.setblocking(False)
    return line


def _span(attempt: _Attempt, known: dict[str, float], waited_s: float) -> Span:
    return Span(
        workers=len(attempt.places),
        waited_s=waited_s,
        began_at=attempt.began_at,
        ended_at=time.time(),
        first_at=known.get("first_at"),
        last_at=known.get("last_at"),
        from_step=int(known.get("from_step", 0)),
        step=int(known.get("step", 0)),
        stall_s=known.get("stall_s", 0.0),
        data_s=known.get("data_s", 0.0),
    )


def _pace(seen: dict[str, float]) -> float:
    """Steps a second in the attempt, after its first."""
    took = seen.get("last_at", 0.0) - seen.get("first_at", 0.0)
    return (seen["step"] - seen["from_step"] - 1) / took if took > 0 else 0.0


def _result(reference: Any) -> Ended:  # Any: Ray's reference to an Ended
    import ray

    try:
        return ray.get(reference)  # type: ignore[no-any-return]  # what Keeper.train returns
    except ray.exceptions.RayError as error:
        return Ended("lost", f"its worker is gone: {type(error).__name__}")


def _progress_of(place: _Place) -> Any:  # Any: Ray's reference to a progress
    """Asked several times a second, for hours: were each kept as a task, the head would hold 8 KB of each."""
    return place.actor.progress.options(enable_task_events=False).remote()


def _own_pace(reference: Any) -> float | None:  # Any: Ray's reference to a progress
    import ray

    try:
        return (ray.get(reference) or {}).get("own_s")
    except ray.exceptions.RayError:
        return None


def _kill(place: _Place) -> None:
    import ray

    ray.kill(place.actor, no_restart=True)
    if place.line is not None:
        place.line.close()


def _node(place: _Place) -> str:
    return "" if place.about is None else place.about.node_id


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a full disk ends no training
        print(f"heliostat: {message}", file=sys.stderr, flush=True)  # noqa: T201  # the job's log
