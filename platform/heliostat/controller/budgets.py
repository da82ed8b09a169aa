"""Budgets hold when nobody looks: told on the way, jobs refused and training paused when they are spent."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from heliostat.allowance import STATE_KEY, Allowance, read_allowance
from heliostat.controller.duty import World
from heliostat.meter import alerts, ledger
from heliostat.meter.alerts import Alert, Severity
from heliostat.meter.budget import Standing, allowance, read_budgets, standings
from heliostat.meter.prices import from_catalogue
from heliostat.meter.report import columns_of, places

log = logging.getLogger(__name__)

PERIOD_S = 15.0


class BudgetsDuty:
    """By the ledger as it was folded last. It writes `budgets/state.json`, which others obey; it stops nothing."""

    period_s = PERIOD_S

    def __init__(self) -> None:
        self._said: Allowance | None = None
        self._told = True  # alerts of an earlier process may have to be called over

    def forget(self) -> None:
        self._said = None

    def act(self, world: World, now: float) -> None:
        budgets = read_budgets(world.store)
        if not budgets and self._said is None:
            self._said = read_allowance(world.store)
        found: list[Standing] = []
        if budgets:
            first = datetime.fromtimestamp(now, UTC).date().replace(day=1)
            rows = ledger.read(world.store, since=first, columns=columns_of(("team", "project", "day")))
            found = standings(rows, budgets, now=now, prices=from_catalogue(places(rows)))
        self._say(world, allowance(found, now=now))
        if budgets or self._told:
            self._told = bool(budgets)
            alerts.tell(world.store, [a for each in found for a in budget_alerts(each)], source="budget", now=now)

    def _say(self, world: World, wanted: Allowance) -> None:
        before = self._said if self._said is not None else read_allowance(world.store)
        if wanted.stopped == before.stopped and (wanted.month == before.month or not wanted.stopped):
            self._said = before
            return
        world.store.put(STATE_KEY, wanted.model_dump_json().encode())
        for key in sorted(set(wanted.stopped) - set(before.stopped)):
            world.spool.emit("budget_spent", budget=key, reason=wanted.stopped[key].reason)
        for key in sorted(set(before.stopped) - set(wanted.stopped)):
            world.spool.emit("budget_open", budget=key)
        self._said = wanted
        log.info("budgets stop: %s", ", ".join(sorted(wanted.stopped)) or "nothing")


def budget_alerts(standing: Standing) -> list[Alert]:
    """The step that was reached, and apart from it the forecast."""
    labels = {str(standing.granted.scope): standing.granted.name}
    found = []
    if standing.level:
        severity: Severity = "critical" if standing.spent else "warning" if standing.level >= 0.8 else "info"
        follows = {
            "tell": "nothing is stopped", "refuse": "new jobs are refused",
            "pause": "new jobs are refused, trainings pause at a saved step",
        }[standing.granted.budget.at_limit]  # fmt: skip
        then = f"; {follows}, applications go on" if standing.spent else ""
        text = f"{standing.words}: {standing.share:.0%}{then}"
        found.append(Alert(f"budget/{standing.key}", "HeliostatBudget", severity, text, labels))
    if standing.forecast_share > 1 and not standing.spent:
        text = f"{standing.words}; at this pace it will be {standing.forecast_share:.0%} by the end of the month"
        found.append(Alert(f"budget/{standing.key}/forecast", "HeliostatBudgetForecast", "warning", text, labels))
    return found
