"""The Ray Serve deployment every recipe runs in.

`build(args)` is the application builder that Serve's REST configuration names. One replica: loads the artifact that
the alias points to, warms it up, answers; a thread of its own watches the alias and takes over a new version between
two batches, without a restart. A request is answered by one version, the one that tokenised it. While a release goes
on, it holds two versions (trial.py): which of them answers what is the release record's business.

Here is a replica's life; its HTTP is in endpoint.py, which needs no Ray.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from heliostat.clock import process_began_at
from heliostat.cluster.fence import keep_replica_on_loopback
from heliostat.errors import HeliostatError, StoreError
from heliostat.events import Event, Spool
from heliostat.inference.device import pick_device, token_budget
from heliostat.promote.records import read_release
from heliostat.promote.release import Trial, trial
from heliostat.promote.tally import Tally
from heliostat.registry import Artifact, load_files, node_cache, resolve
from heliostat.registry.signatures import check_signed
from heliostat.serve.api import Api, Loaded
from heliostat.serve.endpoint import Endpoint
from heliostat.serve.fit import check_fit, fits, memory_limit
from heliostat.serve.keys import KeyRing, key_digest, read_keys
from heliostat.serve.kinds import make_api, warm_up
from heliostat.serve.metrics import ReplicaMetrics
from heliostat.serve.narrow import DType, narrow
from heliostat.serve.recipe import Recipe
from heliostat.serve.reports import ReplicaReport, remove_report, write_report
from heliostat.serve.scaling import Demand
from heliostat.serve.trial import Held, TrialRun
from heliostat.serve.usage import Told, Use, between, sums
from heliostat.settings import Settings, load
from heliostat.store import Store

log = logging.getLogger(__name__)
keep_replica_on_loopback()

WATCH_S = 0.5
PROCESS_LIMIT_S = 120.0  # a process that is older was not made for this replica
REPORT_S = 2.0
USE_S = 30.0  # how often teams' use goes to the meter, as sums of this replica's life; a kill loses no more
DRAIN_S = 10.0  # what the version that leaves may take to end what it has begun
BUSY_S = 10.0  # how often its seconds of answering go to the meter; a kill loses what its last report did not have
KEYS_S = 5.0  # a revoked key opens nothing after this long


class AppArguments(BaseModel):
    """What the definition says, as it travels to the replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str
    recipe: str  # module:Class
    model: str  # name@alias
    max_queue_s: float
    dtype: DType = "fp32"
    keys: tuple[str, ...] = ()  # names of API keys, never keys
    signed_by: tuple[str, ...] = ()  # public keys
    cpus: float
    gpus: float
    label_selector: dict[str, str]
    vram_bytes: int | None = None
    """GPU memory that the group declares for a replica; None where it names no accelerator."""


class Phases:
    """Where the time of a start goes, in seconds, one phase after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def next(self, ended: str) -> None:
        now = time.monotonic()
        self.seconds[ended], self._since = round(now - self._since, 3), now


def build(args: dict[str, Any]) -> serve.Application:
    arguments = AppArguments.model_validate(args)
    return ModelDeployment.bind(arguments)  # type: ignore[attr-defined]  # made by the decorator


@serve.deployment(name="model", health_check_period_s=2, graceful_shutdown_timeout_s=10)
class ModelDeployment:
    def __init__(self, arguments: AppArguments) -> None:
        _log_where_serve_does()
        self._arguments = arguments
        self._settings: Settings = load()
        self._store = Store.connect(self._settings.store)
        self._spool = Spool(self._settings.spool, f"serve-{arguments.app}-{_replica_id()}")
        begun = time.time()
        phases = Phases()
        self._failed: Tally | None = None
        """What is said of a release in which this replica holds no second version."""
        self._changing: threading.Thread | None = None
        self._artifact, loaded = self._load_first(phases)
        self._api = self._make_api(loaded)
        self._keys = self._read_keys()
        self._endpoint = Endpoint(
            self._api,
            app=arguments.app,
            keys=lambda: self._keys,
            max_queue_s=arguments.max_queue_s,
            server_returns_id=True,
        )
        self._demand = Demand()
        self._metrics = ReplicaMetrics(arguments.app)
        # The watcher alone writes these two and the keys.
        self._loaded_at = time.time()
        self._error: str | None = None
        self._second: Api | None = None
        self._beginning: _Beginning | None = None
        self._planned: Trial | None = None
        # The node's own phase is in its events; between the two lie placing and the process with its imports.
        self._start_s = sum(phases.seconds.values())
        process_at = max(process_began_at(), begun - PROCESS_LIMIT_S)
        ready = self._emit(
            "replica_ready",
            seconds=round(time.time() - begun, 3),
            phases=phases.seconds,
            began_at=begun,
            process_at=process_at if process_at > begun - PROCESS_LIMIT_S else begun,
        )
        self._told = Told(ready.time_s)
        write_report(self._store, self._report())
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="alias-watch", daemon=True)
        self._watcher.start()

    async def __call__(self, request: Request) -> Response:
        return await self._endpoint.answer(request)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy (scaling.py) goes by; Serve asks twice a second."""
        load = self._api.load
        return self._demand.report(
            time.monotonic(),
            queued_s=load.queued_s,
            busy=load.busy,
            sheds=self._endpoint.counts.sheds,
            mean_request_s=self._endpoint.mean_request_s,
        )

    def check_health(self) -> None:
        if not self._watcher.is_alive():
            raise RuntimeError("the thread that watches the alias has died")

    def __del__(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
            self._watcher.join(2)  # what it tells is not told twice
            self._api.close()
            if self._second is not None:
                self._second.close()
            use = self._use()[0]
            self._emit(
                "replica_ended",
                requests=self._endpoint.counts.requests,
                teams=self._teams(),
                busy_s=use.busy_s,
                asked=use.asked,
            )
            remove_report(self._store, self._arguments.app, _replica_id())

    def _make_api(self, loaded: Loaded[Recipe]) -> Api:
        return make_api(loaded, app=self._arguments.app, budget_tokens=token_budget(pick_device()))

    def _load_first(self, phases: Phases) -> tuple[Artifact, Loaded[Recipe]]:
        """The version in production; where it cannot be loaded and is not proven yet, the one before it."""
        artifact = resolve(self._store, self._arguments.model)
        try:
            return self._load(artifact, phases)
        except Exception as problem:  # a recipe may raise anything while it loads
            plan = self._plan()
            if plan is None or plan.tried != artifact.version:
                raise
            log.exception("v%d cannot be loaded; v%d, which it replaced, is", plan.tried, plan.before)
            error = f"{type(problem).__name__}: {problem}"
            self._failed = Tally(release=plan.release, version=plan.tried, error=error)
            return self._load(resolve(self._store, f"{artifact.name}:v{plan.before}"), phases)

    def _load(
        self, artifact: Artifact, phases: Phases, *, beside: Artifact | None = None
    ) -> tuple[Artifact, Loaded[Recipe]]:
        """One version, warm, with another one in memory `beside` it. Raises before anything is read where it does not
        fit, and before it answers where it is not fit to serve.
        """
        check_signed(self._store, artifact, self._arguments.signed_by)
        recipe = _import(self._arguments.recipe)
        device = pick_device()
        for limit in self._limits(beside):
            check_fit(_need(recipe, artifact), limit, what=f"{artifact.name} v{artifact.version}")
        phases.next("import")
        files = load_files(self._store, artifact, cache=node_cache(self._settings.state_dir))
        phases.next("weights")
        model = recipe.load(files, device)
        phases.next("load")
        narrow(model, self._arguments.dtype, what=f"{artifact.name} v{artifact.version}")
        warm_up(model)
        phases.next("warm_up")
        return artifact, Loaded(artifact, model)

    def _limits(self, beside: Artifact | None) -> list[int | None]:
        """What another version may take, in bytes: what the device has free, and what the group declares."""
        declared = self._arguments.vram_bytes
        if declared is not None and beside is not None:
            declared -= _need(_import(self._arguments.recipe), beside)
        return [memory_limit(pick_device(), gpus=self._arguments.gpus), declared]

    def _fits_only_alone(self, artifact: Artifact, *, beside: Artifact) -> bool:
        recipe = _import(self._arguments.recipe)
        need = _need(recipe, artifact)
        together = all(fits(need, limit) for limit in self._limits(beside))
        device, declared = self._limits(None)
        # On a device the old version's memory will be free once it has gone.
        freed = None if device is None else device + _need(recipe, beside)
        return not together and fits(need, freed) and fits(need, declared)

    def _read_keys(self) -> KeyRing:
        key = self._settings.api_key
        names = self._arguments.keys
        return KeyRing(
            app=self._arguments.app,
            named=read_keys(self._store, names),
            cluster_key_sha256=None if key is None else key_digest(key.get_secret_value()),
            team=os.environ.get("HELIOSTAT_TEAM", ""),
            closed=bool(names),
        )

    def _teams(self) -> dict[str, dict[str, int]]:
        return {team: asdict(use) for team, use in list(self._endpoint.counts.teams.items())}

    def _report(self) -> ReplicaReport:
        return ReplicaReport(
            app=self._arguments.app,
            replica=_replica_id(),
            node=_node_id(),
            version=self._artifact.version,
            digest=self._artifact.digest,
            loaded_at=self._loaded_at,
            requests=self._endpoint.counts.requests,
            last_request_at=self._endpoint.counts.last_request_at,
            queued_tokens=self._api.queued_tokens,
            gpus=self._arguments.gpus,
            busy_s=self._use()[0].busy_s,
            teams=self._teams(),
            error=self._error,
            trial=self._tally(),
        )

    def _tally(self) -> Tally | None:
        run = self._endpoint.trial
        return self._failed if run is None else run.tally().model_copy(update={"replica": _replica_id()})

    def _watch(self) -> None:
        told, told_at = (self._artifact.version, self._error), 0.0
        keys_at = use_at = time.monotonic()
        used = self._teams()
        while not self._stop.wait(WATCH_S):
            if self._changing is None or not self._changing.is_alive():
                self._take_over()
                self._follow_release()
            self._metrics.tell(self._api.load, self._endpoint.counts, version=self._artifact.version)
            if self._arguments.keys and time.monotonic() - keys_at > KEYS_S:
                keys_at = time.monotonic()
                self._refresh_keys()
            if time.time() - self._told.at > BUSY_S:
                self._tell_busy()
            if time.monotonic() - use_at > USE_S and self._teams() != used:
                use_at, used = time.monotonic(), self._teams()
                self._emit("team_use", teams=used)
            news = (self._artifact.version, self._error)
            on_trial = self._failed is not None or self._endpoint.trial is not None
            if news != told or on_trial or time.monotonic() - told_at > REPORT_S:
                try:
                    write_report(self._store, self._report())
                except HeliostatError:  # the store is away: the next turn tries again
                    log.warning("the replica could not report", exc_info=True)
                else:
                    told, told_at = news, time.monotonic()

    def _use(self) -> tuple[Use, Told]:
        """Since the last telling; and what is told once that is."""
        now = sums(self._api.load, self._endpoint.counts, time.time(), before=self._told)
        return between(self._told, now), now

    def _tell_busy(self) -> None:
        use, now = self._use()
        event = self._emit("replica_busy", busy_s=use.busy_s, asked=use.asked)
        self._told = replace(now, at=event.time_s)

    def _refresh_keys(self) -> None:
        try:
            self._keys = self._read_keys()
        except (HeliostatError, ValueError):  # the store is away, or holds nonsense: the keys known so far hold
            log.warning("the API keys could not be read", exc_info=True)

    def _take_over(self) -> None:
        """Take over a moved alias. What goes wrong is reported, tried again, and the old version serves on."""
        try:
            self._take_over_if_moved()
            self._error = None
        except Exception as problem:  # a recipe may raise anything while it loads
            error = f"{type(problem).__name__}: {problem}"
            if error != self._error:
                log.exception("the newer version could not be taken over")
            self._error = error

    def _take_over_if_moved(self) -> None:
        plan = self._planned = self._plan()
        artifact = resolve(self._store, self._arguments.model)
        failed = self._failed is not None and self._failed.error is not None
        if plan is not None and _replica_id() in plan.turn and not failed:
            artifact = resolve(self._store, f"{artifact.name}:v{plan.tried}")
        if artifact.version == self._artifact.version:
            return
        if self._fits_only_alone(artifact, beside=self._artifact):
            self._change(artifact, plan)
            return
        begun = time.time()
        phases = Phases()
        run = self._endpoint.trial
        warm = None if run is None else run.holds(artifact.version)
        if warm is not None:  # both are loaded: the switch is a pointer
            self._tell_busy()
            self._second, self._api = self._api, warm
            self._endpoint.replace(warm)
            artifact = warm.loaded.identity  # type: ignore[assignment]  # what _load made it of
        else:
            self._end_trial()
            artifact, loaded = self._load(artifact, phases, beside=self._artifact)
            self._api.take_over(loaded)
            self._tell_busy()
        self._artifact = artifact
        self._loaded_at = time.time()
        self._emit("version_live", seconds=round(time.time() - begun, 3), phases=phases.seconds)

    def _change(self, artifact: Artifact, plan: Trial | None) -> None:
        """One version for another that does not fit beside it, while requests wait; in a thread, so that this replica
        goes on reporting.
        """
        self._end_trial()
        self._changing = threading.Thread(target=self._give_way, args=(artifact, plan), daemon=True)
        self._changing.start()

    def _give_way(self, artifact: Artifact, plan: Trial | None) -> None:
        begun, before = time.time(), self._artifact
        self._endpoint.hold = True
        until = time.monotonic() + DRAIN_S
        time.sleep(WATCH_S / 10)
        while (self._endpoint.in_flight or self._api.queued_tokens) and time.monotonic() < until:
            time.sleep(0.02)
        try:
            self._api.close()
            self._put(Held(before))
            _free_memory()
            try:
                loaded = self._load(artifact, Phases())[1]
            except Exception as problem:  # a recipe may raise anything while it loads
                log.exception("v%d could not be loaded; back to v%d", artifact.version, before.version)
                error = f"{type(problem).__name__}: {problem}"
                if plan is not None:
                    self._failed = Tally(release=plan.release, version=artifact.version, error=error)
                artifact = before
                loaded = self._load(before, Phases())[1]
            self._put(self._make_api(loaded))
            self._artifact, self._loaded_at = artifact, time.time()
            if plan is not None and artifact.version == plan.tried:
                self._failed = None
                self._endpoint.trial = TrialRun(plan, before=None, tried=self._api)
        finally:
            self._endpoint.hold = False
        self._emit("version_live", seconds=round(time.time() - begun, 3), held=True)

    def _put(self, api: Api) -> None:
        self._api = api
        self._endpoint.replace(api)

    def _plan(self) -> Trial | None:
        found = read_release(self._store, self._arguments.app)
        return None if found is None else trial(found[0])

    def _follow_release(self) -> None:
        """Hold what the release record asks for. What goes wrong with the store is tried again."""
        try:
            self._follow(self._planned)
        except HeliostatError:
            log.warning("the release could not be followed", exc_info=True)

    def _follow(self, plan: Trial | None) -> None:
        run = self._endpoint.trial
        if plan is None:
            self._failed = None
            self._end_trial()
        elif run is not None and run.plan.release == plan.release:
            run.plan = plan
        elif self._failed is not None and self._failed.release == plan.release:
            return  # what there is to say of it has been said
        elif self._beginning is None or self._beginning.plan.release != plan.release:
            self._failed = None
            self._end_trial()
            if self._artifact.version in (plan.before, plan.tried):
                self._beginning = _Beginning(plan)
                # Loading may take minutes, and a replica that does not report is taken for gone.
                threading.Thread(target=self._begin_trial, args=(self._beginning,), daemon=True).start()
        elif self._beginning.run is not None:
            run, self._beginning = self._beginning.run, None
            self._second = self._other(run)
            run.plan, self._endpoint.trial = plan, run
        elif self._beginning.failed is not None:
            self._failed, self._beginning = self._beginning.failed, None

    def _begin_trial(self, beginning: _Beginning) -> None:
        """In a thread of its own: the other version, warm, and both on requests that nobody waits for."""
        plan, mine, api = beginning.plan, self._artifact, self._api
        wanted = plan.tried if mine.version == plan.before else plan.before
        try:
            other = resolve(self._store, f"{mine.name}:v{wanted}")
            if wanted == plan.tried and self._fits_only_alone(other, beside=mine):
                beginning.failed = Tally(
                    release=plan.release, version=wanted, replica=_replica_id(), alone=True, hold_s=self._start_s
                )
                return
            second = self._make_api(self._load_patiently(other, beside=mine))
        except Exception as problem:  # a recipe may raise anything while it loads
            log.exception("v%d could not be loaded beside v%d", wanted, mine.version)
            if wanted == plan.tried:
                error = f"{type(problem).__name__}: {problem}"
                beginning.failed = Tally(release=plan.release, version=wanted, error=error)
            else:  # nothing stands behind the new version here; it is no worse for that
                beginning.failed = Tally(release=plan.release, version=mine.version, digest=mine.digest)
            return
        before, tried = (api, second) if wanted == plan.tried else (second, api)
        run = TrialRun(plan, before=before, tried=tried)
        try:
            asyncio.run(run.rehearse(self._endpoint.recent.all()))
        except Exception:  # a mistake here must not hold up the release
            log.exception("the versions could not be compared before the trial")
        with beginning.lock:
            beginning.run = run
            if beginning.is_over:
                second.close()

    def _load_patiently(self, artifact: Artifact, *, beside: Artifact) -> Loaded[Recipe]:
        """A store that is away for a moment is no fault of the version."""
        for pause_s in (1.0, 3.0, 9.0):
            try:
                return self._load(artifact, Phases(), beside=beside)[1]
            except StoreError:
                log.warning("v%d could not be read; again in %.0f s", artifact.version, pause_s, exc_info=True)
                time.sleep(pause_s)
        return self._load(artifact, Phases(), beside=beside)[1]

    def _end_trial(self) -> None:
        """One version is enough again; what the other one is doing ends first."""
        run, self._endpoint.trial = self._endpoint.trial, None
        second, self._second = self._second, None
        if self._beginning is not None:
            with self._beginning.lock:
                self._beginning.is_over = True
                if (run := self._beginning.run) is not None:
                    second = self._other(run)
        self._beginning = None
        if run is None or second is None:
            return
        until = time.monotonic() + DRAIN_S
        while run.is_busy and time.monotonic() < until:
            time.sleep(0.05)
        second.close()

    def _other(self, run: TrialRun) -> Api | None:
        return run.before if run.tried is self._api else run.tried

    def _emit(self, kind: str, **fields: Any) -> Event:
        return self._spool.emit(
            kind,
            app=self._arguments.app,
            replica=_replica_id(),
            node=_node_id(),
            gpus=self._arguments.gpus,
            version=self._artifact.version,
            digest=self._artifact.digest,
            team=os.environ.get("HELIOSTAT_TEAM", ""),
            project=os.environ.get("HELIOSTAT_PROJECT", ""),
            **fields,
        )


@dataclass
class _Beginning:
    """A trial whose second version is being loaded."""

    plan: Trial
    run: TrialRun | None = None
    failed: Tally | None = None
    is_over: bool = False
    """Nobody waits for it any more: what it loads is dropped."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _free_memory() -> None:
    """What a model that has gone still holds of the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _need(recipe: type[Recipe], artifact: Artifact) -> int:
    return recipe.memory_bytes({path: entry.size for path, entry in artifact.manifest.files.items()})


def _import(recipe: str) -> type[Recipe]:
    module, _, name = recipe.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise HeliostatError(
            f"{recipe} is not a serving recipe",
            where="applications.*.recipe",
            do="write module:Class of a subclass of TextModel, ImageModel, EmbeddingModel or TextGenerator",
        )
    return found


def _log_where_serve_does() -> None:
    """Our lines, the access log among them, go into the replica's own file of Serve, by way of its handlers."""
    ours = logging.getLogger("heliostat")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)


def _replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def _node_id() -> str:
    import ray

    return os.environ.get("HELIOSTAT_NODE_ID") or str(ray.get_runtime_context().get_node_id())
