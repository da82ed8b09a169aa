"""The platform in Python: the same verbs as the command line.

from heliostat import Platform

platform = Platform.connect()
job = platform.jobs.submit("intent-classifier")
platform.jobs.wait(job)
"""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from heliostat import flow
from heliostat.allowance import read_allowance
from heliostat.cluster import embedded, reclaim
from heliostat.cluster.nodes import NodeRecord, read_nodes, set_capacity
from heliostat.commit import Moved
from heliostat.definition import Application, Budget, ClusterDefinition
from heliostat.definition import load as load_definition
from heliostat.errors import (
    AppNotReady,
    BudgetSpent,
    ClusterNotUp,
    HeliostatError,
    JobError,
    JobFailed,
    SettingsError,
    UnknownModel,
    UsageError,
)
from heliostat.events import Event, read_events
from heliostat.flow import Flow
from heliostat.names import check_name, check_segment, version_name
from heliostat.promote.gate import Verdict, last_verdict
from heliostat.promote.records import PRODUCTION, read_release
from heliostat.promote.release import Entry, Release
from heliostat.registry import (
    Alias,
    Artifact,
    ArtifactMetadata,
    Finding,
    ModelDiff,
    Retention,
    SweepPlan,
    Swept,
    Tombstone,
    Version,
    delete_version,
    diff,
    files_of,
    get_alias,
    list_aliases,
    list_models,
    list_versions,
    model_card,
    move_alias,
    must_get_alias,
    plan_sweep,
    publish,
    pull,
    resolve,
    rollback_alias,
    scan,
    sweep,
    verify,
)
from heliostat.registry.signatures import Signature, sign
from heliostat.serve import desired
from heliostat.serve.client import AppStatus, ServeClient
from heliostat.serve.fit import declared_limit
from heliostat.serve.reports import ReplicaReport, living, read_reports
from heliostat.settings import Settings, by_address, load
from heliostat.store import Store
from heliostat.tables import Rows, table
from heliostat.train import queued as job_queue
from heliostat.train import submit as jobs_api
from heliostat.train.job import TrainedModel, trained_model
from heliostat.train.logs import read_logs
from heliostat.train.progress import Progress as RunProgress
from heliostat.train.progress import read_progress
from heliostat.train.submit import JobRow, SubmittedJob

if TYPE_CHECKING:
    import pyarrow as pa

    from heliostat.definition import WasteRules
    from heliostat.meter.advise import Advice
    from heliostat.meter.budget import Granted, Standing
    from heliostat.meter.economics import Month, UnitCost
    from heliostat.meter.energy import Energy
    from heliostat.meter.prices import GpuPrice
    from heliostat.meter.report import Report
    from heliostat.meter.waste import Finding as Waste
    from heliostat.meter.waste import Told
    from heliostat.plan.policy.traces import Window
    from heliostat.plan.why import Snapshot
    from heliostat.train.market import Terms
    from heliostat.train.rehearsal import RealOutcome

Progress = Callable[[str], None]
KEEP = Retention()
T = TypeVar("T")


@dataclass(frozen=True)
class PlatformStatus:
    """What runs at this moment; a table in notebooks."""

    cluster: str
    up: bool
    dashboard_url: str
    serve_url: str
    processes: int
    nodes: tuple[NodeRecord, ...]  # living worker nodes
    apps: tuple[AppStatus, ...]
    jobs: tuple[JobRow, ...] = ()
    """Those that have not ended, the queue too."""

    def _repr_html_(self) -> str:
        """Three tables, for notebooks."""
        about = table(
            ("cluster", "up", "dashboard", "applications", "processes"),
            [(self.cluster, "yes" if self.up else "no", self.dashboard_url, self.serve_url, self.processes)],
        )
        nodes = table(
            ("node", "group", "role", "market", "GPUs", "state"),
            [
                (n.node_id, n.group, n.role, n.market, n.gpus, "ready" if n.ray_node_id else "starting")
                for n in self.nodes
            ],
            caption="worker nodes",
        )
        apps = table(
            ("application", "state", "replicas", "message"),
            [(a.name, a.status, a.replicas, a.message) for a in self.apps],
            caption="applications",
        )
        return about + (nodes if self.nodes else "") + (apps if self.apps else "")


@dataclass(frozen=True)
class Idle:
    """GPUs that are held and do no useful work."""

    rules: WasteRules
    findings: tuple[Waste, ...]  # the dearest first
    told: Mapping[str, Told]  # by a finding's id: how far the controller has gone with it
    gpu_hours: float
    usd: float | None  # of those that have a price


@dataclass(frozen=True)
class Released:
    """A release that is done: what was judged, and who serves it now."""

    artifact: Artifact
    verdict: Verdict
    alias: Alias
    replicas: tuple[ReplicaReport, ...]  # those that report the version; () for an app at zero
    release: Release


@dataclass(frozen=True)
class ReleaseStatus:
    """An application's release as it stands; None where nothing was released yet."""

    app: str
    release: Release | None
    verdict: Verdict | None  # the last one on the version on trial, or in production
    replicas: tuple[ReplicaReport, ...]

    def __repr__(self) -> str:
        record = self.release
        if record is None:
            return f"ReleaseStatus({self.app!r}, nothing was released yet)"
        trial = "" if record.candidate is None else f", on trial=v{record.candidate}"
        stable = "none" if record.stable is None else f"v{record.stable}"
        return f"ReleaseStatus({self.app!r}, {record.state}, production={stable}{trial}, replicas={len(self.replicas)})"

    def _repr_html_(self) -> str:
        """The history and the replicas, for notebooks."""
        history = table(
            ("at", "who", "state", "from", "to", "why"),
            [
                (
                    f"{datetime.fromtimestamp(e.at, UTC):%H:%M:%S}",
                    e.who,
                    e.state,
                    None if e.from_version is None else version_name(e.from_version),
                    None if e.to_version is None else version_name(e.to_version),
                    e.why,
                )
                for e in (self.release.history if self.release else ())
            ],
            caption=f"releases of {self.app}",
        )
        replicas = table(
            ("replica", "node", "version", "digest", "requests"),
            [(r.replica, r.node, version_name(r.version), r.digest[:19], r.requests) for r in self.replicas],
            caption="living replicas",
        )
        return history + (replicas if self.replicas else "")


def up(definition: Path, *, name: str | None = None, progress: Progress = lambda _: None) -> Platform:
    """Start the embedded cluster of a definition, under another name if one is given, so that two can stand side by
    side; see `heliostat.cluster.embedded.up`.
    """
    wanted = load_definition(definition)
    if name is not None:
        wanted = wanted.model_copy(update={"name": check_name(name, what="cluster name")})
    from heliostat.meter.budget import apply_definition

    platform = Platform(embedded.up(wanted, definition, progress=progress))
    apply_definition(platform.store, wanted.budgets, who=_user(), now=time.time())
    return platform


class Platform:
    """One cluster and one store. Cheap to make: it connects when something is asked of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def connect(cls, cluster: str | None = None, *, address: str | None = None, token: str | None = None) -> Platform:
        """The current cluster, or the named one; within a job the one that it runs on.

        With `address` (http://HOST:8265), or where there are no settings and RAY_ADDRESS is one, over the dashboard's
        port alone, with the token that Ray would use: jobs, applications and status then; what needs the store or the
        definition raises SettingsError. Raises SettingsError where no cluster is found.
        """
        if cluster is not None and address is not None:
            raise UsageError("both a cluster and an address were given", do="give one of them")
        if address is not None:
            return Remote(by_address(address, token))
        if token is not None:
            raise UsageError("a token was given without an address", do='write address="http://HOST:8265" too')
        try:
            return cls(load(cluster))
        except SettingsError:
            found = os.environ.get("RAY_ADDRESS", "")
            if cluster is not None or not found.startswith(("http://", "https://")):
                raise
            return Remote(by_address(found))

    def __repr__(self) -> str:
        return f"Platform(cluster={self.settings.cluster!r}, dashboard={self.settings.dashboard_url!r})"

    def _repr_html_(self) -> str:
        """What it is, for notebooks; nothing is asked of the cluster."""
        return table(
            ("cluster", "dashboard", "applications"),
            [(self.settings.cluster, self.settings.dashboard_url, self.settings.serve_url)],
        )

    @property
    def has_store(self) -> bool:
        """Whether the store can be reached from here: not over the dashboard's port alone."""
        return True

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
        """Nodes, applications, processes, addresses. Raises ClusterNotUp where there was never a cluster."""
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
            self._unfinished() if up else (),
        )

    def _unfinished(self) -> tuple[JobRow, ...]:
        """Of jobs; none where they cannot be read: nodes and applications are told all the same."""
        try:
            return tuple(row for row in self.jobs.list() if row.status not in jobs_api.FINISHED)
        except HeliostatError:
            return ()

    def nodes(self) -> list[NodeRecord]:
        """The living worker nodes."""
        folder = self.settings.state_dir
        return Rows([] if folder is None else [node for node in read_nodes(folder) if node.ended_at is None])

    def reclaim(self, group: str, *, notice_s: float, progress: Progress = lambda _: None) -> NodeRecord:
        """Take one spot node of the group away for real: notice, then SIGKILL. Embedded clusters only."""
        _known(self.definition.groups, group, "group")
        return reclaim.reclaim(self.settings, group, notice_s=notice_s, progress=progress)

    def limit_capacity(self, group: str, nodes: int | None) -> None:
        """Let the group's market have so many nodes at most; None lifts it. Embedded clusters only, for game days."""
        _known(self.definition.groups, group, "group")
        if self.settings.state_dir is None:
            raise ClusterNotUp("only an embedded cluster's market can be limited", do="heliostat up FILE")
        set_capacity(self.settings.state_dir, group, nodes)

    def snapshot(self) -> Snapshot:
        """The cluster at this moment, as heliostat.plan.why judges it; the jobs in the queue too."""
        from heliostat.cluster.snapshot import take_snapshot

        found = job_queue.with_queue(take_snapshot(self.settings, self.definition), job_queue.queue_rows(self.store))
        return desired.with_releases(self.store, found, self.definition.applications)

    def events(self) -> list[Event]:
        """Every event in the store, by time."""
        return read_events(self.store)

    def cost_report(
        self,
        by: Sequence[str] = ("group", "market"),
        *,
        since: date | None = None,
        until: date | None = None,
        prices: Path | None = None,
        progress: Progress = lambda _: None,
    ) -> Report:
        """GPU-seconds by class and their price, by those dimensions, over days in UTC, both included.

        The ledger is brought up to now first. `prices` is a file as heliostat.meter.prices.read_prices takes it; else
        the catalogue's prices count.
        """
        from heliostat.meter.report import check_dimensions, columns_of, report

        check_dimensions(by)
        rows, known = self._ledger(since, until, prices, columns_of(by), progress=progress)
        return report(rows, by=by, prices=known)

    def unit_costs(
        self,
        by: Sequence[str] = ("app",),
        *,
        since: date | None = None,
        until: date | None = None,
        prices: Path | None = None,
    ) -> list[UnitCost]:
        """What 1,000 requests, a million tokens or a run cost; see `heliostat.meter.economics.unit_costs`."""
        from heliostat.meter.economics import unit_costs
        from heliostat.meter.ledger import read_counts
        from heliostat.meter.report import check_dimensions, columns_of

        check_dimensions(by)
        rows, known = self._ledger(since, until, prices, columns_of(by))
        return unit_costs(rows, read_counts(self.store, since=since, until=until), by=by, prices=known)

    def month(self, *, prices: Path | None = None) -> Month:
        """This month so far, and where it will end."""
        from heliostat.meter.economics import month
        from heliostat.meter.report import columns_of

        rows, known = self._ledger(_first_of_month(), None, prices, columns_of(("job", "market", "instance")))
        return month(rows, now=time.time(), prices=known)

    def energy(
        self,
        by: Sequence[str] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        grams_per_kwh: float | None = None,
        pue: float = 1.0,
    ) -> list[Energy]:
        """Energy and CO2; see `heliostat.meter.energy`."""
        from heliostat.meter.energy import energy
        from heliostat.meter.ledger import read_counts
        from heliostat.meter.report import check_dimensions, columns_of

        check_dimensions(by)
        rows, _ = self._ledger(since, until, None, columns_of((*by, "group", "instance")))
        counts = read_counts(self.store, since=since, until=until)
        return energy(rows, counts, by=by, grams_per_kwh=grams_per_kwh, pue=pue)

    def focus(
        self, *, since: date | None = None, until: date | None = None, prices: Path | None = None
    ) -> tuple[str, float]:
        """(a FOCUS data set as CSV, GPU-hours that have no price and are left out)."""
        from heliostat.meter.focus import focus_rows, to_focus_csv, unpriced_gpu_hours

        rows, known = self._ledger(since, until, prices, None)
        text = to_focus_csv(focus_rows(rows, cluster=self.settings.cluster, prices=known))
        return text, unpriced_gpu_hours(rows, known)

    def budgets(self, *, prices: Path | None = None) -> list[Standing]:
        """Every budget of this month and how it stands now."""
        from heliostat.meter.budget import read_budgets, standings
        from heliostat.meter.report import columns_of

        rows, known = self._ledger(_first_of_month(), None, prices, columns_of(("team", "project", "day")))
        return standings(rows, read_budgets(self.store), now=time.time(), prices=known)

    def set_budget(
        self,
        name: str,
        *,
        why: str,
        gpu_hours: float | None = None,
        usd: float | None = None,
        at_limit: str | None = None,
    ) -> Granted:
        """Set or raise a budget, named team/NAME or project/NAME. What is not given stays as it was."""
        from heliostat.meter.budget import grant, read_budgets

        before = next((granted.budget for granted in read_budgets(self.store) if granted.key == name), Budget())
        given = {"gpu_hours": gpu_hours, "usd": usd, "at_limit": at_limit}
        try:
            wanted = Budget.model_validate(
                {**before.model_dump(), **{key: value for key, value in given.items() if value is not None}}
            )
        except ValidationError as error:
            said = "; ".join(f"{entry['loc'][0]}: {entry['msg']}" for entry in error.errors())
            raise UsageError(said, where=name, do="at_limit is tell, refuse or pause; limits are above 0") from None
        if wanted.gpu_hours is None and wanted.usd is None:
            raise UsageError("a budget needs a limit", where=name, do="give --gpu-hours, --usd or both")
        return grant(self.store, name, wanted, who=_user(), why=why, now=time.time())

    def _ledger(
        self,
        since: date | None,
        until: date | None,
        prices: Path | None,
        columns: Sequence[str] | None,
        *,
        progress: Progress = lambda _: None,
    ) -> tuple[pa.Table, Sequence[GpuPrice]]:
        """(rows of those days, prices), the ledger brought up to now."""
        from heliostat.meter import ledger
        from heliostat.meter.prices import from_catalogue, read_prices
        from heliostat.meter.report import name_instances, places

        given = None if prices is None else read_prices(prices)
        ledger.update(self.store, now=time.time(), progress=progress)
        rows = ledger.read(self.store, since=since, until=until, columns=columns)
        with suppress(ClusterNotUp):  # a ledger can be read without its cluster
            groups = self.definition.groups
            rows = name_instances(rows, {name: group.instance for name, group in groups.items() if group.instance})
        return rows, from_catalogue(places(rows)) if given is None else given

    def idle(self, *, after: str | None = None) -> Idle:
        """What is held now and does no useful work, by the definition's rules, or after another time without it."""
        from heliostat.controller.waste import judge, read_state, total
        from heliostat.units import Duration

        rules = self.definition.waste
        rules = rules if after is None else rules.model_copy(update={"after": Duration.parse(after)})
        state = read_state(self.store)
        findings, _ = judge(self.settings, self.store, self.definition, rules, state)
        return Idle(rules, findings, state.told, *total(findings))

    def advice(self, *, days: int = 30, progress: Progress = lambda _: None) -> Sequence[Advice]:
        """What the measured use of the last days says about how the groups are set up, the dearest first."""
        from heliostat.meter import advise, ledger
        from heliostat.plan.catalogue import load as load_catalogue

        since = datetime.now(UTC) - timedelta(days=days)
        ledger.update(self.store, now=time.time(), progress=progress)
        columns = ("hour", "group", "market", "instance", "use", "gpu_seconds")
        rows = ledger.read(self.store, since=since.date(), columns=columns)
        if not rows.num_rows:
            return ()
        first, last = min(rows["hour"].unique().to_pylist()), max(rows["hour"].unique().to_pylist())
        # The devices' of one day: the events of all days would be read for no more.
        samples = advise.devices(read_events(self.store, since=datetime.now(UTC) - timedelta(days=1)))
        measured = advise.measure(rows, samples, hours=last - first + 1)
        serving = frozenset(name for name, group in self.definition.groups.items() if group.role == "serving")
        instances = {name: group.instance or "" for name, group in self.definition.groups.items()}
        named = [replace(one, instance=one.instance or instances.get(one.group, "")) for one in measured]
        return advise.advise(named, load_catalogue(), serving=serving)

    def status_page(self, *, progress: Progress = lambda _: None) -> str:
        """What runs now, as one HTML document without scripts. A part that cannot be read is left empty, and told."""
        from heliostat.pages import status_page
        from heliostat.pages.gather import gather

        state = embedded.status(self.settings.cluster)
        up = state.record.phase == "up" and state.head_alive
        return status_page(gather(self.settings, self.store, self.definition, up=up, say=progress))

    def cost_page(
        self,
        by: Sequence[str] = ("group", "market"),
        *,
        since: date | None = None,
        until: date | None = None,
        prices: Path | None = None,
        progress: Progress = lambda _: None,
    ) -> str:
        """The cost report as one HTML document without scripts; arguments as of `cost_report`."""
        from heliostat.controller.waste import read_state
        from heliostat.meter.report import check_dimensions, columns_of, report
        from heliostat.pages import cost_page

        check_dimensions(by)
        rows, known = self._ledger(since, until, prices, columns_of((*by, "day")), progress=progress)
        made, days = (report(rows, by=each, prices=known) for each in (by, ("day",)))
        waste = read_state(self.store).findings
        advice = self.advice(progress=progress)
        return cost_page(
            made, days, cluster=self.settings.cluster, since=since, until=until, waste=waste, advice=advice
        )

    def down(self) -> int:
        """End every process of this cluster. Returns how many there were."""
        return len(embedded.down(self.settings.cluster))


class Remote(Platform):
    """A cluster of which no more is known than the dashboard's address; `Platform.connect(address=...)` makes it."""

    def __repr__(self) -> str:
        return f"Platform(address={self.settings.dashboard_url!r})"

    @property
    def has_store(self) -> bool:
        return False

    @property
    def store(self) -> Store:
        raise self._not_known("the store")

    @property
    def definition(self) -> ClusterDefinition:
        raise self._not_known("the definition")

    def status(self) -> PlatformStatus:
        """Jobs and applications are asked; nodes and processes are not told there. Raises ClusterNotUp."""
        url = self.settings.dashboard_url
        apps = tuple(ServeClient(self.settings).statuses().values())
        rows = jobs_api.list_jobs(self.settings)  # raises where the token is refused
        unfinished = tuple(row for row in rows if row.status not in jobs_api.FINISHED)
        return PlatformStatus(self.settings.cluster, True, url, self.settings.serve_url, 0, (), apps, unfinished)

    def _not_known(self, what: str) -> SettingsError:
        return SettingsError(
            f"{what} of this cluster is not known here: it was reached by its dashboard's port alone",
            where=self.settings.dashboard_url,
            do="point HELIOSTAT_SETTINGS at its settings file, or submit with `ray job submit`",
        )


class Jobs:
    """Training jobs: `platform.jobs.submit("intent-classifier")`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def __iter__(self) -> Iterator[JobRow]:
        return iter(self.list())

    def __repr__(self) -> str:
        return f"Jobs(of {self._platform.settings.cluster!r})"

    def _repr_html_(self) -> str:
        return self.list()._repr_html_()

    def submit(self, name: str, *, arguments: Sequence[str] = (), run: str | None = None) -> SubmittedJob:
        """Put a job of the definition into the queue; the controller starts it when it is its turn.

        `run` resumes an earlier run. Raises JobError where that one is queued or running, BudgetSpent where there is
        nothing left for the job's team or project.
        """
        definition = self._platform.definition
        spec = _known(definition.jobs, name, "job")
        self._check_budget(name, spec.team or definition.tags.team, spec.project or definition.tags.project)
        package = desired.package(self._platform.settings)
        job = job_queue.wanted(
            definition, name, arguments=arguments, run=run, package=package, now=time.time(), user=_user()
        )
        living = {row.job_id: row.run for row in self.list() if row.status not in jobs_api.FINISHED}
        return job_queue.enqueue(self._platform.store, job, living=living)

    def _check_budget(self, name: str, team: str, project: str) -> None:
        """The controller's word is up to a minute old: where it refuses, the budgets are read as they are now."""
        now = time.time()
        if read_allowance(self._platform.store).find(team, project, now) is None:
            return
        from heliostat.meter.budget import allowance

        allowed = allowance(self._platform.budgets(), now=now)
        stopped = allowed.find(team, project, now)
        if stopped is not None:
            raise BudgetSpent(
                stopped.reason,
                where=f"job {name}",
                do=f"raise it: heliostat cost budget set {allowed.key_of(stopped)} --gpu-hours N --why REASON",
            )

    def list(self) -> Rows[JobRow]:
        """Those that Ray knows, oldest first, then those in the queue. In notebooks it is a table."""
        known = jobs_api.list_jobs(self._platform.settings)
        return Rows([*known, *job_queue.beside(self._queue(), {row.job_id for row in known})])

    def _queue(self) -> Sequence[JobRow]:
        return job_queue.queue_rows(self._platform.store) if self._platform.has_store else ()

    def logs(self, job_id: str) -> str:
        """What the job has printed. Of a job that Ray has forgotten, with its cluster or without, what is in the store;
        a run's name gives all of its jobs'.
        """
        if (waits := self._queued(job_id)) is not None:
            raise JobError(f"job {job_id} has not started: {waits}", do="heliostat job list")
        try:
            return jobs_api.logs(self._platform.settings, job_id)
        except (ClusterNotUp, JobError):
            if not self._platform.has_store:
                raise
            kept = read_logs(self._platform.store, check_segment(job_id, what="job"))
            if kept is None:
                raise
            return kept

    def find(self, job_or_run: str) -> JobRow | None:
        """The job, or the run's newest one; None where neither the cluster nor the queue knows it."""
        return _newest(self.list(), job_or_run)

    def knows(self, run: str) -> bool:
        """Whether there was such a run: a job of it, or what one left in the store."""
        check_segment(run, what="run")
        left = any(next(iter(self._platform.store.list(f"{kind}/{run}/")), None) for kind in ("checkpoints", "runs"))
        return left or self.find(run) is not None

    def progress(self, run: str) -> RunProgress | None:
        """How far the run is, or was when it ended, with its curve; None while nothing is known."""
        return read_progress(self._platform.store, check_segment(run, what="run"))

    def stop(self, job_id: str) -> str:
        """Stop it, or take it out of the queue; submitting its run again resumes from the newest checkpoint.

        A run's name stops its job that has not ended. Returns the status that it had, as `list` shows it.
        """
        if (waiting := self._queued_as(job_id)) is not None:
            job_queue.remove(self._platform.store, waiting.job_id)
            return waiting.status
        return jobs_api.stop(self._platform.settings, job_id)

    def _queued(self, job_id: str) -> str | None:
        """Why it, or the run's job, waits in the queue; None where it does not."""
        waiting = self._queued_as(job_id)
        return None if waiting is None else waiting.why

    def _queued_as(self, job_or_run: str) -> JobRow | None:
        return next((row for row in self._queue() if job_or_run in (row.job_id, row.run)), None)

    def rehearse(
        self,
        name: str,
        terms: Terms,
        window: Window,
        *,
        arguments: Sequence[str] = (),
        progress: Progress = lambda _: None,
    ) -> RealOutcome:
        """Run the job once, as a deadline job, on the embedded cluster with spot as the window has it."""
        from heliostat.train.rehearsal import rehearse_for_real

        settings = self._platform.settings
        spec = _known(self._platform.definition.jobs, name, "job")
        package = desired.package(settings)
        return rehearse_for_real(
            settings, name, spec, terms, window, arguments=[*arguments], package=package, progress=progress
        )

    def wait(self, job: SubmittedJob, *, limit_s: float = 3600, on_status: Progress = lambda _: None) -> TrainedModel:
        """Until the job has succeeded; then what it trained. Raises JobFailed."""
        deadline = time.monotonic() + limit_s
        while (waits := self._queued(job.job_id)) is not None:
            on_status(job_queue.QUEUED)
            if time.monotonic() > deadline:
                raise JobFailed(f"job {job.job_id} is still in the queue: {waits}", do="heliostat job list")
            time.sleep(0.2)
        for status in jobs_api.wait(self._platform.settings, job, limit_s=deadline - time.monotonic()):
            on_status(status)
        return self.result(job.run)

    def result(self, run: str) -> TrainedModel:
        """What a finished run, or a job's run, left in the store. Raises JobError for one that left nothing."""
        made = trained_model(self._platform.store, run)
        if made is not None:
            return made
        rows = self.list()
        row = _newest(rows, run)
        if row is None:
            done = sorted({row.run for row in rows if row.run and row.status == "SUCCEEDED"})
            raise JobError(f"there is no run {run!r}", do=f"those that succeeded: {', '.join(done) or 'none yet'}")
        if row.run and row.run != run and (made := trained_model(self._platform.store, row.run)) is not None:
            return made
        do = f"heliostat job logs {row.job_id}" if row.status in jobs_api.FINISHED else "wait until it has succeeded"
        raise JobError(f"run {row.run or run!r} has left no model; its job is {row.status}", do=do)


class Models:
    """The registry: `platform.models["intent-classifier"]["production"]`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def __getitem__(self, name: str) -> Model:
        """The model. Raises UnknownModel."""
        if name not in self.list():
            raise UnknownModel(f"there is no model {name!r}", do=f"one of: {', '.join(self.list()) or 'none yet'}")
        return Model(self, name)

    def __iter__(self) -> Iterator[Model]:
        return (Model(self, name) for name in self.list())

    def __repr__(self) -> str:
        return f"Models({', '.join(self.list())})"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = [
            (model.name, len(model.versions), ", ".join(f"{alias} v{v}" for alias, v in model.aliases.items()))
            for model in self
        ]
        return table(("model", "versions", "aliases"), rows) if rows else "<i>none</i>"

    def list(self) -> list[str]:
        """The names of all models."""
        return list_models(self._store)

    def versions(self, name: str) -> Sequence[Artifact]:
        """Every version that can be read, oldest first."""
        return list_versions(self._store, name)

    def scan(self, name: str) -> Sequence[Version]:
        """Every version, the damaged and the deleted too."""
        return tuple(scan(self._store, name).values())

    def get(self, reference: str) -> Artifact:
        """`name@alias` or `name:v3`."""
        return resolve(self._store, reference)

    def card(self, artifact: Artifact) -> str:
        """What it is, its metrics and where it comes from, as Markdown."""
        return model_card(artifact, self.aliases(artifact.name))

    def diff(self, before: str, after: str) -> ModelDiff:
        """How two versions differ."""
        return diff(self._store, self.get(before), self.get(after))

    def verify(self, artifact: Artifact, *, moved: Moved = lambda _: None) -> Sequence[Finding]:
        """What is wrong with the bytes at rest; () or [] when all are what was published."""
        return verify(self._store, artifact, moved=moved)

    def sign(self, artifact: Artifact, key: Path) -> Signature:
        """Put one's name to a version, with the private key in that file."""
        return sign(self._store, artifact, key, who=_user())

    def pull(self, artifact: Artifact, folder: Path, *, moved: Moved = lambda _: None) -> Sequence[Path]:
        """The files into a folder, verified."""
        return pull(self._store, artifact, folder, moved=moved)

    def files_of(
        self, folder: Path, *, exclude: Sequence[str] = (), left_out: Progress = lambda _: None
    ) -> Mapping[str, Path]:
        """A folder's files as `push` takes them."""
        return files_of(folder, exclude=exclude, left_out=left_out)

    def push(
        self, files: Mapping[str, Path], *, name: str, metadata: ArtifactMetadata, moved: Moved = lambda _: None
    ) -> Artifact:
        """Files as the model's next version. `moved` is told of each byte twice: read, and sent."""
        return publish(self._store, name=name, files=dict(files), metadata=metadata, read=moved, sent=moved)

    def publish(self, trained: TrainedModel, *, name: str) -> Artifact:
        """What a run trained as the model's next version; the same files again are the same version."""
        return flow.publish_trained(self._store, trained, name=name)

    def alias(self, name: str, alias: str = PRODUCTION) -> Alias | None:
        """Where it points, with its history; None where it does not exist."""
        return get_alias(self._store, name, alias)

    def must_get_alias(self, name: str, alias: str) -> Alias:
        """Raises UnknownAlias with those that there are."""
        return must_get_alias(self._store, name, alias)

    def aliases(self, name: str) -> Sequence[Alias]:
        """All of the model's."""
        return list_aliases(self._store, name)

    def move_alias(
        self, name: str, alias: str, *, to_version: int, why: str, expected_version: int | EllipsisType | None = ...
    ) -> Alias:
        """Move it if it still points where expected (None: nowhere), by default where it points now. No gate is asked.

        Raises AliasMoved, which names who won.
        """
        if isinstance(expected_version, EllipsisType):
            now = self.alias(name, alias)
            expected_version = None if now is None else now.version
        return move_alias(
            self._store,
            name=name,
            alias=alias,
            to_version=to_version,
            expected_version=expected_version,
            who=_user(),
            why=why,
        )

    def roll_back(self, name: str, alias: str, *, why: str, to_version: int | None = None) -> Alias:
        """To the version before, or to an earlier entry of the history."""
        return rollback_alias(self._store, name=name, alias=alias, who=_user(), why=why, to_version=to_version)

    def plan_sweep(self, names: Sequence[str] | None = None, *, retention: Retention = KEEP) -> SweepPlan:
        """What `sweep` would do."""
        return plan_sweep(self._store, models=names, retention=retention, users=self._running)

    def sweep(
        self,
        names: Sequence[str] | None = None,
        *,
        retention: Retention = KEEP,
        progress: Progress = lambda _: None,
    ) -> Swept:
        """Delete what no alias, application, lease or rule needs."""
        return sweep(
            self._store, who=_user(), models=names, retention=retention, users=self._running, progress=progress
        )

    def delete(self, name: str, version: int, *, why: str) -> Tombstone:
        """Delete one version for good. Raises VersionHeld with what needs it."""
        return delete_version(self._store, name, version, who=_user(), why=why, users=self._running)

    @property
    def _store(self) -> Store:
        return self._platform.store

    def _running(self, name: str) -> Mapping[int, str]:
        """The versions of the model that living replicas say they serve, and those that a release goes on with."""
        store, used = self._platform.store, dict[int, str]()
        for app in desired.read_desired(store):
            if app.spec.model.partition("@")[0] != name:
                continue
            found = read_release(store, app.name)
            if found is not None:
                on_trial = (found[0].candidate, found[0].previous)
                used |= {version: f"application {app.name} releases it" for version in on_trial if version is not None}
            reports = living(read_reports(store, app.name), time.time())
            used |= {report.version: f"application {app.name} runs it" for report in reports}
        return used


@dataclass(frozen=True, repr=False)
class Model:
    """One model of the registry: `model["production"]`, `model["v3"]` and `model[3]` are its versions."""

    models: Models
    name: str

    def __getitem__(self, which: str | int) -> Artifact:
        if isinstance(which, int):
            which = version_name(which)
        mark = ":" if re.fullmatch(r"v[0-9]+", which) else "@"
        return self.models.get(f"{self.name}{mark}{which}")

    def __iter__(self) -> Iterator[Artifact]:
        return iter(self.versions)

    @property
    def versions(self) -> Sequence[Artifact]:
        return self.models.versions(self.name)

    @property
    def aliases(self) -> Mapping[str, int]:
        return {alias.alias: alias.version for alias in self.models.aliases(self.name)}

    def __repr__(self) -> str:
        aliases = "".join(f", {alias}=v{version}" for alias, version in self.aliases.items())
        return f"Model({self.name!r}, {len(self.versions)} versions{aliases})"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        at: dict[int, list[str]] = {}
        for alias, version in self.aliases.items():
            at.setdefault(version, []).append(alias)
        rows = [
            (
                version_name(artifact.version),
                ", ".join(at.get(artifact.version, ())),
                artifact.metadata.parameters,
                artifact.metadata.dtype,
                ", ".join(f"{key} {value:.4g}" for key, value in artifact.metrics.items()),
                artifact.digest[:19],
            )
            for artifact in self.versions
        ]
        return table(("version", "aliases", "parameters", "dtype", "metrics", "digest"), rows, caption=self.name)


class Apps:
    """Serving applications and their releases."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def __iter__(self) -> Iterator[AppStatus]:
        return iter(self.list())

    def __repr__(self) -> str:
        return f"Apps(of {self._platform.settings.cluster!r})"

    def _repr_html_(self) -> str:
        return self.list()._repr_html_()

    def deploy(self, name: str) -> None:
        """Say that the application of the definition is wanted; the controller puts it onto the cluster."""
        definition = self._platform.definition
        spec = _known(definition.applications, name, "application")
        groups = definition.serving_groups(spec)
        desired.deploy(
            self._platform.store, self._platform.settings, name, spec, groups=groups, vram_bytes=self._vram_limit(spec)
        )

    def wait_deployed(self, name: str, *, limit_s: float = 90, progress: Progress = lambda _: None) -> AppStatus:
        """Until Serve knows the application and its route, with or without replicas. Raises AppNotReady."""
        deadline, told = time.monotonic() + limit_s, ""
        while True:
            found = next((app for app in self.list() if app.name == name), None)
            if found is not None and found.status == "RUNNING":
                return found
            said = "Serve does not know it yet" if found is None else f"{found.status} {found.message}".strip()
            if said != told:
                progress(f"{name}: {said}")
                told = said
            if time.monotonic() > deadline or (found is not None and found.status == "DEPLOY_FAILED"):
                raise AppNotReady(f"application {name!r} is not there: {said}", do=f"heliostat why {name}")
            time.sleep(0.3)

    def remove(self, name: str) -> None:
        """Say that it is no longer wanted; the controller takes it off the cluster."""
        desired.remove(self._platform.store, name)

    def list(self) -> Rows[AppStatus]:
        """Those that Serve knows; in notebooks a table."""
        return Rows(ServeClient(self._platform.settings).statuses().values())

    def replicas(self, name: str) -> Sequence[ReplicaReport]:
        """What the living replicas say they serve."""
        return living(read_reports(self._platform.store, name), time.time())

    def url(self, name: str) -> str:
        """Where it answers. Raises UsageError for one that the definition has not."""
        return (
            self._platform.settings.serve_url
            + _known(self._platform.definition.applications, name, "application").route
        )

    def judge(self, name: str, artifact: Artifact) -> Verdict:
        """By the application's gate, against the version in production; nothing is moved."""
        spec = _known(self._platform.definition.applications, name, "application")
        return flow.judge_candidate(
            self._platform.store, artifact, spec.gate, vram_limit=self._vram_limit(spec), signed_by=spec.signed_by
        )

    def _vram_limit(self, spec: Application) -> int | None:
        definition = self._platform.definition
        groups = (definition.groups[group] for group in definition.serving_groups(spec))
        return declared_limit(groups, gpus=spec.gpus_per_replica)

    def release(
        self,
        name: str,
        artifact: Artifact,
        *,
        why: str,
        force: str | None = None,
        limit_s: float = 180,
        progress: Progress = lambda _: None,
    ) -> Released:
        """Judge the version, try it beside the one in production, and wait until every living replica serves it.

        Raises GateRefused, ReleaseConflict (somebody else's goes on), ReleaseRolledBack (with what was wrong with it),
        AppNotReady past the limit, after which the controller goes on with it all the same.
        """
        verdict = self.judge(name, artifact)
        spec, store = _known(self._platform.definition.applications, name, "application"), self._platform.store
        begun = flow.release(store, name, artifact, verdict, rules=spec.release, who=_user(), why=why, force=force)
        record, reports = flow.wait_released(store, name, begun.id, artifact, limit_s=limit_s, progress=progress)
        return Released(artifact, verdict, must_get_alias(store, artifact.name, PRODUCTION), tuple(reports), record)

    def flow(
        self,
        name: str,
        *,
        why: str = "flow",
        arguments: Sequence[str] = (),
        force: str | None = None,
        limit_s: float = 3600,
        progress: Progress = lambda _: None,
    ) -> Flow:
        """Train, publish, judge, release: from where the last flow of the application was left, or a new one.

        Raises JobFailed, GateRefused, ReleaseRolledBack; see `heliostat.flow.run`.
        """
        return flow.run_flow(
            self._platform.settings,
            self._platform.store,
            self._platform.definition,
            name,
            who=_user(),
            why=why,
            arguments=arguments,
            force=force,
            limit_s=limit_s,
            progress=progress,
        )

    def rollback(self, name: str, *, why: str, limit_s: float = 60) -> Alias:
        """End the release that goes on, or move `production` back to the version before."""
        spec = _known(self._platform.definition.applications, name, "application")
        model = spec.model.partition("@")[0]
        alias = flow.roll_back(self._platform.store, name, model, who=_user(), why=why)
        flow.wait_live(self._platform.store, name, resolve(self._platform.store, spec.model), limit_s=limit_s)
        return alias

    def status(self, name: str) -> ReleaseStatus:
        """What is in production, what is on trial, and what each living replica says it has loaded."""
        store, replicas = self._platform.store, tuple(self.replicas(name))
        found = read_release(store, name)
        record = None if found is None else found[0]
        version = None if record is None else record.candidate or record.stable
        verdict = None if record is None or version is None else last_verdict(store, record.model, version)
        return ReleaseStatus(name, record, verdict, replicas)

    def history(self, name: str) -> Sequence[Entry]:
        """Who released what and why, oldest first, with the numbers that decided."""
        return flow.must_read_release(self._platform.store, name).history


def _newest(rows: Sequence[JobRow], job_or_run: str) -> JobRow | None:
    return next((row for row in reversed(rows) if job_or_run in (row.job_id, row.run)), None)


def _known(entries: Mapping[str, T], name: str, kind: str) -> T:
    if name not in entries:
        raise UsageError(
            f"the definition has no {kind} {name!r}", do=f"one of: {', '.join(sorted(entries)) or 'none is defined'}"
        )
    return entries[name]


def _first_of_month() -> date:
    return datetime.now(UTC).date().replace(day=1)


def _user() -> str:
    return getpass.getuser()
