"""One look at a living cluster for what does useful work: the `Seen` that `heliostat.meter.waste` judges.

From Ray's state API (nodes, actors, calls, placement groups, jobs), from what replicas report to the store, and from
the ends of the spool files that training writes. Nothing is changed. Some ten requests on the dashboard, which take a
few hundredths of a second; it is done every few seconds, so the GCS, which needs a process for each question, is not
asked.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from heliostat.cluster.autoscaling import LABEL_GROUP
from heliostat.cluster.nodes import read_nodes
from heliostat.cluster.snapshot import DashboardReader
from heliostat.definition import ClusterDefinition
from heliostat.definition import load as load_definition
from heliostat.events import Event, read_tail
from heliostat.meter.facts import Place
from heliostat.meter.prices import from_catalogue
from heliostat.meter.waste import BUSY_SHARE, Holder, Rank, Seen, SeenGroup, SeenNode
from heliostat.serve.desired import read_desired
from heliostat.serve.reports import living, read_reports
from heliostat.settings import Settings
from heliostat.store import Store

Row = Mapping[str, Any]  # Any: JSON of Ray's API
KEEP_UNTIL = "HELIOSTAT_KEEP_UNTIL"
"""A day in the runtime environment's variables of a job or an actor: leave it alone until then."""
TAIL = 256 * 1024
RECENT_S = 2 * 86_400.0
_CALLS = 10_000


def definition_of(settings: Settings) -> ClusterDefinition | None:
    """Of an embedded cluster; None where it is not known here."""
    if settings.state_dir is None:
        return None
    # By the settings, not by name: the controller has no HELIOSTAT_HOME.
    record = settings.state_dir / "cluster.json"
    if not record.exists():
        return None
    return load_definition(Path(json.loads(record.read_text())["definition_path"]))


def look(settings: Settings, store: Store, *, at: float, definition: ClusterDefinition | None = None) -> Seen:
    """Raises ClusterNotUp where the dashboard does not answer."""
    get = DashboardReader(settings)
    actors = get.state("actors", "state", "ALIVE", predicate="=")
    started = _details(get, actors)
    facts = Facts(
        nodes=[row for row in get.state("nodes", "state", "ALIVE", predicate="=") if not row.get("is_head_node")],
        actors=[{**row, **started.get(row["actor_id"], {})} for row in actors],
        tasks=[row for row in get.state("tasks", "state", "FINISHED") if row.get("state", "").startswith("RUNNING")],
        bundles=[row for row in get.state("placement_groups", "state", "REMOVED") if row.get("state") == "CREATED"],
        jobs=[row for row in get("/api/jobs/") if row.get("submission_id")],
        calls={row["actor_id"]: _calls(get, row["actor_id"]) for row in actors if _gpus(row) and _is_somebodys(row)},
        apps={app.name: living(read_reports(store, app.name), at) for app in read_desired(store)},
        training=_training(settings.spool, at) if settings.spool.is_dir() else {},
        shared_spool=settings.state_dir is not None,
        names={node.ray_node_id: node.node_id for node in read_nodes(settings.state_dir) if node.ray_node_id}
        if settings.state_dir
        else {},
    )
    return make_seen(facts, groups=_groups(definition, facts), at=at)


@dataclass(frozen=True)
class Progress:
    """What the ends of a run's spool files tell: the last step, and what its ranks say since."""

    step: int = 0
    step_at: float | None = None
    ranks: tuple[Rank, ...] = ()
    world: int = 1
    team: str = ""
    project: str = ""


@dataclass(frozen=True)
class Facts:
    """What was read. `calls`: (last call's end, or None; whether one runs) of each actor that is not the platform's."""

    nodes: Sequence[Row] = ()
    actors: Sequence[Row] = ()
    tasks: Sequence[Row] = ()
    bundles: Sequence[Row] = ()
    jobs: Sequence[Row] = ()
    calls: Mapping[str, tuple[float | None, bool]] = field(default_factory=dict)
    apps: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # Any: ReplicaReport
    training: Mapping[str, Progress] = field(default_factory=dict)
    shared_spool: bool = True
    names: Mapping[str, str] = field(default_factory=dict)  # the provider's names of nodes, by Ray's ids


def make_seen(facts: Facts, *, groups: Sequence[SeenGroup], at: float) -> Seen:
    """Pure."""
    group_of = {row["node_id"]: (row.get("labels") or {}).get(LABEL_GROUP, "") for row in facts.nodes}
    # Ray's own name of a node is its address, which several may share.
    name_of = {row["node_id"]: facts.names.get(row["node_id"]) or _made_up(row) for row in facts.nodes}
    runs = {row.get("job_id"): row for row in facts.jobs if (row.get("metadata") or {}).get("heliostat_run")}
    holders = [
        *_apps(facts, group_of, at),
        *_runs(facts, runs, group_of, name_of),
        *_actors(facts, runs, group_of, name_of, at),
        *_unmeasured(facts, runs, group_of),
    ]
    return Seen(at, tuple(holders), tuple(_nodes(facts, group_of, name_of)), tuple(groups))


# --- holders


def _apps(facts: Facts, group_of: Mapping[str, str], at: float) -> Iterator[Holder]:
    replicas = defaultdict(list)
    for row in facts.actors:
        if (app := _app_of(row)) is not None and _gpus(row):
            replicas[app].append(row)
    for app, rows in replicas.items():
        reports = facts.apps.get(app, ())
        since = min((report.loaded_at for report in reports), default=None)
        last = max((report.last_request_at for report in reports), default=None)
        requests = sum(report.requests for report in reports)
        yield Holder(
            "app",
            app,
            app,
            group_of.get(rows[0].get("node_id") or "", ""),
            sum(map(_gpus, rows)),
            since if since is not None else at,
            None if last is None or since is None else max(last, since) if requests else since,
            "a request",
            nodes=_on(rows),
            note=f"{len(rows)} replica{'s' if len(rows) > 1 else ''}, {requests} requests answered",
            duty=_duty(rows),
        )


def _runs(
    facts: Facts, runs: Mapping[Any, Row], group_of: Mapping[str, str], name_of: Mapping[str, str]
) -> Iterator[Holder]:
    for job_id, job in runs.items():
        if job.get("status") != "RUNNING":
            continue
        run = job["metadata"]["heliostat_run"]
        rows = [row for row in facts.actors if row.get("job_id") == job_id and _gpus(row)]
        gpus = max(sum(map(_gpus, rows)), _reserved(facts, job_id))
        if not gpus:
            continue
        told = facts.training.get(run)
        since = min((row["started_at"] for row in rows if row.get("started_at")), default=_ms(job.get("start_time")))
        step_at = told.step_at if told else None
        # Without the spool of its nodes nobody here knows whether it does steps.
        measured = facts.shared_spool or told is not None
        yield Holder(
            "job",
            job["metadata"].get("job") or run,
            job["submission_id"],
            group_of.get(rows[0].get("node_id") or "", "") if rows else "",
            gpus,
            since,
            (step_at or since) if measured else None,
            "a step",
            team=told.team if told else "",
            project=told.project if told else "",
            nodes=_on(rows),
            note=f"run {run}, {told.step if told else 0} steps done",
            duty=_duty(rows),
            ranks=told.ranks if told else (),
            world=told.world if told else 1,
            keep_until=_keep_until(job.get("runtime_env")),
        )


def _actors(
    facts: Facts, runs: Mapping[Any, Row], group_of: Mapping[str, str], name_of: Mapping[str, str], at: float
) -> Iterator[Holder]:
    """GPU actors that belong to no run and no application: of notebooks, and of scripts."""
    owners = {row.get("job_id"): row["submission_id"] for row in facts.jobs}
    for row in facts.actors:
        if not _gpus(row) or not _is_somebodys(row) or row.get("job_id") in runs:
            continue
        last, runs_now = facts.calls.get(row["actor_id"], (None, False))
        duty = _duty([row])
        since = row.get("started_at") or at
        working = duty >= BUSY_SHARE if duty is not None else runs_now
        owner = owners.get(row.get("job_id"))
        yield Holder(
            "actor",
            _name(row),
            row["actor_id"],
            group_of.get(row.get("node_id") or "", ""),
            _gpus(row),
            since,
            at if working else max(since, last or since),
            "a call",
            nodes=_on([row]),
            note=f"class {row.get('class_name')} of {f'job {owner}' if owner else 'a notebook or script'}"
            f" on {name_of.get(row.get('node_id') or '', 'a node')}",
            duty=duty,
            keep_until=_keep_until(row.get("serialized_runtime_env")),
        )


def _unmeasured(facts: Facts, runs: Mapping[Any, Row], group_of: Mapping[str, str]) -> Iterator[Holder]:
    """Plain tasks with GPUs: they run, and nobody counts what they do."""
    for row in facts.tasks:
        if row.get("type") == "NORMAL_TASK" and _gpus(row) and row.get("job_id") not in runs:
            group = group_of.get(row.get("node_id") or "", "")
            since = _ms(row.get("start_time_ms"))
            yield Holder("job", row.get("name") or "a task", row["task_id"], group, _gpus(row), since, None, "a step")


# --- nodes


def _nodes(facts: Facts, group_of: Mapping[str, str], name_of: Mapping[str, str]) -> Iterator[SeenNode]:
    held: dict[str, float] = defaultdict(float)
    kept: dict[str, list[Row]] = defaultdict(list)
    in_bundles: dict[str, float] = defaultdict(float)
    for group in facts.bundles:
        for bundle in group.get("bundles") or ():
            in_bundles[bundle.get("node_id") or ""] += _gpus(bundle, "unit_resources")
    for row in (*facts.actors, *(task for task in facts.tasks if task.get("type") == "NORMAL_TASK")):
        node = row.get("node_id") or ""
        held[node] += 0.0 if row.get("placement_group_id") else _gpus(row)
        if row.get("actor_id") and row.get("class_name") and not _gpus(row) and _is_somebodys(row):
            kept[node].append(row)
    for row in facts.nodes:
        node, total = row["node_id"], _gpus(row, "resources_total")
        keepers = kept.get(node, [])
        days = [day for keeper in keepers if (day := _keep_until(keeper.get("serialized_runtime_env")))]
        yield SeenNode(
            name_of[node],
            group_of[node],
            total,
            max(0.0, total - held[node] - in_bundles[node]),
            _ms(row.get("start_time_ms")),
            tuple((keeper["actor_id"], _name(keeper)) for keeper in keepers),
            max(days, default=None),
        )


def _groups(definition: ClusterDefinition | None, facts: Facts) -> list[SeenGroup]:
    if definition is None:
        names = {(row.get("labels") or {}).get(LABEL_GROUP, "") for row in facts.nodes}
        return [SeenGroup(name, 0) for name in sorted(names)]
    found = []
    for name, group in definition.groups.items():
        prices = from_catalogue([Place(name, group.market, group.instance or "", group.zone or "")])
        found.append(SeenGroup(name, group.nodes.low, prices[0].usd_per_gpu_hour if prices else None))
    return found


# --- rows


def _gpus(row: Row, key: str = "required_resources") -> float:
    amounts = row.get(key) or {}
    return float(
        next((amount for name, amount in amounts.items() if name == "GPU" or name.startswith("GPU_group_")), 0)
    )


def _reserved(facts: Facts, job_id: Any) -> float:  # Any: Ray's id, or None
    groups = [group for group in facts.bundles if group.get("creator_job_id") == job_id]
    return sum(_gpus(bundle, "unit_resources") for group in groups for bundle in group.get("bundles") or ())


def _app_of(row: Row) -> str | None:
    name = row.get("name") or ""
    return name.removeprefix("SERVE_REPLICA::").split("#")[0] if name.startswith("SERVE_REPLICA::") else None


def _is_somebodys(row: Row) -> bool:
    """Not an actor of Serve's or of Ray's own, which come and go by their own rules."""
    return not (row.get("name") or "").startswith(("SERVE_", "_ray", "JobSupervisor", "_")) and (
        row.get("class_name") not in ("JobSupervisor", "Keeper", "ServeController", "ProxyActor")
    )


def _name(row: Row) -> str:
    return row.get("name") or f"{row.get('class_name') or 'actor'}-{row['actor_id'][:8]}"


def _on(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(sorted({row["node_id"] for row in rows if row.get("node_id")}))


def _duty(rows: Sequence[Row]) -> float | None:
    """Mean share of their devices' time, as NVML has it; None where no device is seen."""
    shares = [share for row in rows for share in row.get("gpu_shares", ())]
    return sum(shares) / len(shares) if shares else None


def _ms(value: Any) -> float:  # Any: a number, or nothing
    return float(value or 0) / 1000


def _made_up(node: Row) -> str:
    return f"{(node.get('labels') or {}).get(LABEL_GROUP) or 'node'}-{node['node_id'][:8]}"


def _keep_until(environment: Any) -> date | None:  # Any: JSON, or its text
    try:
        given = json.loads(environment) if isinstance(environment, str) else environment or {}
        return date.fromisoformat(given["env_vars"][KEEP_UNTIL])
    except (KeyError, TypeError, ValueError):
        return None


# --- reading


def _details(get: DashboardReader, actors: Sequence[Row]) -> dict[str, dict[str, Any]]:  # Any: numbers
    """When each actor started and what its devices do: the state API has neither."""
    if not actors:
        return {}
    rows = get("/logical/actors", ids=",".join(row["actor_id"] for row in actors), nocache=1)
    found = {}
    for actor_id, row in (rows.get("data", {}).get("actors") or {}).items():
        gpus = row.get("gpus") or ()
        shares = [float(gpu["utilizationGpu"]) / 100 for gpu in gpus if gpu.get("utilizationGpu") is not None]
        found[actor_id] = {"started_at": _ms(row.get("startTime")) or None, "gpu_shares": shares}
    return found


def _calls(get: DashboardReader, actor_id: str) -> tuple[float | None, bool]:
    """(when its last call ended, whether one runs)."""
    rows = get.state("tasks", "actor_id", actor_id, predicate="=", limit=_CALLS)
    rows = [row for row in rows if row.get("type") == "ACTOR_TASK"]
    ends = [_ms(row["end_time_ms"]) for row in rows if row.get("end_time_ms")]
    return max(ends, default=None), any(row.get("state", "").startswith("RUNNING") for row in rows)


def _training(spool: Path, at: float) -> dict[str, Progress]:
    """By run. Only files that were written lately are read, and of each its end."""
    events: dict[str, list[Event]] = defaultdict(list)
    for path in spool.glob("train-*.jsonl"):
        try:
            if at - path.stat().st_mtime < RECENT_S:
                for event in read_tail(path, limit=TAIL):
                    events[str(event.fields.get("run", ""))].append(event)
        except OSError:
            continue  # removed meanwhile
    return {run: progress_of(rows) for run, rows in events.items()}


def progress_of(events: Sequence[Event]) -> Progress:
    """Of one run, from its events in any order. What a rank said before the last step no longer holds."""
    ordered = sorted(events, key=lambda event: event.time_s)
    steps = [event for event in ordered if event.kind == "step"]
    last = steps[-1] if steps else None
    said: dict[int, Rank] = {}
    world = max((int(e.fields.get("world") or 1) for e in ordered), default=1)
    newest = _newest_attempt(ordered)
    for event in ordered:
        given = event.fields
        if event.kind != "no_progress" or (last is not None and event.time_s < last.time_s):
            continue
        if given.get("attempt") == newest:
            node, doing = str(given.get("node", "")), str(given.get("doing", ""))
            said[int(given["rank"])] = Rank(int(given["rank"]), node, given.get("collectives"), doing)
    about = ordered[-1].fields if ordered else {}
    return Progress(
        int(last.fields["step"]) if last else 0,
        last.time_s if last else None,
        tuple(said[rank] for rank in sorted(said)),
        world,
        str(about.get("team", "")),
        str(about.get("project", "")),
    )


def _newest_attempt(events: Sequence[Event]) -> Any:  # Any: its name, or None
    return next((e.fields["attempt"] for e in reversed(events) if e.fields.get("attempt")), None)
