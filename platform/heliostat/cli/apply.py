"""`diff`, `apply` and the Kubernetes side of `down`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.cluster.kubernetes import Api, Object, Plan

_WHAT = "Rendered manifests: files, or folders of them."
Manifests = Annotated[list[Path], typer.Argument(help=_WHAT)]
OptionalManifests = Annotated[list[Path] | None, typer.Argument(help=_WHAT)]
Context = Annotated[
    str | None, typer.Option("--context", help="A context of the kubeconfig; its current one if not given.")
]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Take fields and objects over from who holds them.")]
WithData = Annotated[bool, typer.Option("--with-data", help="Delete volume claims and the namespace too.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Wait = Annotated[str, typer.Option("--wait", help="How long to wait until it is ready; 0s not to wait.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def diff(
    manifests: Manifests,
    context: Context = None,
    take_over: TakeOver = False,
    with_data: WithData = False,
    json: Json = False,
) -> None:
    """What apply would change on Kubernetes, field by field, checked by the API server. Changes nothing."""
    from heliostat.cluster.kubernetes import plan

    cluster, objects = _objects(manifests)
    planned = plan(_api(context), objects, cluster=cluster, take_over=take_over, with_data=with_data)
    _show(planned, json=json)
    if conflict := planned.conflict():
        raise conflict


def apply(
    manifests: Manifests,
    context: Context = None,
    take_over: TakeOver = False,
    with_data: WithData = False,
    wait: Wait = "15m",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Bring manifests onto Kubernetes: show the diff, ask, apply, wait until ready. Safe to run again."""
    from heliostat.cluster import kubernetes
    from heliostat.units import Duration

    limit_s = Duration.parse(wait).seconds
    cluster, objects = _objects(manifests)
    api = _api(context)
    planned = kubernetes.plan(api, objects, cluster=cluster, take_over=take_over, with_data=with_data)
    if not json:
        _show(planned, json=False)
    if conflict := planned.conflict():
        raise conflict
    if planned.pending:
        _confirm(f"apply these changes to {api.where}?", yes=yes)
        kubernetes.apply(api, planned, progress=print_progress)
    states = kubernetes.wait_ready(api, objects, limit_s=limit_s, progress=print_progress) if limit_s else ()
    if json:
        print_json({"cluster": cluster, "changes": planned.changes, "notes": planned.notes, "clusters": states})
    elif states:
        rows = [(state.name, group.name, group.ready, group.wanted) for state in states for group in state.groups]
        print_table(("cluster", "group", "ready", "wanted"), rows)


def down(manifests: list[Path], *, cluster: str | None, context: str | None, with_data: bool, yes: bool) -> None:
    """Delete what `apply` made, after showing it."""
    from heliostat.cluster import kubernetes

    name, objects = _objects(manifests)
    if cluster not in (None, name):
        from heliostat.errors import UsageError

        raise UsageError(f"the manifests are the cluster {name}'s, not {cluster}'s", do="leave --cluster out")
    api = _api(context)
    planned = kubernetes.plan_removal(api, objects, cluster=name, with_data=with_data)
    _show(planned, json=False)
    if planned.pending:
        _confirm(f"delete these from {api.where}?", yes=yes)
        kubernetes.remove(api, planned, progress=print_progress)
    print_progress(f"down: nothing that {name} owns is left but what is marked !")


def _objects(paths: list[Path]) -> tuple[str, list[Object]]:
    """The cluster's name and its objects. The one place that knows where manifests come from."""
    from heliostat.cluster.kubernetes import cluster_of, load

    objects = load(paths)
    return cluster_of(objects), objects


def _api(context: str | None) -> Api:
    from heliostat.cluster.kubernetes import Api

    return Api.connect(context=context)


def _show(planned: Plan, *, json: bool) -> None:
    from heliostat.cluster.kubernetes.diff import lines

    if json:
        print_json({"cluster": planned.cluster, "changes": planned.changes, "notes": planned.notes})
        return
    for change in planned.changes:
        if change.verb != "same":
            typer.echo("\n".join(lines(change)))
    counts = {verb: sum(c.verb == verb for c in planned.changes) for verb in ("create", "change", "delete", "same")}
    typer.echo(", ".join(f"{count} {_COUNTED[verb]}" for verb, count in counts.items() if count) or "nothing to do")
    for note in planned.notes:
        print_progress(f"note: {note}")


_COUNTED = {"create": "to create", "change": "to change", "delete": "to delete", "same": "without a change"}


def _confirm(question: str, *, yes: bool) -> None:
    from heliostat.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", do="look at the diff, then repeat with --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
