"""Keeps a training running on a spot group: places its workers, sees losses and notices, starts the next attempt.

Runs in the job's driver. A gang has between `low` and `high` keepers (Ray actors, see `keeper.py`), one per worker. An
*attempt* is one training over those that are there; when it ends by a loss, a notice or a new node, the next one
follows from the newest checkpoint. What of it a node's death takes away is the node's own keeper alone.

Why not Ray Train's own controller, and what each costs in seconds: docs/decisions/0013-recovery.md.
"""

from __future__ import annotations

import random
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.errors import JobFailed
from heliostat.events import Spool
from heliostat.store import Store
from heliostat.train.checkpoint import claim_generation, patiently
from heliostat.train.context import RunSpec
from heliostat.train.goodput import Goodput, Span, reckon
from heliostat.train.keeper import Keeper, warm_up
from heliostat.train.seat import About, Ended, Seat

LABEL_GROUP = "heliostat.io/group"
# Losses in a row after none of which a single step was completed.
FRUITLESS_LIMIT = 8
# How long an elastic gang waits for its full size before it begins, or goes on, smaller.
FIRST_PATIENCE_S = 30.0
PATIENCE_S = 3.0
# A part of a gang is held for so long; then it is given back, lest two gangs wait for each other's halves.
GANG_LIMIT_S = 300.0
# Before a deadline, for the checkpoint.
MARGIN_S = 5.0
LOOK_S = 0.3
TELL_S = 10.0
ANSWER_S = 1.0
PREPARE_LIMIT_S = 90.0

Outcome = Literal["done", "left", "lost", "failed"]


@dataclass(eq=False)
class _Place:
    """One keeper, from the moment it is asked for. `about` is None until it lives."""

    actor: Any  # Any: Ray's actor handle
    answer: Any  # Any: the reference to its first answer
    asked_at: float
    asked_wall: float  # the same, since the epoch
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


@dataclass(frozen=True)
class GangSpec:
    """What a gang asks of the cluster."""

    low: int
    high: int
    group: str
    standby: int = 0  # workers held beside, for the moment when one is lost
    cpus: float = 1
    gpus: float = 1


@dataclass
class _Attempt:
    """One training under way."""

    places: list[_Place]
    name: str
    began_at: float  # since the epoch
    pending: dict[Any, _Place] = field(default_factory=dict)  # Any: Ray's reference to an Ended
    ended: list[Ended] = field(default_factory=list)
    leaving: str = ""  # why, once all were told to leave
    seen: dict[str, float] = field(default_factory=dict)  # the last progress that was heard of
    asked: Any = None  # Any: Ray's reference to a progress
    told_at: float = 0.0
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
        pause: Callable[[], str] = lambda: "",
    ) -> None:
        self._pause = pause  # why it is to pause; "" while it is not
        self._spec, self._gang, self._order, self._store, self._spool = spec, gang, order, store, spool
        self._on_progress = on_progress
        self._places: list[_Place] = []
        self._warmed: set[str] = set()
        self._draining: dict[str, float] = {}
        self._looked_at = 0.0
        self._waited_s = 0.0
        self.spans: list[Span] = []

    def goodput(self) -> Goodput:
        return reckon(self.spans)

    def run(self) -> str:
        """Until it is done. Returns "" or, where the training function is wrong, its traceback."""
        fruitless, best = 0, -1.0
        self._emit("gang_started")  # what an earlier driver of this run held is free
        try:
            while True:
                places = self._gather()
                outcome, text, reached = self._attempt(places)
                if outcome == "done":
                    return ""
                if outcome == "failed":
                    return text
                fruitless, best = (0, reached) if reached > best else (fruitless + (outcome == "lost"), best)
                if fruitless >= FRUITLESS_LIMIT:
                    raise JobFailed(
                        f"{fruitless} attempts in a row were lost before they completed a step; the last: {text}",
                        where=f"run {self._spec.run}",
                        do="read the job's log above; the same run name resumes from the last checkpoint",
                    )
        finally:
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
            self._drop_noticed()
            self._fill()
            self._answers()
            living = self._living()
            waited = time.monotonic() - begun
            if len(living) >= self._gang.high or (len(living) >= self._gang.low and waited > patience):
                self._waited_s = waited
                return living
            if living and waited > GANG_LIMIT_S:
                _say(f"giving {len(living)} of {self._gang.high} workers back, and asking again")
                for place in list(self._places):
                    self._remove(place)
                time.sleep(random.uniform(1, 10))
                begun = time.monotonic()
            if time.monotonic() - told > 10:
                told = time.monotonic()
                have = f"{len(living)} of {self._gang.high} workers are placed"
                _say(f"waiting for nodes of group {self._gang.group!r}: {have}")
            time.sleep(0.02)

    def _fill(self) -> None:
        """Ask for what is missing: a pending actor is what makes the autoscaler start a node."""
        import ray

        while sum(place.deadline is None for place in self._places) < self._gang.high + self._gang.standby:
            actor = (
                ray.remote(Keeper)
                .options(
                    num_cpus=self._gang.cpus,
                    num_gpus=self._gang.gpus,
                    max_concurrency=8,
                    label_selector={LABEL_GROUP: self._gang.group},
                    scheduling_strategy="DEFAULT",  # not into the placement group of a Tune trial that drives us
                )
                .remote()
            )
            self._places.append(_Place(actor, actor.about.remote(), time.monotonic(), time.time()))

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
                    self._places.remove(place)

    def _living(self) -> list[_Place]:
        """Those that may train: without a notice, in the order in which they were asked for."""
        return [place for place in self._places if place.about is not None and place.deadline is None][
            : self._gang.high
        ]

    def _drop_noticed(self) -> None:
        for place in [place for place in self._places if place.deadline is not None]:
            self._remove(place)

    def _remove(self, place: _Place) -> None:
        _kill(place)
        if place.about is not None:
            self._emit("keeper_ended", **self._held(place))
        self._places.remove(place)

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
                _say(f"node {place.about.node_id[:8]} is to be left within {place.deadline - time.time():.0f} s")
                self._emit("notice_seen", node=place.about.node_id, deadline=place.deadline)
        return True

    def _warm_up_others(self) -> None:
        """Nodes that might be needed, once each."""
        import ray

        for node in ray.nodes():
            name = node["NodeID"]
            if node["Alive"] and node["Labels"].get(LABEL_GROUP) == self._gang.group and name not in self._warmed:
                self._warmed.add(name)
                ray.remote(warm_up).options(
                    num_cpus=0, label_selector={LABEL_GROUP: self._gang.group, "ray.io/node-id": name}
                ).remote()

    # --- one attempt --------------------------------------------------------------------------------------------------

    def _attempt(self, places: list[_Place]) -> tuple[Outcome, str, float]:
        """(how it ended, why, the step it reached)."""
        generation = patiently(lambda: claim_generation(self._store, self._spec.run), what="the attempt", warn=_say)
        attempt = _Attempt(places, f"{generation:06d}-{uuid.uuid4().hex[:6]}", time.time())
        self._emit("attempt", number=generation, workers=len(places), nodes=[_node(place) for place in places])
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
        seats = [Seat(rank, count, attempt.name, generation) for rank in range(count)]
        try:
            ports = ray.get(
                [
                    place.actor.prepare.remote(seat, self._order)
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
                self._on_progress(attempt.seen)
            if step and not attempt.told_at:
                attempt.told_at = time.monotonic()
            if step and time.monotonic() - attempt.told_at > TELL_S:
                attempt.told_at = time.monotonic()
                took = attempt.seen["last_at"] - attempt.seen["first_at"]
                pace = (step - attempt.seen["from_step"] - 1) / took if took > 0 else 0.0
                _say(
                    f"step {step:.0f} of {attempt.seen['total']:.0f}, loss {attempt.seen['loss']:.4f}, "
                    f"{pace:.2f} steps/s on {len(attempt.places)} nodes"
                )
            if step and not attempt.leaving:
                self._warm_up_others()
        attempt.asked = attempt.places[0].actor.progress.remote()

    def _consider_leaving(self, attempt: _Attempt) -> None:
        """Leave nodes with a notice once there are others, at the latest before the deadline; grow when one can."""
        if attempt.leaving:
            return
        if reason := self._pause():
            self._leave(attempt, f"paused: {reason}")
            return
        self._fill()
        self._answers(attempt.places)
        noticed = [place.deadline for place in attempt.places if place.deadline is not None]
        ready = len(self._living())
        if noticed:
            if ready >= self._gang.high:
                self._leave(attempt, "notice, and the replacement is there")
            elif time.time() > min(noticed) - MARGIN_S:
                self._leave(attempt, "notice, and its deadline is near")
            elif not attempt.saved:
                attempt.saved = True
                attempt.places[0].actor.tell.remote(
                    attempt.name, "save"
                )  # at once: a deadline is the cloud's best guess
        elif ready > len(attempt.places):
            self._leave(attempt, f"growing from {len(attempt.places)} to {ready} workers")

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
        _say(f"the worker on node {_node(place)[:8]} is lost")
        self._emit("keeper_lost", node=_node(place))
        self._remove(place)

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
    )


def _result(reference: Any) -> Ended:  # Any: Ray's reference to an Ended
    import ray

    try:
        return ray.get(reference)  # type: ignore[no-any-return]  # what Keeper.train returns
    except ray.exceptions.RayError as error:
        return Ended("lost", f"its worker is gone: {type(error).__name__}")


def _kill(place: _Place) -> None:
    import ray

    ray.kill(place.actor, no_restart=True)
    if place.line is not None:
        place.line.close()


def _node(place: _Place) -> str:
    return "" if place.about is None else place.about.node_id


def _say(message: str) -> None:
    print(f"heliostat: {message}", file=sys.stderr, flush=True)  # noqa: T201  # the job's log
