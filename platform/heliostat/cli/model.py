"""`heliostat model`: artifacts and aliases in the registry."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.model_load_test import load_test
from heliostat.cli.options import Cluster, Json
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.registry import Alias, Artifact, SweepPlan, Version

model = typer.Typer(help="Artifacts and aliases in the model registry.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="name@alias or name:v3")]
Name = Annotated[str, typer.Argument(help="The model.")]
Why = Annotated[str, typer.Option(help="The reason, kept for good.")]


@model.command("list")
def model_list(
    name: Annotated[str | None, typer.Argument(help="One model; all, if none is given.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted versions too.")] = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Every model, its versions and which aliases point at them."""
    from heliostat.errors import CorruptArtifact
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    rows = []
    for each in models.list() if name is None else [name]:
        try:
            aliases = models.aliases(each)
        except CorruptArtifact as error:
            print_progress(f"{each}: its aliases are not shown: {error}")
            aliases = ()
        rows += [
            _row(version, aliases) for version in models.scan(each) if deleted or not hasattr(version, "tombstone")
        ]
    if json:
        print_json(rows)
        return
    print_table(
        ("model", "version", "aliases", "size", "parameters", "dtype", "digest", "metrics", "state"),
        [
            (
                row.model,
                row.version,
                ", ".join(row.aliases),
                _bytes(row.bytes),
                f"{row.parameters:,}" if row.parameters else None,
                row.dtype or None,
                row.digest[:19],
                ", ".join(f"{key} {value:.4g}" for key, value in row.metrics.items()),
                row.state,
            )
            for row in rows
        ],
    )


@model.command("show")
def model_show(reference: Reference, cluster: Cluster = None, json: Json = False) -> None:
    """The model card of one version: what it is, its metrics, where it comes from, its files. Markdown."""
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    artifact = models.get(reference)
    if json:
        print_json(artifact)
    else:
        typer.echo(models.card(artifact))


@model.command("diff")
def model_diff(before: Reference, after: Reference, cluster: Cluster = None, json: Json = False) -> None:
    """How two versions differ: files, tensors, metrics, lineage."""
    from heliostat.sdk import Platform

    found = Platform.connect(cluster).models.diff(before, after)
    if json:
        print_json(found)
        return
    if found.same_content:
        print_progress(f"{found.before} and {found.after} have the same content")
    columns = (found.before, found.after)
    if found.facts:
        print_table(("fact", *columns), [(change.name, change.before, change.after) for change in found.facts])
    if found.tensors:
        print_table(("tensor", *columns), [(change.name, change.before, change.after) for change in found.tensors])
    if found.files:
        print_table(
            ("file", *columns), [(change.name, _bytes(change.before), _bytes(change.after)) for change in found.files]
        )


@model.command("verify")
def model_verify(reference: Reference, cluster: Cluster = None, json: Json = False) -> None:
    """Read every byte of a version and compare it with the manifest. Exit code 1 names what is damaged, and where."""
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    artifact = models.get(reference)
    with _transfer(f"verifying {artifact.reference}", artifact.manifest.size) as moved:
        findings = models.verify(artifact, moved=moved)
    if json:
        print_json({"reference": artifact.reference, "whole": not findings, "findings": findings})
    elif findings:
        print_table(
            ("file", "from byte", "to byte", "what is wrong"), [(f.path, f.start, f.end, f.what) for f in findings]
        )
    else:
        print_progress(f"{artifact.reference} is whole: {len(artifact.manifest.files)} files as published")
    if findings:
        raise typer.Exit(1)


@model.command("key")
def model_key(
    file: Annotated[Path, typer.Argument(help="A new file for the private key; keep it to yourself.")],
) -> None:
    """Make a key to sign versions with. Prints the public one, for `signed_by` in a definition."""
    from heliostat.registry.signatures import make_key

    typer.echo(make_key(file))
    print_progress(f"the private key is in {file}; whoever has it can publish what the applications trust")


@model.command("sign")
def model_sign(
    reference: Reference,
    key: Annotated[Path, typer.Option("--key", help="The file with your private key, of `heliostat model key`.")],
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Put your name to a version: applications whose definition trusts your key may load it."""
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    artifact = models.get(reference)
    signature = models.sign(artifact, key)
    if json:
        print_json(signature)
    else:
        print_progress(f"{artifact.reference} ({artifact.digest[:19]}) is signed with {signature.key}")


@model.command("pull")
def model_pull(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="Where to; files of other names in it are left.")],
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """A version into a folder, verified on the way. Running it again goes on where it was."""
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    artifact = models.get(reference)
    with _transfer(f"pulling {artifact.reference}", artifact.manifest.size) as moved:
        paths = models.pull(artifact, folder, moved=moved)
    if json:
        print_json({"reference": artifact.reference, "digest": artifact.digest, "files": paths})
    else:
        print_progress(f"{artifact.reference}: {len(paths)} files in {folder}, verified")


@model.command("push")
def model_push(
    name: Annotated[str, typer.Argument(help="The model; its next version is claimed.")],
    folder: Annotated[Path, typer.Argument(help="Its files: a Hugging Face folder as it is.")],
    licence: Annotated[str, typer.Option(help="Such as Apache-2.0.")],
    framework: Annotated[str, typer.Option(help="What loads it.")] = "torch",
    exclude: Annotated[list[str] | None, typer.Option(help="Leave out, such as '*.bin'; may be repeated.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER; may be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT; may be repeated.")] = None,
    parent: Annotated[str | None, typer.Option(help="The version it was made from, name:v3.")] = None,
    job: Annotated[str, typer.Option(help="What made it.")] = "pushed by hand",
    code: Annotated[str, typer.Option(help="The version of the code that made it.")] = "unknown",
    data: Annotated[str, typer.Option(help="The digest of the data it was made from.")] = "unknown",
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """A folder as the model's next version; the same content again is the same version."""
    from heliostat.registry import ArtifactMetadata, Lineage
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    files = models.files_of(folder, exclude=exclude or (), left_out=lambda what: print_progress(f"left out: {what}"))
    metadata = ArtifactMetadata(
        framework=framework,
        metrics={key: _number(value, f"--metric {key}") for key, value in _pairs(metric, "--metric")},
        lineage=Lineage(job=job, code_version=code, dataset_digest=data, parent=parent),
        licence=licence,
        tags=dict(_pairs(tag, "--tag")),
    )
    total = sum(path.stat().st_size for path in files.values())
    with _transfer("reading and pushing", 2 * total) as moved:
        artifact = models.push(files, name=name, metadata=metadata, moved=moved)
    _print_published(artifact, json)


@model.command("publish")
def model_publish(
    name: Annotated[str, typer.Argument(help="The model; its next version is claimed.")],
    run: Annotated[str, typer.Argument(help="A finished run, as job list shows it.")],
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Make a run's output the model's next version; the same content again is the same version."""
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    _print_published(platform.models.publish(platform.jobs.result(run), name=name), json)


@model.command("alias")
def model_alias(
    name: Name,
    alias: Annotated[str | None, typer.Argument(help="Such as staging; without it, all are shown.")] = None,
    to: Annotated[str | None, typer.Option(help="Move it to this version, such as v3.")] = None,
    back: Annotated[bool, typer.Option("--back", help="Roll back to the version before, or to --to.")] = False,
    expect: Annotated[str | None, typer.Option(help="Only if it points at this version now; none: nowhere.")] = None,
    why: Why = "moved by hand",
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Show where aliases point, or move one, if nobody else moves it meanwhile. No gate is asked: see app release."""
    from heliostat.errors import UsageError
    from heliostat.names import parse_version
    from heliostat.sdk import Platform

    models = Platform.connect(cluster).models
    target = None if to is None else parse_version(to)
    if alias is None:
        if to or back or expect:
            raise UsageError("which alias is to move is not said", do="heliostat model alias NAME production --to v3")
        _print_aliases(models.aliases(name), json)
    elif back:
        _print_aliases([models.roll_back(name, alias, to_version=target, why=why)], json)
    elif target is not None:
        moved = (
            models.move_alias(name, alias, to_version=target, why=why)
            if expect is None
            else models.move_alias(
                name,
                alias,
                to_version=target,
                why=why,
                expected_version=None if expect == "none" else parse_version(expect),
            )
        )
        _print_aliases([moved], json)
    else:
        _print_aliases([models.must_get_alias(name, alias)], json)


@model.command("history")
def model_history(
    name: Name,
    alias: Annotated[str, typer.Option(help="Which alias.")] = "production",
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Where an alias has pointed: who moved it, when and why."""
    from heliostat.sdk import Platform

    found = Platform.connect(cluster).models.must_get_alias(name, alias)
    if json:
        print_json(found)
        return
    rows = [
        (
            f"{m.at:%Y-%m-%d %H:%M:%S} UTC",
            m.who,
            f"v{m.from_version}" if m.from_version else None,
            f"v{m.to_version}",
            "back" if m.back else "forward",
            m.why,
        )
        for m in found.history
    ]
    print_table(("when", "who", "from", "to", "way", "why"), rows)


@model.command("sweep")
def model_sweep(
    names: Annotated[list[str] | None, typer.Argument(help="Which models; all if none is named.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, it is only shown.")] = False,
    keep_newest: Annotated[int, typer.Option(min=0, help="Of each model, the newest so many stay.")] = 5,
    keep_for: Annotated[str, typer.Option(help="What is younger stays.")] = "30d",
    keep_rollbacks: Annotated[int, typer.Option(min=0, help="Of each alias, so many rollbacks stay possible.")] = 3,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Delete the versions and files that nothing needs: no alias, application, lease or rule. Shown first."""
    from datetime import timedelta

    from heliostat.registry import Retention
    from heliostat.sdk import Platform
    from heliostat.units import Duration

    models = Platform.connect(cluster).models
    retention = Retention(keep_newest, timedelta(seconds=Duration.parse(keep_for).seconds), keep_rollbacks)
    plan = models.plan_sweep(names or None, retention=retention)
    if not json:
        _print_plan(plan)
    elif not yes:
        print_json({"plan": plan, "bytes": plan.bytes})
    if not yes:
        print_progress("nothing was deleted; --yes does it")
        return
    done = models.sweep(names or None, retention=retention, progress=print_progress)
    if json:
        print_json(done)
        return
    print_progress(f"deleted {len(done.deleted)} versions, {done.objects} files, {done.uploads} unfinished uploads")
    for what, why in done.spared.items():
        print_progress(f"spared {what}: {why}")


@model.command("delete")
def model_delete(
    reference: Annotated[str, typer.Argument(help="name:v3")],
    why: Annotated[str, typer.Option(help="The reason, kept for good.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, it is only shown.")] = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Delete one version for good, unless an alias, an application or a lease needs it."""
    from heliostat.errors import UsageError
    from heliostat.names import parse_version
    from heliostat.sdk import Platform

    name, colon, version = reference.partition(":")
    if not colon:
        raise UsageError(f"{reference!r} names no version", do="write name:v3; an alias is no version")
    models = Platform.connect(cluster).models
    if not yes:
        print_progress(f"{name} {version} would be deleted ({why}); --yes does it")
        return
    stone = models.delete(name, parse_version(version), why=why)
    if json:
        print_json(stone)
    else:
        print_progress(f"{name} {version} is deleted, by {stone.who} ({stone.why})")


@dataclass(frozen=True)
class Row:
    """One version in `model list`."""

    model: str
    version: str
    alias: str  # "production" or ""
    aliases: tuple[str, ...]
    state: str
    digest: str = ""
    bytes: int | None = None
    parameters: int = 0
    dtype: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


def _row(version: Version, aliases: Sequence[Alias]) -> Row:
    from heliostat.registry import Artifact, Damaged

    names = tuple(alias.alias for alias in aliases if alias.version == version.version)
    row = Row(version.name, f"v{version.version}", "production" if "production" in names else "", names, "whole")
    if isinstance(version, Damaged):
        return replace(row, state=f"DAMAGED: {version.error}")
    if not isinstance(version, Artifact):
        return replace(row, state=f"deleted by {version.tombstone.who}")
    about = version.metadata
    return replace(
        row,
        digest=version.digest,
        bytes=version.manifest.size,
        parameters=about.parameters,
        dtype=about.dtype,
        metrics=about.metrics,
    )


def _print_published(artifact: Artifact, json: bool) -> None:
    if json:
        print_json({"model": artifact.name, "version": f"v{artifact.version}", "digest": artifact.digest})
    else:
        print_progress(f"{artifact.name} v{artifact.version} ({artifact.digest[:19]})")


def _print_aliases(aliases: Sequence[Alias], json: bool) -> None:
    if json:
        print_json(aliases)
        return
    print_table(
        ("alias", "version", "moved", "by", "why"),
        [
            (each.alias, f"v{each.version}", f"{last.at:%Y-%m-%d %H:%M:%S} UTC", last.who, last.why)
            for each in aliases
            for last in each.history[-1:]
        ],
    )


def _print_plan(plan: SweepPlan) -> None:
    print_table(
        ("model", "version", "size", "", "why"),
        [
            (each.name, f"v{each.version}", _bytes(each.bytes), "DELETE" if each.delete else "keep", each.why)
            for each in plan.decisions
        ],
    )
    print_progress(
        f"to delete: {len(plan.doomed)} versions, {len(plan.parts)} files of publishers that died, {plan.uploads} "
        f"unfinished uploads; {_bytes(plan.bytes)}"
    )
    for name, why in plan.left.items():
        print_progress(f"left alone in {name}: {why}")


@contextmanager
def _transfer(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the rate on a terminal, one line at the end elsewhere. Called from several threads."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console, begun, moved = Console(stderr=True), time.monotonic(), [0]
    columns = (TextColumn(title), BarColumn(), DownloadColumn(True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int) -> None:
            moved[0] += count
            bar.update(task, advance=count)

        yield advance
    took_s = max(time.monotonic() - begun, 1e-3)
    print(f"{title}: {_bytes(moved[0])} in {took_s:.1f} s, {_bytes(int(moved[0] / took_s))}/s", file=sys.stderr)  # noqa: T201


def _bytes(count: object) -> str | None:
    from heliostat.units import human_bytes

    return human_bytes(count) if isinstance(count, int) else None


def _pairs(given: list[str] | None, option: str) -> Iterator[tuple[str, str]]:
    from heliostat.errors import UsageError

    for text in given or ():
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise UsageError(f"{text!r} is no pair", where=option, do=f"write {option} NAME=VALUE")
        yield key, value


def _number(text: str, where: str) -> float:
    from heliostat.errors import UsageError

    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number", where=where) from None


model.command("load-test")(load_test)
