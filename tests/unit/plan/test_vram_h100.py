"""The estimate beside what one H100 80GB said on 2026-11-26: `gpu.py vram` of tests/benchmarks, torch 2.11.

h100_memory.csv holds bytes, by the names of the benchmark's cases: allocated by tensors, reserved by the allocator, and
taken of the card.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

from heliostat.plan.vram import GIB, Need, fits, need_of
from tests.benchmarks.gpu_vram import CASES, HELD_OUT, UNSEEN, own_recipe, shape_of

MEASURED = {
    row["case"]: row for row in csv.DictReader((Path(__file__).parent / "h100_memory.csv").open(encoding="utf-8"))
}
NEEDS: dict[str, Need] = {case.name: need_of(shape_of(case), case.work) for case in (*CASES, *own_recipe(), *HELD_OUT)}


def test_every_case_is_measured() -> None:
    assert NEEDS.keys() == MEASURED.keys()


@pytest.mark.parametrize(("which", "median", "worst"), [("first", 0.01, 0.05), ("held out", 0.01, 0.05)])
def test_what_tensors_take_is_met(which: str, median: float, worst: float) -> None:
    errors = [
        abs(NEEDS[name].without(*UNSEEN).total / int(row["allocated"]) - 1)
        for name, row in MEASURED.items()
        if row["set"] == which
    ]
    assert statistics.median(errors) < median
    assert max(errors) < worst


def test_what_the_card_says_lies_within_the_doubt_nearly_always() -> None:
    within = [abs(NEEDS[name].total - int(row["card"])) <= NEEDS[name].doubt for name, row in MEASURED.items()]
    assert statistics.fmean(within) > 0.9


def test_no_card_is_said_to_hold_what_it_does_not_and_none_is_refused_that_does() -> None:
    wrong = [
        (name, gib)
        for name, row in MEASURED.items()
        for gib in (15.6, 23.6, 31.5, 39.4, 47.4, 79.2)  # what programs see of 16, 24, 32, 40, 48 and 80 GB
        if (fits(NEEDS[name], round(gib * GIB)).answer == "fits") > (int(row["card"]) <= gib * GIB)
        or (fits(NEEDS[name], round(gib * GIB)).answer == "does not fit") > (int(row["card"]) > gib * GIB)
    ]
    assert wrong == []
