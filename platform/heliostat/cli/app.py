"""The commands. Each is a few lines over `heliostat.sdk`, imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heliostat.cli import apply as on_kubernetes
from heliostat.cli import render as rendering
from heliostat.cli.check import check
from heliostat.cli.cost import cost
from heliostat.cli.model import model
from heliostat.cli.options import Cluster, Json
from heliostat.cli.plan import plan
from heliostat.cli.rehearse import job_rehearse
from heliostat.cli.why import why
from heliostat.show import print_json, print_progress, print_table

app = typer.Typer(
    help="One Ray cluster as a GPU platform: training on spot, serving on demand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
job = typer.Typer(help="Training jobs on the spot groups.", no_args_is_help=True)
apps = typer.Typer(help="Serving applications and their releases.", no_args_is_help=True)
chaos = typer.Typer(help="Faults on purpose, on an embedded cluster.", no_args_is_help=True)
for name, group in (("plan", plan), ("job", job), ("model", model), ("app", apps), ("cost", cost), ("chaos", chaos)):
    app.add_typer(group, name=name)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """--debug is read where errors are printed (cli/__init__.py)."""


@app.command()
def up(
    definition: Annotated[Path, typer.Argument(help="A cluster definition, such as cluster/laptop.yaml")],
    name: Annotated[str | None, typer.Option(help="Another name, for a second cluster of one definition.")] = None,
) -> None:
    """Start the embedded cluster of a definition. Running it again finds the cluster up."""
    from heliostat import sdk

    platform = sdk.up(definition, name=name, progress=print_progress)
    print_progress(f"up: dashboard {platform.settings.dashboard_url}, applications {platform.settings.serve_url}")
    print_progress(f"the dashboard asks for the token in {platform.settings.token_path}")


@app.command()
def down(
    manifests: on_kubernetes.OptionalManifests = None,
    cluster: Cluster = None,
    context: on_kubernetes.Context = None,
    with_data: on_kubernetes.WithData = False,
    yes: on_kubernetes.Yes = False,
) -> None:
    """End every process the embedded cluster started, and nothing else. The store's data stays.

    With manifests: delete what was applied from them to Kubernetes, and nothing else. Volume claims stay.
    """
    if manifests:
        on_kubernetes.down(manifests, cluster=cluster, context=context, with_data=with_data, yes=yes)
        return
    from heliostat.cluster import embedded
    from heliostat.settings import current_cluster

    name = cluster or current_cluster()
    ended = embedded.down(name, progress=print_progress)
    print_progress(f"down: {len(ended)} processes of {name} ended, none left")


app.command()(check)
app.command()(why)
app.command()(rendering.render)
app.command()(rendering.schema)
app.command()(rendering.preview)
app.command()(on_kubernetes.diff)
app.command()(on_kubernetes.apply)


@app.command()
def status(cluster: Cluster = None, json: Json = False) -> None:
    """What runs: nodes, applications, processes, addresses."""
    from heliostat.sdk import Platform

    state = Platform.connect(cluster).status()
    if json:
        print_json(state)
        return
    print_table(
        ("cluster", "up", "dashboard", "applications", "processes"),
        [(state.cluster, "yes" if state.up else "no", state.dashboard_url, state.serve_url, state.processes)],
    )
    if state.nodes:
        print_table(
            ("node", "group", "role", "market", "GPUs", "state"),
            [
                (n.node_id, n.group, n.role, n.market, n.gpus, "ready" if n.ray_node_id else "starting")
                for n in state.nodes
            ],
        )
    if state.apps:
        print_table(
            ("application", "state", "replicas", "message"),
            [(a.name, a.status, a.replicas, a.message) for a in state.apps],
        )


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
    print_progress(f"submitted {submitted.job_id} (run {submitted.run})")
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
    """Every job the cluster knows, oldest first."""
    from heliostat.sdk import Platform

    rows = Platform.connect(cluster).jobs.list()
    if json:
        print_json(rows)
    else:
        print_table(("job", "run", "status", "entrypoint"), [(r.job_id, r.run, r.status, r.entrypoint) for r in rows])


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


@apps.command("deploy")
def app_deploy(name: str, cluster: Cluster = None) -> None:
    """Put an application of the definition onto the cluster. It starts at zero replicas and wakes on a request."""
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    platform.apps.deploy(name)
    print_progress(f"{name} is wanted; it answers at {platform.apps.url(name)}")


@apps.command("status")
def app_status(name: str, cluster: Cluster = None, json: Json = False) -> None:
    """What each living replica says it serves."""
    from heliostat.sdk import Platform

    reports = Platform.connect(cluster).apps.replicas(name)
    if json:
        print_json(reports)
    else:
        rows = [(r.replica, r.node, f"v{r.version}", r.digest[:19], r.requests, r.error) for r in reports]
        print_table(("replica", "node", "version", "digest", "requests", "error"), rows)


@apps.command("release")
def app_release(
    name: str,
    reference: Annotated[str, typer.Argument(help="name:v3, the version to promote")],
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "released by hand",
    force: Annotated[str | None, typer.Option(help="Promote against the verdict, with this reason.")] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Judge a version, move production to it, and wait until every living replica serves it."""
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    released = platform.apps.release(name, platform.models.get(reference), why=why, force=force)
    if json:
        print_json(released)
        return
    print_table(
        ("rule", "passed", "value", "limit"),
        [(r.rule, "yes" if r.passed else "NO", f"{r.value:.3f}", f"{r.limit:.3f}") for r in released.verdict.reasons],
    )
    print_progress(f"{name} serves v{released.artifact.version} ({released.artifact.digest[:19]})")


@apps.command("rollback")
def app_rollback(
    name: str, why: Annotated[str, typer.Option(help="The reason, kept in the history.")], cluster: Cluster = None
) -> None:
    """Move production back to the version before."""
    from heliostat.sdk import Platform

    alias = Platform.connect(cluster).apps.rollback(name, why=why)
    print_progress(f"{name} serves v{alias.version}")


@chaos.command("reclaim")
def chaos_reclaim(
    group: Annotated[str, typer.Argument(help="A worker group, such as train")],
    notice: Annotated[str, typer.Option(help="Warning before the kill, such as 30s; 0s for none.")] = "30s",
    cluster: Cluster = None,
) -> None:
    """Take one spot node away for real: notice, then SIGKILL to every process of it."""
    from heliostat.sdk import Platform
    from heliostat.units import Duration

    Platform.connect(cluster).reclaim(group, notice_s=Duration.parse(notice).seconds, progress=print_progress)


keys = typer.Typer(
    help="API keys of the applications: who may call, and whose team it counts for.", no_args_is_help=True
)
app.add_typer(keys, name="key")


@keys.command("create")
def key_create(
    name: Annotated[str, typer.Argument(help="What definitions call it: keys: [NAME]")],
    team: Annotated[str, typer.Option(help="The team that its requests count for.")],
    application: Annotated[
        list[str] | None, typer.Option(help="One that it opens; repeat for more. Every one that names it, if none.")
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Make an API key and print it, this once: only its digest is stored."""
    from heliostat.sdk import Platform
    from heliostat.serve.keys import create_key

    typer.echo(create_key(Platform.connect(cluster).store, name, team=team, applications=application))


@keys.command("list")
def key_list(cluster: Cluster = None, json: Json = False) -> None:
    """The keys' names, teams and applications; never the keys."""
    from heliostat.sdk import Platform
    from heliostat.serve.keys import list_keys

    found = list_keys(Platform.connect(cluster).store)
    if json:
        print_json(found)
    else:
        opens = [", ".join(key.applications) if key.applications is not None else "all that name it" for key in found]
        rows = [(key.name, key.team, what) for key, what in zip(found, opens, strict=True)]
        print_table(("key", "team", "opens"), rows)


@keys.command("revoke")
def key_revoke(name: str, cluster: Cluster = None) -> None:
    """Remove a key; replicas stop taking it within seconds."""
    from heliostat.sdk import Platform
    from heliostat.serve.keys import revoke_key

    revoke_key(Platform.connect(cluster).store, name)
    print_progress(f"{name} opens nothing any more")
