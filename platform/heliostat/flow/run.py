"""One application from training to live as one run that can be killed anywhere: `heliostat app flow NAME`.

Its state is `apps/<app>/flow.json`, swapped if unchanged after each step. A step that was done and not written down is
done again and finds its own result: the run has a name of the flow's own, equal files are the same version, a verdict
carries the flow's id, and a release of what is on trial or in production changes nothing. So the same command again
goes on where it was left, on any machine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heliostat.definition import ClusterDefinition
from heliostat.errors import GateRefused, JobError, ReleaseRolledBack, UsageError
from heliostat.flow import steps
from heliostat.names import version_name
from heliostat.promote.flows import Flow, FlowStep, State, dataset_tag, read_flow, save_flow
from heliostat.promote.gate import find_verdict, store_verdict
from heliostat.registry import Artifact, resolve
from heliostat.registry.signatures import check_signed
from heliostat.serve import desired
from heliostat.serve.fit import declared_limit
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train import submit as jobs_api
from heliostat.train.job import TrainedModel, trained_model


@dataclass(frozen=True)
class World:
    """What a flow acts through."""

    settings: Settings
    store: Store
    definition: ClusterDefinition
    progress: Callable[[str], None]
    limit_s: float


def run_flow(
    settings: Settings,
    store: Store,
    definition: ClusterDefinition,
    app: str,
    *,
    who: str,
    why: str,
    arguments: Sequence[str] = (),
    force: str | None = None,
    limit_s: float = 3600,
    progress: Callable[[str], None] = lambda _: None,
) -> Flow:
    """Take the application to live, from where the last flow was left; a new one where that is over.

    Raises UsageError where the definition has no job for it, JobFailed (the same command again resumes the training),
    GateRefused and ReleaseRolledBack, which end the flow.
    """
    world = World(settings, store, definition, progress, limit_s)
    flow, etag = _open(world, app, who=who, why=why, arguments=tuple(arguments), force=force)
    while not flow.is_over:
        try:
            after = _STEPS[flow.state](world, flow)
        except (GateRefused, ReleaseRolledBack) as end:
            state: State = "refused" if isinstance(end, GateRefused) else "rolled_back"
            save_flow(store, _after(flow, state, str(end)), etag)
            raise
        flow, etag = save_flow(store, after, etag)
        progress(f"{flow.done[-1].step}: {flow.done[-1].what}")
    return flow


def _open(
    world: World, app: str, *, who: str, why: str, arguments: tuple[str, ...], force: str | None
) -> tuple[Flow, str]:
    job = _job_of(world.definition, app)
    found = read_flow(world.store, app)
    if found is not None and not found[0].is_over:
        world.progress(f"goes on with flow {found[0].id} at {found[0].state}")
        return found
    ident = uuid.uuid4().hex[:8]
    retrain = world.definition.applications[app].retrain
    made = Flow(
        app=app,
        id=ident,
        job=job,
        run=f"{app}-flow-{ident}",
        arguments=arguments or (() if retrain is None else retrain.arguments),
        who=who,
        why=why,
        force=force,
        began_at=time.time(),
        dataset="" if retrain is None else dataset_tag(world.store, retrain),
    )
    return save_flow(world.store, made, None if found is None else found[1])


def _job_of(definition: ClusterDefinition, app: str) -> str:
    if app not in definition.applications:
        known = ", ".join(sorted(definition.applications)) or "none is defined"
        raise UsageError(f"the definition has no application {app!r}", do=f"one of: {known}")
    model = definition.applications[app].model.partition("@")[0]
    jobs = [name for name, job in definition.jobs.items() if job.publishes == model]
    if app in jobs:  # of several, such as a training and a search, the one of the application's name
        return app
    if len(jobs) != 1:
        raise UsageError(
            f"{len(jobs)} jobs publish {model!r}: {', '.join(jobs) or 'none'}",
            where=f"applications.{app}.model",
            do=f"let exactly one job publish it, or name the one to take {app}",
        )
    return jobs[0]


def _train(world: World, flow: Flow) -> Flow:
    """The job under the flow's own run, submitted where none of that name runs or has ended well."""
    if trained_model(world.store, flow.run) is None:
        spec = world.definition.jobs[flow.job]
        for status in jobs_api.wait(world.settings, _submitted(world, flow), limit_s=world.limit_s):
            world.progress(f"train: {flow.run} {status.lower()}")
        # It has succeeded, so it has left a model or will say so.
        if trained_model(world.store, flow.run) is None:
            raise JobError(f"run {flow.run!r} left no model", where=spec.entrypoint, do="heliostat job list")
    return _after(flow, "publish", f"run {flow.run}")


def _submitted(world: World, flow: Flow) -> jobs_api.SubmittedJob:
    for row in jobs_api.list_jobs(world.settings):
        if row.run == flow.run and row.status not in jobs_api.FINISHED:
            return jobs_api.SubmittedJob(row.job_id, row.run)
    return jobs_api.submit(
        world.settings,
        flow.job,
        world.definition.jobs[flow.job],
        arguments=flow.arguments,
        run=flow.run,
        package=desired.package(world.settings),
    )


def _publish(world: World, flow: Flow) -> Flow:
    trained = _must_have(world, flow)
    name = world.definition.jobs[flow.job].publishes
    artifact = steps.publish_trained(world.store, trained, name=name)
    return _after(flow, "judge", f"{artifact.reference} {artifact.digest[:19]}", version=artifact.version)


def _judge(world: World, flow: Flow) -> Flow:
    artifact = _artifact(world, flow)
    verdict = find_verdict(world.store, artifact, by=flow.id)
    if verdict is None:
        spec = world.definition.applications[flow.app]
        groups = (world.definition.groups[group] for group in world.definition.serving_groups(spec))
        limit = declared_limit(groups, gpus=spec.gpus_per_replica)
        check_signed(world.store, artifact, spec.signed_by)
        verdict = steps.judge(world.store, artifact, spec.gate, vram_limit=limit)
        store_verdict(world.store, artifact, verdict.model_copy(update={"by": flow.id}))
    failed = [reason.text for reason in verdict.reasons if not reason.passed]
    if failed and flow.force is None:
        raise GateRefused(
            f"{artifact.reference} did not pass: {'; '.join(failed)}", do="train a better one; production is as it was"
        )
    return _after(flow, "release", f"passed {len(verdict.reasons) - len(failed)} of {len(verdict.reasons)} rules")


def _release(world: World, flow: Flow) -> Flow:
    artifact = _artifact(world, flow)
    verdict = find_verdict(world.store, artifact, by=flow.id)
    if verdict is None:
        return _after(flow, "judge", "its verdict is gone")
    spec = world.definition.applications[flow.app]
    _deploy(world, flow.app)
    begun = steps.release(
        world.store, flow.app, artifact, verdict, rules=spec.release, who=flow.who, why=flow.why, force=flow.force
    )
    return _after(flow, "live", f"release {begun.id}", release=begun.id)


def _live(world: World, flow: Flow) -> Flow:
    artifact = _artifact(world, flow)
    record, reports = steps.wait_released(
        world.store, flow.app, flow.release or "", artifact, limit_s=world.limit_s, progress=world.progress
    )
    return _after(flow, "done", f"{artifact.reference} on {len(reports)} replicas: {record.last.why}")


_STEPS: Mapping[State, Callable[[World, Flow], Flow]] = {
    "train": _train,
    "publish": _publish,
    "judge": _judge,
    "release": _release,
    "live": _live,
}


def _deploy(world: World, app: str) -> None:
    """Wanted, where it is not yet: what runs is left as it is."""
    if app not in {each.name for each in desired.read_desired(world.store)}:
        spec = world.definition.applications[app]
        names = world.definition.serving_groups(spec)
        limit = declared_limit((world.definition.groups[name] for name in names), gpus=spec.gpus_per_replica)
        desired.deploy(world.store, world.settings, app, spec, groups=names, vram_bytes=limit)


def _must_have(world: World, flow: Flow) -> TrainedModel:
    made = trained_model(world.store, flow.run)
    if made is None:
        raise JobError(f"run {flow.run!r} left no model", do="its output was deleted; train again: heliostat app flow")
    return made


def _artifact(world: World, flow: Flow) -> Artifact:
    return resolve(world.store, f"{world.definition.jobs[flow.job].publishes}:{version_name(flow.version or 0)}")


def _after(flow: Flow, state: State, what: str, **found: object) -> Flow:
    line = FlowStep(step=flow.state, at=time.time(), what=what)
    return flow.model_copy(update={"state": state, "done": (*flow.done, line), **found})
