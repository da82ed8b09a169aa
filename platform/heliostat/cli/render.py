"""`render`, `schema` and `preview`: what a definition becomes, without touching anything."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.show import print_json, print_progress

if TYPE_CHECKING:
    from heliostat.cluster.manifests import Manifest
    from heliostat.cluster.upgrade import FieldChange
    from heliostat.definition import ClusterDefinition

Definition = Annotated[Path, typer.Argument(help="A cluster definition, such as cluster/aws.yaml")]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="all: what apply brings onto Kubernetes. Or one kind of it, such as raycluster or nodepool; or rayservice "
        "or rayjob, which are other renderings and never part of all.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="A folder for one file per object; stdout if not given.")]
Iam = Annotated[bool, typer.Option("--iam", help="Instead: the rights that the parts need, and no more, as JSON.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def render(definition: Definition, kind: Kind = "all", out: Out = None, json: Json = False, iam: Iam = False) -> None:
    """The Kubernetes objects of a definition, as YAML. Touches no cluster."""
    from heliostat.definition import load

    if iam:
        from heliostat.cluster.iam import documents

        print_json(documents(load(definition)))
        return
    objects = chosen(load(definition), kind)
    if out is not None:
        for item in objects:
            print_progress(f"wrote {_write(item, out)}")
    elif json:
        print_json(objects)
    else:
        typer.echo(as_yaml(objects), nl=False)


def schema() -> None:
    """The JSON Schema of definitions, as in cluster/schema.json; editors complete and check by it."""
    from heliostat.definition.schema import json_schema

    typer.echo(jsonlib.dumps(json_schema(), indent=1))


def preview(
    old: Annotated[Path, typer.Argument(help="The definition as it runs.")],
    new: Annotated[Path, typer.Argument(help="The definition as it should be.")],
    json: Json = False,
) -> None:
    """For each changed field: in place, restarts a group, or needs a new cluster, and how many more GPUs that takes."""
    from heliostat.cluster.upgrade import EFFECTS
    from heliostat.cluster.upgrade import preview as compare
    from heliostat.definition import load

    found = compare(load(old), load(new))
    if json:
        print_json({"effect": found.effect, "more_gpus": found.more_gpus, "changes": found.changes})
        return
    for effect in reversed(EFFECTS):
        for number, change in enumerate([change for change in found.changes if change.effect == effect]):
            if number == 0:
                typer.echo(effect)
            typer.echo(_line(change))
    typer.echo(f"together: {found.effect}, {found.more_gpus} more GPUs" if found.changes else "nothing differs")


def _line(change: FieldChange) -> str:
    """groups.train.cpus: 180 -> 14 (train; a running pod keeps its template: ...)"""
    about = [", ".join(change.groups), change.why, f"{change.more_gpus} more GPUs" if change.more_gpus else ""]
    said = "; ".join(part for part in about if part)
    return f"  {change.field}: {_short(change.before)} -> {_short(change.after)} ({said})"


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 60 else f"{value[:59]}…"


def chosen(definition: ClusterDefinition, kind: str) -> list[Manifest]:
    """The objects of one kind, or of the standing set. Raises UsageError with the kinds that there are."""
    from heliostat.cluster.manifests import ray_jobs, ray_service
    from heliostat.cluster.manifests import render as standing
    from heliostat.errors import UsageError

    objects = standing(definition)  # also where another one is asked for: it refuses what cannot be rendered
    others: dict[str, Callable[[], list[Manifest]]] = {
        "rayservice": lambda: [ray_service(definition, service_config(definition))],
        "rayjob": lambda: ray_jobs(definition),
    }
    wanted = kind.lower()
    if wanted == "all":
        return objects
    found = others[wanted]() if wanted in others else [item for item in objects if item["kind"].lower() == wanted]
    if not found:
        kinds = sorted({item["kind"].lower() for item in objects} | set(others))
        raise UsageError(f"{definition.name} has no {kind!r}", do=f"write --kind all, {', '.join(kinds)}")
    return found


def service_config(definition: ClusterDefinition) -> Manifest:
    """Serve's goal state for a cluster of its own: every application in use, a front on every node with replicas."""
    from heliostat.cluster.manifests.meta import SERVE_PORT
    from heliostat.serve.config import serve_config
    from heliostat.serve.desired import DesiredApp

    apps = [
        DesiredApp(name=name, spec=app, package="", groups=definition.serving_groups(app))
        for name, app in definition.applications.items()
    ]
    config = serve_config(apps, awake=set(definition.applications), port=SERVE_PORT, host="0.0.0.0")  # noqa: S104
    return {**config, "proxy_location": "EveryNode"}


def as_yaml(objects: list[Manifest]) -> str:
    """Documents of one stream. Equal objects give equal text."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # apiVersion and kind stay on top
    yaml.representer.ignore_aliases = lambda _: True  # read by people
    stream = io.StringIO()
    yaml.dump_all(objects, stream)
    return stream.getvalue()


def _write(item: Manifest, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{item['kind'].lower()}-{item['metadata']['name']}.yaml"
    path.write_text(as_yaml([item]))
    return path
