"""The Ray Serve deployment every recipe runs in.

`build(args)` is the application builder that Serve's REST configuration names. One replica: loads the artifact that
the alias points to, warms it up, answers; a thread of its own watches the alias and takes over a new version between
two batches, without a restart. A request is answered by one version, the one that tokenised it.

Here is a replica's life; its HTTP is in endpoint.py, which needs no Ray.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from heliostat.clock import process_began_at
from heliostat.cluster.fence import keep_replica_on_loopback
from heliostat.errors import HeliostatError
from heliostat.events import Event, Spool
from heliostat.inference.device import pick_device
from heliostat.registry import Artifact, load_files, node_cache, resolve
from heliostat.serve.api import Loaded
from heliostat.serve.endpoint import Endpoint
from heliostat.serve.fit import check_fit, memory_limit
from heliostat.serve.keys import KeyRing, key_digest, read_keys
from heliostat.serve.kinds import make_api, warm_up
from heliostat.serve.metrics import ReplicaMetrics
from heliostat.serve.narrow import DType, narrow
from heliostat.serve.recipe import Recipe
from heliostat.serve.reports import ReplicaReport, remove_report, write_report
from heliostat.serve.scaling import Demand
from heliostat.serve.usage import Told, Use, between, sums
from heliostat.settings import Settings, load
from heliostat.store import Store

log = logging.getLogger(__name__)
keep_replica_on_loopback()

WATCH_S = 0.5
PROCESS_LIMIT_S = 120.0  # a process that is older was not made for this replica
REPORT_S = 2.0
USE_S = 30.0  # how often teams' use goes to the meter, as sums of this replica's life; a kill loses no more
BUSY_S = 10.0  # how often its seconds of answering go to the meter; a kill loses what its last report did not have
KEYS_S = 5.0  # a revoked key opens nothing after this long


class AppArguments(BaseModel):
    """What the definition says, as it travels to the replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str
    recipe: str  # module:Class
    model: str  # name@alias
    max_queue_s: float
    token_budget: int = 512
    dtype: DType = "fp32"
    keys: tuple[str, ...] = ()  # names of API keys, never keys
    cpus: float
    gpus: float
    label_selector: dict[str, str]


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
        self._artifact, loaded = self._load(resolve(self._store, arguments.model), phases)
        self._api = make_api(loaded, app=arguments.app, budget_tokens=arguments.token_budget)
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
        # The node's own phase is in its events; between the two lie placing and the process with its imports.
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
            use = self._use()[0]
            self._emit(
                "replica_ended",
                requests=self._endpoint.counts.requests,
                teams=self._teams(),
                busy_s=use.busy_s,
                asked=use.asked,
            )
            remove_report(self._store, self._arguments.app, _replica_id())

    def _load(self, artifact: Artifact, phases: Phases) -> tuple[Artifact, Loaded[Recipe]]:
        """One version, warm. Raises before anything is read where it does not fit, and before it answers where it is
        not fit to serve.
        """
        recipe = _import(self._arguments.recipe)
        device = pick_device()
        sizes = {path: entry.size for path, entry in artifact.manifest.files.items()}
        check_fit(
            recipe.memory_bytes(sizes),
            memory_limit(device, gpus=self._arguments.gpus),
            what=f"{artifact.name} v{artifact.version}",
        )
        phases.next("import")
        files = load_files(self._store, artifact, cache=node_cache(self._settings.state_dir))
        phases.next("weights")
        model = recipe.load(files, device)
        phases.next("load")
        narrow(model, self._arguments.dtype, what=f"{artifact.name} v{artifact.version}")
        warm_up(model)
        phases.next("warm_up")
        return artifact, Loaded(artifact, model)

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
        )

    def _watch(self) -> None:
        told, told_at = (self._artifact.version, self._error), 0.0
        keys_at = use_at = time.monotonic()
        used = self._teams()
        while not self._stop.wait(WATCH_S):
            self._take_over()
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
            if news != told or time.monotonic() - told_at > REPORT_S:
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
        artifact = resolve(self._store, self._arguments.model)
        if artifact.version == self._artifact.version:
            return
        begun = time.time()
        phases = Phases()
        artifact, loaded = self._load(artifact, phases)
        self._api.take_over(loaded)
        self._tell_busy()
        self._artifact = artifact
        self._loaded_at = time.time()
        self._emit("version_live", seconds=round(time.time() - begun, 3), phases=phases.seconds)

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
