"""Whether a version may go to production: what it shows against the rules, and against the version there now. Pure.

Where both versions were scored on the same held-out examples and say what they answered to each (evaluation.py), they
are compared example by example, so that noise passes nobody (paired.py). Else their metrics are.
The verdict lists every rule with its numbers, the passed ones too, and is kept beside the artifact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.definition import GateRules
from heliostat.errors import CorruptArtifact, ObjectExists
from heliostat.promote.evaluation import Evaluation, read_evaluation
from heliostat.promote.paired import Paired, compare_accuracy, compare_macro_f1
from heliostat.registry import Artifact
from heliostat.store import Store
from heliostat.units import human_bytes

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
    by: str = ""
    """The flow that asked for it; "" for one by hand."""


@dataclass(frozen=True)
class Facts:
    """What is known of a version before it runs."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    size_bytes: int = 0
    """Of all its files."""
    vram_bytes: int = 0
    """Of its weights."""
    licence: str = "unknown"
    missing_lineage: tuple[str, ...] = ()
    """What is not known of where it comes from."""


def facts_of(store: Store, artifact: Artifact) -> Facts:
    about, lineage = artifact.metadata, artifact.metadata.lineage
    known = {
        "job": lineage.job, "code version": lineage.code_version, "dataset digest": lineage.dataset_digest,
    }  # fmt: skip
    return Facts(
        metrics=about.metrics,
        evaluation=read_evaluation(store, artifact),
        size_bytes=artifact.manifest.size,
        vram_bytes=about.vram_bytes,
        licence=about.licence,
        missing_lineage=tuple(name for name, value in known.items() if value in ("", "unknown", "none")),
    )


def judge_facts(
    rules: GateRules, candidate: Facts, production: Facts | None, *, vram_limit: int | None = None
) -> Verdict:
    """`production` is the version there now, None where there is none; `vram_limit` what the group has for a replica,
    in bytes, None where it declares nothing.
    """
    pair = _paired(rules, candidate, production)
    base = judge(rules, candidate.metrics, None if production is None or pair is not None else production.metrics)
    reasons = [
        *base.reasons,
        *(pair or ()),
        *_slices(rules, candidate.evaluation),
        *_properties(rules, candidate, vram_limit),
    ]
    return Verdict(passed=all(reason.passed for reason in reasons), reasons=tuple(reasons))


def _paired(rules: GateRules, candidate: Facts, production: Facts | None) -> list[Reason] | None:
    """None where the two cannot be compared example by example."""
    new = candidate.evaluation
    old = None if production is None else production.evaluation
    if new is None or old is None or new.dataset != old.dataset:
        return None
    margin, confidence = rules.max_drop, rules.confidence
    accuracy = compare_accuracy(new.right, old.right, margin=margin, confidence=confidence)
    macro_f1 = compare_macro_f1(new.truth, new.predicted, old.predicted, margin=margin, confidence=confidence)
    reasons = [
        _interval("accuracy against production", accuracy, rules),
        _interval("macro_f1 against production", macro_f1, rules),
    ]
    if rules.max_slice_drop is not None:
        for name in sorted(new.slices.keys() & old.slices.keys()):
            pair = compare_accuracy(
                new.part(name), old.part(name), margin=rules.max_slice_drop, confidence=rules.confidence
            )
            reasons.append(_interval(f"slice {name} against production", pair, rules, margin=rules.max_slice_drop))
    return reasons


def _interval(rule: str, pair: Paired, rules: GateRules, *, margin: float | None = None) -> Reason:
    allowed = rules.max_drop if margin is None else margin
    text = (
        f"{rule} {pair.difference:+.4f} ({rules.confidence:.0%} bounds {pair.low:+.4f} to {pair.high:+.4f}, "
        f"{pair.examples} examples), allowed -{allowed:.4f}"
    )
    if not pair.passed:
        sure = pair.high < -allowed
        text += ": it is worse" if sure else ": that it is no worse is not shown; hold out more, or allow more"
    return Reason(rule=rule, passed=pair.passed, value=pair.difference, limit=-allowed, text=text)


def _slices(rules: GateRules, evaluation: Evaluation | None) -> Iterator[Reason]:
    for name, least in sorted(rules.slices.items()):
        known = evaluation is not None and name in evaluation.slices
        right = evaluation.part(name) if evaluation is not None and known else []
        accuracy = sum(right) / len(right) if right else float("nan")
        yield _at_least(f"slice {name}", {f"slice {name}": accuracy}, least, rule=f"accuracy on slice {name}")


def _properties(rules: GateRules, candidate: Facts, vram_limit: int | None) -> Iterator[Reason]:
    """Rules that are about the version alone. Those that ask for nothing are left out."""
    bad = sorted(name for name, value in candidate.metrics.items() if not math.isfinite(value))
    if bad:
        yield _reason("metrics are finite", passed=False, value=len(bad), limit=0, text=f"NaN or infinite: {bad}")
    if rules.max_size is not None:
        size, most = candidate.size_bytes, rules.max_size.bytes
        text = f"size {human_bytes(size)}, at most {rules.max_size}"
        yield _reason("size", passed=size <= most, value=size, limit=most, text=text)
    if vram_limit is not None:
        need = candidate.vram_bytes + candidate.vram_bytes // 5  # as Recipe.memory_bytes reckons
        text = f"needs {human_bytes(need)} of the {human_bytes(vram_limit)} of GPU memory that its group has"
        yield _reason("GPU memory", passed=need <= vram_limit, value=need, limit=vram_limit, text=text)
    if rules.licences:
        text = f"licence {candidate.licence}, allowed: {', '.join(rules.licences)}"
        passed = candidate.licence in rules.licences
        yield _reason("licence", passed=passed, value=float(passed), limit=1, text=text)
    if rules.whole_lineage:
        missing = candidate.missing_lineage
        text = f"not known: {', '.join(missing)}" if missing else "job, code and data are known"
        yield _reason("lineage", passed=not missing, value=len(missing), limit=0, text=text)


def _reason(rule: str, *, passed: bool, value: float, limit: float, text: str) -> Reason:
    return Reason(rule=rule, passed=passed, value=float(value), limit=float(limit), text=text)


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
    return _read(store, keys[-1]) if keys else None


def find_verdict(store: Store, artifact: Artifact, *, by: str) -> Verdict | None:
    """The verdict that this flow has asked for."""
    for info in store.list(f"models/{artifact.name}/verdicts/v{artifact.version}"):
        verdict = _read(store, info.key)
        if verdict.by == by:
            return verdict
    return None


def _read(store: Store, key: str) -> Verdict:
    try:
        return Verdict.model_validate_json(store.get(key).data)
    except ValidationError as error:
        raise CorruptArtifact("a verdict cannot be read", where=key, do="restore it, or delete it") from error


def _at_least(metric: str, metrics: Mapping[str, float], limit: float, *, rule: str) -> Reason:
    value = metrics.get(metric, float("nan"))
    passed = value >= limit - TOLERANCE  # False for NaN
    sign = ">=" if passed else "<"
    return Reason(rule=rule, passed=passed, value=value, limit=limit, text=f"{rule} {value:.4f} {sign} {limit:.4f}")
