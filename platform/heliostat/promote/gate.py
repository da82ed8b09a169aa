"""Whether a version may go to production: its metrics against thresholds, and against the version there now. Pure.

The verdict lists every rule with its numbers, the passed ones too, and is kept beside the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from heliostat.definition import GateRules
from heliostat.registry import Artifact
from heliostat.store import Store


class Reason(BaseModel):
    model_config = ConfigDict(frozen=True)

    rule: str
    passed: bool
    value: float
    limit: float
    text: str


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    passed: bool
    reasons: tuple[Reason, ...]


def judge(rules: GateRules, candidate: Mapping[str, float], production: Mapping[str, float] | None) -> Verdict:
    """`production` are the metrics of the version now in production, None where there is none.

    A metric that a rule asks for and the candidate lacks, or that is not a number, does not pass.
    """
    reasons = [
        _at_least("accuracy", candidate, rules.min_accuracy, rule="accuracy"),
        _at_least("macro_f1", candidate, rules.min_macro_f1, rule="macro-F1"),
    ]
    if production is not None:
        for metric in ("accuracy", "macro_f1"):
            floor = production.get(metric, 0.0) - rules.max_drop
            reasons.append(_at_least(metric, candidate, floor, rule=f"{metric} against production"))
    return Verdict(passed=all(reason.passed for reason in reasons), reasons=tuple(reasons))


def store_verdict(store: Store, artifact: Artifact, verdict: Verdict) -> str:
    """Keep the verdict as an object of its own, never overwritten. Returns its key."""
    data = verdict.model_dump_json(indent=1).encode()
    taken = store.list(f"models/{artifact.name}/verdicts/v{artifact.version}")
    key = f"models/{artifact.name}/verdicts/v{artifact.version}/{len(taken) + 1:04d}.json"
    store.create(key, data)
    return key


def _at_least(metric: str, metrics: Mapping[str, float], limit: float, *, rule: str) -> Reason:
    value = metrics.get(metric, float("nan"))
    passed = value >= limit  # False for NaN
    sign = ">=" if passed else "<"
    return Reason(rule=rule, passed=passed, value=value, limit=limit, text=f"{rule} {value:.4f} {sign} {limit:.4f}")
