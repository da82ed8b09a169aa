"""`heliostat app`: serving applications and their releases."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

apps = typer.Typer(help="Serving applications and their releases.", no_args_is_help=True)


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
