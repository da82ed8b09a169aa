"""What does no useful work is found, told once, and acted on as the rules of the definition say.

What was told and since when a thing has been so lies in the store (`waste/state.json`), so that a new controller goes
on where the one before it was. One object has one writer: the holder of the lease.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from heliostat.cluster.gcs import kill_actor
from heliostat.cluster.ray_env import WASTE
from heliostat.controller.duty import World
from heliostat.controller.look import definition_of, look
from heliostat.definition import ClusterDefinition, WasteRules
from heliostat.errors import HeliostatError, ObjectMissing
from heliostat.meter.waste import Finding, Memory, Step, Told, find, next_steps, remember
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train.submit import stop

log = logging.getLogger(__name__)

STATE_KEY = "waste/state.json"
RESTING_KEY = "waste/resting.json"
SHORTEST_S, LONGEST_S = 1.0, 30.0


@dataclass(frozen=True)
class WasteState:
    """What the last look left: for the next one, and for whoever asks."""

    at: float = 0.0
    memory: Memory = field(default_factory=Memory)
    told: Mapping[str, Told] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class Waste:
    """Looks ten times within the window of the rules, but no less than twice a minute."""

    def __init__(self) -> None:
        self._rules = rules_from(os.environ)
        self.period_s = min(LONGEST_S, max(SHORTEST_S, self._rules.after.seconds / 10))
        self._definition: ClusterDefinition | None = None
        self._asked = False

    def forget(self) -> None:
        pass  # the state is read from the store each time

    def act(self, world: World, now: float) -> None:
        if not self._asked:
            self._definition, self._asked = definition_of(world.settings), True
        state = read_state(world.store)
        findings, memory = judge(world.settings, world.store, self._definition, self._rules, state, at=now)
        steps, told = next_steps(findings, state.told, self._rules, now)
        for step in steps:
            if not self._take(world, step):
                told[step.finding.id] = state.told.get(step.finding.id) or Told(now)  # tried again at the next look
        for gone in sorted(set(state.told) - set(told)):
            world.spool.emit("waste_ended", finding=gone)
        write_state(world.store, WasteState(now, memory, told, findings))

    def _take(self, world: World, step: Step) -> bool:
        """Whether it is done."""
        if step.phase == "acted" and not step.dry:
            try:
                carry_out(world.settings, world.store, step, now=step.at)
            except HeliostatError as error:
                log.warning("waste: %s %s: %s", step.act, step.finding.name, error)
                return False
        world.spool.emit(f"waste_{step.phase}", **event_of(step))
        log.info("waste %s%s: %s", step.phase, " (dry run)" if step.dry else "", step.finding.evidence)
        return True


def rules_from(environment: Mapping[str, str]) -> WasteRules:
    """The rules that the controller was started with; the defaults where there are none."""
    text = environment.get(WASTE)
    return WasteRules.model_validate_json(text) if text else WasteRules()


def judge(
    settings: Settings,
    store: Store,
    definition: ClusterDefinition | None,
    rules: WasteRules,
    state: WasteState,
    *,
    at: float | None = None,
) -> tuple[tuple[Finding, ...], Memory]:
    """(the waste that there is now, the memory after this look). Changes nothing."""
    seen = look(settings, store, at=time.time() if at is None else at, definition=definition)
    memory = remember(seen, state.memory)
    return find(seen, memory, rules), memory


def carry_out(settings: Settings, store: Store, step: Step, *, now: float) -> None:
    """Do it. Safe to repeat: what is gone already is no error."""
    finding = step.finding
    if step.act == "scale to zero":
        rest(store, finding.target, now)
    elif finding.kind in ("no-steps", "stalled-rank"):
        stop(settings, finding.target)
    elif step.act == "stop":
        for actor in finding.target.split(","):
            kill_actor(settings, actor)


def event_of(step: Step) -> dict[str, Any]:  # Any: JSON
    """The fields of a waste event."""
    finding = step.finding
    return {
        "finding": finding.id, "what": finding.kind, "name": finding.name, "group": finding.group,
        "gpus": finding.gpus, "since": finding.since, "evidence": finding.evidence,
        "gpu_hours": round(finding.gpu_hours, 6), "usd": finding.usd, "act": step.act, "dry_run": step.dry,
        "due": step.due, "team": finding.team, "project": finding.project,
        "exempt_until": None if finding.exempt_until is None else finding.exempt_until.isoformat(),
    }  # fmt: skip


# --- applications at rest


def rest(store: Store, app: str, now: float) -> None:
    """The application goes to zero as if its idle timeout had passed, until the next request."""
    store.put(RESTING_KEY, json.dumps({**read_resting(store), app: now}).encode())


def read_resting(store: Store) -> dict[str, float]:
    """Since when, by application. One that has answered since is awake again, whatever stands here."""
    try:
        found = json.loads(store.get(RESTING_KEY).data)
    except (ObjectMissing, ValueError):
        return {}
    return {str(app): float(at) for app, at in found.items()}


# --- the state


def read_state(store: Store) -> WasteState:
    """An unreadable one is as good as none: everything is told once more, and nothing is stopped unwarned."""
    try:
        given = json.loads(store.get(STATE_KEY).data)
        return WasteState(
            given["at"],
            Memory(**given["memory"]),
            {name: Told(**told) for name, told in given["told"].items()},
            tuple(_finding(row) for row in given["findings"]),
        )
    except (ObjectMissing, ValueError, KeyError, TypeError):
        return WasteState()


def write_state(store: Store, state: WasteState) -> None:
    def plain(value: Any) -> Any:  # Any: JSON
        return value.isoformat() if isinstance(value, date) else dict(value)

    store.put(STATE_KEY, json.dumps(dataclasses.asdict(state), default=plain).encode())


def _finding(row: Mapping[str, Any]) -> Finding:  # Any: JSON
    day = row["exempt_until"]
    return Finding(**{**row, "exempt_until": None if day is None else date.fromisoformat(day)})


def total(findings: Sequence[Finding]) -> tuple[float, float | None]:
    """(GPU-hours, USD of those with a price; None where none has)."""
    priced = [finding.usd for finding in findings if finding.usd is not None]
    return sum(finding.gpu_hours for finding in findings), sum(priced) if priced else None
