"""Budgets and alerts: what is granted, how it stands, what it stops, and that nobody is flooded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from heliostat.allowance import STATE_KEY, Allowance, Stopped, pause_reason, read_allowance
from heliostat.controller.budgets import BudgetsDuty, budget_alerts
from heliostat.controller.duty import World
from heliostat.definition import Budget, Budgets
from heliostat.errors import BudgetSpent, StoreUnreachable, UsageError
from heliostat.events import Spool, read_spool
from heliostat.meter import alerts, ledger
from heliostat.meter.alerts import Alert, Alertmanager, Webhook
from heliostat.meter.budget import (
    Granted,
    Standing,
    allowance,
    apply_definition,
    grant,
    read_budgets,
    standings,
    withdraw,
)
from heliostat.meter.facts import Use
from heliostat.sdk import Platform
from heliostat.serve.client import ServeClient
from heliostat.settings import Settings
from heliostat.store import Blob, Store
from tests.unit.meter.test_economics import HOUR_NUMBER, JOB, NOON, PRICES, RED, SPOT, rows

NOW = NOON.timestamp() + 1800
TABLE = rows((HOUR_NUMBER, SPOT, JOB, Use.TRAINING, 7200), (HOUR_NUMBER, SPOT, RED, Use.SERVING, 3600))


def granted(name: str = "red", scope: str = "team", **limits: object) -> Granted:
    return Granted.model_validate({"scope": scope, "name": name, "budget": Budget.model_validate(limits)})


def stand(*budgets: Granted, table: pa.Table = TABLE, now: float = NOW) -> list[Standing]:
    return standings(table, budgets, now=now, prices=PRICES)


def test_a_budget_stands_by_the_tighter_of_its_limits() -> None:
    (one,) = stand(granted(gpu_hours=6.0, usd=1.5))
    assert (one.gpu_hours, one.usd) == (pytest.approx(3.0), pytest.approx(1.5))
    assert (one.share, one.level, one.spent) == (pytest.approx(1.0), 1.0, True)
    assert [stand(granted(gpu_hours=limit))[0].level for limit in (7.0, 6.0, 3.75, 3.0, 1.0)] == [0, 0.5, 0.8, 1.0, 1.0]
    assert stand(granted("nobody", gpu_hours=1.0))[0].share == 0
    assert stand(granted("words", "project", gpu_hours=3.0))[0].spent


def test_what_is_spent_stops_as_the_budget_says() -> None:
    found = stand(
        granted(gpu_hours=1.0, at_limit="pause"),
        granted("words", "project", gpu_hours=1.0, at_limit="tell"),
    )
    made = allowance(found, now=NOW)
    stopped = made.find("red", "words", NOW)
    assert stopped is not None
    assert stopped.pause
    assert "3 of 1 GPU-hours" in stopped.reason
    assert made.find("blue", "words", NOW) is None  # told only
    assert made.find("red", "words", NOW + 31 * 86_400) is None  # another month


def test_pausing_goes_before_refusing() -> None:
    both = Allowance(
        month="2026-03", stopped={"team/red": Stopped(reason="a"), "project/words": Stopped(reason="b", pause=True)}
    )
    stopped = both.find("red", "words", NOW)
    assert stopped is not None
    assert stopped.reason == "b"


@pytest.mark.real
def test_the_definition_grants_once_and_a_raise_by_hand_holds_until_it_says_something_new(store: Store) -> None:
    first = Budgets(teams={"red": Budget(gpu_hours=10)}, projects={"words": Budget(usd=5)})
    assert {g.key for g in apply_definition(store, first, who="ada", now=1)} == {"team/red", "project/words"}
    assert apply_definition(store, first, who="ada", now=2) == []
    grant(store, "team/red", Budget(gpu_hours=20), who="bob", why="deadline", now=3)
    assert apply_definition(store, first, who="ada", now=4) == []
    assert {g.key: g.budget.gpu_hours for g in read_budgets(store)}["team/red"] == 20
    again = Budgets(teams={"red": Budget(gpu_hours=12)})
    assert [g.key for g in apply_definition(store, again, who="ada", now=5)] == ["team/red"]
    assert {g.key: g.budget.gpu_hours for g in read_budgets(store)}["team/red"] == 12
    with pytest.raises(UsageError, match="names no budget"):
        grant(store, "red", Budget(gpu_hours=1), who="x", why="y", now=6)


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> Settings:
    """Of a cluster that nobody asks anything: only its store is there."""
    return Settings(
        cluster="c", store=store.settings, spool=tmp_path, gcs_address="", dashboard_url="http://127.0.0.1:1",
        serve_url="http://127.0.0.1:2",
    )  # fmt: skip


@pytest.mark.real
def test_the_duty_stops_a_team_that_has_spent_it_and_lets_it_go_after_a_raise(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(settings, store, ServeClient(settings), Spool(tmp_path, "controller"))
    monkeypatch.setattr(ledger, "read", lambda *_, **__: TABLE)  # three GPU-hours of red in March
    duty = BudgetsDuty()
    duty.act(world, NOW)
    assert read_allowance(store) == Allowance()
    grant(store, "team/red", Budget(gpu_hours=1, at_limit="pause"), who="ada", why="test", now=NOW)
    duty.act(world, NOW)
    duty.act(world, NOW + 15)
    asked = pause_reason(store, {"team": "red"}, clock=lambda: NOW)
    assert "3 of 1 GPU-hours" in asked()
    assert pause_reason(store, {"team": "blue"}, clock=lambda: NOW)() == ""
    grant(store, "team/red", Budget(gpu_hours=5, at_limit="pause"), who="ada", why="raise", now=NOW)
    BudgetsDuty().act(world, NOW + 30)  # another process: what was said lies in the store
    assert read_allowance(store).stopped == {}
    assert [event.kind for event in read_spool(tmp_path)] == ["budget_spent", "budget_open"]
    assert list(alerts.known_alerts(store)) == ["budget/team/red"]  # half of five


@pytest.mark.real
def test_a_raise_holds_before_the_controller_has_seen_it(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Platform(settings)
    said = Allowance(month=f"{datetime.now(UTC):%Y-%m}", stopped={"project/words": Stopped(reason="spent long ago")})
    store.put(STATE_KEY, said.model_dump_json().encode())
    monkeypatch.setattr(platform, "budgets", lambda: stand(granted("words", "project", gpu_hours=3.0)))
    with pytest.raises(BudgetSpent, match="set project/words") as refused:
        platform.jobs._check_budget("j", "red", "words")
    assert "of 3 GPU-hours" in refused.value.what  # as it is now, not as it was said
    monkeypatch.setattr(platform, "budgets", lambda: stand(granted("words", "project", gpu_hours=9.0)))
    platform.jobs._check_budget("j", "red", "words")


@pytest.mark.real
def test_only_a_budget_that_there_is_can_be_withdrawn(store: Store) -> None:
    grant(store, "team/red", Budget(gpu_hours=20), who="bob", why="deadline", now=3)
    with pytest.raises(UsageError, match="one of: team/red"):
        withdraw(store, "team/rde")
    withdraw(store, "team/red")
    assert read_budgets(store) == []


class Flaky:
    """A store that answers once and is away from then on."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data

    def get(self, key: str) -> Blob:
        data, self.data = self.data, None
        if data is None:
            raise StoreUnreachable("nothing answers")
        return Blob(data=data, etag="etag")


def test_while_the_store_is_away_what_was_read_last_holds() -> None:
    said = Allowance(month="2026-03", stopped={"team/red": Stopped(reason="spent", pause=True)})
    now = NOW
    asked = pause_reason(cast("Store", Flaky(said.model_dump_json().encode())), {"team": "red"}, clock=lambda: now)
    assert asked() == "spent"
    now += 60
    assert asked() == "spent"


# --- alerts


def alert(key: str = "budget/team/red", severity: alerts.Severity = "warning") -> Alert:
    return Alert(key, "HeliostatBudget", severity, f"{key} is at 80%", {"team": "red"})


class Taken:
    """A target that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bool, str]] = []
        self.works = True

    def send(self, alert: Alert, *, since: float, over: bool, note: str) -> None:
        if not self.works:
            raise OSError("away")
        self.got.append((alert.severity, over, note))


@pytest.mark.real
def test_an_alert_is_told_once_then_graver_then_daily_then_over(store: Store) -> None:
    to = Taken()

    def tell(now: float, *given: Alert) -> None:
        alerts.tell(store, given, source="budget", now=now, to=[to])

    for now in range(0, 3000, 15):
        tell(now, alert())
    assert to.got == [("warning", False, "")]
    tell(3000, alert(severity="critical"))
    tell(3015, alert(severity="warning"))  # it got better: nothing to say
    tell(3000 + 86_400, alert(severity="critical"))
    assert [severity for severity, _, _ in to.got] == ["warning", "critical", "critical"]
    alerts.tell(store, [], source="waste", now=90_000, to=[to])  # another source does not end it
    tell(90_015)
    tell(90_030)
    assert to.got[-1] == ("critical", True, "")
    assert len(to.got) == 4


@pytest.mark.real
def test_a_hundred_alerts_are_no_flood_and_none_is_lost(store: Store) -> None:
    to = Taken()
    many = [alert(f"budget/team/t{n}") for n in range(100)]
    for now in range(0, 3600, 600):
        alerts.tell(store, many, source="budget", now=now, to=[to])
    assert len(to.got) == alerts.HOURLY
    for hour in range(1, 10):
        alerts.tell(store, many, source="budget", now=3601 * hour, to=[to])
    assert len(to.got) == 100
    assert any("held back" in note for _, _, note in to.got)


@pytest.mark.real
def test_what_a_target_did_not_take_is_told_again(store: Store) -> None:
    to = Taken()
    to.works = False
    assert alerts.tell(store, [alert()], source="budget", now=0, to=[to]) == []
    to.works = True
    assert alerts.tell(store, [alert()], source="budget", now=15, to=[to]) == ["budget/team/red"]


@pytest.fixture
def http() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """A real server on loopback: (its address, what was posted to it)."""
    got: list[tuple[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_the_forms_are_slacks_and_alertmanagers(http: tuple[str, list[tuple[str, object]]]) -> None:
    url, got = http
    found = alerts.targets({"HELIOSTAT_ALERT_WEBHOOK": f"{url}/services/x", "HELIOSTAT_ALERTMANAGER": url})
    assert found == [Webhook(f"{url}/services/x"), Alertmanager(url)]
    for target in found:
        target.send(alert(), since=NOW, over=False, note="")
    (_, slack), (path, (one,)) = got  # type: ignore[misc]
    assert slack == {"text": "*Warning*: budget/team/red is at 80%"}
    assert path == "/api/v2/alerts"
    assert one["labels"] == {
        "alertname": "HeliostatBudget", "severity": "warning", "key": "budget/team/red", "team": "red",
    }  # fmt: skip
    assert datetime.fromisoformat(one["endsAt"]) > datetime.now(UTC)


def test_a_spent_budget_says_what_follows_and_that_applications_go_on() -> None:
    (one,) = stand(granted(gpu_hours=1.0, at_limit="pause"))
    (told,) = budget_alerts(one)
    assert told.severity == "critical"
    assert "trainings pause" in told.summary
    assert "applications go on" in told.summary


def test_the_forecast_is_told_before_the_limit_is_reached() -> None:
    two_days = rows(*((HOUR_NUMBER - 24 * n, SPOT, JOB, Use.TRAINING, 3600) for n in range(3)))
    (one,) = stand(granted(gpu_hours=10.0), table=two_days)
    assert one.level == 0
    assert [told.name for told in budget_alerts(one)] == ["HeliostatBudgetForecast"]
