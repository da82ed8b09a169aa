"""Rules between parts of a definition. Each yields (where, what and what to write instead)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from heliostat.definition.model import (
    Application,
    Budgets,
    JobSpec,
    Karpenter,
    Network,
    Observability,
    RaySoftware,
    StoreSpec,
    Tags,
    WorkerGroup,
)
from heliostat.units import Bytes

Location = tuple[str | int, ...]
Finding = tuple[Location, str]

# 53 for a RayCluster (its longest service suffix is "-serve-svc"), 6 less for what KubeRay makes clusters of.
MAX_OBJECT_NAME = 47
EKS = ("eks-karpenter", "eks")
LEAST_MEMORY = Bytes.parse("512MiB")
OWN_SELECTORS = {
    "topology.kubernetes.io/zone": "the field zone",
    "node.kubernetes.io/instance-type": "the field instance",
    "eks.amazonaws.com/capacityType": "the field market",
    "kubernetes.azure.com/scalesetpriority": "the field market",
    "cloud.google.com/gke-spot": "the field market",
    "cloud.google.com/compute-class": "the group's ComputeClass",
    "cloud.google.com/gke-accelerator": "the field accelerator",
    "cloud.google.com/gke-gpu-partition-size": "the field mig",
    "cloud.google.com/reservation-name": "the field reservation",
}


@dataclass(frozen=True)
class Parts:
    """The parts that are valid by themselves; `known_groups` names all groups, also those that are not."""

    name: str | None
    platform: str | None
    ray: RaySoftware | None
    store: StoreSpec | None
    karpenter: Karpenter | None
    groups: Mapping[str, WorkerGroup]
    applications: Mapping[str, Application]
    jobs: Mapping[str, JobSpec]
    known_groups: frozenset[str]
    tags: Tags | None
    budgets: Budgets | None
    network: Network | None
    observability: Observability | None


def check(parts: Parts) -> Iterator[Finding]:
    if "head" in parts.known_groups:
        yield ("groups", "head"), "is what the head's own node is called; give the group another name"
    for name, group in parts.groups.items():
        yield from _check_fallback(name, group, parts)
        yield from _check_group(name, group)
    for name, app in parts.applications.items():
        yield from _check_target(("applications", name, "group"), app.group, "serving", parts)
        yield from _check_gpus(name, app, parts.groups)
    yield from _check_routes(parts.applications)
    yield from _check_shared(parts)
    for name, job in parts.jobs.items():
        yield from _check_target(("jobs", name, "group"), job.group, "training", parts)
        yield from _check_job(name, job, parts.groups)
        yield from _check_deadline(name, job, parts)
    yield from _check_store(parts.store)
    yield from _check_budgets(parts)
    if parts.network is not None and parts.network.clients and not parts.network.fenced:
        yield ("network", "clients"), "would be ignored: without the fence everybody may call; remove one of the two"
    if parts.platform is not None:
        yield from _check_platform(parts, parts.platform)


def _check_fallback(name: str, group: WorkerGroup, parts: Parts) -> Iterator[Finding]:
    groups = parts.groups
    suitable = sorted(other for other, spec in groups.items() if spec.role == group.role and spec.market != "spot")
    offer = f"one of: {', '.join(suitable)}" if suitable else f"add an on-demand {group.role} group and name it"
    if group.role == "serving" and group.market == "spot" and group.fallback is None:
        yield (
            ("groups", name, "market"),
            "serving on spot alone loses requests with every reclaim; write market: on-demand, or name a fallback "
            f"({offer})",
        )
    elif group.fallback is not None and group.market != "spot":
        yield ("groups", name, "fallback"), "only a spot group has a fallback; remove it"
    elif group.fallback is not None and group.fallback not in (
        suitable if group.fallback in groups else parts.known_groups
    ):
        yield ("groups", name, "fallback"), f"{group.fallback!r} is not an on-demand {group.role} group; {offer}"


def _check_group(name: str, group: WorkerGroup) -> Iterator[Finding]:
    """What a group says about itself has to agree."""
    at = ("groups", name)
    yield from _check_devices(at, group)
    if group.placement == "compact" and group.role != "training":
        yield (*at, "placement"), "compact is for training groups; write any or spread"
    if group.placement == "spread" and group.role != "serving":
        yield (*at, "placement"), "spread is for serving groups; write any or compact"
    elif group.placement == "spread" and group.zone is not None:
        yield (*at, "placement"), f"spread over zones contradicts zone: {group.zone}; remove one of the two"
    if group.fabric is not None and group.role != "training":
        yield (*at, "fabric"), "only training groups use a fabric; remove it"
    if group.reservation is not None and group.market != "reserved":
        yield (*at, "reservation"), f"a group on market {group.market} uses no reservation; write market: reserved"
    for key in group.node_selector:
        if key in OWN_SELECTORS or key.startswith(("heliostat.io/", "karpenter.sh/")):
            yield (*at, "node_selector", key), f"is set by {OWN_SELECTORS.get(key, 'heliostat')}; remove it"
    yield from _check_volumes(at, group)
    yield from _check_memory(at, group)


def _check_memory(at: Location, group: WorkerGroup) -> Iterator[Finding]:
    """What lies in RAM counts against the pod's memory."""
    if group.memory is None:
        return
    if group.memory < LEAST_MEMORY:
        yield (*at, "memory"), f"{group.memory} is too little for Ray; write {LEAST_MEMORY} or more"
    in_ram = [volume.size.bytes for volume in group.volumes.values() if volume.kind == "memory" and volume.size]
    shared = group.shared_memory.bytes if group.shared_memory else 0
    if shared + sum(in_ram) >= group.memory.bytes:
        place = "shared_memory" if shared else "volumes"
        yield (*at, place), f"it leaves the processes nothing of the {group.memory}; write less, or raise memory"


def _check_devices(at: Location, group: WorkerGroup) -> Iterator[Finding]:
    device = group.device
    if group.accelerator is not None and group.gpus == 0:
        yield (*at, "accelerator"), f"{group.accelerator} with gpus: 0; write how many a node has"
    if group.mig is not None and group.mig not in device.mig:
        allowed = f"one of: {', '.join(device.mig)}" if device.mig else "an accelerator that has MIG, such as A100-80GB"
        yield (*at, "mig"), f"{group.mig!r} is no profile of {group.accelerator or 'this group'}; write {allowed}"
    if device.is_tpu and group.topology is None:
        yield (*at, "accelerator"), f"{group.accelerator} comes in slices; add a topology, such as 2x4"
    if group.topology is not None and not device.is_tpu:
        yield (*at, "topology"), "only TPU slices have a topology; remove it"
    chips = 1
    for side in (group.topology or "1").split("x"):
        chips *= int(side)
    if group.topology is not None and device.is_tpu and group.gpus and chips % group.gpus:
        yield (*at, "gpus"), f"{group.gpus} chips per host do not divide the {chips} of {group.topology}"


def _check_volumes(at: Location, group: WorkerGroup) -> Iterator[Finding]:
    mounts: dict[str, str] = {"/dev/shm": "shared_memory"}  # noqa: S108  # a mount point, not a file of ours
    for name, volume in group.volumes.items():
        here = (*at, "volumes", name)
        owner = mounts.setdefault(volume.mount.rstrip("/"), name)
        if owner != name:
            yield (*here, "mount"), f"{volume.mount!r} is already the mount of {owner}; write another one"
        if (volume.claim is not None) != (volume.kind == "claim"):
            need = "name the claim" if volume.kind == "claim" else f"a {volume.kind} volume has none; remove it"
            yield (*here, "claim"), need
        if (volume.size is None) != (volume.kind == "claim"):
            need = "a claim has its size already; remove it" if volume.kind == "claim" else "add a limit"
            yield (*here, "size"), need
        if volume.read_only and volume.kind != "claim":
            yield (*here, "read_only"), f"a {volume.kind} volume starts empty; nothing could be read from it"


def _check_target(location: Location, group: str, role: str, parts: Parts) -> Iterator[Finding]:
    groups = parts.groups
    suitable = sorted(name for name, spec in groups.items() if spec.role == role)
    offer = f"one of: {', '.join(suitable)}" if suitable else f"add a group with role: {role}"
    if group not in parts.known_groups:
        yield location, f"there is no group {group!r}; {offer}"
    elif group in groups and groups[group].role != role:
        yield location, f"group {group!r} has role {groups[group].role}, not {role}; {offer}"
    elif group in groups and groups[group].nodes.high == 0:
        yield location, f"group {group!r} can have no nodes; raise its upper bound, or name another one"


def _check_gpus(name: str, app: Application, groups: Mapping[str, WorkerGroup]) -> Iterator[Finding]:
    group = groups.get(app.group)
    at = ("applications", name, "gpus_per_replica")
    if group is None:
        return
    if app.gpus_per_replica > 0 and group.device.ray_resource != "GPU":
        yield at, f"group {app.group!r} has {group.accelerator}, no GPUs; write 0, or name another group"
    elif app.gpus_per_replica > group.gpus:
        yield (
            at,
            f"{app.gpus_per_replica:g} does not fit: a node of group {app.group!r} has {group.gpus}; "
            f"write {group.gpus} or less, or give the group more GPUs per node",
        )


def _check_routes(apps: Mapping[str, Application]) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for name, app in apps.items():
        owner = owners.setdefault(app.route, name)
        if owner != name:
            yield ("applications", name, "route"), f"{app.route!r} is already the route of {owner!r}; write another one"


def _check_job(name: str, job: JobSpec, groups: Mapping[str, WorkerGroup]) -> Iterator[Finding]:
    at = ("jobs", name)
    group = groups.get(job.group)
    if group is not None and 0 < group.nodes.high < job.nodes:
        yield (*at, "nodes"), f"group {job.group!r} has {group.nodes.high} at most; write that or less"
    if group is not None and job.falls_back and group.fallback is None:
        yield (*at, "falls_back"), f"group {job.group!r} has no fallback; name one there, or remove this"
    yield from _check_part(name, job, groups)
    if job.queue is not None and job.cluster == "shared":
        yield (*at, "queue"), "Kueue admits whole clusters; write cluster: own, or remove the queue"
    if job.time_limit is not None and job.time_limit.seconds < 1:
        yield (*at, "time_limit"), f"{job.time_limit} is too short; write 1s or more"


def _check_shared(parts: Parts) -> Iterator[Finding]:
    """Ray would put the workers of a job that has whole nodes into the room that others leave on theirs."""
    on = {name: job.groups_among(parts.groups) for name, job in parts.jobs.items() if job.cluster == "shared"}
    for name in on:
        gpus = parts.jobs[name].gpus
        shared = {group for group, spec in on[name].items() if gpus and gpus < spec.gpus}
        for other in sorted(on):
            if parts.jobs[other].gpus is None and (both := sorted(shared & on[other].keys())):
                text = f"{other!r} has whole nodes of {both[0]!r}; put jobs that share nodes on a group of their own"
                yield ("jobs", name, "gpus"), f"{text}, or give {other!r} gpus too"
                break


def _check_part(name: str, job: JobSpec, groups: Mapping[str, WorkerGroup]) -> Iterator[Finding]:
    at = ("jobs", name, "gpus")
    if job.gpus is None:
        return
    if job.nodes > 1:
        yield at, f"they are of one node, and the job has {job.nodes}; write nodes: 1, or remove this"
    if job.cluster == "own":
        yield at, "a cluster of its own shares its nodes with nobody; write cluster: shared, or remove this"
    for other, group in sorted(job.groups_among(groups).items()):
        if group.gpus == 0:
            yield at, f"{other!r} has none; remove this"
        elif job.gpus > group.gpus:
            yield at, f"a node of {other!r} has {group.gpus}; write that or less, or nodes instead"
        elif group.hosts > 1:
            yield at, f"a slice of {other!r} is {group.hosts} machines and is taken whole; remove this"


def _check_deadline(name: str, job: JobSpec, parts: Parts) -> Iterator[Finding]:
    at = ("jobs", name)
    given = {key: getattr(job, key) for key in ("deadline", "work", "on_demand")}
    missing = [key for key, value in given.items() if value is None]
    if job.deadline is None or job.work is None or job.on_demand is None:
        if len(missing) < len(given):
            do = "to end a RayJob that runs too long, write time_limit" if job.deadline else "or leave all three out"
            yield at, f"deadline, work and on_demand go together; add {' and '.join(missing)} ({do})"
        return
    if job.work.seconds <= 0 or job.deadline.seconds <= job.work.seconds:
        yield (*at, "deadline"), f"{job.deadline} leaves no time beside {job.work} of work; write a later one"
    yield from _check_target((*at, "on_demand"), job.on_demand, "training", parts)
    other, own = parts.groups.get(job.on_demand), parts.groups.get(job.group)
    if other is not None and other.market == "spot":
        yield (*at, "on_demand"), f"{job.on_demand!r} is spot as well; name an on-demand or reserved training group"
    if own is not None and own.market != "spot":
        yield (*at, "group"), f"{job.group!r} is not spot, so there is nothing to move to; remove the deadline"


def _check_store(store: StoreSpec | None) -> Iterator[Finding]:
    if store is None or store.kind != "embedded":
        return
    if store.endpoint is not None:
        yield (
            ("store", "endpoint"),
            f"{store.endpoint!r} would be ignored: an embedded store has its own; remove it, or write kind: s3",
        )
    for field in ("credentials_secret", "identity"):
        if getattr(store, field) is not None:
            yield ("store", field), "an embedded store makes its own keys; remove it, or write kind: s3"


def _check_budgets(parts: Parts) -> Iterator[Finding]:
    limit = parts.budgets.max_gpus if parts.budgets else None
    floor = sum(group.nodes.low * group.hosts * group.gpus for group in parts.groups.values())
    if limit is not None and floor > limit:
        yield ("budgets", "max_gpus"), f"{limit} is less than the {floor} that the groups' lower bounds hold already"
    hours = parts.budgets.gpu_hours_per_month if parts.budgets else None
    if hours is not None and parts.platform and parts.observability and not parts.observability.alerts:
        yield ("budgets", "gpu_hours_per_month"), "is watched by an alert; write observability.alerts: true"


def _check_platform(parts: Parts, platform: str) -> Iterator[Finding]:
    """What this kind of Kubernetes can do, and what its objects need."""
    if parts.ray is not None and parts.ray.image is None:
        yield ("ray", "image"), f"is missing; platform {platform} runs pods of it"
    if parts.ray is not None and tuple(map(int, parts.ray.version.split("."))) < (2, 52, 0):
        yield ("ray", "version"), f"{parts.ray.version} has no token authentication; write 2.52.0 or later"
    if parts.store is not None and parts.store.kind == "embedded":
        yield ("store", "kind"), "pods cannot reach an embedded store; write s3"
    if parts.store is not None and parts.store.identity is not None:
        if platform == "on-premises":
            yield ("store", "identity"), "machines of one's own have no cloud identity; write credentials_secret"
        elif parts.store.credentials_secret is not None:
            yield ("store", "credentials_secret"), "would win over the identity; remove one of the two"
    if platform == "eks-karpenter" and parts.karpenter is None:
        yield ("karpenter",), "is missing; Karpenter needs node_role and discovery to start instances"
    if platform != "eks-karpenter" and parts.karpenter is not None:
        yield ("karpenter",), f"platform {platform} does not use it; remove it, or write platform: eks-karpenter"
    for name, group in parts.groups.items():
        yield from _check_market(("groups", name), group, platform)
        yield from _check_hardware(("groups", name), group, platform)
    yield from _check_object_names(parts)


def _check_market(at: Location, group: WorkerGroup, platform: str) -> Iterator[Finding]:
    if platform == "on-premises" and group.market == "spot":
        yield (*at, "market"), "machines of one's own have no spot market; write reserved"
    needs_reservation = group.market == "reserved" and platform in ("eks-karpenter", "gke")
    if needs_reservation and group.reservation is None:
        yield (*at, "reservation"), f"is missing; on {platform} name the reservation that the nodes come from"
    if platform == "eks-karpenter" and group.reservation is not None and not group.reservation.startswith("cr-"):
        yield (*at, "reservation"), f"{group.reservation!r} is no capacity reservation's id, which starts with cr-"
    if group.market == "reserved" and group.reservation is not None and platform not in ("eks-karpenter", "gke"):
        yield (*at, "reservation"), f"on {platform} the node pool names the reservation, not the pods; remove it"


def _check_hardware(at: Location, group: WorkerGroup, platform: str) -> Iterator[Finding]:
    device = group.device
    if group.memory is None:
        yield (*at, "memory"), f"is missing; pods on {platform} ask for it"
    if group.gpus and group.instance is None and group.accelerator is None and not group.node_selector:
        yield (*at, "accelerator"), "is missing; without it or an instance, any GPU node would do"
    if device.is_tpu and platform != "gke":
        yield (*at, "accelerator"), f"{group.accelerator} is on platform gke only"
    if device.is_neuron and platform not in EKS:
        yield (*at, "accelerator"), f"{group.accelerator} is on platforms eks-karpenter and eks only"
    if platform == "gke" and group.accelerator is not None and device.gke is None:
        yield (*at, "accelerator"), f"GKE does not offer {group.accelerator}"
    named = device.karpenter is not None or group.instance is not None
    if platform == "eks-karpenter" and group.accelerator is not None and not named:
        yield (*at, "instance"), f"is missing; Karpenter has no name for {group.accelerator}"
    if group.fabric is not None and platform == "gke":
        yield (*at, "fabric"), "GKE's GPU networks are set up on the node pool, not by the pods; remove it"
    elif group.fabric is not None and (group.fabric.kind == "efa") != (platform in EKS):
        fits = "efa" if platform in EKS else "infiniband"
        yield (*at, "fabric", "kind"), f"{group.fabric.kind} is not on {platform}; write {fits}, or remove the fabric"


def _check_object_names(parts: Parts) -> Iterator[Finding]:
    """Names here become names of objects, which may not end in - and are shorter."""
    cluster = parts.name or ""
    if len(cluster) > MAX_OBJECT_NAME or cluster.endswith("-"):
        yield ("name",), f"{cluster!r} has to be at most {MAX_OBJECT_NAME} long and end in a letter or digit"
    for tag in ("team", "project"):
        if parts.tags is not None and str(getattr(parts.tags, tag)).endswith("-"):
            yield ("tags", tag), f"{getattr(parts.tags, tag)!r} has to end in a letter or digit"
    for kind, names in (("groups", parts.groups), ("applications", parts.applications), ("jobs", parts.jobs)):
        for name in names:
            room = MAX_OBJECT_NAME - len(cluster) - 1
            if name.endswith("-") or len(name) > max(1, room):
                yield (
                    (kind, name),
                    f"{name!r} has to end in a letter or digit, and be at most {MAX_OBJECT_NAME} long "
                    f"together with the cluster's name and a dash",
                )
    for name, group in parts.groups.items():
        for volume in group.volumes:
            if volume.endswith("-") or len(volume) > MAX_OBJECT_NAME:
                yield (
                    ("groups", name, "volumes", volume),
                    f"{volume!r} has to end in a letter or digit, and be at most {MAX_OBJECT_NAME} long",
                )
