"""Is it up? Waiting for Ray clusters with progress, and saying why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.clock import Clock, SystemClock
from heliostat.cluster.kubernetes.api import Api
from heliostat.cluster.kubernetes.objects import Object, Ref, ref_of
from heliostat.cluster.kubernetes.scale import is_autoscaled
from heliostat.cluster.kubernetes.why import HEAD, LABEL_CLUSTER, Cause, explain, group_of, is_ready
from heliostat.errors import Forbidden, NotReady

READY_LIMIT_S = 900.0  # a GPU node takes minutes to come, and an image of 10 GB minutes to arrive
TICK_S = 3
Progress = Callable[[str], None]


@dataclass(frozen=True)
class GroupState:
    """`wanted` pods: what has to be there before the cluster is ready, the autoscaled groups' minimum."""

    name: str
    ready: int
    wanted: int


@dataclass(frozen=True)
class ClusterState:
    """One RayCluster as it is now. `state` is KubeRay's own word, "" before the operator has said one."""

    name: str
    namespace: str
    state: str
    ready: bool
    groups: tuple[GroupState, ...]
    causes: tuple[Cause, ...] = ()

    def __str__(self) -> str:
        counts = ", ".join(f"{group.name} {group.ready}/{group.wanted}" for group in self.groups)
        return f"RayCluster {self.namespace}/{self.name} is {self.state or 'not taken up yet'}: {counts}"


def observe(cluster: Object, pods: Sequence[Object], events: Sequence[Object] = ()) -> ClusterState:
    """Ready: KubeRay says so of this generation, and head and every group have the pods that they need.

    KubeRay's own word alone would not do: it stays "ready" while a changed group is still coming up.
    """
    meta, spec, status = cluster["metadata"], cluster.get("spec") or {}, cluster.get("status") or {}
    groups = [
        GroupState(HEAD, _ready_in(pods, HEAD), 1),
        *(
            GroupState(group["groupName"], _ready_in(pods, group["groupName"]), _wanted(cluster, group))
            for group in spec.get("workerGroupSpecs") or []
        ),
    ]
    current = status.get("observedGeneration", 0) >= meta.get("generation", 0)
    complete = all(group.ready >= group.wanted for group in groups)
    ready = current and complete and status.get("state") == "ready"
    causes = () if ready else explain(cluster, pods, events)
    return ClusterState(meta["name"], meta.get("namespace", ""), status.get("state", ""), ready, tuple(groups), causes)


def _ready_in(pods: Sequence[Object], group: str) -> int:
    return sum(group_of(pod) == group and is_ready(pod) for pod in pods)


def _wanted(cluster: Object, group: Object) -> int:
    """Pods, not replicas: a replica of several hosts is several pods."""
    lowest: int = group.get("minReplicas", 0)
    replicas = lowest if is_autoscaled(cluster) else max(lowest, group.get("replicas", lowest))
    return 0 if group.get("suspend") else min(replicas, group.get("maxReplicas", replicas)) * group.get("numOfHosts", 1)


def state_of(api: Api, cluster: Object) -> ClusterState:
    """Read the pods and the events of one RayCluster, and judge."""
    ref = ref_of(cluster)
    pods = api.find("v1", "Pod", namespace=ref.namespace, labels=f"{LABEL_CLUSTER}={ref.name}")
    judged = observe(cluster, pods)
    if judged.ready:
        return judged
    names = {ref.name, *(pod["metadata"]["name"] for pod in pods)}
    try:
        events = api.find("v1", "Event", namespace=ref.namespace)
    except Forbidden:  # the pods' own conditions say most of it
        events = []
    return observe(cluster, pods, [e for e in events if (e.get("involvedObject") or {}).get("name") in names])


def wait_ready(
    api: Api,
    manifests: Sequence[Object],
    *,
    limit_s: float = READY_LIMIT_S,
    progress: Progress = lambda _: None,
    clock: Clock | None = None,
) -> tuple[ClusterState, ...]:
    """Wait until every RayCluster of `manifests` is ready. Says what changes, and what holds it up as soon as known.

    Raises NotReady with the causes after `limit_s` seconds for all of them together, or at once where KubeRay does not
    accept one.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + limit_s
    refs = [ref_of(thing) for thing in manifests if thing["kind"] == "RayCluster"]
    return tuple(_wait_one(api, ref, deadline, clock, progress) for ref in refs)


def _wait_one(api: Api, ref: Ref, deadline: float, clock: Clock, progress: Progress) -> ClusterState:
    state: ClusterState | None = None
    told = ""
    for live in api.follow(ref, tick_s=TICK_S, until=lambda: clock.monotonic() > deadline):
        if live is None:
            raise NotReady(f"{ref} is not there any more", do="somebody deleted it: apply again")
        state = state_of(api, live)
        if state.ready:
            progress(str(state))
            return state
        text = "; ".join([str(state), *(cause.what for cause in state.causes[:1])])
        if text != told:
            progress(text)
            told = text
        if any(cause.hopeless for cause in state.causes):
            break
    raise _not_ready(ref, state)


def _not_ready(ref: Ref, state: ClusterState | None) -> NotReady:
    causes = state.causes if state else ()
    listed = [f"- {cause}" for cause in causes] or ["- nothing is known to be wrong: it may need more time"]
    return NotReady(
        "\n  ".join([f"{state or ref}", *listed]),
        do="when that is done it goes on by itself; to wait again, apply again",
    )
