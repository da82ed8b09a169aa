"""Every command has help and an example, and every example is one that the command takes."""

from __future__ import annotations

import contextlib
import io
import shlex
from typing import Any

import pytest
import typer

from heliostat.cli.app import app
from heliostat.cli.examples import EXAMPLES, attach, leaves

COMMAND = typer.main.get_command(app)
LEAVES = leaves(COMMAND)


def test_every_command_has_an_example_and_no_example_is_of_a_command_that_is_gone() -> None:
    assert set(LEAVES) == set(EXAMPLES)


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_one_that_its_command_takes(example: str) -> None:
    parse(COMMAND, shlex.split(example))


def test_a_wrong_example_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(COMMAND, ["up", "file.yaml", "--colour"])


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_help_shows_the_example(path: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        attach(typer.main.get_command(app))([*path.split(), "--help"], prog_name="heliostat")
    assert ended.value.code == 0
    assert f"  heliostat {EXAMPLES[path][0]}" in out.getvalue()


def parse(command: Any, words: list[str]) -> None:
    """As the command line does it, short of running the command."""
    name = "heliostat"
    parent = None
    while True:
        context = command.make_context(name, list(words), parent=parent)
        below = getattr(command, "commands", None)
        left = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        if below is None or not left:
            return
        name, command, words, parent = left[0], below[left[0]], left[1:], context
