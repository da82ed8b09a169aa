"""The state of a living embedded cluster as the snapshot that `heliostat.plan.why` judges.

Three sources, read one after another, so that they may be a second apart: Ray's state API on the dashboard (jobs,
tasks, actors, placement groups, applications), the GCS (what is free on each node, what the autoscaler was refused),
and the provider's records (nodes that start, before Ray knows of them). Nothing is changed.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from heliostat.cluster import autoscaling
from heliostat.cluster.gcs import cluster_status
from heliostat.cluster.nodes import NodeRecord, Refusal, read_nodes, read_refusal
from heliostat.definition import ClusterDefinition
from heliostat.errors import ClusterNotUp, SettingsError
from heliostat.plan.why import NOT_DEPLOYED, Demand, Fact, FactKind, Gang, Group, Node, Phase, Snapshot, Work
from heliostat.settings import Settings

Row = Mapping[str, Any]  # Any: JSON of Ray's state API
LIMIT = 10_000
HEAD = "head"
KEEPER = "Keeper"
"""The class behind each worker of a training (heliostat.train.keeper); nobody but us knows it by that name."""
_WAITING_FOR_NODE = ("PENDING_NODE_ASSIGNMENT", "PENDING_CREATION", "RESTARTING")
_WAITING_FOR_INPUT = ("PENDING_ARGS_AVAIL", "DEPENDENCIES_UNREADY")
_RUNNING = ("RUNNING", "RUNNING_IN_RAY_GET", "RUNNING_IN_RAY_WAIT", "SUBMITTED_TO_WORKER", "ALIVE")
_ON_A_NODE = (*_RUNNING, "PENDING_CREATION", "RESTARTING")
_NOT_ITSELF = ("ACTOR_TASK", "DRIVER_TASK", "ACTOR_CREATION_TASK")
"""Rows of tasks that hold nothing of their own: the actor has a row."""
_PHASES: Mapping[str, Phase] = {
    "PENDING": "pending", "RUNNING": "running", "SUCCEEDED": "ended", "STOPPED": "ended", "FAILED": "failed",
}  # fmt: skip
# Ray gives every node one of each, and tasks do not ask for them by themselves.
_INTERNAL = re.compile(r"^(node:|bundle_|.*_group_|memory$|object_store_memory$)")


@dataclass(frozen=True)
class RayState:
    """What Ray told, as it told it."""

    jobs: Sequence[Row]
    tasks: Sequence[Row]
    actors: Sequence[Row]
    placement_groups: Sequence[Row]
    applications: Mapping[str, Row]
    cluster: Row
    """GetClusterStatusReply: autoscalingState and clusterResourceState."""


def take_snapshot(settings: Settings, definition: ClusterDefinition) -> Snapshot:
    """Of the running cluster. Raises ClusterNotUp where its dashboard or its GCS do not answer."""
    ray = _read_ray(settings)
    records = read_nodes(settings.state_dir) if settings.state_dir else []
    refusals = {
        name: refusal
        for name in definition.groups
        if settings.state_dir and (refusal := read_refusal(settings.state_dir, name)) is not None
    }
    return make_snapshot(ray, definition, records, at=time.time(), refusals=refusals)


def make_snapshot(
    ray: RayState,
    definition: ClusterDefinition,
    records: Sequence[NodeRecord],
    *,
    at: float,
    refusals: Mapping[str, Refusal],
) -> Snapshot:
    """Pure. `refusals`: what the provider last refused each group, and why."""
    ray = replace(ray, actors=_with_creation(ray))
    names = _owners(ray)
    free, head_free = _free(ray.cluster)
    groups = tuple(_group(name, definition) for name in definition.groups)
    held = _held(ray, names)
    facts = tuple(_refusals(ray.cluster, groups, refusals))
    living = [_node(record, definition, free, held) for record in records if record.ended_at is None]
    starts = [record.ready_at - record.started_at for record in records if record.ready_at]
    return Snapshot(
        at,
        groups,
        (*living, *_asked_for(ray.cluster, records, (fact.group for fact in facts))),
        (*_jobs(ray, names), *_apps(ray, definition, names)),
        facts,
        Group(HEAD, {"CPU": definition.head.cpus, "GPU": 0}, {autoscaling.LABEL_ROLE: HEAD}, 1, 1),
        head_free,
        statistics.median(starts) if starts else None,
    )


# --- nodes


def _group(name: str, definition: ClusterDefinition) -> Group:
    group = definition.groups[name]
    counted = {key: float(amount) for key, amount in autoscaling.resources(group).items()}
    return Group(name, counted, autoscaling.labels(name, group), group.nodes.low, group.nodes.high)


def _node(
    record: NodeRecord,
    definition: ClusterDefinition,
    free: Mapping[str, Mapping[str, float]],
    held: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> Node:
    ray_id = record.ray_node_id or ""
    labels = autoscaling.labels(record.group, definition.groups[record.group])
    return Node(
        record.node_id,
        record.group,
        ready=ray_id in free,
        started_at=record.started_at,
        free=free.get(ray_id, {}),
        labels=labels,
        draining=record.reason is not None,
        held=held.get(ray_id, {}),
    )


def _free(cluster: Row) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """What is free on each living node, by Ray's node id; and on the head."""
    nodes: dict[str, dict[str, float]] = {}
    head: dict[str, float] = {}
    for state in (cluster.get("clusterResourceState") or {}).get("nodeStates", ()):
        if state.get("status") == "DEAD":
            continue
        amounts = {key: float(value) for key, value in (state.get("availableResources") or {}).items()}
        if state.get("rayNodeTypeName") == HEAD:
            head = amounts
        else:
            nodes[state["nodeId"]] = amounts
    return nodes, head


def _refusals(cluster: Row, groups: Sequence[Group], refusals: Mapping[str, Refusal]) -> Iterator[Fact]:
    """The launches that the autoscaler gave up. Ray 2.60 keeps when and not why: the provider has said that."""
    for group in groups:
        times = sorted(
            float(failed.get("failedTs") or failed.get("startTs") or 0)
            for failed in (cluster.get("autoscalingState") or {}).get("failedInstanceRequests", ())
            if failed.get("rayNodeTypeName") == group.name
        )
        if not times:
            continue
        refusal = refusals.get(group.name)
        why = "insufficient capacity" if refusal is None else refusal.why
        kind: FactKind = "quota" if refusal is not None and refusal.kind == "quota" else "no-capacity"
        gaps = [later - earlier for earlier, later in pairwise(times[-10:])]
        every = statistics.median(gaps) if gaps else None
        yield Fact(kind, group.name, why, times[-1], len(times), times[0], every)


def _asked_for(cluster: Row, records: Sequence[NodeRecord], refused: Iterable[str]) -> Iterator[Node]:
    """Nodes that the autoscaler has asked for and the provider has not begun: it starts one after another."""
    starting = Counter(record.group for record in records if record.ended_at is None and not record.ready_at)
    held_back = set(refused)  # asked for again and again, and refused
    for request in (cluster.get("autoscalingState") or {}).get("pendingInstanceRequests", ()):
        group = request.get("rayNodeTypeName", "")
        count = int(request.get("count") or 0) - starting[group]
        if group not in held_back:
            for number in range(count):
                yield Node(f"{group} (asked for, {number + 1})", group, False, float(request.get("requestTs") or 0))


# --- work


def _owners(ray: RayState) -> dict[str, str]:
    """The work's name by Ray's job id."""
    return {row["job_id"]: row["submission_id"] for row in ray.jobs if row.get("job_id") and row.get("submission_id")}


def _with_creation(ray: RayState) -> list[Row]:
    """Actors with the time and the node of the task that makes them: their own rows have neither until they are ready,
    however long a constructor loads."""
    made = {row.get("actor_id"): row for row in ray.tasks if row.get("type") == "ACTOR_CREATION_TASK"}
    asked = _asked_of_nodes(ray.cluster)
    return [
        {
            **actor,
            "leased": _shape(actor) not in asked,
            "node_id": actor.get("node_id") or made.get(actor.get("actor_id"), {}).get("node_id"),
            "creation_time_ms": made.get(actor.get("actor_id"), {}).get("creation_time_ms"),
        }
        for actor in ray.actors
    ]


Shape = tuple[tuple[tuple[str, float], ...], tuple[str, ...]]


def _asked_of_nodes(cluster: Row) -> set[Shape]:
    """What the GCS still looks for nodes for: resources, and the keys of the labels. An actor that waits and is not
    among it has been given a node; nothing else tells so while its constructor runs."""
    shapes: set[Shape] = set()
    for one in (cluster.get("clusterResourceState") or {}).get("pendingResourceRequests", ()):
        request = one.get("request") or {}
        keys = {
            constraint.get("labelKey", "")
            for selector in request.get("labelSelectors", ())
            for constraint in selector.get("labelConstraints", ())
        }
        shapes.add((_amounts(request.get("resourcesBundle") or {}), tuple(sorted(keys))))
    return shapes


def _shape(row: Row) -> Shape:
    return _amounts(_resources(row)), tuple(sorted(row.get("label_selector") or {}))


def _amounts(resources: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:  # Any: numbers of JSON
    return tuple(sorted((name, float(n)) for name, n in resources.items() if not _INTERNAL.match(name)))


def _held(ray: RayState, names: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """What each piece of work holds of each node, by Ray's node id, then by the work's name."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for row in (*ray.tasks, *ray.actors):
        if row.get("state") in _ON_A_NODE and row.get("node_id") and row.get("type") not in _NOT_ITSELF:
            _add(found[row["node_id"]].setdefault(_owner(row, names), {}), _resources(row))
    for group in ray.placement_groups:
        for bundle in group.get("bundles") or ():
            if bundle.get("node_id"):
                owner = names.get(group.get("creator_job_id", ""), "a placement group")
                _add(found[bundle["node_id"]].setdefault(owner, {}), _resources(bundle, "unit_resources"))
    return found


def _add(total: dict[str, float], amounts: Mapping[str, float]) -> None:
    for resource, amount in amounts.items():
        total[resource] = total.get(resource, 0) + amount


def _owner(row: Row, names: Mapping[str, str]) -> str:
    app = _app_of(row)
    return app or names.get(row.get("job_id", ""), f"job {row.get('job_id', '?')}")


def _app_of(row: Row) -> str | None:
    """Serve names its replicas SERVE_REPLICA::app#deployment#id."""
    name = row.get("name") or ""
    return name.removeprefix("SERVE_REPLICA::").split("#")[0] if name.startswith("SERVE_REPLICA::") else None


def _jobs(ray: RayState, names: Mapping[str, str]) -> Iterator[Work]:
    for job in ray.jobs:
        if not job.get("submission_id"):
            continue
        ray_id = job.get("job_id") or "?"
        tasks = [row for row in ray.tasks if row.get("job_id") == ray_id]
        actors = [row for row in ray.actors if row.get("job_id") == ray_id and _app_of(row) is None]
        groups = [row for row in ray.placement_groups if row.get("creator_job_id") == ray_id]
        message = job.get("message") or ""
        phase = _PHASES.get(job.get("status", ""), "pending")
        yield _work(
            job["submission_id"],
            "job",
            phase,
            _last_words(message) if phase == "failed" else message,  # Ray puts the log before what the job ended with
            (job.get("start_time") or 0) / 1000 or None,
            (*tasks, *actors),
            groups,
            _strategies(ray.cluster),
            _environment_error(message if phase in ("failed", "pending") else "", (*tasks, *actors)),
        )


def _apps(ray: RayState, definition: ClusterDefinition, names: Mapping[str, str]) -> Iterator[Work]:
    for name in sorted({*ray.applications, *definition.applications}):
        app = ray.applications.get(name)
        if app is None:
            yield Work(name, "app", "asleep", NOT_DEPLOYED)
            continue
        rows = [row for row in ray.actors if _app_of(row) == name]
        replicas = [r for d in (app.get("deployments") or {}).values() for r in d.get("replicas", ())]
        message = app.get("message") or ""
        failed = app.get("status") == "DEPLOY_FAILED"
        living = [row for row in rows if row.get("state") != "DEAD"]
        phase: Phase = "failed" if failed else "running" if replicas or living else "asleep"
        starting = sum(replica.get("state") == "STARTING" and bool(replica.get("node_id")) for replica in replicas)
        work = _work(
            name, "app", phase, message, app.get("last_deployed_time_s"), rows, [], {},
            _environment_error(message, rows),
        )  # fmt: skip
        yield replace(work, loading=max(work.loading, starting))


def _work(
    name: str,
    kind: Any,  # Any: job or app, as Work has it
    phase: Phase,
    message: str,
    since: float | None,
    rows: Sequence[Row],
    groups: Sequence[Row],
    strategies: Mapping[str, str],
    error: str | None,
) -> Work:
    own = [row for row in rows if row.get("type") not in _NOT_ITSELF]
    waiting = [row for row in own if row.get("state") in _WAITING_FOR_NODE and not row.get("node_id")]
    return Work(
        name,
        kind,
        phase,
        message,
        since,
        tuple(_demands([row for row in waiting if not row.get("placement_group_id")], own)),
        tuple(_gang(row, strategies) for row in groups if row.get("state") in ("PENDING", "RESCHEDULING")),
        running=sum(row.get("state") in _RUNNING for row in own),
        waiting_for_input=sum(row.get("state") in _WAITING_FOR_INPUT for row in own),
        loading=sum(row.get("state") == "PENDING_CREATION" and bool(row.get("node_id")) for row in own),
        runtime_env_error=error,
    )


def _environment_error(message: str, rows: Sequence[Row]) -> str | None:
    for row in rows:
        cause = row.get("death_cause") or {}
        if row.get("error_type") == "RUNTIME_ENV_SETUP_FAILED" or any("runtime_env" in key for key in cause):
            told = [str(value.get("error_message") or "") for value in cause.values() if isinstance(value, Mapping)]
            return _last_words(row.get("error_message") or " ".join(told) or message)
    failed = re.search(r"runtime.?env.{0,40}(fail|error)|RuntimeEnvSetupError", message, re.IGNORECASE)
    return _last_words(message) if failed else None


def _last_words(message: str) -> str:
    """The last line that names an error: Ray passes whole tracebacks on."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or ["no reason given"])[-1]


Key = tuple[str, tuple[tuple[str, float], ...], tuple[tuple[str, str], ...]]


def _key(row: Row) -> Key:
    what = row.get("name") or row.get("func_or_class_name") or row.get("class_name") or "a task"
    what = "a worker" if row.get("class_name") == KEEPER else what
    return what, tuple(sorted(_resources(row).items())), tuple(sorted((row.get("label_selector") or {}).items()))


def _demands(waiting: Sequence[Row], own: Sequence[Row]) -> Iterator[Demand]:
    """Equal ones together, the oldest's time for all."""
    moving = Counter(_key(row) for row in own if row.get("type") == "NORMAL_TASK" and row.get("state") in _RUNNING)
    oldest: dict[Key, float] = {}
    for row in waiting:
        made = _seconds(row.get("creation_time_ms") or row.get("start_time_ms"))
        if made is not None:
            oldest[_key(row)] = min(oldest.get(_key(row), made), made)
    for key, count in Counter(map(_key, waiting)).items():
        what, resources, labels = key
        leased = any(row.get("leased") for row in waiting if _key(row) == key)
        yield Demand(what, dict(resources), dict(labels), count, oldest.get(key), moving[key], leased)


def _strategies(cluster: Row) -> dict[str, str]:
    """How each waiting placement group is spread, by its id. The GCS tells it as id:strategy|state."""
    gangs = (cluster.get("clusterResourceState") or {}).get("pendingGangResourceRequests", ())
    told = [gang.get("details", "").partition(":") for gang in gangs]
    return {pg_id: rest.partition("|")[0] for pg_id, _, rest in told}


def _gang(row: Row, strategies: Mapping[str, str]) -> Gang:
    pg_id = row["placement_group_id"]
    name = row.get("name") or f"placement group {pg_id[:8]}"
    bundles = tuple(
        Demand(f"a bundle of {name}", _resources(bundle, "unit_resources"), dict(bundle.get("label_selector") or {}))
        for bundle in row.get("bundles") or ()
    )
    strategy = strategies.get(pg_id)
    if strategy == "STRICT_PACK" and bundles:
        total = Counter[str]()
        for bundle in bundles:
            total.update(bundle.resources)  # floats add up as well
        bundles = (replace(bundles[0], what=f"all of {name}, on one node", resources=dict(total)),)
    created = (row.get("stats") or {}).get("creation_request_received_ns")
    return Gang(name, bundles, strategy == "STRICT_SPREAD", float(created) / 1e9 if created else None)


def _resources(row: Row, key: str = "required_resources") -> dict[str, float]:
    return {name: float(n) for name, n in (row.get(key) or {}).items() if not _INTERNAL.match(name) and float(n) > 0}


def _seconds(milliseconds: Any) -> float | None:  # Any: a number, or text that Ray made for people
    try:
        return float(milliseconds) / 1000
    except (TypeError, ValueError):
        return None


# --- reading


def _read_ray(settings: Settings) -> RayState:
    get = DashboardReader(settings)
    return RayState(
        jobs=get("/api/jobs/"),
        tasks=get.state("tasks", "state", "FINISHED"),
        actors=get.state("actors"),
        placement_groups=get.state("placement_groups", "state", "REMOVED"),
        applications=get("/api/serve/applications/").get("applications") or {},
        cluster=cluster_status(settings),
    )


def refused(url: str) -> SettingsError:
    return SettingsError(
        "the cluster refuses the token",
        where=url,
        do="point RAY_AUTH_TOKEN_PATH at the token of this cluster, or choose the cluster: heliostat use",
    )


def not_up(url: str, error: Exception) -> ClusterNotUp:
    return ClusterNotUp(f"the cluster does not answer: {error}", where=url, do="heliostat status, then heliostat up")


class DashboardReader:
    """GET on the dashboard, with the cluster's token."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.dashboard_url
        self._headers = settings.token_header()

    def __call__(self, path: str, **params: Any) -> Any:  # Any: JSON
        import httpx

        try:
            answer = httpx.get(self._url + path, params=params, headers=self._headers, timeout=30)
            if answer.status_code in (401, 403):
                raise refused(self._url)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise not_up(self._url, error) from error

    def state(
        self, what: str, key: str | None = None, value: str | None = None, *, predicate: str = "!=", limit: int = LIMIT
    ) -> list[Row]:
        """Rows of Ray's state API, without those whose `key` is `value`; or with predicate "=", those alone."""
        picked = {"filter_keys": key, "filter_predicates": predicate, "filter_values": value} if key else {}
        answer = self(f"/api/v0/{what}", detail=1, limit=limit, **picked)
        result = answer["data"]["result"]
        rows = result["result"] if isinstance(result, Mapping) else result
        return list(rows)
