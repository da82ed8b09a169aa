"""What the budgets allow at this moment, as the controller last said it: `budgets/state.json` in the store.

Written by the controller's budgets duty alone; read before a job is submitted and while one trains. Without a state, or
with one of another month, everything is allowed. Serving is never asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import ObjectMissing, StoreError
from heliostat.store import Store

STATE_KEY = "budgets/state.json"
LOOK_S = 3.0


class Stopped(BaseModel):
    """A budget that is spent, and what follows from it."""

    model_config = ConfigDict(frozen=True)

    reason: str
    pause: bool = False
    """Running trainings are to pause at a saved step; new jobs are refused either way."""


class Allowance(BaseModel):
    model_config = ConfigDict(frozen=True)

    month: str = ""
    """2026-11, in UTC."""
    stopped: dict[str, Stopped] = {}
    """By "team/<name>" or "project/<name>"."""

    def find(self, team: str, project: str, now: float) -> Stopped | None:
        """What stops work of that team and project; one that pauses before one that only refuses."""
        if self.month != f"{datetime.fromtimestamp(now, UTC):%Y-%m}":
            return None
        found = [self.stopped[key] for key in (f"team/{team}", f"project/{project}") if key in self.stopped]
        return max(found, key=lambda stopped: stopped.pause, default=None)

    def key_of(self, stopped: Stopped) -> str:
        """Which budget it is that is spent."""
        return next(key for key, each in self.stopped.items() if each is stopped)


def read_allowance(store: Store) -> Allowance:
    try:
        return Allowance.model_validate_json(store.get(STATE_KEY).data)
    except (ObjectMissing, ValidationError):
        return Allowance()


def pause_reason(store: Store, tags: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> Callable[[], str]:
    """A function that says why the work with these tags is to pause, "" while it is not.

    It looks into the store every few seconds at most; while that is away, what it saw last holds.
    """
    seen, looked_at = "", float("-inf")

    def reason() -> str:
        nonlocal seen, looked_at
        if clock() - looked_at >= LOOK_S:
            looked_at = clock()
            try:
                stopped = read_allowance(store).find(tags.get("team", ""), tags.get("project", ""), clock())
            except StoreError:
                return seen
            seen = stopped.reason if stopped is not None and stopped.pause else ""
        return seen

    return reason
