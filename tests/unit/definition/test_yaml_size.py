"""Small texts that stand for much: refused in no time, and what is only large is not."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from heliostat.cluster.kubernetes.objects import load as load_objects
from heliostat.definition import load
from heliostat.definition.yaml_size import is_too_deep
from heliostat.errors import DefinitionError, HeliostatError, UsageError
from heliostat.plan.check.report import check_file

LETTERS = "abcdefghijk"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(LETTERS)
)
HOSTILE = {
    "bomb": BOMB,
    "itself": "a: &a [*a]\n",
    "brackets": "a: " + "[" * 800 + "]" * 800,
    "braces": "a: " + "{b: " * 300 + "}" * 300,
    "dashes": "- " * 500 + "x",
    "code": "a: !!python/object/apply:os.system ['true']",
    "number": "a: " + "9" * 5000,
    "time": "a: !!timestamp 2026-13-45",
    "no map": "a: !!float {}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [load, check_file, lambda path: load_objects([path])], ids=["load", "check", "apply"])
def test_hostile_yaml_is_refused_at_once(name: str, read: object, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HOSTILE[name])
    begun = time.process_time()
    with pytest.raises(HeliostatError):
        read(path)  # type: ignore[operator]
    assert time.process_time() - begun < 5  # a bomb takes minutes, and all memory


def test_a_bomb_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BOMB)
    with pytest.raises(DefinitionError, match="aliases stand for too many values"):
        load(path)
    with pytest.raises(UsageError, match="aliases stand for too many values"):
        check_file(path)


def test_depth_is_of_what_is_open_at_once() -> None:
    assert not is_too_deep("a: [[1], [2]]\n" * 1000)
    assert not is_too_deep("]" * 1000)
    assert is_too_deep("[" * 51)
