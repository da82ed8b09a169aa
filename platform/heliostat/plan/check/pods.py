"""Rules on the pods of head and groups: what they ask for, what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from heliostat.plan.catalogue import GIB
from heliostat.plan.check import cards
from heliostat.plan.check.model import Cluster, Group, Head, Work
from heliostat.plan.check.rule import Hit, Rule

LEAST_SHM_PER_GPU = GIB
MOVING_TAGS = ("latest", "nightly", "main", "master", "dev", "edge")


def _untainted(cluster: Cluster) -> Iterator[Hit]:
    for group in cluster.groups:
        if group.gpus and not group.tolerates and not cluster.embedded:
            yield Hit(
                group.place("tolerations"),
                f"GPU group {group.name} tolerates no taint: its nodes stand open to every pod, or it cannot use them",
                "taint the GPU nodes (nvidia.com/gpu:NoSchedule) and tolerate that in the group's pods",
            )


def _shared_memory(cluster: Cluster) -> Iterator[Hit]:
    for group in cluster.groups:
        if not group.gpus or (group.role != "training" and group.gpus < 2):
            continue
        limit = group.shared_memory_bytes
        if group.shared_memory_problem:
            yield Hit(
                group.place("shm"),
                f"group {group.name}: {group.shared_memory_problem}",
                "mount an emptyDir with medium: Memory on /dev/shm, or leave /dev/shm to KubeRay",
            )
        elif limit is not None and limit < LEAST_SHM_PER_GPU * group.gpus:
            yield Hit(
                group.place("shm"),
                f"group {group.name}: {limit / GIB:.3g} GiB of shared memory for {group.gpus:g} GPU"
                f"{'s' * (group.gpus > 1)}",
                f"give it {group.gpus:g} GiB or more; half of the pod's memory is usual",
            )


def _head_gpus(cluster: Cluster) -> Iterator[Hit]:
    if cluster.head.gpus:
        yield Hit(
            cluster.head.place("gpus"),
            f"the head has {cluster.head.gpus:g} GPU{'s' * (cluster.head.gpus > 1)}, so that work is placed on it",
            'take the GPUs out of its pod and write rayStartParams.num-gpus: "0"; GPUs belong to worker groups',
        )


def _moving_image(cluster: Cluster) -> Iterator[Hit]:
    seen: set[str] = set()
    owners: list[Head | Group] = [cluster.head, *cluster.groups]
    for owner in owners:
        if owner.image is None or owner.image in seen:
            continue
        seen.add(owner.image)
        tag = owner.image.rsplit("/", 1)[-1].partition(":")[2]
        if "@sha256:" not in owner.image and (not tag or tag in MOVING_TAGS):
            yield Hit(
                owner.place("image"),
                f"the image {owner.image} has {f'the tag {tag}, which moves' if tag else 'no tag, which means latest'}",
                "name a version or a digest",
            )


def _mismatch(cluster: Cluster) -> Iterator[Hit]:
    for group in cluster.groups:
        told = group.resources.get("GPU", 0)
        if group.gpus and told > group.gpus and not cluster.embedded and cluster.kind != "definition":
            yield Hit(
                group.place("gpus"),
                f"group {group.name} tells Ray of {told:g} GPUs and its pod has {group.gpus:g}",
                "leave num-gpus out: Ray reads the pod's limits",
            )
        if not group.gpus and told and not cluster.embedded and cluster.kind != "definition":
            yield Hit(
                group.place("gpus"),
                f"group {group.name} tells Ray of {told:g} GPUs and its pod asks for none",
                "add nvidia.com/gpu to the pod's limits, or remove num-gpus",
            )
        if group.instance:
            yield from _against_instance(group, group.instance)


def _against_instance(group: Group, name: str) -> Iterator[Hit]:
    known = cards.instance(name)
    if known is None:
        return
    whole = group.mig is None
    if group.gpus and whole and not known.accelerator:
        yield Hit(group.place("instance"), f"group {group.name} asks for GPUs, and {name} has none", "name another one")
    elif whole and group.gpus > max(known.accelerators, 1):
        yield Hit(
            group.place("gpus"),
            f"group {group.name} asks for {group.gpus:g} GPUs, and {name} has {known.accelerators:g}",
            f"write {known.accelerators:g}, or name a larger instance",
        )
    elif group.gpus == 0 and known.accelerators >= 1:
        yield Hit(
            group.place("gpus"),
            f"group {group.name} takes {name} and asks for none of its {known.accelerators:g} x {known.accelerator}",
            "ask for them, or name an instance without GPUs",
        )
    elif whole and 0 < group.gpus < known.accelerators:
        yield Hit(
            group.place("gpus"),
            f"group {group.name} asks for {group.gpus:g} of the {known.accelerators:g} GPUs of {name}",
            f"ask for all {known.accelerators:g}, or name a smaller instance, unless other pods take the rest",
            severity="warning",
        )
    if group.card and known.accelerator and group.card != known.accelerator and group.gpus:
        yield Hit(
            group.place("instance"),
            f"group {group.name} wants {group.card}, and {name} has {known.accelerator}",
            "correct one of the two",
        )
    if group.cpus and known.vcpus and group.cpus > known.vcpus:
        yield Hit(
            group.place("gpus"),
            f"group {group.name} asks for {group.cpus:g} CPUs, and {name} has {known.vcpus}",
            f"write {known.vcpus - max(1, round(known.vcpus * 0.06))} or less: the node's own daemons need some",
        )
    if group.memory_bytes and known.memory_gib and group.memory_bytes > known.memory_gib * GIB:
        yield Hit(
            group.place("gpus"),
            f"group {group.name} asks for {group.memory_bytes / GIB:.0f} GiB, and {name} has {known.memory_gib:g}",
            f"write {known.memory_gib * 0.9:.0f}GiB or less: the node's own daemons need some",
        )

    if group.efa and known.cloud == "aws" and group.efa > known.efa_interfaces:
        has = f"{known.efa_interfaces}" if known.efa_interfaces else "none"
        yield Hit(
            group.place("efa"),
            f"group {group.name} asks for {group.efa:g} EFA interfaces, and {name} has {has}",
            f"write {has}" if known.efa_interfaces else "take the fabric out, or name an instance with EFA",
        )


def _never_fits(cluster: Cluster) -> Iterator[Hit]:
    """Work that no node of any group could take, however many there were. Without groups nothing is known of them."""
    if not cluster.groups:
        return
    for work in cluster.works:
        groups = [g for g in cluster.groups if (work.groups is None or g.name in work.groups) and g.high != 0]
        places: list[Head | Group] = [*groups, *([cluster.head] if work.groups is None else [])]
        if why := _why_none(work, places):
            yield Hit(work.place("resources"), f"{work.name} {why}", "ask for less, or add a group that has it")


def _why_none(work: Work, places: list[Head | Group]) -> str | None:
    for key, value in work.labels.items():
        if key.startswith("ray.io/") and key != "ray.io/accelerator-type" and key != "ray.io/market-type":
            continue  # Ray's own labels are known when the node runs
        known = [place for place in places if _may_carry(place, key, value)]
        if not known:
            return f"selects nodes labelled {key}={value}, which no group has"
        places = known
    for resource, amount in work.resources.items():
        if all(place.resources.get(resource, _unknown(place, resource)) < amount for place in places):
            most = max((place.resources.get(resource, 0) for place in places), default=0)
            return f"asks for {amount:g} {resource}, and no node has more than {most:g}"
    if not any(_holds(place, work.resources) for place in places):
        asked = ", ".join(f"{amount:g} {resource}" for resource, amount in work.resources.items())
        return f"asks for {asked}, which no single node has together"
    return None


def _may_carry(place: Head | Group, key: str, value: str) -> bool:
    if key in place.labels:
        return place.labels[key] == value
    if key == "ray.io/accelerator-type":
        card = place.card if isinstance(place, Group) else None
        own = cards.ray_type_of(card)
        # A100-80G is what Ray calls a size of the A100; nodes are labelled with the plain name.
        return isinstance(place, Group) and place.gpus > 0 and (own is None or own == value)
    return key == "ray.io/market-type" and isinstance(place, Group) and place.market in (None, value)


def _unknown(place: Head | Group, resource: str) -> float:
    """A pod without a CPU limit: Ray counts the machine's. Memory and the object store are Ray's own affair."""
    if resource == "CPU":
        return float("inf") if "CPU" not in place.resources else 0
    return float("inf") if resource in ("memory", "object_store_memory") or resource.startswith("node:") else 0


def _holds(place: Head | Group, wanted: Mapping[str, float]) -> bool:
    return all(place.resources.get(key, _unknown(place, key)) >= amount for key, amount in wanted.items())


def _weights_in_image(cluster: Cluster) -> Iterator[Hit]:
    mounts = [mount for group in cluster.groups for mount in group.mounts]
    for work in cluster.works:
        if work.local_weights and not _is_mounted(work.local_weights, mounts):
            yield _in_image(work.place("weights"), work.name, work.local_weights)
    for group in cluster.groups:
        for name in ("MODEL_PATH", "MODEL_DIR", "MODEL_NAME_OR_PATH", "WEIGHTS_PATH"):
            path = group.env.get(name, "")
            if path.startswith("/") and not _is_mounted(path, list(group.mounts)):
                yield _in_image(group.place("env"), f"group {group.name}", path)


def _in_image(at: str, who: str, path: str) -> Hit:
    return Hit(
        at,
        f"{who} reads its weights from {path}, where no volume is mounted: they lie in the image, or nowhere",
        "load them from an object store or a model registry at start, or mount a volume with them",
    )


def _is_mounted(path: str, mounts: list[str]) -> bool:
    return any(path == mount or path.startswith(mount.rstrip("/") + "/") for mount in mounts)


RULES = (
    Rule(
        "gpu-group-untainted",
        "warning",
        "GPU group without taints and tolerations",
        "Without a taint any pod of the Kubernetes cluster may be placed on a GPU machine and keep it from being "
        "ended. GPU node pools are tainted for that, and pods that tolerate nothing never reach them.",
        "Taint the nodes, tolerate the taint in the group. GKE adds the toleration by itself.",
        _untainted,
    ),
    Rule(
        "small-shared-memory",
        "warning",
        "Missing shared memory for NCCL and data loaders",
        "NCCL and PyTorch's data loaders exchange through /dev/shm. A container's own is 64 MiB; KubeRay mounts one as "
        "large as the pod's memory, unless the pod brings a mount of its own that is too small or not in RAM.",
        "An emptyDir with medium: Memory on /dev/shm, at least 1 GiB for each GPU; or none, and KubeRay's is used.",
        _shared_memory,
    ),
    Rule(
        "head-takes-gpu-work",
        "error",
        "Head that takes GPU work",
        "The head holds the state of the whole cluster. Work placed on it can starve or kill it, and with it every "
        "job and every application; its GPU is paid for as long as the cluster lives.",
        "No GPUs for the head; work goes to worker groups.",
        _head_gpus,
    ),
    Rule(
        "moving-image-tag",
        "warning",
        "Image tag that moves",
        "The same manifest then means another program tomorrow. Nodes that start later run other code than those that "
        "run, and a rollback has nothing to go back to.",
        "A version or a digest; head and workers the same one.",
        _moving_image,
    ),
    Rule(
        "pod-not-on-instance",
        "error",
        "Resources that do not match the instance",
        "A pod that asks for more than its machine has waits for ever. One that asks for a part of the GPUs leaves "
        "the rest paid and idle. One that tells Ray of GPUs that it lacks fails when they are used.",
        "Ask for all GPUs of the machine, and for its CPUs and memory less what the node's daemons need.",
        _mismatch,
    ),
    Rule(
        "request-never-fits",
        "error",
        "Request that no group can ever satisfy",
        "Ray waits without end and without an error for a node that could take it.",
        "Ask for what one node of some group has; see its resources and labels.",
        _never_fits,
    ),
    Rule(
        "weights-in-image",
        "warning",
        "Weights in the image",
        "Gigabytes of weights in an image are pulled with every new node before anything runs, and a new version of "
        "the model is a new image.",
        "Weights come from a store, to the machine's disk or straight into memory.",
        _weights_in_image,
    ),
)
