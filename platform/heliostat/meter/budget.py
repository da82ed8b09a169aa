"""Budgets: what a team or a project may spend in a month, how much it has, and what follows. Pure but for the store.

    budgets/<team|project>/<name>.json    what is granted: by the definition, or by hand since (`heliostat cost budget`)

The ladder: told at half, at four fifths and at all of it, and once where the forecast goes beyond; at all of it new
jobs are refused, and with `pause` trainings are paused at a saved step. Nothing here stops an application.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.allowance import Allowance, Stopped
from heliostat.definition import Budget, Budgets
from heliostat.errors import ObjectMissing, UsageError
from heliostat.meter.economics import forecast
from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import Line, report
from heliostat.names import check_name
from heliostat.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "budgets/"
STEPS = (0.5, 0.8, 1.0)
Scope = Literal["team", "project"]


class Granted(BaseModel):
    """One budget as it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: Scope
    name: str
    budget: Budget
    defined: Budget | None = None
    """What the definition said when it was last applied: a change there takes over, a repeat does not."""
    who: str = ""
    why: str = ""
    at: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.scope}/{self.name}"


@dataclass(frozen=True)
class Standing:
    """How a budget stands. Shares are of the tighter of its two limits."""

    key: str
    granted: Granted
    gpu_hours: float
    usd: float
    share: float
    forecast_share: float
    unpriced_gpu_hours: float = 0.0

    @property
    def level(self) -> float:
        """The highest step reached; 0 below the first."""
        return max((step for step in STEPS if self.share >= step), default=0.0)

    @property
    def spent(self) -> bool:
        return self.share >= 1.0

    @property
    def words(self) -> str:
        """team violet has used 10.2 of 10 GPU-hours"""
        budget = self.granted.budget
        used = []
        if budget.gpu_hours is not None:
            used.append(f"{self.gpu_hours:,.4g} of {budget.gpu_hours:,.4g} GPU-hours")
        if budget.usd is not None:
            used.append(f"{self.usd:,.2f} of {budget.usd:,.2f} USD")
        return f"{self.granted.scope} {self.granted.name} has used {' and '.join(used)} this month"


def read_budgets(store: Store) -> list[Granted]:
    found = []
    for info in store.list(FOLDER):
        if info.key.count("/") == 2:
            try:
                found.append(Granted.model_validate_json(store.get(info.key).data))
            except (ObjectMissing, ValidationError):  # withdrawn since, or no budget
                continue
    return sorted(found, key=lambda granted: granted.key)


def grant(store: Store, key: str, budget: Budget, *, who: str, why: str, now: float) -> Granted:
    """Set a budget by hand; it holds until it is set again, or the definition is changed. `key` is team/<name> or
    project/<name>. Raises UsageError."""
    scope, name = parse_key(key)
    before = next((granted for granted in read_budgets(store) if granted.key == key), None)
    defined = before.defined if before else None
    made = Granted(scope=scope, name=name, budget=budget, defined=defined, who=who, why=why, at=now)
    _write(store, made)
    return made


def withdraw(store: Store, key: str) -> None:
    """Raises UsageError where there is none of that name."""
    parse_key(key)
    known = [granted.key for granted in read_budgets(store)]
    if key not in known:
        raise UsageError(f"there is no budget {key!r}", do=f"one of: {', '.join(known) or 'none is set'}")
    store.delete(f"{FOLDER}{key}.json")


def apply_definition(store: Store, budgets: Budgets, *, who: str, now: float) -> list[Granted]:
    """Grant what the definition says, where it says something new. Returns what was changed."""
    known = {granted.key: granted for granted in read_budgets(store)}
    changed = []
    for scope, entries in (("team", budgets.teams), ("project", budgets.projects)):
        for name, budget in entries.items():
            before = known.get(f"{scope}/{name}")
            if before is None or before.defined != budget:
                made = Granted.model_validate(
                    {"scope": scope, "name": name, "budget": budget, "defined": budget, "who": who, "at": now}
                    | {"why": "the definition"}
                )
                _write(store, made)
                changed.append(made)
    return changed


def parse_key(key: str) -> tuple[Scope, str]:
    scope, _, name = key.partition("/")
    if scope not in ("team", "project") or not name:
        raise UsageError(f"{key!r} names no budget", do="write team/NAME or project/NAME")
    return ("team" if scope == "team" else "project"), check_name(name, what=scope)


def _write(store: Store, granted: Granted) -> None:
    store.put(f"{FOLDER}{granted.key}.json", granted.model_dump_json().encode())


def standings(
    rows: pa.Table, budgets: Iterable[Granted], *, now: float, prices: Sequence[GpuPrice] = ()
) -> list[Standing]:
    """By the ledger's rows of this month, and none of another."""
    found = []
    lines = {scope: report(rows, by=[scope, "day"], prices=prices).lines for scope in ("team", "project")}
    for granted in budgets:
        mine = [line for line in lines[granted.scope] if line.keys[0] == granted.name]
        days = [_only_day(line) for line in mine]
        ahead = forecast(days, now)
        gpu_hours, usd = sum(line.held for line in mine) / 3600, sum(line.usd for line in mine)
        found.append(
            Standing(
                granted.key,
                granted,
                gpu_hours,
                usd,
                _share(granted.budget, gpu_hours, usd),
                _share(granted.budget, ahead.gpu_hours, ahead.usd) if ahead.days else 0.0,
                sum(line.unpriced_gpu_seconds for line in mine) / 3600,
            )
        )
    return found


def _only_day(line: Line) -> Line:
    return replace(line, keys=line.keys[1:])


def _share(budget: Budget, gpu_hours: float, usd: float) -> float:
    parts = [(gpu_hours, budget.gpu_hours), (usd, budget.usd)]
    return max((used / limit for used, limit in parts if limit), default=0.0)


def allowance(found: Sequence[Standing], *, now: float) -> Allowance:
    stopped = {
        standing.key: Stopped(
            reason=f"{standing.words}; its budget is spent", pause=standing.granted.budget.at_limit == "pause"
        )
        for standing in found
        if standing.spent and standing.granted.budget.at_limit != "tell"
    }
    return Allowance(month=f"{datetime.fromtimestamp(now, UTC):%Y-%m}", stopped=stopped)
