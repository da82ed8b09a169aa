"""Our own definitions as clusters for the rules. What `heliostat.definition` refuses by itself is not asked again."""

from __future__ import annotations

from collections.abc import Mapping

from heliostat.definition import Application, ClusterDefinition, JobSpec, WorkerGroup
from heliostat.plan.check.model import TRIAL_WORDS, Cluster, Group, Head, ModelUse, Work, words
from heliostat.plan.params import ModelShape

# Where a fabric is a field of the group; GKE attaches its own by the machine's type.
FABRIC_PLATFORMS = ("eks-karpenter", "eks", "aks", "on-premises")


def read_definition(definition: ClusterDefinition, models: Mapping[str, ModelShape]) -> Cluster:
    """`models`: the shape of each model that is known, by the name it has in the registry."""
    platform = definition.platform
    groups = tuple(_group(name, group, platform) for name, group in definition.groups.items())
    works = [_application(name, app, definition, models) for name, app in definition.applications.items()]
    works += [_job(name, job) for name, job in definition.jobs.items()]
    return Cluster(
        definition.name,
        "name",
        "definition",
        Head(
            "head",
            "head",
            resources={"CPU": definition.head.cpus},
            image=definition.ray.image,
            places={"image": "ray.image"},
        ),
        groups,
        tuple(works),
        embedded=platform is None,
        production=platform is not None and not (words(definition.name) | words(definition.namespace)) & TRIAL_WORDS,
        fault_tolerant=definition.head.state is not None,
        tags=frozenset({"team", "project"}),
        places={"fault_tolerance": "head"},
    )


def _group(name: str, group: WorkerGroup, platform: str | None) -> Group:
    at = f"groups.{name}"
    efa = group.fabric.interfaces if group.fabric is not None and group.fabric.kind == "efa" else 0
    ib = group.fabric is not None and group.fabric.kind == "infiniband"
    shared = group.shared_memory
    return Group(
        name,
        at,
        role=group.role,
        market=group.market,
        card=group.accelerator,
        mig=group.mig,
        gpus=group.gpus,
        resources={"CPU": group.cpus, group.device.ray_resource: group.gpus * group.device.ray_units},
        labels=_labels(name, group),
        labels_complete=True,
        cpus=group.cpus,
        memory_bytes=group.memory.bytes if group.memory else None,
        instance=group.instance,
        low=group.nodes.low,
        high=group.nodes.high,
        hosts=group.hosts,
        idle_timeout_s=group.idle_timeout.seconds,
        fallback=group.fallback,
        close=group.zone is not None or group.placement == "compact" or ib or platform == "on-premises",
        fabric=group.fabric is not None,
        fabric_applies=platform in FABRIC_PLATFORMS,
        efa=efa,
        shared_memory_bytes=shared.bytes if shared else None,
        places={
            "nodes": f"{at}.nodes",
            "market": f"{at}.market",
            "gpus": f"{at}.gpus",
            "instance": f"{at}.instance",
            "idle": f"{at}.idle_timeout",
            "shm": f"{at}.shared_memory",
            "efa": f"{at}.fabric.interfaces"
            if group.fabric and "interfaces" in group.fabric.model_fields_set
            else f"{at}.fabric",
        },
    )


def _labels(name: str, group: WorkerGroup) -> dict[str, str]:
    kind = {"ray.io/accelerator-type": group.device.ray_type} if group.device.ray_type else {}
    own = {"heliostat.io/group": name, "heliostat.io/role": group.role, "ray.io/market-type": group.market}
    return {**own, **kind}


def _application(name: str, app: Application, definition: ClusterDefinition, models: Mapping[str, ModelShape]) -> Work:
    model = app.model.split("@")[0]
    at = f"applications.{name}"
    return Work(
        name,
        at,
        resources={"GPU": app.gpus_per_replica} if app.gpus_per_replica else {},
        groups=definition.serving_groups(app),
        model=ModelUse(model, models[model], app.dtype) if model in models else None,
        places={"resources": f"{at}.gpus_per_replica", "model": f"{at}.model"},
    )


def _job(name: str, job: JobSpec) -> Work:
    return Work(name, f"jobs.{name}", role="training", groups=(job.group,))
