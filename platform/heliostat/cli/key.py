"""`heliostat key`: API keys of the applications."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

keys = typer.Typer(
    help="API keys of the applications: who may call, and whose team it counts for.", no_args_is_help=True
)


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
    print_progress(f"it opens applications that name it in the definition (keys: [{name}]) and were deployed so")


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
