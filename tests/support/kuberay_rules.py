"""What KubeRay's operator refuses though its schema allows it, as far as our objects could come near it.

Restated from the operator's validation (its master branch of 2026); the operator itself has not been asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = {"RayCluster": 53, "RayService": 47, "RayJob": 47}
_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")


def operator_mistakes(item: dict[str, Any]) -> list[str]:
    kind = item["kind"]
    if kind not in _LONGEST:
        return []
    name, spec = item["metadata"]["name"], item["spec"]
    found = list(_job(spec)) if kind == "RayJob" else []
    if len(name) > _LONGEST[kind] or not _DNS_1035.fullmatch(name):
        found.append(f"name {name}")
    cluster = {"RayCluster": spec, "RayService": spec.get("rayClusterConfig"), "RayJob": spec.get("rayClusterSpec")}[
        kind
    ]
    return [*found, *(_cluster(cluster) if cluster else ())]


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    for group in (head, *workers):
        parameters = group["rayStartParams"]
        if "labels" in parameters:
            yield "labels in rayStartParams"
        if group.get("resources") and any(parameters.get(key) for key in _RESOURCE_PARAMETERS):
            yield "resources in two places"
        if not group["template"]["spec"]["containers"]:
            yield "no container"
        if spec["enableInTreeAutoscaling"] and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "restartPolicy with autoscaler v2"
        if group.get("suspend"):
            yield "suspended group"
    env = {entry["name"] for entry in head["template"]["spec"]["containers"][0]["env"]}
    if "RAY_enable_autoscaler_v2" in env:
        yield "the autoscaler's version in two places, or without an autoscaler"
    if {"REDIS_PASSWORD", "REDIS_USERNAME", "RAY_REDIS_ADDRESS"} & env:
        yield "Redis in the environment"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(map(int, spec.get("rayVersion", "0").split(".")))
        if version < (2, 52, 0):
            yield "a token with an old Ray"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    shared, own = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if bool(shared) == bool(own):
        yield "a job runs on a cluster that is selected, or on one of its own"
    if shared and not shared.get("ray.io/cluster"):
        yield "no cluster's name in the selector"
    if not spec["shutdownAfterJobFinishes"] and spec.get("ttlSecondsAfterFinished"):
        yield "a time to live without an end"
    if spec.get("suspend") and (shared or not spec["shutdownAfterJobFinishes"]):
        yield "suspended"
    if spec["submissionMode"] == "SidecarMode" and shared:
        yield "a sidecar in somebody else's head"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec["backoffLimit"] < 0:
        yield "a count below its least"
    if "deletionStrategy" in spec:
        yield "a feature gate that may be off"
