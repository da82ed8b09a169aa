"""The cluster definition: what a platform engineer writes and reviews, as one typed value.

`load(path)` reads the YAML and reports every mistake at once, each with its file, line and field. Nothing has been
started or changed by then.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from heliostat.errors import DefinitionError, Problem
from heliostat.names import check_name
from heliostat.units import CountRange, Duration

Name = Annotated[str, AfterValidator(check_name)]
Port = Annotated[int, Field(ge=1024, le=65535)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(_Part):
    cpus: int = Field(default=2, ge=1)
    """CPUs of the head; it never takes GPU work."""


class WorkerGroup(_Part):
    """Nodes of one kind, between `nodes.low` and `nodes.high` of them as work asks for it."""

    role: Literal["serving", "training"]
    market: Literal["on-demand", "spot"]
    cpus: int = Field(ge=1)
    gpus: int = Field(ge=0)
    """Per node. Logical on an embedded cluster whose machine has none."""
    accelerator: str | None = None
    """Ray's accelerator type, such as A100; becomes a node label."""
    nodes: CountRange
    idle_timeout: Duration = Duration.parse("60s")
    """A node without work for this long is ended."""
    fallback: str | None = None
    """The on-demand group that takes over a spot serving group's work; required there."""


class GateRules(_Part):
    """What a version must show before it goes to production."""

    min_accuracy: Share = 0.0
    min_macro_f1: Share = 0.0
    max_drop: Share = 0.0
    """How much worse than the version in production it may be, in either metric."""


class Application(_Part):
    recipe: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """module:Class of a serving recipe."""
    model: str = Field(pattern=r"^[a-z][a-z0-9-]*@[a-z][a-z0-9-]*$")
    """name@alias; the replicas follow the alias."""
    group: str
    route: str = Field(pattern=r"^/[a-z0-9][a-z0-9/_-]*$")
    replicas: CountRange
    """While in use. Idle, an application goes to zero."""
    gpus_per_replica: float = Field(default=1.0, ge=0)
    idle_timeout: Duration = Duration.parse("5m")
    max_queue: Duration = Duration.parse("5s")
    """Seconds of queued work beyond which requests are refused with 429."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 is about three times as fast where the processor has units for it, and is served only where it agrees."""
    keys: tuple[Name, ...] = ()
    """Names of the API keys that open it (`heliostat.serve.keys`); never keys themselves."""
    gate: GateRules = GateRules()


class JobSpec(_Part):
    entrypoint: str = Field(min_length=1)
    group: str
    publishes: Name
    """The model that its runs become versions of."""


class StoreSpec(_Part):
    kind: Literal["embedded", "s3"]
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    endpoint: str | None = None
    """Of an S3 that is not AWS's; for kind s3 only."""


class Tags(_Part):
    team: Name
    project: Name


class Ports(_Part):
    """Of an embedded cluster, on 127.0.0.1. "auto" takes the usual one, or any free one."""

    dashboard: Port = "auto"
    serve: Port = "auto"
    store: Port = "auto"


class ClusterDefinition(_Part):
    name: Name
    head: Head = Head()
    groups: dict[Name, WorkerGroup] = Field(min_length=1)
    store: StoreSpec
    applications: dict[Name, Application] = Field(default_factory=dict)
    jobs: dict[Name, JobSpec] = Field(default_factory=dict)
    tags: Tags
    ports: Ports = Ports()


Location = tuple[str | int, ...]


def load(path: Path) -> ClusterDefinition:
    """The definition in a YAML file. Raises DefinitionError with every mistake in it, in the order of the file."""
    data, lines, problems = _read(path)
    definition: ClusterDefinition | None = None
    try:
        definition = ClusterDefinition.model_validate(data)
    except ValidationError as error:
        problems += [_problem(found, data, lines, path) for found in error.errors(include_url=False)]
    # Rules between parts are checked on what is valid by itself, so that one run tells all.
    groups = definition.groups if definition else _valid_parts(data, "groups", WorkerGroup)
    apps = definition.applications if definition else _valid_parts(data, "applications", Application)
    jobs = definition.jobs if definition else _valid_parts(data, "jobs", JobSpec)
    known = set(data.get("groups") or {}) if isinstance(data.get("groups"), dict) else set(groups)
    store = definition.store if definition else _valid_store(data)
    for location, message in [*_cross_checks(groups, apps, jobs, known), *_check_store(store)]:
        problems.append(Problem(_dotted(location), message, str(path), _line(lines, location)))
    if problems or definition is None:
        raise DefinitionError(sorted(problems, key=lambda problem: problem.line or 0))
    return definition


def _cross_checks(
    groups: Mapping[str, WorkerGroup],
    apps: Mapping[str, Application],
    jobs: Mapping[str, JobSpec],
    known: set[str],
) -> Iterator[tuple[Location, str]]:
    for name, group in groups.items():
        yield from _check_fallback(name, group, groups, known)
    for name, app in apps.items():
        yield from _check_group(("applications", name, "group"), app.group, "serving", groups, known)
        yield from _check_gpus(name, app, groups)
    yield from _check_routes(apps)
    for name, job in jobs.items():
        yield from _check_group(("jobs", name, "group"), job.group, "training", groups, known)


def _check_fallback(
    name: str, group: WorkerGroup, groups: Mapping[str, WorkerGroup], known: set[str]
) -> Iterator[tuple[Location, str]]:
    suitable = sorted(other for other, spec in groups.items() if spec.role == "serving" and spec.market == "on-demand")
    offer = f"one of: {', '.join(suitable)}" if suitable else "add an on-demand serving group and name it"
    if group.role == "serving" and group.market == "spot" and group.fallback is None:
        yield (
            ("groups", name, "market"),
            "serving on spot alone loses requests with every reclaim; write market: on-demand, or name a fallback "
            f"({offer})",
        )
    elif group.fallback is not None and group.fallback not in (suitable if group.fallback in groups else known):
        yield ("groups", name, "fallback"), f"{group.fallback!r} is not an on-demand serving group; {offer}"


def _check_group(
    location: Location, group: str, role: str, groups: Mapping[str, WorkerGroup], known: set[str]
) -> Iterator[tuple[Location, str]]:
    suitable = sorted(name for name, spec in groups.items() if spec.role == role)
    offer = f"one of: {', '.join(suitable)}" if suitable else f"add a group with role: {role}"
    if group not in known:
        yield location, f"there is no group {group!r}; {offer}"
    elif group in groups and groups[group].role != role:
        yield location, f"group {group!r} has role {groups[group].role}, not {role}; {offer}"


def _check_gpus(name: str, app: Application, groups: Mapping[str, WorkerGroup]) -> Iterator[tuple[Location, str]]:
    group = groups.get(app.group)
    if group is not None and app.gpus_per_replica > group.gpus:
        yield (
            ("applications", name, "gpus_per_replica"),
            f"{app.gpus_per_replica:g} does not fit: a node of group {app.group!r} has {group.gpus}; "
            f"write {group.gpus} or less, or give the group more GPUs per node",
        )


def _check_routes(apps: Mapping[str, Application]) -> Iterator[tuple[Location, str]]:
    owners: dict[str, str] = {}
    for name, app in apps.items():
        owner = owners.setdefault(app.route, name)
        if owner != name:
            yield ("applications", name, "route"), f"{app.route!r} is already the route of {owner!r}; write another one"


def _check_store(store: StoreSpec | None) -> Iterator[tuple[Location, str]]:
    if store is not None and store.kind == "embedded" and store.endpoint is not None:
        yield (
            ("store", "endpoint"),
            f"{store.endpoint!r} would be ignored: an embedded store has its own; remove it, or write kind: s3",
        )


def _valid_store(data: Mapping[str, Any]) -> StoreSpec | None:
    try:
        return StoreSpec.model_validate(data.get("store"))
    except ValidationError:
        return None  # told already


def _read(path: Path) -> tuple[dict[str, Any], Any, list[Problem]]:
    """(plain data, the tree that knows lines, what is wrong with the YAML itself that reading can go on after)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DefinitionError([Problem("", "there is no such file", str(path))], do="give the path of one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError([Problem("", f"it cannot be read: {error}", str(path))]) from error
    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = True  # found below, all of them; ruamel would stop at the first
    try:
        problems = [
            Problem(_dotted(location), message, str(path), line)
            for location, message, line in _duplicates(YAML(typ="rt").compose(text))
        ]
        tree = yaml.load(text)
        data = _plain(tree)
    except RecursionError as error:
        raise DefinitionError([Problem("", "it is nested too deep, or refers to itself", str(path))]) from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DefinitionError([Problem("", f"not YAML: {error.problem}", str(path), line)]) from error
    if not isinstance(tree, dict):
        raise DefinitionError(
            [Problem("", "it holds no mapping", str(path), 1)], do="start with name:, groups: and store:"
        )
    return data, tree, problems


def _duplicates(node: Any, above: Location = ()) -> Iterator[tuple[Location, str, int]]:  # Any: ruamel's nodes
    """(where, what, line) of every key that stands twice in its mapping."""
    if getattr(node, "id", "") == "sequence":
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*above, index))
    if getattr(node, "id", "") != "mapping":
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in first:
            yield (
                (*above, name),
                f'found duplicate key "{name}", first on line {first[name]}; give each a name of its own',
                line,
            )
        first.setdefault(name, line)
        yield from _duplicates(value, (*above, name))


def _plain(node: Any) -> Any:  # Any: YAML
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):  # ruamel's scalars are subclasses
        if isinstance(node, kind):
            return kind(node)
    return node


def _problem(found: Any, data: Any, lines: Any, path: Path) -> Problem:  # Any: pydantic's error, YAML
    location: Location = tuple(part for part in found["loc"] if part not in ("[key]",) and not _is_union_tag(part))
    return Problem(_dotted(location), _message(found, location), str(path), _line(lines, location))


def _is_union_tag(part: str | int) -> bool:
    """pydantic names the member of a union it tried; the reader wrote no such key."""
    return isinstance(part, str) and (part.startswith(("constrained-", "literal[", "function-")) or part == "int")


def _message(found: Any, location: Location) -> str:  # Any: pydantic's error
    kind, value = found["type"], found.get("input")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        known = _fields_beside(location)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; allowed: {', '.join(known)}"
    if kind == "literal_error":
        return f"{value!r} is not allowed; write {found['ctx']['expected']}"
    if kind == "value_error":
        return str(found["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{value!r} does not match {found['ctx']['pattern']}"
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{found['msg'][0].lower()}{found['msg'][1:]}{shown}"


def _fields_beside(location: Location) -> list[str]:
    """The fields that the part with the unknown key could have."""
    model: Any = ClusterDefinition
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a name of the user's, below a dict
        model = next((arg for arg in _arguments(field.annotation) if _is_part(arg)), model)
    return sorted(model.model_fields)


def _arguments(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]


def _is_part(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, _Part)


def _valid_parts(data: Mapping[str, Any], key: str, model: Any) -> dict[str, Any]:  # Any: the part's model
    parts = {}
    for name, value in (data.get(key) or {}).items() if isinstance(data.get(key), dict) else ():
        try:
            parts[name] = model.model_validate(value)
        except ValidationError:
            continue  # told already
    return parts


def _line(tree: Any, location: Location) -> int | None:  # Any: ruamel's tree
    """The line of the deepest key of the location that stands in the file, counted from 1."""
    line = None
    for part in location:
        try:
            line = (tree.lc.item(part) if isinstance(part, int) else tree.lc.key(part))[0] + 1
            tree = tree[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break  # a missing key, or below a scalar
    return line


def _dotted(location: Location) -> str:
    return ".".join(map(str, location))
