"""The commands. Each is a few lines over `heliostat.sdk`, imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heliostat.cli import apply as on_kubernetes
from heliostat.cli import render as rendering
from heliostat.cli.chaos import chaos
from heliostat.cli.check import check
from heliostat.cli.cost import cost
from heliostat.cli.job import job
from heliostat.cli.key import keys
from heliostat.cli.machine import doctor, use
from heliostat.cli.model import model
from heliostat.cli.options import Cluster, Json
from heliostat.cli.plan import plan
from heliostat.cli.serving import apps
from heliostat.cli.simulate import simulate
from heliostat.cli.waste import cost_advise, cost_idle
from heliostat.cli.why import why
from heliostat.show import print_json, print_progress, print_table, write_page

cost.command("idle")(cost_idle)
cost.command("advise")(cost_advise)

app = typer.Typer(
    help="One Ray cluster as a GPU platform: training on spot, serving on demand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, group in (
    ("plan", plan),
    ("job", job),
    ("model", model),
    ("app", apps),
    ("cost", cost),
    ("chaos", chaos),
    ("key", keys),
):
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
    print_progress(f"jobs and applications run from {platform.settings.project_root}")


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


app.command()(use)
app.command()(doctor)
app.command()(check)
app.command()(why)
app.command()(simulate)
app.command()(rendering.render)
app.command()(rendering.schema)
app.command()(rendering.preview)
app.command()(on_kubernetes.diff)
app.command()(on_kubernetes.apply)


@app.command()
def status(
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page to read in a browser instead.", dir_okay=False)
    ] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """What runs: nodes, applications, processes, addresses."""
    from heliostat.sdk import Platform
    from heliostat.train.queued import QUEUED

    platform = Platform.connect(cluster)
    if html is not None:
        write_page(html, platform.status_page(progress=print_progress))
        return
    state = platform.status()
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
    if state.jobs:
        queued = sum(row.status == QUEUED for row in state.jobs)
        print_progress(f"{len(state.jobs) - queued} jobs run, {queued} wait in the queue: heliostat job list")
    if state.apps:
        print_table(
            ("application", "state", "replicas", "message"),
            [(a.name, a.status, a.replicas, a.message) for a in state.apps],
        )
