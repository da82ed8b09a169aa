"""The gate on all that is known of a version: examples, slices, size, memory, licence, lineage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from heliostat.definition import GateRules
from heliostat.promote.evaluation import Evaluation, evaluation_file
from heliostat.promote.gate import Facts, Verdict, judge_facts
from heliostat.units import Bytes

TRUTH = tuple("ab" * 100)


def said(wrong: int, *, start: int = 0, dataset: str = "d") -> Facts:
    told = list(TRUTH)
    for place in range(start, start + wrong):
        told[place] = "a" if TRUTH[place] == "b" else "b"
    slices = {"first": tuple(range(50)), "rest": tuple(range(50, 200))}
    evaluation = Evaluation(dataset=dataset, truth=TRUTH, predicted=tuple(told), slices=slices)
    accuracy = 1 - wrong / len(TRUTH)
    return Facts(
        {"accuracy": accuracy, "macro_f1": accuracy},
        evaluation,
        size_bytes=1000,
        vram_bytes=500,
        licence="MIT",
    )


def failed(verdict: Verdict) -> list[str]:
    return [reason.rule for reason in verdict.reasons if not reason.passed]


def test_a_gain_that_noise_makes_does_not_pass_and_a_real_one_does() -> None:
    rules = GateRules()
    noise = judge_facts(rules, said(18), said(20, start=17))
    assert failed(noise) == ["accuracy against production", "macro_f1 against production"]
    assert "is not shown" in noise.reasons[2].text
    assert judge_facts(rules, said(2), said(20)).passed
    assert "it is worse" in judge_facts(rules, said(40), said(2)).reasons[2].text


def test_equal_answers_are_not_worse() -> None:
    assert judge_facts(GateRules(), said(10), said(10)).passed


def test_other_examples_cannot_be_paired_and_metrics_are_compared() -> None:
    verdict = judge_facts(GateRules(max_drop=0.02), said(18), said(20, dataset="other"))
    assert verdict.passed
    assert [reason.rule for reason in verdict.reasons][2:] == [
        "accuracy against production",
        "macro_f1 against production",
    ]
    assert "bounds" not in verdict.reasons[2].text


def test_a_slice_may_fail_where_the_whole_passes() -> None:
    rules = GateRules(slices={"first": 0.9, "unknown": 0.5})
    verdict = judge_facts(rules, said(10), None)
    assert failed(verdict) == ["accuracy on slice first", "accuracy on slice unknown"]
    drop = judge_facts(GateRules(max_drop=0.2, max_slice_drop=0.05), said(12), said(12, start=100))
    assert failed(drop) == ["slice first against production"]


@pytest.mark.parametrize(
    ("rules", "change", "rule"),
    [
        ({"max_size": Bytes.parse("1kB")}, {"size_bytes": 1001}, "size"),
        ({"licences": ("MIT",)}, {"licence": "unknown"}, "licence"),
        ({"whole_lineage": True}, {"missing_lineage": ("job",)}, "lineage"),
        ({}, {"metrics": {"accuracy": 1.0, "macro_f1": 1.0, "loss": float("nan")}}, "metrics are finite"),
        ({}, {"vram_bytes": 900}, "GPU memory"),
    ],
)
def test_each_property_has_its_rule_and_its_numbers(rules: dict[str, Any], change: dict[str, Any], rule: str) -> None:
    assert judge_facts(GateRules(**rules), said(0), None, vram_limit=1000).passed
    verdict = judge_facts(GateRules(**rules), replace(said(0), **change), None, vram_limit=1000)
    assert failed(verdict) == [rule]


def test_an_evaluation_knows_its_examples_by_their_digest() -> None:
    one = Evaluation.model_validate_json(evaluation_file(["x", "y"], ["a", "b"], ["a", "a"], slices={"s": [1]}))
    other = Evaluation.model_validate_json(evaluation_file(["x", "z"], ["a", "b"], ["a", "a"]))
    assert one.right == [True, False]
    assert one.part("s") == [False]
    assert one.dataset != other.dataset
    with pytest.raises(ValueError, match="beyond"):
        Evaluation(dataset="d", truth=("a",), predicted=("a",), slices={"s": (1,)})
