"""What the status page shows, read from a living platform. Nothing is changed; a part that cannot be read is left out.

A page about a cluster in trouble must still come: so what does not answer becomes an empty section, not an error.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from heliostat.cluster.snapshot import take_snapshot
from heliostat.controller.waste import read_state
from heliostat.definition import ClusterDefinition
from heliostat.errors import HeliostatError
from heliostat.events import Event, read_tail
from heliostat.meter import ledger
from heliostat.meter.facts import Use
from heliostat.pages.status import AppView, GroupView, JobView, ReleaseView, StatusView
from heliostat.plan.why import Answer, Snapshot, explain_all
from heliostat.registry import list_aliases, list_models
from heliostat.serve.client import ServeClient
from heliostat.serve.desired import read_desired, with_releases
from heliostat.serve.reports import living, read_reports
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train.queued import QUEUED, beside, queue_rows, with_queue
from heliostat.train.submit import FINISHED, JobRow, list_jobs

HOURS = 24
JOBS = 12
RELEASES = 12
POINTS = 60
TAIL = 512 * 1024
T = TypeVar("T")


def gather(
    settings: Settings,
    store: Store,
    definition: ClusterDefinition,
    *,
    up: bool,
    say: Callable[[str], None] = lambda _: None,
) -> StatusView:
    """Of now. `say` is told what could not be read."""
    now = time.time()

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except HeliostatError as error:
            say(f"{what}: {error}")
            return otherwise

    snapshot = attempt("groups", lambda: take_snapshot(settings, definition), None) if up else None
    queued: Sequence[JobRow] = attempt("the queue", lambda: queue_rows(store), ())
    if snapshot is not None:
        seen = with_queue(snapshot, queued)
        snapshot = attempt("releases", lambda: with_releases(store, seen, definition.applications), seen)
    waiting: Sequence[Answer] = explain_all(snapshot) if snapshot else ()
    return StatusView(
        settings.cluster,
        up,
        now,
        settings.dashboard_url,
        settings.serve_url,
        groups=_groups(definition, snapshot),
        waiting=waiting,
        apps=attempt("applications", lambda: _apps(settings, store, now, up=up), ()),
        jobs=attempt("jobs", lambda: _jobs(settings, queued), ()) if up else (),
        releases=attempt("releases", lambda: _releases(store), ()),
        waste=attempt("waste", lambda: read_state(store).findings, ()),
        hours=attempt("GPU time", lambda: _hours(store, now), ()),
    )


def _groups(definition: ClusterDefinition, snapshot: Snapshot | None) -> list[GroupView]:
    views = []
    for name, group in definition.groups.items():
        nodes = [node for node in snapshot.nodes if node.group == name] if snapshot else []
        ready = [node for node in nodes if node.ready]
        resource = group.device.ray_resource
        free = sum(node.free.get(resource, 0.0) for node in ready) / max(1, group.device.ray_units)
        machine = " ".join(part for part in (group.instance, group.accelerator) if part)
        views.append(
            GroupView(
                name, group.role, group.market, group.nodes.low, group.nodes.high, len(ready), len(nodes) - len(ready),
                group.gpus, max(0.0, len(ready) * group.gpus - free), machine,
            )
        )  # fmt: skip
    return views


def _apps(settings: Settings, store: Store, now: float, *, up: bool) -> list[AppView]:
    statuses = ServeClient(settings).statuses() if up else {}
    views = []
    for app in read_desired(store):
        reports = living(read_reports(store, app.name), now)
        status = statuses.get(app.name)
        views.append(
            AppView(
                app.name, status.status if status else "asleep", status.message if status else "",
                status.replicas if status else 0, app.spec.model,
                max((report.version for report in reports), default=None), sum(report.requests for report in reports),
                max((report.last_request_at for report in reports if report.requests), default=None),
                app.spec.route, app.spec.group,
            )
        )  # fmt: skip
    return views


def _jobs(settings: Settings, queued: Sequence[JobRow]) -> list[JobView]:
    """The newest ones, with the steps and losses that their rank 0 told; those that run first, then the queue."""
    rows = list_jobs(settings)[::-1]
    rows += beside(queued, {row.job_id for row in rows})
    rows = sorted(rows, key=lambda row: (row.status in FINISHED, row.status == QUEUED))[:JOBS]
    steps: dict[str, list[Event]] = defaultdict(list)
    for row in rows:
        for path in settings.spool.glob(f"train-{row.run}-0-*.jsonl") if row.run else ():
            steps[row.run] += [event for event in read_tail(path, limit=TAIL) if event.kind == "step"]
    return [_job(row, sorted(steps[row.run], key=lambda event: event.time_s)) for row in rows]


def _job(row: JobRow, steps: Sequence[Event]) -> JobView:
    last = steps[-1].fields if steps else {}
    losses = [float(event.fields["loss"]) for event in steps if isinstance(event.fields.get("loss"), int | float)]
    every = max(1, len(losses) // POINTS)
    # A submitted run is named <job>-<day>-<time>-<random>.
    job = row.run.rsplit("-", 3)[0] if row.run.count("-") >= 3 else row.run
    return JobView(
        row.run or row.job_id, job or row.job_id, row.status, int(last.get("step") or 0), int(last.get("total") or 0),
        tuple(losses[::every]), row.started_at, row.ended_at,
    )  # fmt: skip


def _releases(store: Store) -> list[ReleaseView]:
    moves = [
        ReleaseView(alias.name, alias.alias, move.to_version, move.at.timestamp(), move.who, move.why)
        for model in list_models(store)
        for alias in list_aliases(store, model)
        for move in alias.history
    ]
    return sorted(moves, key=lambda move: -move.at)[:RELEASES]


def _hours(store: Store, now: float) -> list[tuple[float, dict[str, float]]]:
    """GPU-seconds by class of each of the last hours, as the ledger has them; nothing is folded for it."""
    first = datetime.fromtimestamp(now, UTC) - timedelta(hours=HOURS - 1)
    rows = ledger.read(store, since=first.date(), columns=("hour", "use", "gpu_seconds"))
    start, end = int(first.timestamp() // 3600), int(now // 3600)
    hours: dict[int, dict[str, float]] = {hour: {} for hour in range(start, end + 1)}
    for row in rows.group_by(["hour", "use"]).aggregate([("gpu_seconds", "sum")]).to_pylist():
        if row["hour"] in hours and row["use"] != Use.OVERLAP.label:
            hours[row["hour"]][row["use"]] = row["gpu_seconds_sum"]
    return [(hour * 3600.0, uses) for hour, uses in hours.items()]
