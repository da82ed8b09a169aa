"""Why a Ray cluster is not ready: its pods and events read as causes, each with the next step. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from heliostat.cluster.kubernetes.objects import Object
from heliostat.cluster.kubernetes.refusal import short

LABEL_CLUSTER = "ray.io/cluster"
LABEL_GROUP = "ray.io/group"
LABEL_NODE_TYPE = "ray.io/node-type"
HEAD = "head"

# Events of the operator about the RayCluster itself that no waiting cures.
HOPELESS = ("InvalidRayClusterSpec", "InvalidRayClusterMetadata")
_NOT_CREATED = ("FailedToCreateHeadPod", "FailedToCreateWorkerPod", *HOPELESS)
_PULL = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")

# What the scheduler says about nodes, one part of its sentence each, and what to do about it.
_SCHEDULER: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"Insufficient ((?:nvidia|amd)\.com/\S+|aws\.amazon\.com/\S+|google\.com/\S+)", re.IGNORECASE),
        "no node has enough {0} free",
        "add nodes of that kind or raise the node pool's limit, and see that its device plugin runs",
    ),
    (
        re.compile(r"Insufficient (\S+)", re.IGNORECASE),
        "no node has enough {0} free",
        "ask for less in the definition, or add larger nodes",
    ),
    (
        re.compile(r"untolerated taint \{([^}]+)\}"),
        "nodes are tainted {0}, and the group does not tolerate it",
        "add the toleration to the group in the definition, or use other nodes",
    ),
    (
        re.compile(r"didn't match Pod's (node affinity/selector)"),
        "no node carries the labels that the group selects",
        "compare the group's instance, market and zone with: kubectl get nodes --show-labels",
    ),
    (
        re.compile(r"(unbound immediate PersistentVolumeClaims|persistentvolumeclaim \S+ not found)"),
        "a volume claim is not bound: {0}",
        "see why: kubectl describe pvc",
    ),
    (
        re.compile(r"(volume node affinity conflict)"),
        "the volume lies in another zone than the nodes",
        "put the group into the volume's zone",
    ),
    (
        re.compile(r"didn't (?:match|satisfy) (?:existing )?pod (?:anti-)?(affinity|topology spread)"),
        "the placement rules ({0}) leave no node",
        "loosen the group's placement, or add nodes that satisfy it",
    ),
    (
        re.compile(r"node\(s\) were (unschedulable)"),
        "nodes are cordoned",
        "kubectl uncordon them, or wait for new ones",
    ),
)
# The node autoscalers' own words, which say why no node is coming.
_AUTOSCALERS = ("NotTriggerScaleUp", "FailedScaleUp", "NoCompatibleInstanceTypes", "InsufficientCapacityError")


@dataclass(frozen=True)
class Cause:
    """One reason, for all the pods that it holds up."""

    what: str
    do: str
    groups: tuple[str, ...] = ()
    pods: int = 0
    hopeless: bool = False  # no waiting cures it

    def __str__(self) -> str:
        who = ", ".join(self.groups)
        count = f", {self.pods} pod{'s' * (self.pods > 1)}" if self.pods else ""
        return f"{self.what}{f' ({who}{count})' if who else ''}: {self.do}"


@dataclass(frozen=True)
class _Found:
    what: str
    do: str
    group: str = ""
    pod: str = ""
    hopeless: bool = False


def explain(cluster: Object, pods: Sequence[Object], events: Sequence[Object]) -> tuple[Cause, ...]:
    """Every cause once, those that hold up the most pods first. Empty where nothing is known to be wrong."""
    found = [*_of_cluster(cluster, pods, events)]
    for pod in pods:
        found += _of_pod(pod, [e for e in events if (e.get("involvedObject") or {}).get("name") == _name(pod)])
    return _grouped(found)


def _of_cluster(cluster: Object, pods: Sequence[Object], events: Sequence[Object]) -> Iterator[_Found]:
    name, status = _name(cluster), cluster.get("status") or {}
    if (cluster.get("spec") or {}).get("suspend"):
        queue = (cluster["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        cure = f"see its place in the queue: kubectl get workloads (queue {queue})" if queue else "set suspend to false"
        yield _Found("the RayCluster is suspended", cure)
        return
    failed = [
        e for e in events if e.get("reason") in _NOT_CREATED and (e.get("involvedObject") or {}).get("name") == name
    ]
    # Each try has another pod's name in it; the last one stands for all.
    latest = {event["reason"]: event for event in sorted(failed, key=_when)}
    for reason, event in latest.items():
        yield _not_created(reason, event.get("message", ""))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True" and not latest:
            yield _not_created(condition.get("reason", ""), condition.get("message", ""))
    if not status and not pods and not failed:
        yield _Found(
            "the KubeRay operator has not taken up the RayCluster",
            "see that it runs, and watches this namespace: "
            "kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator",
        )


def _not_created(reason: str, message: str) -> _Found:
    group = HEAD if reason == "FailedToCreateHeadPod" else ""
    if quota := re.search(r"exceeded quota: ([^,]+)(, requested: .*)?", message):
        figures = short((quota[2] or "").removeprefix(", "))
        return _Found(
            f"the quota {quota[1]} is used up" + (f" ({figures})" if figures else ""),
            f"ask for less, or raise it: kubectl describe resourcequota {quota[1]}",
            group,
        )
    if reason in HOPELESS:
        return _Found(
            f"KubeRay does not accept the RayCluster: {short(message)}", "correct the definition", hopeless=True
        )
    return _Found(f"pods cannot be created: {short(message)}", "do what the message asks for", group)


def _of_pod(pod: Object, events: Sequence[Object]) -> Iterator[_Found]:
    if is_ready(pod):
        return
    group, name = group_of(pod), _name(pod)
    for what, do in _reasons(pod, sorted(events, key=_when)):
        yield _Found(what, do, group, name)


def _reasons(pod: Object, events: Sequence[Object]) -> list[tuple[str, str]]:
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        return [
            (f"a pod failed: {status.get('reason') or short(status.get('message', ''))}", "see its log: kubectl logs")
        ]
    scheduled: Object = next((c for c in status.get("conditions") or [] if c.get("type") == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return _unscheduled(scheduled.get("message") or "", events)
    containers = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    for container in containers:
        if reason := _container(container, events):
            return [reason]
    mounts = [e for e in events if e.get("reason") in ("FailedMount", "FailedAttachVolume")]
    if mounts:
        return [(f"a volume cannot be mounted: {short(mounts[-1].get('message', ''))}", "see: kubectl describe pod")]
    if status.get("phase") == "Running":
        return [("running, and its readiness probe does not pass yet", "see its log: kubectl logs")]
    return [("its containers are being started", "wait, or see: kubectl describe pod")]


def _unscheduled(message: str, events: Sequence[Object]) -> list[tuple[str, str]]:
    """All parts of the scheduler's sentence; what preemption could not do either is no news."""
    if not message:
        message = next((e["message"] for e in reversed(events) if e.get("reason") == "FailedScheduling"), "")
    sentence = message.split(" preemption:")[0]
    reasons: dict[str, str] = {}
    for pattern, what, do in _SCHEDULER:
        for found in pattern.finditer(sentence):
            reasons.setdefault(what.format(found[1].rstrip(",.")), do)
    if not reasons:
        reasons[f"the scheduler finds no node: {short(message) or 'no reason given yet'}"] = "see: kubectl describe pod"
    for event in events:
        if event.get("reason") in _AUTOSCALERS:
            reasons[f"no node is added: {short(event.get('message', ''))}"] = "raise the node pool's limits"
    return list(reasons.items())


def _container(status: Object, events: Sequence[Object]) -> tuple[str, str] | None:
    state = status.get("state") or {}
    waiting, image = state.get("waiting") or {}, status.get("image", "")
    reason = waiting.get("reason", "")
    if reason in _PULL:
        # Back-off says only that; the pull's own error stands in the event or in the message of the try before.
        told = [e.get("message", "") for e in events if "pull image" in e.get("message", "")]
        return (
            f"the image {image} cannot be pulled: {short((told or [waiting.get('message', reason)])[-1])}",
            "check its name and tag, and that the nodes may read the registry (imagePullSecrets)",
        )
    if reason in _CONFIG:
        return f"a container cannot start: {short(waiting.get('message', reason))}", "make what it names"
    ended = (status.get("lastState") or {}).get("terminated") or state.get("terminated") or {}
    if reason == "CrashLoopBackOff" or (ended and ended.get("exitCode")):
        if ended.get("reason") == "OOMKilled":
            return "a container ran out of memory (OOMKilled)", "give the group more memory in the definition"
        name = status.get("name", "")
        return (
            f"the container {name} ends with exit code {ended.get('exitCode', '?')} again and again",
            f"see its log: kubectl logs -c {name} --previous",
        )
    return None


def _grouped(found: Iterable[_Found]) -> tuple[Cause, ...]:
    merged: dict[tuple[str, str], list[_Found]] = {}
    for one in found:
        merged.setdefault((one.what, one.do), []).append(one)
    causes = [
        Cause(
            what,
            do,
            tuple(sorted({o.group for o in ones if o.group})),
            len({o.pod for o in ones if o.pod}),
            any(o.hopeless for o in ones),
        )
        for (what, do), ones in merged.items()
    ]
    return tuple(sorted(causes, key=lambda cause: -cause.pods))


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    leaving = pod["metadata"].get("deletionTimestamp")
    return not leaving and any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def group_of(pod: Object) -> str:
    """The worker group's name, or "head"."""
    labels = pod["metadata"].get("labels") or {}
    return HEAD if labels.get(LABEL_NODE_TYPE) == HEAD else labels.get(LABEL_GROUP, "")


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _when(event: Object) -> str:
    """RFC 3339 times of one zone sort as text. The newer events API leaves the older field empty."""
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
