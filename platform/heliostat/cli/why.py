"""`why`: what a job or an application waits for, and the one thing to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table


def why(
    name: Annotated[str | None, typer.Argument(help="A job, a run or an application; all that wait, if none.")] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Why a job or an application waits: one cause, one next step. Embedded clusters only."""
    from heliostat.plan.why import Answer, explain, explain_all
    from heliostat.sdk import Platform

    snapshot = Platform.connect(cluster).snapshot()
    if name is None:
        answers = list(explain_all(snapshot))
    else:
        work = snapshot.work(name)
        answers = [Answer(work.name, work.kind, explain(snapshot, work))]
    if json:
        print_json(
            [
                {"name": a.work, "kind": a.kind, "cause": a.cause.id, "healthy": a.cause.healthy,
                 "what": a.cause.what, "do": a.cause.do}
                for a in answers
            ]
        )  # fmt: skip
    elif answers:
        rows = [(a.work, a.cause.id, a.cause.what, a.cause.do) for a in answers]
        print_table(("job or application", "cause", "what", "next step"), rows)
    else:
        print_progress("no job and no application waits")
