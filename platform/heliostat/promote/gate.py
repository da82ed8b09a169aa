"""Whether a version may go to production: its metrics against thresholds, and against the version there now. Pure.

The verdict lists every rule with its numbers, the passed ones too, and is kept beside the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from heliostat.definition import GateRules
from heliostat.errors import ObjectExists
from heliostat.registry import Artifact
from heliostat.store import Store

# 0.8 - 0.1 is 0.7000000000000001 in floating point: a candidate at exactly the limit passes.
TOLERANCE = 1e-9


class Reason(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")  # NaN must read back as NaN, not as null

    rule: str
    passed: bool
    value: float
    limit: float
    text: str


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

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
    folder = f"models/{artifact.name}/verdicts/v{artifact.version}"
    number = len(store.list(folder)) + 1
    while True:
        key = f"{folder}/{number:04d}.json"
        try:
            store.create(key, data)
            return key
        except ObjectExists:
            number += 1  # another judge was first, or this is our own and is kept twice: harmless


def last_verdict(store: Store, model: str, version: int) -> Verdict | None:
    """The newest verdict on a version, None where it was never judged."""
    keys = sorted(info.key for info in store.list(f"models/{model}/verdicts/v{version}"))
    return Verdict.model_validate_json(store.get(keys[-1]).data) if keys else None


def _at_least(metric: str, metrics: Mapping[str, float], limit: float, *, rule: str) -> Reason:
    value = metrics.get(metric, float("nan"))
    passed = value >= limit - TOLERANCE  # False for NaN
    sign = ">=" if passed else "<"
    return Reason(rule=rule, passed=passed, value=value, limit=limit, text=f"{rule} {value:.4f} {sign} {limit:.4f}")
