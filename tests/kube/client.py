"""What the killed process runs: one command, in a process of its own."""

from __future__ import annotations

import os
import time
from typing import Any

from heliostat.cluster import kubernetes as k8s
from heliostat.cluster.kubernetes.api import Retry


def connect(kubeconfig: str) -> k8s.Api:
    os.environ["KUBECONFIG"] = kubeconfig
    # The stand-in is quick: waits of a real cluster's length would only make the sweep long.
    return k8s.Api.connect(retry=Retry(sleep=lambda seconds: time.sleep(min(seconds, 0.02))))


def apply(kubeconfig: str, objects: list[dict[str, Any]]) -> None:
    api = connect(kubeconfig)
    k8s.apply(api, k8s.plan(api, objects, cluster="llm"))


def remove(kubeconfig: str, objects: list[dict[str, Any]]) -> None:
    api = connect(kubeconfig)
    k8s.remove(api, k8s.plan_removal(api, objects, cluster="llm", with_data=True))
