"""A stand-in for a Kubernetes API server: real HTTP on 127.0.0.1 over `machinery.Cluster`, with faults on demand.

Discovery, GET, LIST (pages, label and field selectors), WATCH, PATCH (apply, JSON patch), POST, DELETE, dry runs, and
refusals as Status objects. What it answers is pinned by `test_stand_in_api.py`. It is not a Kubernetes API server: see
`machinery.py` for what it leaves out.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.kube.machinery import Cluster, Kind, Object, Refusal, expired, forbidden, status

TOKEN = "stand-in-token"


@dataclass
class Fault:
    """What goes wrong, at which request, how often.

    refuse      answer `refusal` without doing anything
    hang        do nothing and keep the connection open
    lose        do it, and close the connection without an answer
    drop        do nothing, and close the connection
    kill_before kill the client, do nothing
    kill_after  do it, kill the client, do not answer
    cut         (watch) break off in the middle of an event
    call        run `call` first, then go on as if nothing had happened: somebody else was faster
    """

    what: str
    refusal: Refusal | None = None
    at: int | None = None  # counted from 1 over all requests
    method: str = ""
    path: str = ""  # a part of path and query
    times: int = 1
    call: Callable[[], object] = lambda: None

    def meets(self, request: Request) -> bool:
        return (
            self.times > 0
            and self.at in (None, request.number)
            and self.method in ("", request.method)
            and self.path in request.url
        )


@dataclass(frozen=True)
class Request:
    number: int
    method: str
    url: str
    verb: str = ""
    agent: str = ""


@dataclass
class StandInApi:
    cluster: Cluster = field(default_factory=Cluster)
    faults: list[Fault] = field(default_factory=list)
    denied: set[tuple[str, str]] = field(default_factory=set)  # (verb, plural)
    requests: list[Request] = field(default_factory=list)
    victim: Callable[[], int] = lambda: 0  # the pid that kill faults kill
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def note(self, method: str, url: str, verb: str, agent: str) -> Fault | None:
        with self._lock:
            request = Request(len(self.requests) + 1, method, url, verb, agent)
            self.requests.append(request)
            fault = next((f for f in self.faults if f.meets(request)), None)
            if fault:
                fault.times -= 1
            return fault

    def count(self, method: str, part: str = "") -> int:
        return sum(request.method == method and part in request.url for request in self.requests)

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig that leads here."""
        path = folder / "kubeconfig"
        cluster = {"name": "stand-in", "cluster": {"server": self.url}}
        user = {"name": "dev", "user": {"token": TOKEN}}
        context = {"name": "stand-in", "context": {"cluster": "stand-in", "user": "dev"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context]}
        path.write_text(json.dumps({**config, "current-context": "stand-in"}))
        return path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    api: StandInApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server's."""


@contextlib.contextmanager
def running(api: StandInApi) -> Iterator[StandInApi]:
    """Serve until the block ends, collecting garbage in between as the controllers do."""

    def collect() -> None:
        while not api.stopping.wait(0.02):
            api.cluster.collect()

    server = _Server(("127.0.0.1", 0), _Handler)
    server.api = api
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
        threading.Thread(target=collect, daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield api
    finally:
        api.stopping.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(timeout=5)


@dataclass(frozen=True)
class _Target:
    kind: Kind
    namespace: str = ""
    name: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in `api.requests` instead."""

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        target = _target(api.cluster, parts.path)
        verb = _verb(method, target, query)
        fault = api.note(method, self.path, verb, self.headers.get("User-Agent", ""))
        what = fault.what if fault else ""
        if what == "call" and fault is not None:
            fault.call()
        if what == "hang":
            api.stopping.wait(30)
        if what == "kill_before":
            os.kill(api.victim(), signal.SIGKILL)
        if what in ("hang", "drop", "kill_before"):
            return self._hang_up()
        headers: dict[str, str] = {}
        answer: Object | str
        try:
            if what == "refuse" and fault is not None and fault.refusal is not None:
                raise fault.refusal
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(status(401, "Unauthorized", "Unauthorized"))
            if target is not None:
                self._authorize(verb, target)
            if target is not None and verb == "watch":
                return self._watch(target, query, cut=what == "cut")
            code, answer = self._discover(parts.path) if target is None else self._act(method, target, query, body)
        except Refusal as refusal:
            code, answer, headers = refusal.status["code"], refusal.status, refusal.headers
        if what == "kill_after":
            os.kill(api.victim(), signal.SIGKILL)
        if what in ("lose", "kill_after"):
            return self._hang_up()
        return self._answer(code, answer, headers)

    def _authorize(self, verb: str, target: _Target) -> None:
        denied, plural = self.server.api.denied, target.kind.plural
        if (verb, plural) in denied:
            raise forbidden(target.kind, target.name, verb, target.namespace)
        absent = (target.kind, target.namespace, target.name) not in self.server.api.cluster.objects
        if verb == "patch" and absent and ("create", plural) in denied:  # an apply that makes the object needs both
            raise forbidden(target.kind, target.name, "create", target.namespace)

    def _discover(self, path: str) -> tuple[int, Object | str]:
        kinds = [k for k in self.server.api.cluster.kinds if f"/{'apis' if k.group else 'api'}/{k.api_version}" == path]
        if not kinds:
            return 404, "404 page not found\n"
        resources = [
            {
                "name": kind.plural,
                "singularName": kind.kind.lower(),
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            }
            for kind in kinds
        ]
        resources += [
            {"name": f"{kind.plural}/status", "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
             "verbs": ["get", "patch", "update"]}
            for kind in kinds
        ]  # fmt: skip
        found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version}
        return 200, {**found, "resources": resources}

    def _act(self, method: str, target: _Target, query: dict[str, str], body: bytes) -> tuple[int, Object]:
        cluster = self.server.api.cluster
        if method == "GET" and target.name:
            return 200, cluster.read(target.kind, target.namespace, target.name)
        if method == "GET":
            return 200, self._list(target, query)
        if method == "DELETE":
            return 200, cluster.delete(target.kind, target.namespace, target.name, json.loads(body or b"{}"))
        if method == "PATCH":
            return self._patch(target, query, json.loads(body))
        raise Refusal(status(405, "MethodNotAllowed", f"{method} is not stood in for"))

    def _patch(self, target: _Target, query: dict[str, str], sent: Any) -> tuple[int, Object]:
        cluster, form = self.server.api.cluster, self.headers.get("Content-Type")
        manager = query.get("fieldManager") or self.headers.get("User-Agent", "").split("/")[0]
        if form == "application/apply-patch+yaml":
            if "fieldManager" not in query:
                told = (
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
                )
                raise Refusal(status(422, "Invalid", told))
            thing, new = cluster.apply(
                target.kind,
                target.namespace,
                target.name,
                sent,
                manager=manager,
                force=query.get("force") == "true",
                dry_run=query.get("dryRun") == "All",
            )
            return (201 if new else 200), thing
        if form == "application/json-patch+json":
            cluster.read(target.kind, target.namespace, target.name)
            return 200, cluster.update(
                target.kind, target.namespace, target.name, lambda thing: _json_patch(thing, sent), manager=manager
            )
        raise Refusal(status(415, "UnsupportedMediaType", f"{form} is not stood in for"))

    def _list(self, target: _Target, query: dict[str, str]) -> Object:
        cluster = self.server.api.cluster
        with cluster.changed:
            things = [t for t in cluster.all(target.kind, target.namespace) if _selected(t, query)]
            meta: Object = {"resourceVersion": str(cluster.version)}
        start = int(query.get("continue", 0))
        limit = int(query.get("limit", 0)) or len(things)
        if start + limit < len(things):
            left = len(things) - start - limit
            meta |= {"continue": str(start + limit), "remainingItemCount": left}
        # Entries come without apiVersion and kind, as built-in kinds do.
        items = [{k: v for k, v in t.items() if k not in ("apiVersion", "kind")} for t in things[start : start + limit]]
        return {
            "kind": f"{target.kind.kind}List",
            "apiVersion": target.kind.api_version,
            "metadata": meta,
            "items": items,
        }

    def _watch(self, target: _Target, query: dict[str, str], *, cut: bool) -> None:
        cluster, since = self.server.api.cluster, int(query.get("resourceVersion", 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if since < cluster.oldest:
            self._event("ERROR", expired(since, cluster.oldest))
            return self._end_chunks()
        if cut:
            self._chunk(b'{"type":"MODIFIED","object":{"kind":"')
            return self._hang_up()
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 300))
        while not self.server.api.stopping.is_set():
            with cluster.changed:
                news = [e for e in cluster.history if e.version > since and e.kind == target.kind]
                news = [e for e in news if _in(e.thing, target.namespace) and _selected(e.thing, query)]
                if not news and time.monotonic() < deadline:
                    cluster.changed.wait(min(0.05, max(0.0, deadline - time.monotonic())))
                    continue
            for event in news:
                since = event.version
                self._event(event.type, event.thing)
            if time.monotonic() >= deadline:
                break
        if query.get("allowWatchBookmarks") == "true":
            kind = target.kind
            mark = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(since)}}
            self._event("BOOKMARK", mark)
        return self._end_chunks()

    def _event(self, what: str, thing: Object) -> None:
        self._chunk(json.dumps({"type": what, "object": thing}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, code: int, answer: Object | str, headers: dict[str, str] | None = None) -> None:
        is_text = isinstance(answer, str)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def _target(cluster: Cluster, path: str) -> _Target | None:
    """/api/v1/namespaces/ml/pods/x, /apis/ray.io/v1/namespaces/ml/rayclusters and so on; None for anything else."""
    for kind in cluster.kinds:
        root = f"/{'apis' if kind.group else 'api'}/{kind.api_version}/"
        if not path.startswith(root):
            continue
        rest = path.removeprefix(root).split("/")
        namespace = ""
        if kind.namespaced and rest[0] == "namespaces" and len(rest) >= 3:
            namespace, rest = rest[1], rest[2:]
        if rest[0] == kind.plural and len(rest) <= 2:
            return _Target(kind, namespace, rest[1] if len(rest) == 2 else "")
    return None


def _verb(method: str, target: _Target | None, query: dict[str, str]) -> str:
    if method == "GET" and target is not None:
        return "watch" if query.get("watch") == "true" else "get" if target.name else "list"
    return {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]


def _in(thing: Object, namespace: str) -> bool:
    return namespace in ("", thing["metadata"].get("namespace", ""))


def _selected(thing: Object, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels") or {}
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = pair.partition("=")
        if labels.get(key) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = pair.partition("=")
        at: Any = thing
        for step in key.split("."):
            at = (at or {}).get(step)
        if at != value:
            return False
    return True


def _json_patch(thing: Object, operations: list[Object]) -> None:
    """add, replace, remove and test, as far as Ray's autoscaler uses them."""
    for operation in operations:
        *steps, last = operation["path"].strip("/").split("/")
        at: Any = thing
        for step in steps:
            at = at[int(step)] if isinstance(at, list) else at[step]
        key: Any = int(last) if isinstance(at, list) else last
        if operation["op"] == "remove":
            del at[key]
        elif operation["op"] in ("add", "replace"):
            at[key] = copy.deepcopy(operation["value"])
        elif operation["op"] == "test" and at[key] != operation["value"]:
            raise Refusal(status(422, "Invalid", "the server rejected our request due to an error in our request"))
