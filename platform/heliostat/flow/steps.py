"""The steps from a training's output to live, each by itself. Every one may be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from heliostat.definition import GateRules, ReleaseRules
from heliostat.errors import AppError, AppNotReady, GateRefused, ReleaseConflict, ReleaseRolledBack
from heliostat.promote.gate import Facts, Verdict, facts_of, judge_facts, store_verdict
from heliostat.promote.records import PRODUCTION, commit, read_release, write_release
from heliostat.promote.release import Release, go_live, propose, settle
from heliostat.promote.release import roll_back as _rolled_back
from heliostat.registry import (
    Alias,
    Artifact,
    ArtifactMetadata,
    Lineage,
    get_alias,
    must_get_alias,
    publish,
    resolve,
    rollback_alias,
)
from heliostat.registry.signatures import check_signed
from heliostat.serve.reports import ReplicaReport, living, read_reports
from heliostat.store import Store
from heliostat.train.job import TrainedModel


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


def judge_candidate(
    store: Store, artifact: Artifact, rules: GateRules, *, vram_limit: int | None = None, signed_by: Sequence[str] = ()
) -> Verdict:
    """`judge`, and the verdict is kept. Raises UntrustedArtifact before, which no verdict and no force can help."""
    check_signed(store, artifact, signed_by)
    verdict = judge(store, artifact, rules, vram_limit=vram_limit)
    store_verdict(store, artifact, verdict)
    return verdict


def judge(store: Store, artifact: Artifact, rules: GateRules, *, vram_limit: int | None = None) -> Verdict:
    """Against the rules, and against the version in production where there is one.

    `vram_limit` is what the group declares for a replica, in bytes.
    """
    current = get_alias(store, artifact.name, PRODUCTION)
    before: Facts | None = None
    if current is not None and current.version != artifact.version:
        before = facts_of(store, resolve(store, f"{artifact.name}:v{current.version}"))
    return judge_facts(rules, facts_of(store, artifact), before, vram_limit=vram_limit)


def release(
    store: Store,
    app: str,
    artifact: Artifact,
    verdict: Verdict,
    *,
    rules: ReleaseRules,
    who: str,
    why: str,
    force: str | None = None,
) -> Release:
    """Begin the release of a version; the controller takes it on from there. Returns the record, under way or over.

    Repeated for the version that is on trial or in production already, it changes nothing. Raises GateRefused, or
    ReleaseConflict, which names who was first. `force` is the reason for going against the verdict; the history keeps
    it. A first version, and one for an application that is asleep, is live at once: nobody answers meanwhile, and the
    first replica that wakes tries it beside the version before.
    """
    if not verdict.passed and force is None:
        failed = "; ".join(reason.text for reason in verdict.reasons if not reason.passed)
        raise GateRefused(
            f"{artifact.name} v{artifact.version} did not pass: {failed}",
            do='train a better one, or promote with --force "REASON"',
        )
    found = read_release(store, app)
    record, etag = (None, None) if found is None else found
    alias = get_alias(store, artifact.name, PRODUCTION)
    stable = None if alias is None else alias.version
    if record is not None and record.candidate == artifact.version and record.model == artifact.name:
        proposed = record
    elif record is not None and record.state == "live" and stable == artifact.version == record.stable:
        return record
    else:
        proposed = propose(
            record, app=app, model=artifact.name, stable=stable, candidate=artifact.version, who=who, why=why,
            forced=None if verdict.passed else force, rules=rules, now=time.time(),
        )  # fmt: skip
        write_release(store, proposed, etag=etag)
    first = proposed.stable in (None, artifact.version)
    if not first and living(read_reports(store, app), time.time()):
        return proposed
    return _release_asleep(store, proposed, first=first, who=who)


def _release_asleep(store: Store, proposed: Release, *, first: bool, who: str) -> Release:
    entry = proposed.last
    why = "there is no other" if first else "no replica was up: it is tried when one wakes"
    live = go_live(proposed, who=who, why=f"{entry.why}; {why}", now=time.time())
    if first:
        live = live.model_copy(update={"previous": None})
    found = read_release(store, proposed.app)
    if found is None or found[0].generation != proposed.generation:
        return proposed if found is None else found[0]  # the controller was quicker
    commit(store, proposed, live, etag=found[1])
    return live


def roll_back(store: Store, app: str, model: str, *, who: str, why: str) -> Alias:
    """End the release that goes on, or take back the last one that is over. Returns where production points then.

    Raises RegistryError where there is no earlier version, ReleaseConflict where somebody else acts meanwhile.
    """
    found = read_release(store, app)
    if found is not None and found[0].is_under_way:
        record, etag = found
        commit(store, record, _rolled_back(record, who=who, why=why, now=time.time()), etag=etag)
        return must_get_alias(store, model, PRODUCTION)
    alias = rollback_alias(store, name=model, alias=PRODUCTION, who=who, why=why)
    if found is not None:
        settled = settle(found[0], stable=alias.version, who=who, why=why, now=time.time())
        write_release(store, settled, etag=found[1])
    return alias


def wait_released(
    store: Store,
    app: str,
    release_id: str,
    artifact: Artifact,
    *,
    limit_s: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Release, list[ReplicaReport]]:
    """Until the release is live and every living replica reports its digest. `progress` hears of every state.

    Raises ReleaseRolledBack with the reason, ReleaseConflict where another release took its place, and AppNotReady
    where neither has happened in time: the controller goes on with it all the same.
    """
    deadline = time.monotonic() + limit_s
    told = 0
    while True:
        record = must_read_release(store, app)
        told = _tell(record, release_id, told, progress)
        if record.id != release_id:
            raise ReleaseConflict(
                f"another release of {app} took its place: {record.last.who} ({record.last.why})",
                do="heliostat app history",
            )
        if record.state == "rolled_back":
            raise ReleaseRolledBack(
                f"{artifact.name} v{artifact.version} was rolled back: {record.last.why}",
                where=app,
                do="the version before answers; heliostat app history has the numbers",
            )
        reports = living(read_reports(store, app), time.time())
        if record.state == "live" and all(report.digest == artifact.digest for report in reports):
            return record, reports
        if time.monotonic() > deadline:
            said = {report.replica: report.error or f"serves v{report.version}" for report in reports}
            raise AppNotReady(
                f"the release of {artifact.name} v{artifact.version} is {record.state} after {limit_s:.0f} s "
                f"({record.last.why}): {json.dumps(said)}",
                do="it goes on by itself; ask heliostat app status, or end it with heliostat app rollback",
            )
        time.sleep(0.2)


def _tell(record: Release, release_id: str, told: int, progress: Callable[[str], None]) -> int:
    own = [entry for entry in record.history if entry.release == release_id]
    for entry in own[told:]:
        progress(f"{entry.state}: {entry.why}")
    return max(told, len(own))


def must_read_release(store: Store, app: str) -> Release:
    """Raises AppError where nothing was ever released."""
    found = read_release(store, app)
    if found is None:
        raise AppError(f"{app} has no release yet", do="heliostat app release")
    return found[0]


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
