"""What each replica says of itself, in the store: which version it serves, and when it last answered.

The release is done only when every living replica reports the version it asked for; the controller reads here
whether an application is idle. A report lies at `apps/<app>/replicas/<replica>.json` and is overwritten by its one
writer, the replica.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from heliostat.errors import ObjectMissing
from heliostat.promote.tally import Tally
from heliostat.store import Store

# A replica that has not reported for this long is taken for gone.
FRESH_S = 8.0


class ReplicaReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    app: str
    replica: str
    node: str
    version: int
    digest: str
    loaded_at: float  # seconds since the epoch, like all times here
    requests: int
    last_request_at: float
    queued_tokens: int
    teams: dict[str, dict[str, int]] = {}  # requests, items and tokens by the team of the key that asked
    gpus: float = 1.0
    busy_s: dict[str, float] = {}  # seconds of answering by team, since the last `replica_busy`
    error: str | None = None  # why a newer version could not be loaded
    trial: Tally | None = None  # what it has seen of the release that goes on
    reported_at: float = 0.0


def write_report(store: Store, report: ReplicaReport) -> None:
    stamped = report.model_copy(update={"reported_at": time.time()})
    store.put(_key(report.app, report.replica), stamped.model_dump_json().encode())


def remove_report(store: Store, app: str, replica: str) -> None:
    store.delete(_key(app, replica))


def read_reports(store: Store, app: str) -> list[ReplicaReport]:
    """Every report of the application, of replicas that are gone too."""
    found = []
    for info in store.list(f"apps/{app}/replicas/"):
        try:
            found.append(ReplicaReport.model_validate_json(store.get(info.key).data))
        except ObjectMissing:  # removed since it was listed
            continue
    return found


def living(reports: list[ReplicaReport], now: float) -> list[ReplicaReport]:
    return [report for report in reports if now - report.reported_at < FRESH_S]


def _key(app: str, replica: str) -> str:
    return f"apps/{app}/replicas/{replica}.json"
