"""The way forward: trained -> published -> judged -> promoted -> live. Each step takes values and may be repeated.

This file and the command line know every layer; the layers do not know each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from heliostat.definition import GateRules
from heliostat.errors import AppNotReady, GateRefused
from heliostat.promote.gate import Verdict, judge, store_verdict
from heliostat.registry import (
    Alias,
    Artifact,
    ArtifactMetadata,
    Lineage,
    get_alias,
    move_alias,
    publish,
    resolve,
)
from heliostat.serve.reports import ReplicaReport, living, read_reports
from heliostat.store import Store
from heliostat.train.job import TrainedModel

PRODUCTION = "production"


def publish_trained(store: Store, trained: TrainedModel, *, name: str) -> Artifact:
    """The run's output as the next version of the model; the same content again is the same version."""
    about = trained.lineage
    metadata = ArtifactMetadata(
        framework="torch",
        metrics=trained.metrics,
        lineage=Lineage(
            job=trained.run,
            code_version=str(about.get("code_version", "unknown")),
            dataset_digest=str(about.get("dataset_digest", "")),
            parent=about.get("parent"),
            gpu_seconds=float(about.get("gpu_seconds", 0)),
            hardware=str(about.get("hardware", "unknown")),
        ),
        parameters=int(about.get("parameters", 0)),
        dtype=str(about.get("dtype", "float32")),
        licence=str(about.get("licence", "unknown")),
        tags={},
    )
    return publish(store, name=name, files=trained.read(store), metadata=metadata)


def judge_candidate(store: Store, artifact: Artifact, rules: GateRules) -> Verdict:
    """Against the thresholds, and against the version in production where there is one. The verdict is kept."""
    current = get_alias(store, artifact.name, PRODUCTION)
    before: Mapping[str, float] | None = None
    if current is not None and current.version != artifact.version:
        before = resolve(store, f"{artifact.name}:v{current.version}").metrics
    verdict = judge(rules, artifact.metrics, before)
    store_verdict(store, artifact, verdict)
    return verdict


def promote(
    store: Store, artifact: Artifact, verdict: Verdict, *, who: str, why: str, force: str | None = None
) -> Alias:
    """Move `production` to this version by compare-and-swap. Raises GateRefused, or AliasMoved naming who won.

    `force` is the reason for promoting against the verdict; it is kept in the alias's history.
    """
    if not verdict.passed and force is None:
        failed = "; ".join(reason.text for reason in verdict.reasons if not reason.passed)
        raise GateRefused(
            f"{artifact.name} v{artifact.version} did not pass: {failed}",
            do='train a better one, or promote with --force "REASON"',
        )
    current = get_alias(store, artifact.name, PRODUCTION)
    if current is not None and current.version == artifact.version:
        return current
    return move_alias(
        store,
        name=artifact.name,
        alias=PRODUCTION,
        to_version=artifact.version,
        expected_version=None if current is None else current.version,
        who=who,
        why=why if force is None else f"{why} (forced: {force})",
    )


def wait_live(store: Store, app: str, artifact: Artifact, *, limit_s: float) -> list[ReplicaReport]:
    """Until every living replica of the app reports this version's digest. An app at zero replicas is live at once.

    Raises AppNotReady with what each replica says.
    """
    deadline = time.monotonic() + limit_s
    while True:
        reports = living(read_reports(store, app), time.time())
        if all(report.digest == artifact.digest for report in reports):
            return reports
        failed = [report for report in reports if report.error]
        if failed or time.monotonic() > deadline:
            said = {report.replica: report.error or f"serves v{report.version}" for report in reports}
            raise AppNotReady(
                f"{app} is not on v{artifact.version} everywhere: {json.dumps(said)}",
                do="the old version serves on; roll back with heliostat app rollback, or wait and ask app status",
            )
        time.sleep(0.2)
