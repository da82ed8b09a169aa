"""`heliostat use` and `heliostat doctor`: which cluster is meant, and what is wrong here."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table


def use(
    name: Annotated[str | None, typer.Argument(help="The cluster that commands shall mean.")] = None,
    json: Json = False,
) -> None:
    """The clusters known here and the one that commands mean; with a name, mean that one from now on."""
    from heliostat.settings import choose, known

    if name is not None:
        choose(name)
    found = known()
    if json:
        print_json(found)
        return
    rows = [("*" if c.current else "", c.cluster, c.dashboard_url, c.store, c.error) for c in found]
    print_table(("", "cluster", "dashboard", "store", "trouble"), rows)
    if not rows:
        print_progress("none yet: heliostat up cluster/laptop.yaml")


def doctor(cluster: Cluster = None, json: Json = False) -> None:
    """Look at this machine, the store and the cluster, and say what to mend. Exit code 1 if something is broken."""
    from heliostat import doctor as looking

    found = looking.examine(cluster, progress=print_progress)
    if json:
        print_json(found)
    else:
        print_table(("", "what", "seen", "do"), [(looking.MARKS[c.state], c.what, c.seen, c.do) for c in found])
    raise typer.Exit(1 if any(check.state == "broken" for check in found) else 0)
