"""`heliostat app`: serving applications and their releases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.serve.reports import ReplicaReport

apps = typer.Typer(help="Serving applications and their releases.", no_args_is_help=True)


@apps.command("deploy")
def app_deploy(name: str, cluster: Cluster = None) -> None:
    """Put an application of the definition onto the cluster. It starts at zero replicas and wakes on a request."""
    from heliostat.sdk import Platform
    from heliostat.serve.desired import released, to_release

    platform = Platform.connect(cluster)
    platform.apps.deploy(name)
    print_progress(f"{name} is wanted; waiting until Serve has it")
    platform.apps.wait_deployed(name, progress=print_progress)
    spec = platform.definition.applications[name]
    live = released(platform.store, spec)
    when = f"v{live.version}" if live else f"once a version is released: {to_release(name, spec)}"
    print_progress(f"{name} answers at {platform.apps.url(name)}, {when}")


@apps.command("status")
def app_status(name: str, cluster: Cluster = None, json: Json = False) -> None:
    """What is in production, what is on trial and who began it, and what each living replica serves."""
    from heliostat.sdk import Platform

    status = Platform.connect(cluster).apps.status(name)
    if json:
        print_json(status)
        return
    record = status.release
    if record is not None:
        begun = next(entry for entry in record.history if entry.release == record.id)
        print_table(
            ("state", "production", "on trial", "kept warm", "share", "verdict", "by", "why"),
            [
                (
                    record.state,
                    _version(record.stable),
                    _version(record.candidate),
                    _version(record.previous),
                    f"{record.share:.0%}" if record.is_under_way else "-",
                    "-" if status.verdict is None else "passed" if status.verdict.passed else "NOT passed",
                    begun.who,
                    record.last.why,
                )
            ],
        )
    else:
        print_progress(f"nothing was released yet: heliostat app release {name} MODEL:vN")
    if not status.replicas:
        print_progress("no replica is up; one comes with a request" if record else "no replica is up")
        return
    print_table(
        ("replica", "node", "version", "digest", "requests", "on trial", "loaded", "tried", "compared", "errors"),
        [(r.replica, r.node, f"v{r.version}", r.digest[:19], r.requests, *_trial_cells(r)) for r in status.replicas],
    )


def _trial_cells(report: ReplicaReport) -> tuple[object, ...]:
    tally = report.trial
    if tally is None:
        return ("-", "-", "-", "-", report.error or "-")
    tries = tally.probed + tally.shadowed + tally.requests
    disagreed = f"{tally.compared}, {tally.disagreed} differ"
    return (f"v{tally.version}", tally.digest[:19] or "no", tries, disagreed, tally.error or tally.errors)


def _version(version: int | None) -> str:
    return "-" if version is None else f"v{version}"


@apps.command("release")
def app_release(
    name: str,
    reference: Annotated[str, typer.Argument(help="name:v3, the version to promote")],
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "released by hand",
    force: Annotated[str | None, typer.Option(help="Promote against the verdict, with this reason.")] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Judge a version, try it beside the one in production, and wait until every living replica serves it."""
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    released = platform.apps.release(
        name, platform.models.get(reference), why=why, force=force, progress=print_progress
    )
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
    """End the release that goes on, or move production back to the version before."""
    from heliostat.sdk import Platform

    alias = Platform.connect(cluster).apps.rollback(name, why=why)
    print_progress(f"{name} serves v{alias.version}")


@apps.command("flow", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def app_flow(
    name: str,
    context: typer.Context,
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "flow",
    force: Annotated[str | None, typer.Option(help="Release against the verdict, with this reason.")] = None,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Train, publish, judge and release. Killed, the same command goes on where it was left. After --, the job's own
    arguments.
    """
    from heliostat.sdk import Platform

    done = Platform.connect(cluster).apps.flow(
        name, why=why, force=force, arguments=[a for a in context.args if a != "--"], progress=_once(print_progress)
    )
    if json:
        print_json(done)
    else:
        print_table(("step", "what"), [(line.step, line.what) for line in done.done])


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same line again says nothing."""
    last = ""

    def told(line: str) -> None:
        nonlocal last
        if line != last:
            last = line
            tell(line)

    return told


@apps.command("history")
def app_history(name: str, cluster: Cluster = None, json: Json = False) -> None:
    """Who released what and why, newest last, with the numbers that decided."""
    from heliostat.sdk import Platform

    history = Platform.connect(cluster).apps.history(name)
    if json:
        print_json(history)
        return
    print_table(
        ("at", "who", "state", "from", "to", "why", "numbers"),
        [
            (
                datetime.fromtimestamp(e.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                e.who,
                e.state,
                _version(e.from_version),
                _version(e.to_version),
                e.why if e.forced is None else f"{e.why} (forced: {e.forced})",
                ", ".join(f"{key} {value:g}" for key, value in e.numbers.items()),
            )
            for e in history
        ],
    )
