"""Training jobs through Ray's Jobs API, as `ray job submit` would send them."""

from __future__ import annotations

import getpass
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.definition import JobSpec
from heliostat.errors import JobError, JobFailed
from heliostat.settings import Settings
from heliostat.train.job import JOB, JOB_ID, QUIET, RUN, USER

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

TROUBLE_LIMIT_S = 60.0
AGENT_LIMIT_S = 60.0
Result = TypeVar("Result")
NO_AGENT = "No available agent"
FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
_SUPERVISED = ("python", "-m", "heliostat.train.supervise", "--")
"""Ray starts no driver twice; the supervisor does, when it was killed."""


@dataclass(frozen=True)
class SubmittedJob:
    job_id: str  # Ray's submission id
    run: str  # the run: the same one again resumes


@dataclass(frozen=True)
class JobRow:
    job_id: str
    run: str
    status: str  # Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED; or QUEUED
    entrypoint: str
    started_at: float | None  # seconds since the epoch
    ended_at: float | None
    why: str = ""
    """Why it waits in the queue, or has been asked to give nodes back."""


def submit(
    settings: Settings,
    name: str,
    spec: JobSpec,
    *,
    arguments: Sequence[str] = (),
    run: str | None = None,
    package: str,
    environment: dict[str, str] | None = None,
) -> SubmittedJob:
    """Send the job. `run` names an earlier run to resume; a new name is made otherwise.

    The job's id is made from the run, so a submit that is repeated while the first still runs is told so.
    """
    run = run or f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    job_id = f"{run}-{uuid.uuid4().hex[:4]}"
    running = [row for row in list_jobs(settings) if row.run == run and row.status not in FINISHED]
    if running:
        raise JobError(
            f"run {run!r} is running already as job {running[0].job_id}", do=f"heliostat job logs {running[0].job_id}"
        )
    request = job_request(name, spec, arguments=arguments, run=run, package=package)
    request["runtime_env"]["env_vars"] |= {JOB_ID: job_id, USER: getpass.getuser(), **(environment or {})}
    _hand_over(_client(settings), {"submission_id": job_id, **request})
    return SubmittedJob(job_id, run)


def _hand_over(client: JobSubmissionClient, request: dict[str, Any]) -> None:
    """A head that has just come up refuses jobs until its agent is there too: that is waited for.

    A request whose connection was dropped is made again; its id tells whether the first has arrived.
    """
    deadline = time.monotonic() + AGENT_LIMIT_S
    dropped = False
    while True:
        try:
            client.submit_job(**request)
            return
        except OSError:  # requests' errors are
            dropped = True
            if time.monotonic() > deadline:
                raise
        except RuntimeError as error:
            if dropped and "already exists" in str(error):
                return
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def job_request(
    name: str, spec: JobSpec, *, arguments: Sequence[str], run: str, package: str, env: Mapping[str, str] | None = None
) -> dict[str, Any]:  # Any: the keyword arguments of Ray's submit_job
    """What is asked of Ray's Jobs API, with further environment for the driver and its workers. Pure."""
    return {
        "entrypoint": shlex.join([*_SUPERVISED, *shlex.split(spec.entrypoint), *arguments]),
        "runtime_env": {
            "working_dir": package,
            "env_vars": {RUN: run, JOB: name, **QUIET, **spec.environment(), **(env or {})},
        },
        "metadata": {"heliostat_run": run, "job": name, "publishes": spec.publishes},
    }


def list_jobs(settings: Settings) -> list[JobRow]:
    """Those that came by the Jobs API, oldest first. Without Ray's client: to import it takes seconds of a core."""
    from heliostat.cluster.snapshot import DashboardReader

    rows = [
        JobRow(
            job_id=info["submission_id"],
            run=(info.get("metadata") or {}).get("heliostat_run", ""),
            status=str(info["status"]),
            entrypoint=as_written(info.get("entrypoint") or ""),
            started_at=_seconds(info.get("start_time")),
            ended_at=_seconds(info.get("end_time")),
        )
        for info in DashboardReader(settings)("/api/jobs/")
        if info.get("submission_id")
    ]
    return sorted(rows, key=lambda row: row.started_at or 0)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def as_written(entrypoint: str) -> str:
    """The command as the definition has it."""
    return entrypoint.removeprefix(f"{shlex.join(_SUPERVISED)} ")


def logs(settings: Settings, job_id: str) -> str:
    _must_exist(settings, job_id)
    return str(_client(settings).get_job_logs(job_id))


def stop(settings: Settings, job_or_run: str) -> str:
    """Ask the job, or the run's that has not ended, to end; the newest checkpoint stays, and the same run name resumes
    from it. Returns the status that it had: one of FINISHED where there was nothing to stop.
    """
    known = list_jobs(settings)
    rows = [row for row in known if job_or_run in (row.job_id, row.run)]
    if not rows:
        raise _unknown(job_or_run, known)
    living = [row for row in rows if row.status not in FINISHED]
    if not living:
        return rows[-1].status
    _client(settings).stop_job(living[-1].job_id)
    return living[-1].status


def wait(settings: Settings, job: SubmittedJob, *, limit_s: float) -> Iterator[str]:
    """Yield the job's status about twice a second until it has succeeded. Raises JobFailed with the end of its log."""
    client = _client(settings)
    deadline = time.monotonic() + limit_s
    while True:
        status = _through_trouble(lambda: str(client.get_job_status(job.job_id).value))
        yield status
        if status == "SUCCEEDED":
            return
        if status in FINISHED:
            tail = "\n".join(str(client.get_job_logs(job.job_id)).splitlines()[-25:])
            raise JobFailed(
                f"job {job.job_id} {status.lower()}\n{tail}",
                where=f"run {job.run}",
                do="mend the cause; submit with --run",
            )
        if time.monotonic() > deadline:
            raise JobFailed(f"job {job.job_id} is still {status} after {limit_s:.0f} s", do="heliostat job logs")
        time.sleep(0.5)


def _through_trouble(ask: Callable[[], Result]) -> Result:
    """Whoever waits for hours is not sent away by a dashboard that drops a connection: asked again for a while."""
    deadline = time.monotonic() + TROUBLE_LIMIT_S
    while True:
        try:
            return ask()
        except OSError:  # requests' errors are
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _must_exist(settings: Settings, job_id: str) -> None:
    known = list_jobs(settings)
    if job_id not in [row.job_id for row in known]:
        raise _unknown(job_id, known)


def _unknown(job_id: str, known: Sequence[JobRow]) -> JobError:
    names = ", ".join(row.job_id for row in known)
    return JobError(f"there is no job {job_id!r}", do=f"one of: {names or 'none was submitted yet'}")


def _client(settings: Settings) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    from heliostat.cluster.snapshot import not_up, refused

    # As a header, not through Ray's environment variables: a process that has imported Ray before no longer reads them.
    try:
        return JobSubmissionClient(settings.dashboard_url, headers=settings.token_header())
    except AuthenticationError as error:
        raise refused(settings.dashboard_url) from error
    except (ConnectionError, RuntimeError) as error:
        raise not_up(settings.dashboard_url, error) from error
