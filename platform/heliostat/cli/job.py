"""`heliostat job`: training jobs on the spot groups."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.cli.rehearse import job_record, job_rehearse
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.sdk import Platform
    from heliostat.train.progress import Progress

FOLLOW_LIMIT_S = 30 * 86400
LOOK_S = 1.0
TELL_S = 10.0
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What stands after -- is the job's."""

_NO_STEP = "no gang has told anything of it; heliostat job logs has what it printed"

job = typer.Typer(help="Training jobs on the spot groups.", no_args_is_help=True)


@job.command("submit", context_settings=PASS_ON)
def job_submit(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A job of the definition.")],
    run: Annotated[str | None, typer.Option(help="An earlier run to resume.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it has ended, and say how far it is.")] = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Submit a training job. What stands after -- goes to the job: job submit NAME -- --epochs 3"""
    from heliostat.errors import UsageError
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    if run is not None and not run.startswith(f"{name}-") and not platform.jobs.knows(run):
        raise UsageError(f"there is no run {run!r} to resume", do="heliostat job list; without --run a new one begins")
    submitted = platform.jobs.submit(name, arguments=[a for a in context.args if a != "--"], run=run)
    print_progress(f"submitted {submitted.job_id} (run {submitted.run}); heliostat job list shows the queue")
    if follow:
        view = _View(platform, submitted.run)
        trained = platform.jobs.wait(submitted, limit_s=FOLLOW_LIMIT_S, on_status=view.look)
        view.end()
        if json:
            print_json({"job_id": submitted.job_id, "run": submitted.run, "metrics": trained.metrics})
        else:
            print_table(("metric", "value"), [(key, f"{value:.4f}") for key, value in trained.metrics.items()])
            model = platform.definition.jobs[name].publishes
            print_progress(f"next: heliostat model publish {model} {submitted.run}")
    elif json:
        print_json(submitted)


@job.command("list")
def job_list(cluster: Cluster = None, json: Json = False) -> None:
    """Every job the cluster knows, oldest first; then the queue, and why each waits."""
    from heliostat.sdk import Platform

    rows = Platform.connect(cluster).jobs.list()
    if json:
        print_json(rows)
    else:
        columns = ("job", "run", "status", "entrypoint, or why it waits")
        print_table(columns, [(r.job_id, r.run, r.status, r.why or r.entrypoint) for r in rows])


@job.command("logs")
def job_logs(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job, or a run: then all of its jobs.")],
    cluster: Cluster = None,
) -> None:
    """What the job has printed. It is kept in the store, so it can be read when nodes and driver are gone."""
    from heliostat.sdk import Platform

    typer.echo(Platform.connect(cluster).jobs.logs(job_id))


@job.command("show")
def job_show(
    run: Annotated[str, typer.Argument(help="A run, or a job: `heliostat job list` has them.")],
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """How far a run is, or was when it ended; with --json also its loss, step by step."""
    from heliostat.errors import JobError
    from heliostat.sdk import Platform

    jobs = Platform.connect(cluster).jobs
    progress = jobs.progress(run)
    row = jobs.find(run) if progress is None else None
    if row is not None and row.run not in ("", run):
        progress = jobs.progress(row.run)
    if progress is None:
        if row is None:
            raise JobError(f"there is no run {run!r}", do="heliostat job list")
        if json:
            print_json(row)
        else:
            print_table(("run", "job", "state", "why"), [(row.run, row.job_id, row.status, row.why or _NO_STEP)])
        return
    if json:
        print_json(progress)
        return
    seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(progress.at))
    print_table(
        ("run", "state", "step", "loss", "steps/s", "GPU-s", "useful", "reclaims", "steps again", "seen"),
        [
            (
                progress.run,
                progress.state,
                f"{progress.step}/{progress.total}",
                "-" if progress.loss is None else f"{progress.loss:.4f}",
                f"{progress.steps_per_s:.2f}",
                f"{progress.gpu_seconds:.0f}",
                f"{progress.useful:.0%}",
                progress.losses + progress.notices,
                progress.steps_again,
                seen,
            )
        ],
    )


@job.command("stop")
def job_stop(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job, or a run: then its job that has not ended.")],
    cluster: Cluster = None,
) -> None:
    """Stop a job; submitting its run again resumes from the newest checkpoint."""
    from heliostat.sdk import Platform
    from heliostat.train.queued import QUEUED
    from heliostat.train.submit import FINISHED

    before = Platform.connect(cluster).jobs.stop(job_id)
    if before in FINISHED:
        print_progress(f"{job_id} had ended before: {before}")
    else:
        print_progress(f"took {job_id} out of the queue" if before == QUEUED else f"stopping {job_id}")


job.command("rehearse", context_settings=PASS_ON)(job_rehearse)
job.command("record")(job_record)


class _View:
    """One line on standard error: written over in a terminal, and else again every ten seconds or when nodes change."""

    def __init__(self, platform: Platform, run: str) -> None:
        self._platform, self._run = platform, run
        self._looked_at = self._told_at = 0.0
        self._told: tuple[object, ...] = ()
        self._line = ""
        self._live = sys.stderr.isatty()

    def look(self, status: str) -> None:
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        progress = self._read()
        if progress is None:
            self._tell(status.lower(), (status,))
        else:
            self._tell(progress.line(), (progress.state, progress.nodes, progress.losses, progress.notices))

    def end(self) -> None:
        """The last word, on a line of its own."""
        progress = self._read()
        if self._live:
            print(file=sys.stderr)  # noqa: T201  # ends the line that was written over
        if progress is not None and (self._live or progress.line() != self._line):
            print_progress(progress.line())

    def _read(self) -> Progress | None:
        from heliostat.errors import HeliostatError

        try:
            return self._platform.jobs.progress(self._run)
        except HeliostatError:
            return None  # the store is away: the next look tries again

    def _tell(self, line: str, about: tuple[object, ...]) -> None:
        if self._live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201
        elif about != self._told or time.monotonic() - self._told_at > TELL_S:
            self._told, self._told_at, self._line = about, time.monotonic(), line
            print_progress(line)
