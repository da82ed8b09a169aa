from __future__ import annotations

from heliostat.definition import GateRules
from heliostat.promote.gate import judge

RULES = GateRules(min_accuracy=0.8, min_macro_f1=0.7, max_drop=0.01)


def test_the_first_version_is_held_against_the_thresholds_alone() -> None:
    assert judge(RULES, {"accuracy": 0.8, "macro_f1": 0.7}, None).passed
    assert not judge(RULES, {"accuracy": 0.79, "macro_f1": 0.9}, None).passed


def test_a_version_may_be_worse_than_production_by_the_drop_alone() -> None:
    production = {"accuracy": 0.9, "macro_f1": 0.9}
    assert judge(RULES, {"accuracy": 0.895, "macro_f1": 0.9}, production).passed
    verdict = judge(RULES, {"accuracy": 0.9, "macro_f1": 0.88}, production)
    assert [reason.rule for reason in verdict.reasons if not reason.passed] == ["macro_f1 against production"]


def test_a_missing_metric_or_a_nan_does_not_pass() -> None:
    assert not judge(RULES, {"accuracy": 0.9}, None).passed
    assert not judge(RULES, {"accuracy": float("nan"), "macro_f1": 0.9}, None).passed


def test_every_rule_is_listed_with_its_numbers() -> None:
    verdict = judge(RULES, {"accuracy": 0.85, "macro_f1": 0.75}, {"accuracy": 0.8, "macro_f1": 0.7})
    assert len(verdict.reasons) == 4
    assert "0.8500 >= 0.8000" in verdict.reasons[0].text
