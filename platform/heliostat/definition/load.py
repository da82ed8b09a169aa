"""Reading a definition: every mistake at once, each with its file, line and field. Nothing has been changed by then.

A file may lay itself over another one with `extends: base.yaml`. Mappings are merged key by key, so groups,
applications, jobs and volumes by their names; everything else is replaced; a key set to null is taken away.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from heliostat.definition.checks import Location, Parts, check
from heliostat.definition.model import (
    Application,
    Budgets,
    ClusterDefinition,
    JobSpec,
    Karpenter,
    Network,
    Observability,
    Part,
    PlatformName,
    RaySoftware,
    StoreSpec,
    Tags,
    WorkerGroup,
)
from heliostat.definition.yaml_size import PARSER_ERRORS, is_too_deep, is_too_large
from heliostat.errors import DefinitionError, Problem

EXTENDS = "extends"


@dataclass(frozen=True)
class Origin:
    """Where a value was written. `line` counts from 1."""

    file: Path
    line: int
    rank: int
    """Of the file: the base before what lies over it."""


@dataclass(frozen=True)
class Source:
    """Plain data, and where each of its values was written."""

    data: dict[str, Any]
    origins: dict[Location, Origin]
    problems: tuple[Problem, ...]
    """What is wrong with the YAML itself that reading can go on after."""
    files: tuple[Path, ...]


def load(path: Path) -> ClusterDefinition:
    """The definition in a YAML file. Raises DefinitionError with every mistake in it, in the order of the file."""
    source = read(path)
    definition: ClusterDefinition | None = None
    found: list[tuple[Location, str]] = []
    try:
        definition = ClusterDefinition.model_validate(source.data)
    except ValidationError as error:
        found += _tell(error)
    # Rules between parts are checked on what is valid by itself, so that one run tells all.
    found += check(_parts(definition, source.data))
    if found or source.problems or definition is None:
        placed = [(_place(source, location), location, message) for location, message in found]
        ranks = {str(file): rank for rank, file in enumerate(source.files)}
        problems = [Problem(_dotted(loc), text, str(at.file), at.line or None) for at, loc, text in placed]
        problems += source.problems
        raise DefinitionError(sorted(problems, key=lambda p: (ranks.get(p.file or "", 0), p.line or 0)))
    return definition


def definition_files(path: Path) -> tuple[Path, ...]:
    """The file and those that it is laid over, the base first."""
    return read(path).files


def read(path: Path) -> Source:
    """The data of a file laid over that of the file it extends. Raises DefinitionError where it is no mapping."""
    return _read(path, above=())


def _read(path: Path, *, above: tuple[Path, ...]) -> Source:
    data, tree, problems = _read_yaml(path)
    # A name of its own for each file, as the reader gave it: bases beside it.
    base_name = data.pop(EXTENDS, None)
    if base_name is None:
        origins = {loc: Origin(path, line, 0) for loc, line in _lines(tree)}
        return Source(data, origins, tuple(problems), (path,))
    line = dict(_lines(tree)).get((EXTENDS,), 1)
    if not isinstance(base_name, str) or not base_name:
        raise DefinitionError([Problem(EXTENDS, "is not the path of a file", str(path), line)])
    base_path = path.parent / base_name
    if base_path.resolve() in [file.resolve() for file in (*above, path)]:
        raise DefinitionError([Problem(EXTENDS, f"{base_name!r} extends this file in turn", str(path), line)])
    if not base_path.is_file():
        raise DefinitionError([Problem(EXTENDS, f"there is no file {base_name!r} beside this one", str(path), line)])
    base = _read(base_path, above=(*above, path))
    rank = len(base.files)
    mine = {loc: Origin(path, number, rank) for loc, number in _lines(tree) if loc != (EXTENDS,)}
    merged, origins = _lay_over(base.data, data, base.origins, mine, ())
    return Source(merged, origins, (*base.problems, *problems), (*base.files, path))


def _lay_over(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    base_origins: Mapping[Location, Origin],
    over_origins: Mapping[Location, Origin],
    at: Location,
) -> tuple[dict[str, Any], dict[Location, Origin]]:
    """Both the merged data and where each of its values comes from."""
    data, origins = dict(base), dict(base_origins)
    for key, value in over.items():
        here = (*at, key)
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            data[key], origins = _lay_over(data[key], value, origins, over_origins, here)
            continue
        origins = {loc: origin for loc, origin in origins.items() if loc[: len(here)] != here}
        if value is None and key in base:
            del data[key]
            continue
        data[key] = value
        origins |= {loc: origin for loc, origin in over_origins.items() if loc[: len(here)] == here}
    return data, origins


def _parts(definition: ClusterDefinition | None, data: Mapping[str, Any]) -> Parts:
    if definition is not None:
        return Parts(
            name=definition.name,
            platform=definition.platform,
            ray=definition.ray,
            store=definition.store,
            karpenter=definition.karpenter,
            groups=definition.groups,
            applications=definition.applications,
            jobs=definition.jobs,
            known_groups=frozenset(definition.groups),
            tags=definition.tags,
            budgets=definition.budgets,
            network=definition.network,
            observability=definition.observability,
        )
    groups = data.get("groups")
    return Parts(
        name=data["name"] if isinstance(data.get("name"), str) else None,
        platform=_valid(data.get("platform"), PlatformName | None),
        ray=_valid(data.get("ray", {}), RaySoftware),
        store=_valid(data.get("store"), StoreSpec),
        karpenter=_valid(data.get("karpenter"), Karpenter),
        groups=_valid_parts(groups, WorkerGroup),
        applications=_valid_parts(data.get("applications"), Application),
        jobs=_valid_parts(data.get("jobs"), JobSpec),
        known_groups=frozenset(groups if isinstance(groups, dict) else ()),
        tags=_valid(data.get("tags"), Tags),
        budgets=_valid(data.get("budgets", {}), Budgets),
        network=_valid(data.get("network", {}), Network),
        observability=_valid(data.get("observability", {}), Observability),
    )


def _valid(value: Any, kind: Any) -> Any:  # Any: YAML, and a type or a union of types
    """`value` as `kind`, or None where it is not valid, which has been told already."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _valid_parts(data: Any, model: type[Part]) -> dict[str, Any]:  # Any: YAML
    if not isinstance(data, dict):
        return {}
    tried = {name: _valid(value, model) for name, value in data.items()}
    return {name: part for name, part in tried.items() if part is not None}


def _read_yaml(path: Path) -> tuple[dict[str, Any], Any, list[Problem]]:
    """(plain data, the tree that knows lines, what is wrong with the YAML itself)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DefinitionError([Problem("", "there is no such file", str(path))], do="give the path of one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError([Problem("", f"it cannot be read: {error}", str(path))]) from error
    if is_too_deep(text):
        raise DefinitionError([Problem("", "it is nested too deep, or refers to itself", str(path))])
    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = True  # found below, all of them; ruamel would stop at the first
    try:
        node = YAML(typ="rt").compose(text)
        if is_too_large(node):
            raise DefinitionError(
                [Problem("", "its aliases stand for too many values, or it refers to itself", str(path))],
                do="write it out",
            )
        problems = [
            Problem(_dotted(location), message, str(path), line) for location, message, line in _duplicates(node)
        ]
        tree = yaml.load(text)
        data = _plain(tree)
    except RecursionError as error:
        raise DefinitionError([Problem("", "it is nested too deep, or refers to itself", str(path))]) from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DefinitionError([Problem("", f"not YAML: {error.problem}", str(path), line)]) from error
    except (YAMLError, *PARSER_ERRORS) as error:
        raise DefinitionError([Problem("", f"not YAML: {str(error)[:300]}", str(path))]) from error
    if not isinstance(tree, dict):
        raise DefinitionError(
            [Problem("", "it holds no mapping", str(path), 1)], do="start with name:, groups: and store:"
        )
    return data, tree, problems


def _lines(node: Any, at: Location = ()) -> Iterator[tuple[Location, int]]:  # Any: ruamel's tree
    """(location, line) of every key and list entry."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        here = (*at, key if isinstance(key, int) and isinstance(node, list) else str(key))
        try:
            places: Any = node.lc  # ruamel's, which is a dict or a list besides
            yield here, (places.key(key) if isinstance(node, dict) else places.item(key))[0] + 1
        except (KeyError, IndexError, TypeError, AttributeError):
            pass  # merged in by a YAML alias: the line above is the best there is
        yield from _lines(node[key], here)


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


def _tell(error: ValidationError) -> Iterator[tuple[Location, str]]:
    for found in error.errors(include_url=False):
        location: Location = tuple(part for part in found["loc"] if part != "[key]" and not _is_union_tag(part))
        yield location, _message(found, location)


def _is_union_tag(part: str | int) -> bool:
    """pydantic names the member of a union it tried; the reader wrote no such key."""
    return isinstance(part, str) and (part.startswith(("constrained-", "literal[", "function-")) or part == "int")


def _message(found: Any, location: Location) -> str:  # Any: pydantic's error
    kind, value = found["type"], found.get("input")
    if kind == "missing":
        return f"is missing; add it{_such_as(location)}"
    if kind == "extra_forbidden":
        known = _fields_beside(location)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; allowed: {', '.join(known)}"
    if kind == "literal_error":
        return f"{value!r} is not allowed; write {found['ctx']['expected']}"
    if kind == "value_error":
        return str(found["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{value!r} does not match {found['ctx']['pattern']}{_such_as(location)}"
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{found['msg'][0].lower()}{found['msg'][1:]}{shown}"


def _such_as(location: Location) -> str:
    """An example of the field, where the model has one."""
    field = _part_with(location).model_fields.get(str(location[-1]))
    example = (field.examples or [None])[0] if field is not None else None
    if isinstance(example, dict):
        example = f"{{{', '.join(f'{key}: {value}' for key, value in example.items())}}}"
    return f", such as {example}" if example is not None else ""


def _fields_beside(location: Location) -> list[str]:
    """The fields that the part with the unknown key could have."""
    return sorted(_part_with(location).model_fields)


def _part_with(location: Location) -> Any:  # Any: the class of a part
    model: Any = ClusterDefinition
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a name of the user's, below a dict
        model = next((arg for arg in _arguments(field.annotation) if _is_part(arg)), model)
    return model


def _arguments(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]


def _is_part(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Part)


def _place(source: Source, location: Location) -> Origin:
    """Of the deepest part of the location that was written; the top of the file where none was."""
    for length in range(len(location), 0, -1):
        if location[:length] in source.origins:
            return source.origins[location[:length]]
    return Origin(source.files[-1], 0, len(source.files) - 1)


def _dotted(location: Location) -> str:
    return ".".join(map(str, location))
