"""`heliostat chaos`: faults on purpose, for game days."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster
from heliostat.show import print_progress

chaos = typer.Typer(help="Faults on purpose, on an embedded cluster.", no_args_is_help=True)


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


@chaos.command("capacity")
def chaos_capacity(
    group: Annotated[str, typer.Argument(help="A worker group, such as train")],
    nodes: Annotated[str, typer.Argument(help="How many nodes can be had: 0 for none, all to lift the limit.")],
    cluster: Cluster = None,
) -> None:
    """Let the market have so few machines of a group. Those that run are not taken; see chaos reclaim."""
    from heliostat.errors import UsageError
    from heliostat.sdk import Platform

    if nodes != "all" and not nodes.isdecimal():
        raise UsageError(f"{nodes!r} is not a number of nodes", do="write 0, 1, 2, ..., or all")
    limit = None if nodes == "all" else int(nodes)
    Platform.connect(cluster).limit_capacity(group, limit)
    print_progress(f"group {group} can have {'what it asks for' if limit is None else f'{limit} nodes'}")
