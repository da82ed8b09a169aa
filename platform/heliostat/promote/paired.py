"""Two versions on the same held-out examples: is the new one no worse, or is that noise? Pure.

Each example was answered by both, so only those that one got right and the other wrong say anything (McNemar 1947).
The question is one-sided, with a margin: is it shown, at the given confidence, that the new version is not worse by
more than `margin`? So a version that is worse by the margin passes with a probability of at most 1 - confidence,
however many or few examples there are; with few, more good ones are refused, and the interval says so.

- No margin: the exact sign test over the discordant pairs. It never exceeds its level.
- A margin: Tango's score test for paired proportions (Tango 1998, Statistics in Medicine 17), which is McNemar's
  without one. It holds its level for small numbers of discordant pairs where Wald's does not.
- Macro-F1 has no such formula: the pairs are drawn again with replacement (percentile bootstrap, Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float32]

DRAWS = 2000
AT_ONCE = 100
"""Samples of the bootstrap that lie in memory together."""
EXACT_UP_TO = 2000
"""Discordant pairs beyond which the normal approximation with its correction for continuity is as good."""


@dataclass(frozen=True)
class Paired:
    """The difference new minus old, with its interval: each end at the one-sided confidence asked for."""

    examples: int
    difference: float
    low: float
    high: float
    passed: bool


def compare_accuracy(
    new: Sequence[bool], old: Sequence[bool], *, margin: float = 0.0, confidence: float = 0.95
) -> Paired:
    """Which examples each got right, in the same order. Raises ValueError where they are not as many, or none."""
    if len(new) != len(old) or not new:
        raise ValueError(f"{len(new)} and {len(old)} examples are no pairs")
    gained = sum(a and not b for a, b in zip(new, old, strict=True))
    lost = sum(b and not a for a, b in zip(new, old, strict=True))
    n = len(new)
    z = NormalDist().inv_cdf(confidence)
    if gained + lost == 0:
        passed = True  # the same answers are not worse
    elif margin == 0:
        passed = _sign_test(gained, lost) <= 1 - confidence
    else:
        passed = _score(gained, lost, n, -margin) >= z
    low, high = _interval(gained, lost, n, z)
    return Paired(n, (gained - lost) / n, low, high, passed)


def compare_macro_f1(
    truth: Sequence[str],
    new: Sequence[str],
    old: Sequence[str],
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """The labels of each example. Averaged over the labels that the examples have."""
    import numpy as np

    labels = {label: index for index, label in enumerate(sorted({*truth, *new, *old}))}
    true, one, other = (np.array([labels[label] for label in part]) for part in (truth, new, old))
    n, classes = len(true), len(labels)
    present = np.bincount(true, minlength=classes) > 0
    difference = float(_macro_f1(true, one, present) - _macro_f1(true, other, present))
    if (one == other).all():
        return Paired(n, 0.0, 0.0, 0.0, passed=True)
    found = _resampled(true, one, other, classes, draws, seed)
    low, high = (float(np.quantile(found, share)) for share in (1 - confidence, confidence))
    return Paired(n, difference, low, high, low >= -margin)


def _resampled(true: Ints, one: Ints, other: Ints, classes: int, draws: int, seed: int) -> Floats:
    """[draws] differences in macro-F1 over samples of the pairs with replacement."""
    import numpy as np

    draw, n = np.random.default_rng(seed), len(true)
    truth = _one_hot(true, classes)
    said = [(_one_hot(part, classes), _one_hot(part, classes) * truth) for part in (one, other)]
    found = []
    for start in range(0, draws, AT_ONCE):
        k = min(AT_ONCE, draws - start)
        chosen = draw.integers(0, n, (k, n)) + np.arange(k)[:, None] * n
        times = np.bincount(chosen.ravel(), minlength=k * n).reshape(k, n).astype(np.float32)
        there = times @ truth  # [k, classes]
        first, second = (2 * (times @ right) / np.maximum(there + times @ claims, 1) for claims, right in said)
        found.append(((first - second) * (there > 0)).sum(1) / (there > 0).sum(1))
    return np.concatenate(found)


def _one_hot(labels: Ints, classes: int) -> Floats:
    import numpy as np

    found = np.zeros((len(labels), classes), dtype=np.float32)
    found[np.arange(len(labels)), labels] = 1
    return found


def _macro_f1(true: Ints, said: Ints, present: Bools) -> float:
    import numpy as np

    classes = len(present)
    right = np.bincount(true[true == said], minlength=classes)
    both = np.bincount(true, minlength=classes) + np.bincount(said, minlength=classes)
    scores = 2 * right[present] / both[present]  # a label that is present is in `both`
    return float(scores.mean())


def _sign_test(gained: int, lost: int) -> float:
    """P(at least `gained` of the discordant pairs) where either is as likely."""
    pairs = gained + lost
    if pairs > EXACT_UP_TO:
        return 1 - NormalDist().cdf((gained - lost - 1) / math.sqrt(pairs))
    return math.fsum(math.exp(_log_choose(pairs, k) - pairs * math.log(2)) for k in range(gained, pairs + 1))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """Standard deviations by which what was seen lies above a true `difference` (Tango 1998, formula 9)."""
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + difference * (1 - difference))
    distance = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _interval(gained: int, lost: int, n: int, z: float) -> tuple[float, float]:
    """The true differences that the score test does not exclude."""

    def edge(inside: float, outside: float, sign: float) -> float:
        for _ in range(50):
            middle = (inside + outside) / 2
            if sign * _score(gained, lost, n, middle) < z:
                inside = middle
            else:
                outside = middle
        return inside

    seen = (gained - lost) / n
    return edge(seen, -1.0, 1.0), edge(seen, 1.0, -1.0)
