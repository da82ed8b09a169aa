"""`heliostat job`: training jobs on the spot groups."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.cli.rehearse import job_rehearse
from heliostat.show import print_json, print_progress, print_table

job = typer.Typer(help="Training jobs on the spot groups.", no_args_is_help=True)


@job.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def job_submit(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A job of the definition.")],
    run: Annotated[str | None, typer.Option(help="An earlier run to resume.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it has ended.")] = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Submit a training job. What stands after -- goes to the job: job submit NAME -- --epochs 3"""
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    submitted = platform.jobs.submit(name, arguments=[a for a in context.args if a != "--"], run=run)
    print_progress(f"submitted {submitted.job_id} (run {submitted.run}); heliostat job list shows the queue")
    if follow:
        trained = platform.jobs.wait(submitted)
        if json:
            print_json({"job_id": submitted.job_id, "run": submitted.run, "metrics": trained.metrics})
        else:
            print_table(("metric", "value"), [(key, f"{value:.4f}") for key, value in trained.metrics.items()])
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
def job_logs(job_id: str, cluster: Cluster = None) -> None:
    """What the job has printed."""
    from heliostat.sdk import Platform

    typer.echo(Platform.connect(cluster).jobs.logs(job_id))


@job.command("stop")
def job_stop(job_id: str, cluster: Cluster = None) -> None:
    """Stop a job; submitting its run again resumes from the newest checkpoint."""
    from heliostat.sdk import Platform

    Platform.connect(cluster).jobs.stop(job_id)
    print_progress(f"stopping {job_id}")


job.command("rehearse")(job_rehearse)
