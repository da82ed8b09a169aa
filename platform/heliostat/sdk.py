"""The platform in Python: the same verbs as the command line.

from heliostat import Platform

platform = Platform.connect()
job = platform.jobs.submit("intent-classifier")
platform.jobs.wait(job)
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from heliostat import flow
from heliostat.cluster import embedded, reclaim
from heliostat.cluster.nodes import NodeRecord, read_nodes
from heliostat.definition import ClusterDefinition
from heliostat.definition import load as load_definition
from heliostat.errors import ClusterNotUp, JobError, UsageError
from heliostat.events import Event, read_events
from heliostat.meter.reckon import GroupUse, StepCount, count_steps, reckon
from heliostat.names import check_name
from heliostat.promote.gate import Verdict
from heliostat.registry import (
    Alias,
    Artifact,
    get_alias,
    list_models,
    list_versions,
    resolve,
    rollback_alias,
)
from heliostat.serve import desired
from heliostat.serve.client import AppStatus, ServeClient
from heliostat.serve.reports import ReplicaReport, living, read_reports
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train import submit as jobs_api
from heliostat.train.job import TrainedModel, trained_model
from heliostat.train.submit import JobRow, SubmittedJob

Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class PlatformStatus:
    cluster: str
    up: bool
    dashboard_url: str
    serve_url: str
    processes: int
    nodes: tuple[NodeRecord, ...]  # living worker nodes
    apps: tuple[AppStatus, ...]


@dataclass(frozen=True)
class Released:
    artifact: Artifact
    verdict: Verdict
    alias: Alias
    replicas: tuple[ReplicaReport, ...]  # those that report the version; () for an app at zero


def up(definition: Path, *, name: str | None = None, progress: Progress = lambda _: None) -> Platform:
    """Start the embedded cluster of a definition, under another name if one is given, so that two can stand side by
    side; see `heliostat.cluster.embedded.up`.
    """
    wanted = load_definition(definition)
    if name is not None:
        wanted = wanted.model_copy(update={"name": check_name(name, what="cluster name")})
    return Platform(embedded.up(wanted, definition, progress=progress))


class Platform:
    """One cluster and one store. Cheap to make: it connects when something is asked of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def connect(cls, cluster: str | None = None) -> Platform:
        """The current cluster, or the named one. Raises SettingsError when there is none."""
        return cls(load(cluster))

    def __repr__(self) -> str:
        return f"Platform(cluster={self.settings.cluster!r}, dashboard={self.settings.dashboard_url!r})"

    @cached_property
    def store(self) -> Store:
        return Store.connect(self.settings.store)

    @cached_property
    def definition(self) -> ClusterDefinition:
        record = embedded.read_record(self.settings.cluster)
        if record is None:
            raise ClusterNotUp(
                f"the definition of cluster {self.settings.cluster!r} is not known here", do="heliostat up FILE"
            )
        return load_definition(Path(record.definition_path))

    @property
    def jobs(self) -> Jobs:
        return Jobs(self)

    @property
    def models(self) -> Models:
        return Models(self)

    @property
    def apps(self) -> Apps:
        return Apps(self)

    def status(self) -> PlatformStatus:
        state = embedded.status(self.settings.cluster)
        up = state.record.phase == "up" and state.head_alive
        apps = tuple(ServeClient(self.settings).statuses().values()) if up else ()
        return PlatformStatus(
            self.settings.cluster,
            up,
            self.settings.dashboard_url,
            self.settings.serve_url,
            state.process_count,
            tuple(self.nodes()) if up else (),
            apps,
        )

    def nodes(self) -> list[NodeRecord]:
        """The living worker nodes."""
        folder = self.settings.state_dir
        return [] if folder is None else [node for node in read_nodes(folder) if node.ended_at is None]

    def reclaim(self, group: str, *, notice_s: float, progress: Progress = lambda _: None) -> NodeRecord:
        return reclaim.reclaim(self.settings, group, notice_s=notice_s, progress=progress)

    def events(self) -> list[Event]:
        return read_events(self.store)

    def cost(self) -> tuple[list[GroupUse], list[StepCount]]:
        events = self.events()
        return reckon(events, now=time.time()), count_steps(events)

    def down(self) -> int:
        """End every process of this cluster. Returns how many there were."""
        return len(embedded.down(self.settings.cluster))


class Jobs:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def submit(self, name: str, *, arguments: Sequence[str] = (), run: str | None = None) -> SubmittedJob:
        """Submit a job of the definition, as `ray job submit` would. `run` resumes an earlier run."""
        definition, settings = self._platform.definition, self._platform.settings
        spec = _known(definition.jobs, name, "job")
        package = desired.package(settings)
        return jobs_api.submit(settings, name, spec, arguments=arguments, run=run, package=package)

    def list(self) -> list[JobRow]:
        return jobs_api.list_jobs(self._platform.settings)

    def logs(self, job_id: str) -> str:
        return jobs_api.logs(self._platform.settings, job_id)

    def stop(self, job_id: str) -> None:
        jobs_api.stop(self._platform.settings, job_id)

    def wait(self, job: SubmittedJob, *, limit_s: float = 3600, on_status: Progress = lambda _: None) -> TrainedModel:
        """Until the job has succeeded; then what it trained. Raises JobFailed."""
        for status in jobs_api.wait(self._platform.settings, job, limit_s=limit_s):
            on_status(status)
        return self.result(job.run)

    def result(self, run: str) -> TrainedModel:
        """What a finished run left in the store. Raises JobError for one that left nothing."""
        made = trained_model(self._platform.store, run)
        if made is None:
            known = sorted({row.run for row in self.list() if row.run})
            raise JobError(
                f"run {run!r} left no model",
                do=f"wait until it has succeeded; runs: {', '.join(known) or 'none was submitted yet'}",
            )
        return made


class Models:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def list(self) -> list[str]:
        return list_models(self._platform.store)

    def versions(self, name: str) -> Sequence[Artifact]:
        return list_versions(self._platform.store, name)

    def get(self, reference: str) -> Artifact:
        """`name@alias` or `name:v3`."""
        return resolve(self._platform.store, reference)

    def alias(self, name: str, alias: str = flow.PRODUCTION) -> Alias | None:
        return get_alias(self._platform.store, name, alias)

    def publish(self, trained: TrainedModel, *, name: str) -> Artifact:
        return flow.publish_trained(self._platform.store, trained, name=name)


class Apps:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def deploy(self, name: str) -> None:
        """Say that the application of the definition is wanted; the controller puts it onto the cluster."""
        definition = self._platform.definition
        spec = _known(definition.applications, name, "application")
        groups = definition.serving_groups(spec)
        desired.deploy(self._platform.store, self._platform.settings, name, spec, groups=groups)

    def remove(self, name: str) -> None:
        desired.remove(self._platform.store, name)

    def list(self) -> list[AppStatus]:
        return list(ServeClient(self._platform.settings).statuses().values())

    def replicas(self, name: str) -> Sequence[ReplicaReport]:
        """What the living replicas say they serve."""
        return living(read_reports(self._platform.store, name), time.time())

    def url(self, name: str) -> str:
        return (
            self._platform.settings.serve_url
            + _known(self._platform.definition.applications, name, "application").route
        )

    def judge(self, name: str, artifact: Artifact) -> Verdict:
        spec = _known(self._platform.definition.applications, name, "application")
        return flow.judge_candidate(self._platform.store, artifact, spec.gate)

    def release(
        self, name: str, artifact: Artifact, *, why: str, force: str | None = None, limit_s: float = 60
    ) -> Released:
        """Judge the version, move `production` to it, and wait until every living replica reports it."""
        verdict = self.judge(name, artifact)
        alias = flow.promote(self._platform.store, artifact, verdict, who=_user(), why=why, force=force)
        reports = flow.wait_live(self._platform.store, name, artifact, limit_s=limit_s)
        return Released(artifact, verdict, alias, tuple(reports))

    def rollback(self, name: str, *, why: str, limit_s: float = 60) -> Alias:
        """Move `production` back to the version before."""
        spec = _known(self._platform.definition.applications, name, "application")
        model = spec.model.partition("@")[0]
        alias = rollback_alias(self._platform.store, name=model, alias=flow.PRODUCTION, who=_user(), why=why)
        flow.wait_live(self._platform.store, name, resolve(self._platform.store, spec.model), limit_s=limit_s)
        return alias


def _known(entries: Mapping[str, T], name: str, kind: str) -> T:
    if name not in entries:
        raise UsageError(
            f"the definition has no {kind} {name!r}", do=f"one of: {', '.join(sorted(entries)) or 'none is defined'}"
        )
    return entries[name]


def _user() -> str:
    return getpass.getuser()
