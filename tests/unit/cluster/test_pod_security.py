"""Kubernetes' restricted standard, and a root file system that nobody writes to, for every pod of every example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heliostat.cluster.manifests import render
from heliostat.definition import load

CLUSTERS = Path(__file__).parents[3] / "cluster"
EXAMPLES = ("aws", "aws-staging", "gcp", "azure", "onprem")


def pods(name: str) -> Iterator[dict[str, Any]]:
    for thing in render(load(CLUSTERS / f"{name}.yaml")):
        yield from templates(thing)


def templates(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for entry in value.values():
            yield from templates(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from templates(entry)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_pod_is_restricted(name: str) -> None:
    found = list(pods(name))
    assert len(found) >= 3  # head, a group, the controller
    for pod in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] != 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            # Beyond the standard, for groups with a fabric alone: registered memory has to be locked.
            assert set(context["capabilities"].get("add", ())) <= {"IPC_LOCK"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_must_be_written_to_is_a_volume(name: str) -> None:
    for pod in pods(name):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/var/spool/heliostat"} <= set(mounts)  # noqa: S108
            assert set(mounts.values()) <= volumes
