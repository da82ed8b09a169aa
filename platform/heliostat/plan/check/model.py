"""What the rules look at: a cluster as its file describes it, whatever kind of file that is.

Both our definitions and the RayCluster, RayService and RayJob manifests of others are read into these values. What a
file does not say is None, and no rule guesses at it: it stays silent instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from heliostat.plan.params import ModelShape
from heliostat.plan.workload import Dtype

Kind = Literal["definition", "RayCluster", "RayService", "RayJob"]
Role = Literal["serving", "training"]
Market = Literal["on-demand", "spot", "reserved"]


PRODUCTION_WORDS = {"prod", "production", "prd", "live"}
TRIAL_WORDS = {"staging", "stage", "dev", "devel", "development", "test", "testing", "qa", "sandbox", "demo"}


def words(text: str | None) -> set[str]:
    return set(re.split(r"[^a-z]+", (text or "").lower())) - {""}


@dataclass(frozen=True)
class Spot:
    """Something that stands in the file at `at`; `places` are the paths of its facts, where they are written."""

    name: str
    at: str
    places: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    line: int | None = field(default=None, kw_only=True)
    """Only where it stands in another document of the file than the cluster."""

    def place(self, fact: str) -> str:
        return self.places.get(fact, self.at)


@dataclass(frozen=True)
class Group(Spot):
    """A worker group. Amounts are those of one node (one pod)."""

    role: Role | None = None
    market: Market | None = None
    card: str | None = None
    """The catalogue's name of the accelerator."""
    mig: str | None = None
    gpus: float = 0
    """Devices that the pod asks of Kubernetes, of whatever kind."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What Ray counts on a node: CPU, GPU, and the group's own."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's node labels."""
    labels_complete: bool = False
    """Whether nodes carry no labels but these and Ray's own."""
    cpus: float | None = None
    memory_bytes: float | None = None
    instance: str | None = None
    low: int = 0
    high: int | None = None
    """None: no bound is written."""
    hosts: int = 1
    idle_timeout_s: float | None = None
    fallback: str | None = None
    close: bool = False
    """All nodes in one zone, by selector, affinity or the nature of the machines."""
    fabric: bool = False
    fabric_applies: bool = True
    """False where the platform brings the fabric by means that the file does not show."""
    efa: float = 0
    """EFA interfaces that the pod asks for."""
    tolerates: bool = True
    shared_memory_bytes: float | None = None
    """Limit of /dev/shm, where the file gives one; KubeRay's own is as large as the pod's memory."""
    shared_memory_problem: str | None = None
    image: str | None = None
    mounts: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def many_nodes(self) -> bool:
        return (self.high is None or self.high * self.hosts > 1) if self.hosts == 1 else True


@dataclass(frozen=True)
class Head(Spot):
    gpus: float = 0
    """Devices of the pod, or GPUs that Ray is told of."""
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True)
class ModelUse:
    """A model that work puts onto a GPU, as far as the file, or the caller, says."""

    name: str
    shape: ModelShape
    dtype: Dtype = "bf16"
    context: int | None = None
    tensor: int = 1


@dataclass(frozen=True)
class Work(Spot):
    """An application's deployment, or a job. `resources` are those of one replica, worker or driver."""

    role: Role = "serving"
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label selector, equalities alone; "!" and "in(" selectors are left out."""
    groups: tuple[str, ...] | None = None
    """Where it may run, if the file says so by name."""
    model: ModelUse | None = None
    local_weights: str | None = None
    """A path that the weights are read from, if it is one on the machine."""


@dataclass(frozen=True)
class Cluster(Spot):
    kind: Kind
    head: Head
    groups: tuple[Group, ...] = ()
    works: tuple[Work, ...] = ()
    embedded: bool = False
    """On one machine: what only concerns pods and clouds is not asked."""
    autoscaled: bool = True
    fixed_on_purpose: bool = False
    """A queue such as Kueue admits it whole, so that it must not scale."""
    elastic: bool = False
    """Its groups have room to scale: low below high."""
    ends_with_job: bool = False
    production: bool = False
    fault_tolerant: bool = True
    auth: bool = True
    exposed: str | None = None
    """How the dashboard is reachable from beyond the cluster, if it is."""
    tags: frozenset[str] = frozenset()
    """Of team and project, those that it carries."""
    cpu_scalers: tuple[Spot, ...] = ()
    """What else in the file scales it, by CPU."""

    def group(self, name: str) -> Group | None:
        return next((group for group in self.groups if group.name == name), None)
