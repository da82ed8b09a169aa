"""Telling people, without floods: to the log, to a webhook that takes Slack's form, and to Alertmanager.

    alerts/state.json    of each alert: when it began, when it was told last, how grave it was then

An alert has a key. It is told when it is new, when it gets graver, and once a day while it lasts; and when it is over.
No more than a dozen go out in an hour, whatever happens: the rest are counted, and the next one says how many. Where a
target does not take it, the alert stays to be told; the log has it at once.

Targets come from the environment, as their addresses are secrets: HELIOSTAT_ALERT_WEBHOOK, HELIOSTAT_ALERTMANAGER.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.cluster.ray_env import ALERT_WEBHOOK, ALERTMANAGER
from heliostat.errors import ObjectMissing, StoreError
from heliostat.store import Store

log = logging.getLogger(__name__)

STATE_KEY = "alerts/state.json"
AGAIN_S = 86_400.0
HOURLY = 12
TIMEOUT_S = 3.0
Severity = Literal["info", "warning", "critical"]
_GRAVITY = {"info": 0, "warning": 1, "critical": 2}


@dataclass(frozen=True)
class Alert:
    """One thing to tell. `key` is the same as long as it is the same thing."""

    key: str
    name: str
    """For Alertmanager: CamelCase."""
    severity: Severity
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict)


class _Known(BaseModel):
    model_config = ConfigDict(frozen=True)

    since: float
    told_at: float
    severity: Severity
    name: str
    summary: str
    labels: dict[str, str]


class _State(BaseModel):
    model_config = ConfigDict(frozen=True)

    known: dict[str, _Known] = {}
    sent: list[float] = []
    """When alerts went out in the last hour."""
    held_back: int = 0


class Target(Protocol):
    """Where alerts go. Raises OSError, or an error of httpx, where it does not take them."""

    def send(self, alert: Alert, *, since: float, over: bool, note: str) -> None: ...


@dataclass(frozen=True)
class Webhook:
    """An incoming webhook of Slack, or of whatever takes {"text": ...}."""

    url: str

    def send(self, alert: Alert, *, since: float, over: bool, note: str) -> None:
        mark = "Resolved" if over else alert.severity.capitalize()
        _post(self.url, {"text": f"*{mark}*: {alert.summary}{note}"})


@dataclass(frozen=True)
class Alertmanager:
    """Its API v2. It forgets an alert that is not sent again in time, so that it is given an end a day ahead."""

    url: str

    def send(self, alert: Alert, *, since: float, over: bool, note: str) -> None:
        now = datetime.now(UTC)
        ends = now.timestamp() if over else now.timestamp() + AGAIN_S * 1.1
        _post(
            f"{self.url.rstrip('/')}/api/v2/alerts",
            [
                {
                    "labels": {"alertname": alert.name, "severity": alert.severity, "key": alert.key, **alert.labels},
                    "annotations": {"summary": alert.summary + note},
                    "startsAt": datetime.fromtimestamp(since, UTC).isoformat(),
                    "endsAt": datetime.fromtimestamp(ends, UTC).isoformat(),
                }
            ],
        )


def targets(env: Mapping[str, str] | None = None) -> list[Target]:
    """Those that the environment names."""
    env = os.environ if env is None else env
    found: list[Target] = []
    if url := env.get(ALERT_WEBHOOK):
        found.append(Webhook(url))
    if url := env.get(ALERTMANAGER):
        found.append(Alertmanager(url))
    return found


def tell(
    store: Store, alerts: Sequence[Alert], *, source: str, now: float, to: Sequence[Target] | None = None
) -> list[str]:
    """Make `alerts` all that `source` has to tell: what is new or graver goes out, what is missing is over.

    `source` is the first part of their keys: "budget" for "budget/team/violet". Returns the keys that were told. Told,
    then noted: killed in between, an alert goes out twice rather than never.
    """
    to = targets() if to is None else to
    state = _read(store)
    known, sent, held = dict(state.known), [at for at in state.sent if now - at < 3600], state.held_back
    told: list[str] = []
    current = {alert.key: alert for alert in alerts}
    for alert in alerts:
        before = known.get(alert.key)
        if before is not None and not _is_news(alert, before, now):
            continue
        since = before.since if before else now
        if len(sent) >= HOURLY:
            held += 1
            continue
        if _send(to, alert, since=since, over=False, note=_note(held)):
            sent.append(now)
            held = 0
            told.append(alert.key)
            known[alert.key] = _Known(
                since=since, told_at=now, severity=alert.severity, name=alert.name, summary=alert.summary,
                labels=dict(alert.labels),
            )  # fmt: skip
    for key in [key for key in known if key.partition("/")[0] == source and key not in current]:
        gone = known[key]
        alert = Alert(key, gone.name, gone.severity, gone.summary, gone.labels)
        if len(sent) < HOURLY and _send(to, alert, since=gone.since, over=True, note=""):
            sent.append(now)
            told.append(key)
            del known[key]
    after = _State(known=known, sent=sent, held_back=held)
    if after != state:
        store.put(STATE_KEY, after.model_dump_json().encode())
    return told


def _is_news(alert: Alert, before: _Known, now: float) -> bool:
    return _GRAVITY[alert.severity] > _GRAVITY[before.severity] or now - before.told_at >= AGAIN_S


def _note(held: int) -> str:
    return f" ({held} more alerts were held back within the hour: heliostat cost budget list)" if held else ""


def _send(to: Sequence[Target], alert: Alert, *, since: float, over: bool, note: str) -> bool:
    """Whether every target took it."""
    log.log(
        logging.INFO if over or alert.severity == "info" else logging.WARNING,
        "alert%s: %s%s",
        " over" if over else "",
        alert.summary,
        note,
    )
    import httpx

    took = True
    for target in to:
        try:
            target.send(alert, since=since, over=over, note=note)
        except (OSError, httpx.HTTPError) as error:
            log.warning("%s did not take the alert: %s", type(target).__name__, type(error).__name__)
            took = False
    return took


def _post(url: str, body: Any) -> None:  # Any: JSON
    import httpx

    httpx.post(url, json=body, timeout=TIMEOUT_S).raise_for_status()


def _read(store: Store) -> _State:
    try:
        return _State.model_validate_json(store.get(STATE_KEY).data)
    except (ObjectMissing, ValidationError):
        return _State()


def known_alerts(store: Store) -> dict[str, dict[str, Any]]:
    """What lasts now, by key: since, told_at, severity, name, summary, labels. {} where the store is away."""
    try:
        return {key: known.model_dump() for key, known in _read(store).known.items()}
    except StoreError:
        return {}
