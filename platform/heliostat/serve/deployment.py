"""The Ray Serve deployment every recipe runs in.

`build(args)` is the application builder that Serve's REST configuration names. One replica: loads the artifact that
the alias points to, warms it up, answers; a thread of its own watches the alias and takes over a new version between
two batches, without a restart. A request is answered by one version, the one that tokenised it.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliostat.cluster.fence import keep_replica_on_loopback
from heliostat.errors import HeliostatError
from heliostat.events import Spool
from heliostat.inference.device import pick_device
from heliostat.inference.runner import Expired, Runner
from heliostat.registry import Artifact, load_files, node_cache, resolve
from heliostat.serve.recipe import TextModel
from heliostat.serve.reports import ReplicaReport, remove_report, write_report
from heliostat.serve.requests import MAX_BODY_BYTES, BadRequest, TextRequest, parse
from heliostat.settings import Settings, load
from heliostat.store import Store

log = logging.getLogger(__name__)
keep_replica_on_loopback()

WATCH_S = 0.5
REPORT_S = 2.0
DEADLINE_S = 60.0  # an item that has waited this long is not run
WARM_UP_TEXTS = ("turn on the light", "set the living room to twenty degrees please")


class AppArguments(BaseModel):
    """What the definition says, as it travels to the replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str
    recipe: str  # module:Class
    model: str  # name@alias
    max_queue_s: float
    token_budget: int = 512
    cpus: float
    gpus: float
    label_selector: dict[str, str]


@dataclass(frozen=True)
class Loaded:
    """One version, in memory and warm."""

    artifact: Artifact
    model: TextModel[Any]

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Model-Version": f"v{self.artifact.version}", "X-Model-Digest": self.artifact.digest}


def build(args: dict[str, Any]) -> serve.Application:
    arguments = AppArguments.model_validate(args)
    return ModelDeployment.bind(arguments)  # type: ignore[attr-defined]  # made by the decorator


@serve.deployment(name="model", health_check_period_s=2, graceful_shutdown_timeout_s=10)
class ModelDeployment:
    def __init__(self, arguments: AppArguments) -> None:
        self._arguments = arguments
        self._settings: Settings = load()
        self._store = Store.connect(self._settings.store)
        self._spool = Spool(self._settings.spool, f"serve-{arguments.app}-{_replica_id()}")
        begun = time.time()
        self._loaded = self._load(resolve(self._store, arguments.model))
        self._runner: Runner[Any] = Runner(
            self._loaded.model.forward, identity=self._loaded, budget_tokens=arguments.token_budget
        )
        # The event loop alone writes these two, the watcher alone the two below.
        self._requests = 0
        self._last_request_at = time.time()  # a replica is started for a request
        self._loaded_at = time.time()
        self._error: str | None = None
        self._emit("replica_ready", seconds=round(time.time() - begun, 3))
        write_report(self._store, self._report())
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="alias-watch", daemon=True)
        self._watcher.start()

    async def __call__(self, request: Request) -> Response:
        try:
            self._authorise(request)
            sent = await self._read(request)
            return await self._answer(sent)
        except BadRequest as error:
            return _refusal(error)
        except Expired as error:
            return _refusal(BadRequest(503, "expired", str(error), "try again", retry_after_s=1))
        except Exception:  # the recipe's own: told to the client without its inside, and to the log with it
            log.exception("the model failed")
            return _refusal(BadRequest(500, "model_failed", "the model could not answer this", "see the replica's log"))

    def check_health(self) -> None:
        if not self._watcher.is_alive():
            raise RuntimeError("the thread that watches the alias has died")

    def __del__(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
            self._emit("replica_ended", requests=self._requests)
            remove_report(self._store, self._arguments.app, _replica_id())

    def _authorise(self, request: Request) -> None:
        key = self._settings.api_key
        if key is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), key.get_secret_value().encode()):
            raise BadRequest(
                401,
                "wrong_key",
                "the API key is missing or wrong",
                "send Authorization: Bearer KEY; the key is in the cluster's api-key file",
            )

    async def _read(self, request: Request) -> TextRequest:
        if request.method != "POST":
            raise BadRequest(405, "wrong_method", f"{request.method} is not served here", "send a POST")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break  # parse refuses it; the rest need not be read
        return parse(bytes(body), max_characters=self._loaded.model.max_characters)

    async def _answer(self, sent: TextRequest) -> Response:
        self._shed_if_late()
        loaded, results = await self._run(sent.texts)
        self._requests += 1
        self._last_request_at = time.time()
        identity = {
            "model": loaded.artifact.name,
            "version": f"v{loaded.artifact.version}",
            "digest": loaded.artifact.digest,
        }
        answers = [loaded.model.present(result) for result in results]
        body = {**answers[0], **identity} if sent.single else {"results": answers, **identity}
        return Response(json.dumps(body, allow_nan=False), media_type="application/json", headers=loaded.headers)

    async def _run(self, texts: tuple[str, ...]) -> tuple[Loaded, list[Any]]:
        """All results from one version. If a new one was taken over meanwhile, its own tokeniser starts again."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            loaded = self._loaded
            items = [loaded.model.tokenise(text) for text in texts]
            answers = await asyncio.gather(*(self._runner.submit(ids, deadline_s) for ids in items))
            if all(answer.identity is loaded for answer in answers):
                return loaded, [answer.result for answer in answers]

    def _shed_if_late(self) -> None:
        """Refuse by seconds of queued work: a count of requests bounds nothing where lengths differ thirty times."""
        queued_s = self._runner.queued_seconds
        if queued_s > self._arguments.max_queue_s:
            raise BadRequest(
                429,
                "overloaded",
                f"{queued_s:.1f} s of work is queued; the limit is {self._arguments.max_queue_s:g} s",
                f"try again in {math.ceil(queued_s)} s",
                retry_after_s=math.ceil(queued_s),
            )

    def _load(self, artifact: Artifact) -> Loaded:
        recipe = _import(self._arguments.recipe)
        files = load_files(self._store, artifact, cache=node_cache(self._settings.state_dir))
        model = recipe.load(files, pick_device())
        loaded = Loaded(artifact, model)
        for result in model.forward([model.tokenise(text) for text in WARM_UP_TEXTS]):
            json.dumps(model.present(result), allow_nan=False)  # NaN in the answer: the version is not fit to serve
        return loaded

    def _report(self) -> ReplicaReport:
        return ReplicaReport(
            app=self._arguments.app,
            replica=_replica_id(),
            node=_node_id(),
            version=self._loaded.artifact.version,
            digest=self._loaded.artifact.digest,
            loaded_at=self._loaded_at,
            requests=self._requests,
            last_request_at=self._last_request_at,
            queued_tokens=self._runner.queued_tokens,
            error=self._error,
        )

    def _watch(self) -> None:
        told, told_at = (self._loaded.artifact.version, self._error), 0.0
        while not self._stop.wait(WATCH_S):
            self._take_over()
            news = (self._loaded.artifact.version, self._error)
            if news != told or time.monotonic() - told_at > REPORT_S:
                try:
                    write_report(self._store, self._report())
                except HeliostatError:  # the store is away: the next turn tries again
                    log.warning("the replica could not report", exc_info=True)
                else:
                    told, told_at = news, time.monotonic()

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
        if artifact.version == self._loaded.artifact.version:
            return
        begun = time.time()
        loaded = self._load(artifact)
        self._loaded = loaded
        self._runner.swap(loaded.model.forward, loaded)
        self._loaded_at = time.time()
        self._emit("version_live", seconds=round(time.time() - begun, 3))

    def _emit(self, kind: str, **fields: Any) -> None:
        self._spool.emit(
            kind,
            app=self._arguments.app,
            replica=_replica_id(),
            node=_node_id(),
            gpus=self._arguments.gpus,
            version=self._loaded.artifact.version,
            digest=self._loaded.artifact.digest,
            **fields,
        )


def _refusal(error: BadRequest) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _import(recipe: str) -> type[TextModel[Any]]:
    module, _, name = recipe.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, TextModel)):
        raise HeliostatError(
            f"{recipe} is not a TextModel", where="applications.*.recipe", do="write module:Class of a subclass"
        )
    return found


def _replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def _node_id() -> str:
    return os.environ.get("HELIOSTAT_NODE_ID", "")
