"""The gate at its limits: exactly the allowed drop passes, and a verdict with NaN reads back."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from heliostat.definition import GateRules
from heliostat.promote.gate import Verdict, judge

hundredths = st.integers(0, 100)


@given(production=hundredths, drop=hundredths)
def test_exactly_the_allowed_drop_passes_and_a_hundredth_more_does_not(production: int, drop: int) -> None:
    rules = GateRules(max_drop=drop / 100)
    before = {"accuracy": production / 100, "macro_f1": production / 100}

    def passes(value: int) -> bool:
        return judge(rules, {"accuracy": value / 100, "macro_f1": value / 100}, before).passed

    if production >= drop:
        assert passes(production - drop)
    if production > drop:
        assert not passes(production - drop - 1)


def test_a_verdict_on_a_missing_metric_reads_back() -> None:
    verdict = judge(GateRules(), {"accuracy": 0.9}, None)
    back = Verdict.model_validate_json(verdict.model_dump_json())
    assert not back.passed
    assert math.isnan(back.reasons[1].value)
