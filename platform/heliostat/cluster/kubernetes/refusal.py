"""What the API server's refusals mean, and what to do about each. Pure: a Status object in, an error out.

The shapes are those of Kubernetes' API conventions: a `Status` with reason, message, details and causes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from heliostat.cluster.kubernetes.diff import Ownership
from heliostat.cluster.kubernetes.objects import Object
from heliostat.errors import AdmissionRefused, FieldConflict, Forbidden, KindMissing, KubernetesError

KUBERAY_VERSION = "1.7.0"
_INSTALL = {
    "ray.io": f"install KubeRay {KUBERAY_VERSION[:3]}: helm install kuberay-operator kuberay/kuberay-operator "
    f"--version {KUBERAY_VERSION}",
    "kueue.x-k8s.io": "install Kueue, or leave the queue out of the definition",
    "monitoring.coreos.com": "install the Prometheus operator, or turn observability off in the definition",
    "karpenter.sh": "install Karpenter, or leave the node pools out of the definition",
    "karpenter.k8s.aws": "install Karpenter for AWS, or leave the node pools out of the definition",
    "cloud.google.com": "this needs a GKE cluster of a version that has ComputeClasses",
}
_RBAC = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_OWNER = re.compile(r'^conflict with "((?:[^"\\]|\\.)*)"')
_WEBHOOK = re.compile(r'admission webhook "([^"]+)"')
_POLICY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'")
_QUOTA = re.compile(r"exceeded quota: ([^,]+)")


def read_status(code: int | None, body: str | bytes | None) -> Object:
    """The Status in an answer; one made up from the code where something else than the API server answered."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body or ""
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return {"code": code, **status}
    return {"code": code, "message": short(text) or f"HTTP status {code} and no more", "reason": ""}


def passes(status: Object) -> bool:
    """Whether it may go away by itself, so that trying again makes sense."""
    code = status.get("code") or 0
    if code == 500 and "failed to create typed patch object" in status.get("message", ""):
        return False  # the server's way to say that it does not know a field
    return code == 429 or 500 <= code <= 599


def retry_after_s(headers: Mapping[str, str] | None, status: Object) -> float | None:
    """Seconds the server asks for, in the header or in the Status; None where it asks for none."""
    asked = (headers or {}).get("Retry-After") or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(asked)) if asked is not None else None
    except ValueError:  # an HTTP date, which the API server does not send
        return None


def field_owners(status: Object) -> tuple[Ownership, ...]:
    """Who holds which field, from a refused server-side apply."""
    causes = (status.get("details") or {}).get("causes") or []
    return tuple(
        Ownership(cause.get("field", ""), _owner(cause.get("message", "")))
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    )


def _owner(message: str) -> str:
    found = _OWNER.match(message)
    return found[1] if found else message.removeprefix("conflict with ")


def field_conflict(conflicts: Iterable[tuple[str, Ownership]], *, outcome: str) -> FieldConflict:
    """All conflicts of all objects in one error. `outcome` says what was changed in spite of it."""
    listed = [f"{name}: {owned.path} is held by {owned.manager}" for name, owned in conflicts]
    count = "1 field belongs" if len(listed) == 1 else f"{len(listed)} fields belong"
    return FieldConflict(
        "\n  ".join([f"{count} to another manager, and {outcome}:", *listed]),
        do="let the other manager go of them, or take them over: --take-over",
    )


def kinds_missing(kinds: Iterable[tuple[str, str]], *, where: str) -> KindMissing:
    """All kinds that the server lacks in one error, with what to install."""
    wanted = sorted(set(kinds))
    groups = dict.fromkeys(api_version.rpartition("/")[0] for api_version, _ in wanted)
    cures = [_INSTALL.get(group, f"install what brings the API group {group or 'core'}") for group in groups]
    listed = ", ".join(f"{kind} ({api_version})" for api_version, kind in wanted)
    return KindMissing(f"the API server does not know {listed}", where=where, do="; ".join(cures))


def refused(
    status: Object, *, verb: str, group: str, plural: str, namespace: str, where: str, sent: Object | None = None
) -> KubernetesError:
    """The error for a Status. `sent` is the object in the request, so that a Secret's values stay out of the words."""
    code, message = status.get("code"), _scrubbed(status.get("message") or "no reason given", sent)
    if admission := _admission(message, where):
        return admission
    if code == 403:
        return _forbidden(message, verb=verb, group=group, plural=plural, namespace=namespace, where=where)
    if code == 401:
        return Forbidden(f"not logged in: {message}", where=where, do="log in to the cluster again, then repeat")
    if "field not declared in schema" in message or "unknown field" in message:
        cure = f"its CRDs are older than KubeRay {KUBERAY_VERSION[:3]}: upgrade them" if group == "ray.io" else ""
        return KubernetesError(f"the API server does not know a field: {message}", where=where, do=cure)
    if code in (400, 422):
        return KubernetesError(f"the API server finds it invalid: {message}", where=where, do="correct the definition")
    return KubernetesError(message, where=where)


def cure_of_absence(message: str) -> str:
    """What to do about a 404 that answers a write."""
    found = re.match(r'namespaces "([^"]+)" not found', message)
    return f"make it first: kubectl create namespace {found[1]}" if found else ""


def _admission(message: str, where: str) -> AdmissionRefused | None:
    """Webhooks answer with any code, so their words decide."""
    if found := _WEBHOOK.search(message):
        return AdmissionRefused(message, where=where, do=f"ask who runs the webhook {found[1]}")
    if found := _POLICY.search(message):
        return AdmissionRefused(message, where=where, do=f"ask who set the admission policy {found[1]}")
    if found := _QUOTA.search(message):
        return AdmissionRefused(message, where=where, do=f"ask for less, or raise the ResourceQuota {found[1]}")
    if "violates PodSecurity" in message:
        return AdmissionRefused(message, where=where, do="let the namespace's pod security level allow it")
    if "because it is being terminated" in message:
        return AdmissionRefused(message, where=where, do="wait until the namespace is gone, then run it again")
    return None


def _forbidden(message: str, *, verb: str, group: str, plural: str, namespace: str, where: str) -> Forbidden:
    found = _RBAC.search(message)
    if found:
        verb, plural, group = found["verb"], found["resource"], found["group"]
        namespace = found["namespace"] or ""
    elif " is forbidden: " in message:
        return Forbidden(message, where=where)  # not RBAC: an admission plugin, in its own words
    place = f"in namespace {namespace}" if namespace else "in the whole cluster"
    role = f"a Role in namespace {namespace}" if namespace else "a ClusterRole"
    resource = f"{plural}.{group}" if group else plural
    who = f"{found['user']} may" if found else "the caller may"
    rule = f'{{apiGroups: ["{group}"], resources: ["{plural}"], verbs: ["{verb}"]}}'
    return Forbidden(f"{who} not {verb} {resource} {place}", where=where, do=f"add to {role}: {rule}")


def _scrubbed(message: str, sent: Object | None) -> str:
    if sent is None or sent.get("kind") != "Secret":
        return message
    for part in ("data", "stringData"):
        for value in (sent.get(part) or {}).values():
            if str(value):
                message = message.replace(str(value), "(hidden)")
    return message


def short(thing: Any, limit: int = 300) -> str:  # Any: an exception or a body
    """One line of it."""
    text = " ".join(str(thing).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."
