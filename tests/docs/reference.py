"""The pages of docs/reference/ that are made from the code: `python -m tests.docs.reference`.

A test compares them with what stands in the repository.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from heliostat import errors, events, sdk
from heliostat.cli.app import app
from heliostat.cli.examples import ALONE, EXAMPLES, EXIT_CODES, KUBERNETES, leaves
from heliostat.controller.waste import event_of
from heliostat.meter import waste
from heliostat.serve import metrics

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "heliostat"
FOLDER = ROOT / "docs" / "reference"
MADE = "<!-- made from the code by `python -m tests.docs.reference` -->\n"


def commands() -> str:
    found = sorted(leaves(typer.main.get_command(app)).items(), key=lambda entry: " " in entry[0])
    out = [
        "# Commands",
        MADE,
        "Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 it failed, 2 the input was wrong, "
        "130 interrupted; `check` has its own. `--debug`, before the command, shows the traceback of an error.\n",
        "Each is tried by the tests: help and example, an unknown option, no cluster, `--json` parsed.\n",
        "| command | what it does | needs | `--json` | exit codes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path, command in found:
        json = "yes" if "--json" in names(command) else ""
        link = f"[`{path}`](#heliostat-{path.replace(' ', '-')})"
        needs = "Kubernetes" if path in KUBERNETES else "" if path in ALONE else "a cluster"
        out.append(f"| {link} | {cell(first(command.help))} | {needs} | {json} | {EXIT_CODES.get(path, '0, 1, 2')} |")
    for path, command in found:
        out += [f"\n## heliostat {path}\n", words(command.help or ""), ""]
        out += ["```console", *(f"$ heliostat {example}" for example in EXAMPLES.get(path, ())), "```"]
        rows = [row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            out += ["\n| | | |", "| --- | --- | --- |", *rows]
    return "\n".join(out) + "\n"


def names(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    name = f"`{parameter.name.upper()}`" if argument else ", ".join(f"`{option}`" for option in parameter.opts)
    kind = "" if getattr(parameter, "is_flag", False) else kind_of(parameter.type_descriptor.annotation)
    default = parameter.default
    shown = f" Default: {default}." if isinstance(default, str | int | float) and default is not False else ""
    needed = " Required." if parameter.required and not argument else ""
    return f"| {name} | {cell(kind)} | {cell(getattr(parameter, 'help', None) or '')}{cell(shown)}{needed} |"


def kind_of(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    inner = get_args(annotation)
    if inner:
        return f"{kind_of(inner[0])}, repeated"
    return {Path: "path", str: "text", int: "whole number", float: "number"}.get(annotation, annotation.__name__)


def error_page() -> str:
    out = [
        "# Errors",
        MADE,
        "Every error says what was wrong with the value shown, where, and what to do. The command line ends with the "
        "exit code; in Python they are classes of `heliostat.errors`.\n",
        "| error | a kind of | exit code | when |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.HeliostatError):
            base = next(parent for parent in kind.__mro__[1:] if issubclass(parent, Exception)).__name__
            out.append(f"| `{name}` | `{base}` | {kind.exit_code} | {cell(first(kind.__doc__))} |")
    return "\n".join(out) + "\n"


def event_page() -> str:
    out = [
        "# Events",
        MADE,
        "Facts that the meter, `job list`, `why` and your own tools can read: JSON lines under "
        "`events/<day>/<source>/` in the store. Each has `id`, `schema`, `kind`, `source`, `time_s` (seconds since the "
        "epoch), `monotonic_s`, and the fields of its kind. Readers drop a repeated `id`.\n",
        "| kind | what happened | fields |",
        "| --- | --- | --- |",
    ]
    fields = emitted()
    for kind, about in sorted(events.KINDS.items()):
        out.append(f"| `{kind}` | {cell(about)} | {', '.join(f'`{name}`' for name in sorted(fields[kind]))} |")
    return "\n".join(out) + "\n"


def emitted() -> dict[str, set[str]]:
    """Every kind of event that the package emits, with the fields that are written out at the call."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(call, ast.Call) and "emit" in str(getattr(call.func, "attr", getattr(call.func, "id", "")))
            ):
                continue
            kinds = [
                entry.value for entry in call.args if isinstance(entry, ast.Constant) and isinstance(entry.value, str)
            ]
            if kinds:
                found[kinds[0]] |= {word.arg for word in call.keywords if word.arg}
            if any(ast.unparse(entry).startswith("f'waste_") for entry in call.args):
                for phase in get_args(waste.Phase):
                    found[f"waste_{phase}"] |= keys_of(event_of)
    return found


def keys_of(make: Any) -> set[str]:
    """The keys of the dict that a function writes out."""
    tree = ast.walk(ast.parse(inspect.getsource(make)))
    return {
        str(key.value) for each in tree if isinstance(each, ast.Dict) for key in each.keys
        if isinstance(key, ast.Constant)
    }  # fmt: skip


def metric_page() -> str:
    out = [
        "# Metrics",
        MADE,
        "In the Ray dashboard, and for Prometheus at each node's metrics port, with the prefix `ray_`; counters end in "
        "`_total`. Ray's own stand beside them.\n",
        "| metric | kind | what |",
        "| --- | --- | --- |",
    ]
    for kind, table in (("gauge", metrics._GAUGES), ("counter", metrics._COUNTERS)):
        out += [
            f"| `ray_{name}{'_total' * (kind == 'counter')}` | {kind} | {cell(what)} |" for name, what in table.items()
        ]
    return "\n".join(out) + "\n"


def python_page() -> str:
    out = [
        "# Python",
        MADE,
        "`from heliostat import Platform`; the same verbs as the command line.\n",
        "```python",
        "from heliostat import Platform",
        "",
        "platform = Platform.connect()",
        "print(platform.status())",
        "```",
    ]
    for kind in public_classes():
        out += [
            f"\n## {kind.__name__}\n",
            words(kind.__doc__ or "") if kind.__doc__ and "(" not in kind.__doc__[:40] else "",
        ]
        for name, method in members(kind):
            out.append(f"- `{name}{signature(method)}`  \n  {first(inspect.getdoc(method)) or ''}".rstrip())
    return "\n".join(out) + "\n"


def public_classes() -> Iterator[type]:
    for name, kind in vars(sdk).items():
        if inspect.isclass(kind) and kind.__module__ == sdk.__name__ and not name.startswith("_"):
            yield kind


def members(kind: type) -> Iterator[tuple[str, Any]]:
    for name, found in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(found) or isinstance(found, classmethod)):
            yield name, getattr(found, "__func__", found)


def signature(method: Any) -> str:
    text = str(inspect.signature(method))
    text = re.sub(r"\((self|cls)(, )?", "(", text, count=1)
    return re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", text).replace("'", "")


def first(text: str | None) -> str:
    """The first paragraph on one line."""
    return " ".join((text or "").replace("\b", "").strip().split("\n\n")[0].split())


def words(text: str) -> str:
    return inspect.cleandoc(text.replace("\b", ""))


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def decision_page() -> str:
    out = ["# Decisions", MADE, "What was measured, chosen and refused, and what would change our mind.\n"]
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    out += [f"- [{path.read_text().splitlines()[0].lstrip('# ')}]({path.name})" for path in pages]
    return "\n".join(out) + "\n"


PAGES = {
    "../decisions/index.md": decision_page,
    "commands.md": commands,
    "errors.md": error_page,
    "events.md": event_page,
    "metrics.md": metric_page,
    "python.md": python_page,
}


def main() -> None:
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())
    sys.stdout.write(f"{len(PAGES)} pages\n")


if __name__ == "__main__":
    main()
