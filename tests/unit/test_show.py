"""Tables on a terminal and in a pipe: what somebody has to copy stays in one piece."""

from __future__ import annotations

import pytest

from heliostat.show import print_table

JOB = "intent-classifier-20261126-052242-9809-3bd5"


def test_names_in_a_pipe_are_never_in_two_parts(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("job", "run", "other", "why it waits"), [(JOB, JOB, JOB, "it waits for " + "one node and " * 20)])
    shown = capsys.readouterr().out
    assert shown.count(JOB) == 3
    assert len(shown.splitlines()) > 5  # sentences are folded


def test_figures_that_need_more_than_the_width_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column-{number:02d}" for number in range(30)]
    print_table(columns, [range(30)])
    head = capsys.readouterr().out.splitlines()[1]
    assert head.split() == columns
