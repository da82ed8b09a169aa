"""What KubeRay's operator and the scheduler do with a RayCluster, as far as waiting for it can tell."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.kube.machinery import Cluster, Kind, Object, now

NO_GPU = (
    "0/3 nodes are available: 2 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint "
    "{nvidia.com/gpu: present}. preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, "
    "2 No preemption victims found for incoming pod."
)
READY: Object = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def pending(message: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


@dataclass
class KubeRay:
    """`fate` says what becomes of a pod, by group and number within it."""

    cluster: Cluster
    fate: Callable[[str, int], Object] = lambda group, index: READY
    stopping: threading.Event = field(default_factory=threading.Event)

    def step(self) -> None:
        with self.cluster.changed:
            for ray in self.cluster.all(self.cluster.kind("RayCluster")):
                if not ray["metadata"].get("deletionTimestamp"):
                    self._reconcile(ray)

    def _reconcile(self, ray: Object) -> None:
        meta, pods = ray["metadata"], self.cluster.kind("Pod")
        wanted = {f"{meta['name']}-head": ("head", 0)}
        for group in ray["spec"].get("workerGroupSpecs") or []:
            count = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"]) * group["numOfHosts"]
            wanted |= {f"{meta['name']}-{group['groupName']}-{i}": (group["groupName"], i) for i in range(count)}
        ready = True
        for name, (group_name, index) in wanted.items():
            fate = self.fate(group_name, index)
            ready &= fate["phase"] == "Running"

            def become(pod: Object, group_name: str = group_name, fate: Object = fate) -> None:
                kind = "head" if group_name == "head" else "worker"
                pod["metadata"]["labels"] = {
                    "ray.io/cluster": meta["name"],
                    "ray.io/group": "headgroup" if kind == "head" else group_name,
                    "ray.io/node-type": kind,
                }
                pod["metadata"]["ownerReferences"] = [
                    {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": meta["name"], "uid": meta["uid"],
                     "controller": True, "blockOwnerDeletion": True}
                ]  # fmt: skip
                pod["status"] = fate

            self._set(pods, meta["namespace"], name, become)
        for pod in self.cluster.all(pods, meta["namespace"]):
            labels = pod["metadata"].get("labels", {})
            if labels.get("ray.io/cluster") == meta["name"] and pod["metadata"]["name"] not in wanted:
                self.cluster.delete(pods, meta["namespace"], pod["metadata"]["name"], {})
        state = {"observedGeneration": meta["generation"], "conditions": []} | ({"state": "ready"} if ready else {})

        def report(ray: Object) -> None:
            ray["status"] = state

        self._set(self.cluster.kind("RayCluster"), meta["namespace"], meta["name"], report, subresource="status")

    def _set(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], None], **more: str) -> None:
        live = self.cluster.objects.get((kind, namespace, name))
        trial: Object = {"metadata": {}, **({} if live is None else live)}
        trial = {**trial, "metadata": dict(trial["metadata"])}
        change(trial)
        if live is None or any(trial.get(k) != live.get(k) for k in ("status",)):
            self.cluster.update(kind, namespace, name, change, manager="kuberay-operator", **more)


def event(cluster: Cluster, about: Object, reason: str, message: str, *, kind: str = "Warning") -> None:
    """Record an event about an object."""
    meta = about["metadata"]
    name = f"{meta['name']}.{len(cluster.history):x}"

    def write(made: Object) -> None:
        made |= {"type": kind, "reason": reason, "message": message, "lastTimestamp": now(), "count": 1}
        made["involvedObject"] = {"kind": about["kind"], "namespace": meta["namespace"], "name": meta["name"]}

    cluster.update(cluster.kind("Event"), meta["namespace"], name, write, manager="kubelet")


@contextlib.contextmanager
def operating(ray: KubeRay) -> Iterator[KubeRay]:
    def loop() -> None:
        while not ray.stopping.wait(0.02):
            ray.step()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield ray
    finally:
        ray.stopping.set()
        thread.join(timeout=5)
