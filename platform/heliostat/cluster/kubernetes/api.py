"""One Kubernetes API server: requests with retries, watches that survive, refusals in words.

The official client does the configuration, the credentials and the HTTP. Discovery is ours, because the client's keeps
a cache in the shared temporary folder and takes a group that cannot be reached for one that does not exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from heliostat.cluster.kubernetes import refusal
from heliostat.cluster.kubernetes.diff import Ownership
from heliostat.cluster.kubernetes.objects import FIELD_MANAGER, Object, Ref
from heliostat.errors import KubernetesError

T = TypeVar("T")

REQUEST_TIMEOUT_S = (5.0, 30.0)  # connect, read; a webhook may take 30 s, and the server then answers for it
PAGE = 500  # objects in one answer to a list, what kubectl asks for
LISTINGS = 5  # how often a list is begun again when its pages expire


class WriteRaced(KubernetesError):
    """Somebody else wrote the object in between (409 without field owners). Read again, and decide again."""


class Conflicted(KubernetesError):
    """Another manager holds fields that an apply would change; `owners` says which (409 with field owners)."""

    def __init__(self, owners: tuple[Ownership, ...], *, where: str) -> None:
        super().__init__("; ".join(f"{o.path} is held by {o.manager}" for o in owners), where=where)
        self.owners = owners


class Gone(KubernetesError):
    """The resource version is older than what the server remembers (410). List again."""


@dataclass(frozen=True)
class Retry:
    """How a request that met 429, 5xx or a broken connection is repeated.

    Every request here may be repeated: an apply says the whole of what is wanted, a delete names the object's uid.
    The delay is drawn from 0 to `base_s * 2**n`, at most `cap_s`; Retry-After is a lower bound to it. `budget_s` bounds
    the delays of one request together.
    """

    attempts: int = 6
    base_s: float = 0.25
    cap_s: float = 10.0
    budget_s: float = 90.0
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[float, float], float] = random.uniform

    def delay(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds to wait before attempt number `attempt`, counted from 1."""
        backoff = self.draw(0, min(self.cap_s, self.base_s * 2**attempt))
        return backoff if retry_after_s is None else retry_after_s + min(backoff, 1.0)


@dataclass(frozen=True)
class Resource:
    """A kind that the server has."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]


class Api:
    """The verbs that Heliostat needs. Raises KubernetesError or one of its children, never the client's own errors."""

    def __init__(
        self,
        client: Any,  # Any: kubernetes ships no types
        *,
        retry: Retry | None = None,
        timeout_s: tuple[float, float] = REQUEST_TIMEOUT_S,
    ) -> None:
        from kubernetes.dynamic import DynamicClient

        self.where: str = client.configuration.host
        self._dynamic = DynamicClient(client, discoverer=_NoDiscovery)
        self._retry = retry or Retry()
        self._timeout_s = timeout_s
        self._known: dict[str, dict[str, Resource]] = {}

    @classmethod
    def connect(
        cls,
        *,
        context: str | None = None,
        retry: Retry | None = None,
        timeout_s: tuple[float, float] = REQUEST_TIMEOUT_S,
    ) -> Api:
        """The server of the kubeconfig (KUBECONFIG, ~/.kube/config), or of the pod this runs in."""
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        settings = client.Configuration()
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                config.load_incluster_config(client_configuration=settings)
            else:
                # Named here, for the client looks at KUBECONFIG only once, when it is imported.
                file = os.environ.get("KUBECONFIG")
                config.load_kube_config(file, context=context, client_configuration=settings)
        except ConfigException as error:
            raise KubernetesError(
                f"there is no way to a Kubernetes API server: {error}",
                where=os.environ.get("KUBECONFIG", "~/.kube/config"),
                do="set KUBECONFIG, or name a context: kubectl config get-contexts",
            ) from error
        settings.retries = False  # ours count, wait and give up
        made = client.ApiClient(settings)
        made.user_agent = FIELD_MANAGER
        return cls(made, retry=retry, timeout_s=timeout_s)

    def resource(self, api_version: str, kind: str) -> Resource | None:
        """The kind as the server has it, or None where its CRD is not installed."""
        if api_version not in self._known:
            prefix = "apis" if "/" in api_version else "api"
            answer = self._request("get", f"/{prefix}/{api_version}", _Asked("get", api_version), absent={})
            self._known[api_version] = {
                entry["kind"]: Resource(api_version, entry["kind"], entry["name"], entry["namespaced"])
                for entry in answer.get("resources", [])
                if "/" not in entry["name"]
            }
        return self._known[api_version].get(kind)

    def get(self, ref: Ref) -> Object | None:
        """The object, or None."""
        live: Object | None = self._request("get", self._path(ref), self._asked("get", ref), absent=None)
        return live

    def find(
        self, api_version: str, kind: str, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All that match, page by page; none where the server lacks the kind."""
        if self.resource(api_version, kind) is None:
            return []
        ref = Ref(api_version, kind, namespace, "")
        for _ in range(LISTINGS):
            try:
                return self._pages(ref, labels=labels, fields=fields)
            except Gone:  # the pages' snapshot is too old by now: from the start
                continue
        raise KubernetesError("its lists expire before they are read", where=f"{kind}s", do="run it again")

    def _pages(self, ref: Ref, *, labels: str, fields: str) -> list[Object]:
        objects: list[Object] = []
        token: str | None = None
        while True:
            query = {
                "label_selector": labels or None,
                "field_selector": fields or None,
                "limit": PAGE,
                "_continue": token,
            }
            page = self._request("get", self._path(ref), self._asked("list", ref), absent={}, **query)
            objects += _entries(page, ref)
            token = page.get("metadata", {}).get("continue")
            if not token:
                return objects

    def apply(self, thing: Object, ref: Ref, *, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply. Returns the object as the server would have it, or has it.

        Unknown fields are refused rather than dropped. `force` takes fields over from other managers.
        """
        answer: Object = self._request(
            "patch",
            self._path(ref),
            self._asked("patch", ref, thing),
            body=thing,
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts=str(force).lower(),
            dry_run="All" if dry_run else None,
            query_params=[("fieldValidation", "Strict")],
        )
        return answer

    def delete(self, live: Object, ref: Ref) -> None:
        """Delete this very object, as it was read, after what depends on it. One that is gone already is deleted.

        Raises WriteRaced when it has changed since, or when another one stands in its place.
        """
        meta = live["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        }
        self._request("delete", self._path(ref), self._asked("delete", ref), absent=None, body=body)

    def pause(self, count: int) -> None:
        """Wait a little, longer with each count, before something is read again."""
        self._retry.sleep(self._retry.delay(min(count, 4), None))

    def follow(self, ref: Ref, *, tick_s: int, until: Callable[[], bool]) -> Iterator[Object | None]:
        """The object now, at each of its changes, and at least every `tick_s` seconds; None while it is not there.

        A watch that ends, or breaks, is taken up again after the last version seen; one whose version is too old
        (410) starts from a fresh read. Ends when `until` says so; it is asked after each yield.
        """
        live, version = self._snapshot(ref)
        while True:
            yield live
            if until():
                return
            try:
                for event in self._events(ref, version, tick_s):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        live = None if event["type"] == "DELETED" else event["object"]
                        yield live
                        if until():
                            return
            except Gone:
                live, version = self._snapshot(ref)
            except _Broken:
                self.pause(1)

    def _snapshot(self, ref: Ref) -> tuple[Object | None, str]:
        """The object and the version of the list it is in. A watch starts from that: the version of an object that has
        not changed for long is older than what the server remembers."""
        space = Ref(ref.api_version, ref.kind, ref.namespace, "")
        page = self._request(
            "get", self._path(space), self._asked("list", ref), field_selector=f"metadata.name={ref.name}"
        )
        found = _entries(page, ref)
        return (found[0] if found else None), page["metadata"]["resourceVersion"]

    def _events(self, ref: Ref, version: str, seconds: int) -> Iterator[dict[str, Any]]:
        """One watch, to its end. Raises Gone, _Broken, or what the server refused it with."""
        from urllib3.exceptions import HTTPError

        response = self._request(
            "get",
            self._path(Ref(ref.api_version, ref.kind, ref.namespace, "")),
            self._asked("watch", ref),
            raw=True,
            field_selector=f"metadata.name={ref.name}",
            resource_version=version,
            watch="true",
            allow_watch_bookmarks="true",
            timeout_seconds=seconds,
            _request_timeout=(self._timeout_s[0], seconds + self._timeout_s[1]),
        )
        try:
            for event in _json_lines(response):
                if event.get("type") == "ERROR":
                    status = event.get("object", {})
                    if status.get("code") == 410:
                        raise Gone(status.get("message", "gone"), where=str(ref))
                    raise _Broken(status.get("message", "the watch failed"))
                yield event
        except (HTTPError, OSError, ValueError) as error:
            raise _Broken(str(error)) from error
        finally:
            with contextlib.suppress(HTTPError, OSError):
                response.close()

    def _path(self, ref: Ref) -> str:
        resource = self.resource(ref.api_version, ref.kind)
        if resource is None:
            raise refusal.kinds_missing([(ref.api_version, ref.kind)], where=self.where)
        prefix = "apis" if "/" in ref.api_version else "api"
        space = f"/namespaces/{ref.namespace}" if resource.namespaced and ref.namespace else ""
        return f"/{prefix}/{ref.api_version}{space}/{resource.plural}" + (f"/{ref.name}" if ref.name else "")

    def _asked(self, verb: str, ref: Ref, thing: Object | None = None) -> _Asked:
        resource = self.resource(ref.api_version, ref.kind)
        return _Asked(verb, ref.group, resource.plural if resource else "", ref.namespace, str(ref), thing)

    def _request(self, method: str, path: str, asked: _Asked, **options: Any) -> Any:  # Any: JSON
        raw = options.pop("raw", False)
        missing_is_answer = "absent" in options
        absent = options.pop("absent", None)
        options.setdefault("_request_timeout", self._timeout_s)

        def once() -> Any:
            # A fresh copy each time: the client adds to the lists it is given.
            fresh = {k: list(v) if isinstance(v, list) else v for k, v in options.items()}
            response = self._dynamic.request(method, path, serialize=False, **fresh)
            return response if raw else json.loads(response.data)

        try:
            return self._repeated(once, asked)
        except _NotFound as error:
            if missing_is_answer:
                return absent
            cure = refusal.cure_of_absence(error.what)
            raise KubernetesError(error.what, where=asked.what or self.where, do=cure) from error

    def _repeated(self, once: Callable[[], T], asked: _Asked) -> T:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        waited = 0.0
        for attempt in range(1, self._retry.attempts + 1):
            retry_after: float | None = None
            try:
                return once()
            except ApiException as error:
                status = refusal.read_status(error.status, error.body or error.reason)
                if not refusal.passes(status):
                    raise self._refused(status, asked) from error
                retry_after = refusal.retry_after_s(error.headers, status)
                problem: KubernetesError = self._refused(status, asked)
                cause: Exception = error
            except (HTTPError, OSError, ValueError) as error:
                host = urlsplit(self.where).netloc
                problem = KubernetesError(
                    f"the API server does not answer: {refusal.short(error)}",
                    where=host,
                    do="try: kubectl cluster-info; another cluster: --context NAME",
                )
                cause = error
            delay = self._retry.delay(attempt, retry_after)
            if attempt == self._retry.attempts or waited + delay > self._retry.budget_s:
                problem.what += f" (tried {attempt} times)"
                raise problem from cause
            waited += delay
            self._retry.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _refused(self, status: Object, asked: _Asked) -> KubernetesError:
        code = status.get("code")
        if code == 404:
            return _NotFound(status.get("message", "not found"), where=asked.what)
        if code == 410:
            return Gone(status.get("message", "gone"), where=asked.what)
        if owners := refusal.field_owners(status):
            return Conflicted(owners, where=asked.what)
        if code == 409:
            return WriteRaced(status.get("message", "conflict"), where=asked.what, do="run it again")
        return refusal.refused(
            status, verb=asked.verb, group=asked.group, plural=asked.plural, namespace=asked.namespace,
            where=asked.what or self.where, sent=asked.thing,
        )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """What a request was for, in the words of RBAC."""

    verb: str
    group: str
    plural: str = ""
    namespace: str = ""
    what: str = ""
    thing: Object | None = None


class _NotFound(KubernetesError):
    """404: an answer to some requests, an error to others."""


class _Broken(Exception):
    """A watch ended in the middle."""


class _NoDiscovery:
    """Stands where the dynamic client would read and cache what kinds there are."""

    def __init__(self, client: Any, cache_file: str | None) -> None:  # Any: the client's own signature
        pass


def _entries(page: Object, ref: Ref) -> list[Object]:
    """The objects of a list. They do not carry what their list says."""
    return [{"apiVersion": ref.api_version, "kind": ref.kind, **entry} for entry in page.get("items", [])]


def _json_lines(response: Any) -> Iterator[dict[str, Any]]:  # Any: urllib3's response
    """Whole lines only: what a connection broke off in the middle of a line is not an event."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=True):
        rest += chunk
        *whole, rest = rest.split(b"\n")
        for line in whole:
            if line.strip():
                yield json.loads(line)
