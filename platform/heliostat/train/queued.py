"""Jobs that are wanted, in the store, until the controller finds that it is their turn and hands them to Ray.

    queue/jobs/<job id>.json   one job, from `heliostat job submit` until it has ended
    queue/state.json           by the controller: why each one waits, and what teams have used

Who goes next is `heliostat.plan.share`; who asks it is `heliostat.controller.queue`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.definition import ClusterDefinition
from heliostat.errors import JobError, ObjectMissing, SwapLost
from heliostat.names import check_segment
from heliostat.plan import fabric
from heliostat.plan.why import Snapshot, Work
from heliostat.store import Blob, Store, get_many
from heliostat.train.job import FALLBACK, JOB_ID, MOST_WORKERS, NODE_WORKERS, USER
from heliostat.train.submit import JobRow, SubmittedJob, as_written, job_request

STATE = "queue/state.json"
QUEUED = "QUEUED"


class QueuedJob(BaseModel):
    """`request`: the keyword arguments of Ray's submit_job. `started_at` is None until Ray has it."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    run: str
    job: str
    team: str
    group: str
    nodes: int
    gpus_per_node: float
    node_gpus: dict[str, float] = {}
    """Of a job that needs a part of a node: all GPUs of one, by group that it may be on."""
    priority: int
    submitted_at: float
    request: dict[str, Any]  # Any: JSON
    started_at: float | None = None

    def for_ray(self) -> dict[str, Any]:  # Any: JSON
        """The request with the job's id, which the job has to know: its log is kept by it."""
        made = self.request.get("runtime_env", {})
        env = {**made.get("env_vars", {}), JOB_ID: self.job_id}
        return {**self.request, "submission_id": self.job_id, "runtime_env": {**made, "env_vars": env}}


class QueueState(BaseModel):
    """As of `at`: GPU-seconds by team, old ones forgotten; and why jobs wait, by their id."""

    model_config = ConfigDict(frozen=True)

    at: float = 0.0
    usage: dict[str, float] = {}
    waits: dict[str, str] = {}


def wanted(
    definition: ClusterDefinition, name: str, *, arguments: Sequence[str] = (), run: str | None = None, package: str,
    now: float, user: str = "",
) -> QueuedJob:  # fmt: skip
    """A job of the definition as it goes into the queue. `run` names an earlier run to resume; `user` asks for it."""
    spec = definition.jobs[name]
    made_at = datetime.fromtimestamp(now, UTC)
    run = run or f"{name}-{made_at:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    told = environment(definition, name) | ({USER: user} if user else {})
    return QueuedJob(
        job_id=f"{check_segment(run, what='run')}-{uuid.uuid4().hex[:4]}",
        run=run,
        job=name,
        team=definition.team_of(spec),
        group=spec.group,
        nodes=spec.nodes,
        gpus_per_node=float(spec.gpus or definition.groups[spec.group].gpus),
        node_gpus={} if spec.gpus is None else {n: float(g.gpus) for n, g in definition.groups_of(spec).items()},
        priority=spec.priority,
        submitted_at=now,
        request=job_request(name, spec, arguments=arguments, run=run, package=package, env=told),
    )


def environment(definition: ClusterDefinition, name: str) -> dict[str, str]:
    """What a job's driver and workers are told of the definition."""
    spec = definition.jobs[name]
    found = {"HELIOSTAT_TEAM": definition.team_of(spec)}
    if fallback := definition.fallback_of(spec):
        found[FALLBACK] = fallback
    if (workers := definition.workers_a_node(spec)) is not None:
        found[NODE_WORKERS] = json.dumps(workers, sort_keys=True)
    found[MOST_WORKERS] = json.dumps(definition.most_workers(spec), sort_keys=True)
    return found | fabric.environment(definition.groups[spec.group], embedded=True)


def enqueue(store: Store, job: QueuedJob, *, living: Collection[str]) -> SubmittedJob:
    """`living`: the ids of the jobs that Ray runs. Raises JobError where the run is one of them, or waits already.

    A job that was started and is no longer there (its cluster was ended, or is new) makes way.
    """
    for other in read_queue(store):
        if other.run == job.run and other.started_at is not None and other.job_id not in living:
            remove(store, other.job_id)
        elif other.run == job.run:
            word, do = ("running", "logs " + other.job_id) if other.started_at else ("in the queue", "list")
            raise JobError(f"run {job.run!r} is {word} already as job {other.job_id}", do=f"heliostat job {do}")
    store.create(_key(job.job_id), job.model_dump_json().encode())
    return SubmittedJob(job.job_id, job.run)


def read_queue(store: Store) -> list[QueuedJob]:
    """Those that wait and those that run, oldest first."""
    blobs = get_many(store, [info.key for info in store.list("queue/jobs/")])
    found = [job for _, blob in blobs if (job := _parse(blob)) is not None]
    return sorted(found, key=lambda job: (job.submitted_at, job.job_id))


def read_job(store: Store, job_id: str) -> QueuedJob | None:
    return _read(store, _key(job_id))


def mark_started(store: Store, job_id: str, now: float) -> bool:
    """False where it was withdrawn meanwhile."""
    try:
        blob = store.get(_key(job_id))
        job = QueuedJob.model_validate_json(blob.data)
        store.swap(_key(job_id), job.model_copy(update={"started_at": now}).model_dump_json().encode(), blob.etag)
    except (ObjectMissing, SwapLost):
        return False
    return True


def remove(store: Store, job_id: str) -> None:
    """It has ended, or is not wanted any more."""
    store.delete(_key(job_id))


def read_state(store: Store) -> QueueState:
    try:
        return QueueState.model_validate_json(store.get(STATE).data)
    except (ObjectMissing, ValidationError):
        return QueueState()


def write_state(store: Store, state: QueueState) -> None:
    store.put(STATE, state.model_dump_json().encode())


def queue_rows(store: Store) -> list[JobRow]:
    """The jobs that Ray does not know yet, with why each waits."""
    waits = read_state(store).waits
    return [
        JobRow(
            job.job_id,
            job.run,
            QUEUED,
            as_written(str(job.request.get("entrypoint", ""))),
            None,
            None,
            waits.get(job.job_id, JUST_CAME),
        )
        for job in read_queue(store)
        if job.started_at is None
    ]


def beside(queued: Iterable[JobRow], known: Collection[str]) -> list[JobRow]:
    """Of the queue's rows, those of jobs that Ray has not told of: it may have been handed one a moment ago."""
    return [row for row in queued if row.job_id not in known]


def with_queue(snapshot: Snapshot, queued: Iterable[JobRow]) -> Snapshot:
    """Also the jobs that Ray does not know yet, with why each waits."""
    rows = beside(queued, {work.name for work in snapshot.works})
    works = tuple(Work(row.job_id, "job", "pending", queued=row.why) for row in rows)
    return replace(snapshot, works=snapshot.works + works)


JUST_CAME = "the controller has not looked at it yet"


def _read(store: Store, key: str) -> QueuedJob | None:
    try:
        return _parse(store.get(key))
    except ObjectMissing:
        return None


def _parse(blob: Blob) -> QueuedJob | None:
    try:
        return QueuedJob.model_validate_json(blob.data)
    except ValidationError:
        return None


def _key(job_id: str) -> str:
    return f"queue/jobs/{check_segment(job_id, what='job id')}.json"
