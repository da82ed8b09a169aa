"""`check`: what will cost, hang or break in a definition or a manifest, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.options import Json
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.plan.check import Report
    from heliostat.plan.params import ModelShape


def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Cluster definitions, or manifests with RayClusters, RayServices or RayJobs; or a folder."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="What is known of a definition's model: NAME=7B, or NAME=FOLDER with its config.json. Repeat for more."
        ),
    ] = None,
    explain: Annotated[str | None, typer.Option(help="The words of one rule, or of all.", metavar="ID")] = None,
    json: Json = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0, as code hosts read it.")] = False,
) -> None:
    """Find what costs, hangs or breaks later. Exit code: 0 notes at most, 3 warnings, 4 errors, 2 unreadable."""
    from heliostat import __version__
    from heliostat.errors import UsageError
    from heliostat.plan import check as checking

    if explain is not None:
        typer.echo(checking.explain(explain), nl=False)
        return
    if not files:
        raise UsageError("no file is given", do="heliostat check FILE, or heliostat check --explain ID")
    if json and sarif:
        raise UsageError("--json and --sarif are two formats", do="write one of them")
    shapes = _shapes(model or [])
    reports = [
        report
        for path in files
        for report in (
            checking.check_folder(path, models=shapes) if path.is_dir() else [checking.check_file(path, models=shapes)]
        )
    ]
    if sarif:
        print_json(checking.as_sarif(reports, version=__version__))
    elif json:
        print_json(
            {"findings": [f for r in reports for f in r.findings], "allowed": [f for r in reports for f in r.allowed]}
        )
    else:
        _print(reports)
    raise typer.Exit(max(report.exit_code for report in reports))


def _shapes(models: list[str]) -> dict[str, ModelShape]:
    from heliostat.errors import UsageError
    from heliostat.plan.params import read_shape, shape_of_size

    shapes = {}
    for text in models:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(f"--model {text!r} names no size", do="write NAME=7B, or NAME=FOLDER")
        shapes[name] = read_shape(Path(value)) if Path(value).exists() else shape_of_size(value)
    return shapes


def _print(reports: list[Report]) -> None:
    for report in reports:
        rows = [
            (f.severity, f.rule, f"{f.file}:{f.line}" if f.file else f.at, f"{f.what}; {f.do}")
            for f in report.findings
        ]  # fmt: skip
        if rows:
            print_table(("severity", "rule", "where", "what, and what to do"), rows)
        count = f"{len(rows)} finding{'s' * (len(rows) != 1)}" if rows else "clean"
        aside = f", {len(report.allowed)} allowed by comments" if report.allowed else ""
        print_progress(f"{report.file}: {count}{aside} ({', '.join(report.clusters)})")
    if any(report.findings for report in reports):
        print_progress("why: heliostat check --explain RULE")
