"""What the README, the docs and the notebooks show is run, or at least is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from heliostat.cli.app import app
from heliostat.sdk import Platform

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def shown_commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text()
        found += re.findall(r"`(heliostat [^`<]+)`", text)
        for block in blocks(page, "console"):
            found += [line[2:] for line in block.splitlines() if line.startswith("$ heliostat ")]
    return sorted(set(found))


def leaf(words: list[str]) -> click.Command:
    command: click.Command = COMMANDS
    for word in words:
        if not isinstance(command, click.Group):
            return command
        assert word in command.commands, f"there is no command {word!r} in {' '.join(words)!r}"
        command = command.commands[word]
    return command


@pytest.mark.parametrize("shown", shown_commands())
def test_a_command_that_the_docs_show_exists(shown: str) -> None:
    words = [word for word in shlex.split(shown)[1:] if not word.startswith("-") or word == "--"]
    for name in words[0].split("|") if words else ():  # "heliostat --help" has none
        group = COMMANDS.commands[name] if isinstance(COMMANDS, click.Group) else COMMANDS
        if isinstance(group, click.Group) and len(words) > 1:
            # `heliostat plan 8xA100` leaves out the verb
            default = any(re.fullmatch(r"\d+x\S+", word) for word in words) and getattr(group, "default_command", None)
            for verb in words[1].split("|"):
                leaf([name, default if default and verb not in group.commands else verb])


def test_every_command_has_help() -> None:
    def walk(command: click.Command, path: str) -> None:
        assert command.help, f"{path} has no help"
        if isinstance(command, click.Group):
            for name, below in command.commands.items():
                walk(below, f"{path} {name}")

    walk(COMMANDS, "heliostat")


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_that_the_architecture_names_exists() -> None:
    package = ROOT / "platform" / "heliostat"
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [row.split("|")[2] for row in text.splitlines() if row.startswith("| ") and "---" not in row]
    for row in rows[1:]:
        folder = ""
        for name in " ".join(re.findall(r"`([^`]+)`", row)).split():
            folder = name.rpartition("/")[0] if "/" in name.rstrip("/") else folder
            places = [package / name, package / f"{name}.py", package / folder / f"{name}.py"]
            assert any(place.exists() for place in places), name


@pytest.mark.real
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_that_the_docs_show_runs(platform: Platform, page: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})  # noqa: S102  # our own page
