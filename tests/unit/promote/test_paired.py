"""Two versions on the same examples: known cases, and the laws of the intervals."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.promote.paired import _score, compare_accuracy, compare_macro_f1


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    new = [True] * (both + gained) + [False] * (lost + neither)
    old = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return new, old


@pytest.mark.parametrize("difference", [-0.2, -0.05, -0.01, 0.0, 0.03, 0.15])
@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 1, 40), (10, 12, 100), (1, 7, 50), (30, 5, 400)])
def test_the_score_is_that_of_the_likelihood_under_the_difference(
    gained: int, lost: int, n: int, difference: float
) -> None:
    """The closed form against the likelihood itself, maximised over the one free share by trying 20,000 values."""

    def likelihood(q: float) -> float:  # q: the share of lost pairs; that of gained ones is q + difference
        shares = ((gained, q + difference), (lost, q), (n - gained - lost, 1 - 2 * q - difference))
        return sum(count * math.log(share) for count, share in shares)

    least, most = max(0.0, -difference), (1 - difference) / 2
    tried = [least + (most - least) * (k + 0.5) / 20_000 for k in range(20_000)]
    q = max(tried, key=likelihood)
    expected = (gained - lost - n * difference) / math.sqrt(n * (2 * q + difference - difference**2))
    assert _score(gained, lost, n, difference) == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(
    ("gained", "lost", "passed"),
    [(5, 0, True), (4, 0, False), (0, 5, False), (15, 5, True), (14, 6, False), (0, 0, True), (60, 40, True)],
)
def test_without_a_margin_it_is_the_exact_sign_test(gained: int, lost: int, passed: bool) -> None:
    assert compare_accuracy(*pairs(100, gained, lost, 20)).passed is passed


def test_with_a_margin_few_examples_show_nothing_and_many_do() -> None:
    assert not compare_accuracy(*pairs(80, 3, 3, 14), margin=0.01).passed
    assert compare_accuracy(*pairs(8000, 300, 300, 1400), margin=0.01).passed


@given(st.integers(0, 200), st.integers(0, 60), st.integers(0, 60), st.integers(1, 100))
def test_the_difference_lies_in_its_interval_and_more_confidence_widens_it(
    both: int, gained: int, lost: int, neither: int
) -> None:
    new, old = pairs(both, gained, lost, neither)
    narrow = compare_accuracy(new, old, confidence=0.9)
    wide = compare_accuracy(new, old, confidence=0.99)
    assert -1 <= wide.low <= narrow.low + 1e-9
    assert narrow.low <= narrow.difference + 1e-9
    assert narrow.difference <= narrow.high + 1e-9
    assert narrow.high <= wide.high + 1e-9 <= 1 + 1e-8
    turned = compare_accuracy(old, new, confidence=0.9)
    assert turned.low == pytest.approx(-narrow.high, abs=1e-6)


@given(st.integers(0, 100), st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_who_passes_with_a_small_margin_passes_with_a_larger_one(
    both: int, gained: int, lost: int, one: float, two: float
) -> None:
    new, old = pairs(both, gained, lost, 10)
    small, large = sorted((one, two))
    if compare_accuracy(new, old, margin=small).passed:
        assert compare_accuracy(new, old, margin=large).passed


def test_a_coin_passes_no_oftener_than_promised() -> None:
    draw = random.Random(3)
    passed = 0
    for _ in range(2000):
        old = [draw.random() < 0.8 for _ in range(200)]
        new = [right if draw.random() < 0.8 else draw.random() < 0.8 for right in old]
        passed += compare_accuracy(new, old).passed
    assert passed / 2000 <= 0.06


def test_macro_f1_is_that_of_scikit_learn_and_its_interval_holds_the_difference() -> None:
    from sklearn.metrics import f1_score

    draw = random.Random(0)
    truth = [draw.choice("abcd") for _ in range(300)]
    old = [label if draw.random() < 0.7 else draw.choice("abcde") for label in truth]
    new = [label if draw.random() < 0.85 else draw.choice("abcde") for label in truth]
    found = compare_macro_f1(truth, new, old)

    def score(said: list[str]) -> float:
        return float(f1_score(truth, said, labels=sorted(set(truth)), average="macro", zero_division=0))

    assert found.difference == pytest.approx(score(new) - score(old))
    assert found.low < found.difference < found.high
    assert found.passed
    assert compare_macro_f1(truth, old, old) == compare_macro_f1(truth, new, new)
    assert not compare_macro_f1(truth, old, new, margin=0.02).passed


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        compare_accuracy([True], [])
