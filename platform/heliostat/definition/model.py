"""The parts of a cluster definition, as types. What each field becomes is in `docs/definition.md`, made from the code.

Types are strict: "4" is not a number. So the JSON Schema made from them refuses nothing that they take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from heliostat.definition.accelerators import ACCELERATORS, UNNAMED, Accelerator, check_accelerator
from heliostat.errors import UsageError
from heliostat.names import PublicKey, check_name
from heliostat.units import Bytes, CountRange, Duration

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"

Name = Annotated[
    str, AfterValidator(check_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN, "minLength": 1})
]
AcceleratorName = Annotated[
    str, AfterValidator(check_accelerator), WithJsonSchema({"type": "string", "enum": list(ACCELERATORS)})
]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""The name of a Kubernetes object that somebody else made."""
Selector = dict[Annotated[str, Field(pattern=LABEL_KEY)], Annotated[str, Field(pattern=LABEL_VALUE)]]
Zone = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
InstanceType = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
_DAYS = "(Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
QUIET_HOURS = rf"^{_DAYS}(-{_DAYS})?( {_CLOCK}-{_CLOCK})?$"
EXEMPT = r"^((team|project):)?[A-Za-z0-9][A-Za-z0-9._-]{0,120}$"


def check_day(text: str) -> str:
    """`text` if it is a day of the calendar, written 2026-12-31. Raises UsageError."""
    try:
        date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no day", do="write it as 2026-12-31") from None
    return text


Day = Annotated[
    str,
    Field(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"),
    AfterValidator(check_day),
]
Port = Annotated[int, Field(ge=1024, le=65535)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
PlatformName = Literal["eks-karpenter", "eks", "gke", "aks", "on-premises"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class RaySoftware(Part):
    version: str = Field(default="2.60.0", pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    """Ray's version in the image; token authentication needs 2.52 or later."""
    image: str | None = Field(
        default=None,
        examples=["registry.example/heliostat:0.3.0"],
        pattern=r"^[^\s@]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$",
    )
    """Container image of head, workers and controller, with Heliostat and the recipes in it; by tag or digest."""
    pull_secret: ObjectName | None = None
    """Secret with the registry's credentials."""


class HeadState(Part):
    """Where the head keeps its state, so that a new head finds the workers running. Without it they restart too."""

    redis: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[0-9]{2,5}$")
    """host:port of a Redis that survives the head."""
    password_secret: ObjectName | None = None
    """Secret whose key redis-password is the password."""


class Head(Part):
    cpus: int = Field(default=2, ge=1)
    """CPUs of the head; it never takes GPU work."""
    memory: Bytes = Bytes.parse("8GiB")
    """Memory of the head's pod."""
    instance: InstanceType | None = None
    """Instance type of the head's node; any on-demand one otherwise."""
    state: HeadState | None = None
    """GCS fault tolerance."""


class Taint(Part):
    """A taint of the group's nodes. The group's pods tolerate it."""

    key: str = Field(pattern=LABEL_KEY)
    value: str = Field(default="", pattern=LABEL_VALUE)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Toleration(Part):
    """A taint that nodes carry anyway and the group's pods accept, whatever its value."""

    key: str = Field(pattern=LABEL_KEY)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Every effect, if none is given."""


class Fabric(Part):
    """The network between the nodes of a training group."""

    kind: Literal["efa", "infiniband"]
    """efa on EKS, infiniband on AKS and on machines of one's own."""
    interfaces: int = Field(default=1, ge=1, le=64)
    """Per node."""
    resource: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Extended resource of one interface; vpc.amazonaws.com/efa or rdma/rdma_shared_device_a, if none is given."""
    gbytes_per_s: float | None = Field(default=None, gt=0, le=10_000)
    """GB/s that two nodes should reach with each other; reckoned from kind and interfaces, if none is given."""
    check: Literal["refuse", "warn", "off"] = "warn"
    """Before training, pairs of nodes are measured; far below what they should reach, it refuses or warns."""


class Volume(Part):
    mount: str = Field(pattern=r"^/[A-Za-z0-9._/-]+$")
    """Where the pods see it."""
    kind: Literal["local-nvme", "memory", "claim"]
    """local-nvme: the node's own disks, empty at first. memory: RAM. claim: a file system that exists already."""
    size: Bytes | None = None
    """Limit of a local-nvme or memory volume."""
    claim: ObjectName | None = None
    """PersistentVolumeClaim of a claim volume, such as a Lustre file system with datasets."""
    read_only: bool = False
    """Of a claim volume."""


class WorkerGroup(Part):
    """Nodes of one kind, between `nodes.low` and `nodes.high` of them as work asks for it."""

    role: Literal["serving", "training"]
    """What the group is for; a node label that work selects by."""
    market: Literal["on-demand", "spot", "reserved"]
    """How its machines are bought. Spot goes with a notice; serving on spot needs a fallback."""
    instance: InstanceType | None = None
    """The cloud's instance type. Or give the accelerator, and let the cloud find a machine with it."""
    accelerator: AcceleratorName | None = None
    """Kind of the accelerator; becomes Ray's label ray.io/accelerator-type."""
    cpus: int = Field(ge=1)
    """Per node. On Kubernetes less than the machine has: its own daemons need some."""
    memory: Bytes | None = None
    """Memory per pod; needed on Kubernetes."""
    gpus: int = Field(ge=0, le=64)
    """Accelerators per node: GPUs, MIG slices, Neuron or TPU chips. Logical on an embedded cluster without any."""
    mig: str | None = Field(default=None, pattern=r"^[1-7]g\.[0-9]{1,3}gb$")
    """MIG profile; `gpus` then counts its slices."""
    topology: str | None = Field(default=None, pattern=r"^[1-9][0-9]?x[1-9][0-9]?(x[1-9][0-9]?)?$")
    """Of a TPU slice, such as 2x4. `nodes` then counts slices, each of as many hosts as the topology needs."""
    nodes: CountRange
    """How many at least and at most; the autoscaler keeps between them."""
    idle_timeout: Duration = Duration.parse("60s")
    """A node without work for this long is ended."""
    zone: Zone | None = None
    """Any, if none is given."""
    placement: Literal["any", "compact", "spread"] = "any"
    """compact: all nodes close together, for collectives. spread: over zones, for serving."""
    fabric: Fabric | None = None
    fallback: str | None = None
    """The on-demand group that takes over a spot group's work; required for serving."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Of several groups that suit, the autoscaler starts nodes of the highest."""
    reservation: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")
    """The capacity reservation of a reserved group."""
    taints: tuple[Taint, ...] = Field(default=(), strict=False)
    tolerations: tuple[Toleration, ...] = Field(default=(), strict=False)
    node_selector: Selector = Field(default_factory=dict)
    """Further labels that the nodes must have."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm, which data loaders and NCCL use; half of the memory for training, if none is given."""
    volumes: dict[Name, Volume] = Field(default_factory=dict)

    @property
    def device(self) -> Accelerator:
        return ACCELERATORS[self.accelerator] if self.accelerator else UNNAMED

    @property
    def hosts(self) -> int:
        """Machines behind one of `nodes`: more than one for a TPU slice over several hosts."""
        if self.topology is None or self.gpus == 0:
            return 1
        chips = 1
        for side in self.topology.split("x"):
            chips *= int(side)
        return max(1, chips // self.gpus)

    @property
    def workers(self) -> int:
        """Of a training, that one of its nodes takes: one for each GPU."""
        return max(1, self.gpus)


class GateRules(Part):
    """What a version must show before it goes to production."""

    min_accuracy: Share = 0.0
    min_macro_f1: Share = 0.0
    max_drop: Share = 0.0
    """How much worse than the version in production it may be, in either metric."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """With which that must be shown, where both were scored on the same examples; else their metrics are compared."""
    slices: dict[str, Share] = Field(default_factory=dict)
    """Least accuracy on parts of the held-out examples, by their names."""
    max_slice_drop: Share | None = None
    """How much worse than the version in production it may be on any such part, with the same confidence."""
    max_size: Bytes | None = None
    """Of all its files together."""
    licences: tuple[str, ...] = Field(default=(), strict=False)
    """Those that are allowed; all, if none is named."""
    whole_lineage: bool = False
    """Job, code version and dataset must be known."""


class ReleaseRules(Part):
    """How a version takes over from the one before, and what sends it back."""

    shadow: Share = 0.5
    """Share of the requests that a new version is given as well before it answers any; what it says is compared."""
    canary: Share = 0.2
    """Share of the requests that it answers before it gets all."""
    requests: int = Field(default=20, ge=1)
    """Requests that each of the two stages takes; five times as many prove it when it has all."""
    patience: Duration = Duration.parse("30s")
    """A stage that has not seen as many by then ends with those that came; at once where none come."""
    max_error_rate: Share = 0.01
    """Of the requests that the version before could answer."""
    max_latency_ratio: float = Field(default=3.0, gt=1)
    """Its median latency to that of the version before."""
    max_disagreement: Share = 0.5
    """Answers that differ from those of the version before: labels, or vectors that point elsewhere."""


class Retrain(Part):
    """When an application goes the way from training to live by itself: train, publish, judge, release."""

    every: Duration | None = None
    """So long after the last time began."""
    dataset: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
    """Key of an object in the store: each time that it is written anew."""
    arguments: tuple[str, ...] = Field(default=(), strict=False)
    """Of the job that publishes the application's model."""


class Application(Part):
    recipe: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", examples=["serve_apps.intent_classifier:IntentClassifierApp"]
    )
    """module:Class of a serving recipe."""
    model: str = Field(pattern=r"^[a-z][a-z0-9-]*@[a-z][a-z0-9-]*$", examples=["intent-classifier@production"])
    """name@alias; the replicas follow the alias."""
    group: str
    """A serving group."""
    route: str = Field(pattern=r"^/[a-z0-9][a-z0-9/_-]*$", examples=["/intent-classifier"])
    """Path that it answers at."""
    replicas: CountRange
    """While in use. Idle, an application goes to zero."""
    gpus_per_replica: float = Field(default=1.0, ge=0)
    """0.5 puts two replicas onto one GPU."""
    idle_timeout: Duration = Duration.parse("5m")
    """Without a request for this long, it goes to zero replicas."""
    max_queue: Duration = Duration.parse("5s")
    """Seconds of queued work beyond which requests are refused with 429."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 is up to three times as fast where the processor has units for it; served only where the answers agree."""
    keys: tuple[Name, ...] = Field(default=(), strict=False)
    """Names of the API keys that open it; never keys themselves."""
    signed_by: tuple[PublicKey, ...] = Field(default=(), strict=False)
    """Public keys (ed25519:...): a version that none of them has signed is neither released nor loaded."""
    gate: GateRules = GateRules()
    release: ReleaseRules = ReleaseRules()
    retrain: Retrain | None = None


class JobSpec(Part):
    entrypoint: str = Field(min_length=1, examples=["python -m train_jobs.intent_classifier"])
    """The command, run in the folder or image with the recipes."""
    group: str
    """A training group."""
    publishes: Name = Field(examples=["intent-classifier"])
    """The model that its runs become versions of."""
    nodes: int = Field(default=1, ge=1, le=10_000)
    """Nodes that it needs at once: the queue starts it when it can have all of them."""
    gpus: int | None = Field(default=None, ge=1, le=64)
    """Of one node, for a job that needs no whole one: others share the node. All of its nodes', if none is given."""
    team: Name | None = None
    """Whose share of the GPUs it uses; the cluster's own team, if none is given."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Of one team's waiting jobs, the highest goes first."""
    falls_back: bool = False
    """While the spot market has no node for it, train on the group's fallback; it returns at a checkpoint."""
    project: Name | None = None
    """Whose budget its GPU time counts against; the cluster's own project, if none is given."""
    cluster: Literal["shared", "own"] = "shared"
    """As a RayJob: on the running cluster, or on one of its own that ends with it."""
    queue: ObjectName | None = None
    """Kueue LocalQueue that admits the job's own cluster, which then has its group's upper bound of nodes for good."""
    deadline: Duration | None = None
    """From its submission to when the work must be done: the job then moves between its spot group and on_demand."""
    work: Duration | None = None
    """With a deadline: how long the job takes on nodes that nobody takes away; measured once it runs."""
    on_demand: str | None = None
    """With a deadline: the training group, not of spot, that it goes to when the time gets short."""
    time_limit: Duration | None = None
    """A RayJob that runs longer is ended."""
    retries: int = Field(default=0, ge=0, le=100)
    """How often a failed RayJob is submitted again, on top of the losses that training itself survives."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that its workers may be on."""
        return (self.group,) if self.on_demand is None else (self.group, self.on_demand)

    def fallback_among(self, groups: Mapping[str, WorkerGroup]) -> str | None:
        """The group that it may go to while its own has no nodes to be had."""
        return groups[self.group].fallback if self.falls_back and self.group in groups else None

    def groups_among(self, groups: Mapping[str, WorkerGroup]) -> dict[str, WorkerGroup]:
        """Of these, the ones that it may be on, its fallback too."""
        names = {*self.groups, self.fallback_among(groups)}
        return {name: group for name, group in groups.items() if name in names}

    def environment(self) -> dict[str, str]:
        """What its driver is told of it: read by heliostat.train.job."""
        whose = {"HELIOSTAT_TEAM": self.team, "HELIOSTAT_PROJECT": self.project}
        env = {"HELIOSTAT_GROUP": self.group, **{key: value for key, value in whose.items() if value}}
        if self.gpus is not None:
            env["HELIOSTAT_GPUS"] = str(self.gpus)
        if self.deadline is not None and self.work is not None and self.on_demand is not None:
            terms = {"deadline_s": self.deadline.seconds, "work_s": self.work.seconds, "on_demand": self.on_demand}
            env["HELIOSTAT_DEADLINE"] = json.dumps(terms, sort_keys=True)
        return env


class StoreSpec(Part):
    kind: Literal["embedded", "s3"]
    """embedded: a server that comes up with an embedded cluster."""
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", examples=["heliostat"])
    endpoint: str | None = Field(default=None, examples=["https://s3.example"], pattern=r"^https?://[^\s/]+$")
    """Of an S3 that is not AWS's; for kind s3 only."""
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,40}$")
    credentials_secret: ObjectName | None = None
    """Secret whose keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY sign requests. Better: identity."""
    identity: str | None = Field(default=None, pattern=r"^[^\s]{1,200}$")
    """What the pods act as: an IAM role's ARN, a Google service account, an Azure client id."""


class Tags(Part):
    """Whose cluster it is: labels of every object, tags of every cloud instance."""

    team: Name
    project: Name
    cost_centre: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")


class Budget(Part):
    """Of a calendar month in UTC, for all GPU time that a team or a project holds."""

    gpu_hours: float | None = Field(default=None, gt=0)
    usd: float | None = Field(default=None, gt=0)
    """Counts what has a price: groups that name their instance."""
    at_limit: Literal["tell", "refuse", "pause"] = "refuse"
    """refuse: no new jobs. pause: running trainings stop at a saved step too, until there is more. Serving goes on."""


class Budgets(Part):
    max_gpus: int | None = Field(default=None, ge=1)
    """The namespace never holds more accelerators than this: a quota."""
    gpu_hours_per_month: int | None = Field(default=None, ge=1)
    """An alert at 80 % and at 100 % of it, over the last 30 days."""
    teams: dict[Name, Budget] = Field(default_factory=dict)
    projects: dict[Name, Budget] = Field(default_factory=dict)


class WasteRules(Part):
    """What is done about GPUs that are held and do no useful work."""

    after: Duration = Duration.parse("1h")
    """Without a request answered, a step reported or a call made for this long, what is held is waste."""
    act: Literal["tell", "scale-to-zero", "stop"] = "tell"
    """scale-to-zero: idle applications too go to zero. stop: jobs and actors are ended as well, after a warning."""
    warn: Duration = Duration.parse("30m")
    """Between the warning and the stop."""
    dry_run: bool = True
    """Only say what would be done."""
    quiet: tuple[Annotated[str, Field(pattern=QUIET_HOURS)], ...] = Field(default=(), strict=False)
    """Nights and weekends in UTC, such as "Mon-Fri 20:00-06:00" and "Sat-Sun": then ten minutes are long enough."""
    exempt: dict[Annotated[str, Field(pattern=EXEMPT)], Day] = Field(default_factory=dict)
    """What is left alone, until the end of a day: a job, application, actor or group, team:NAME or project:NAME."""


class Sharing(Part):
    """How the queue of jobs divides GPUs between teams."""

    shares: dict[Name, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(default_factory=dict)
    """Weights by team; a team without one has 1."""
    patience: Duration = Duration.parse("5m")
    """A job that waits for longer has free nodes kept for it, and may ask jobs of teams above their share to leave."""


class Auth(Part):
    token_secret: ObjectName | None = None
    """Secret whose key auth_token is Ray's token. The operator makes one for the cluster, if none is given."""


class Network(Part):
    """Who may open connections to the pods. Within the cluster everything may: Ray needs that."""

    fenced: bool = True
    """False leaves every port open, HAProxy's and the replicas' too."""
    clients: tuple[ObjectName, ...] = Field(default=(), strict=False)
    """Namespaces whose pods may call applications."""
    operator_namespace: ObjectName = "kuberay-operator"
    """Where the KubeRay operator runs: it asks the head for the state of jobs."""
    monitoring_namespace: ObjectName = "monitoring"
    """Where Prometheus runs: it reads the metrics ports."""


class Observability(Part):
    metrics: bool = False
    """A PodMonitor, for a cluster with the Prometheus operator."""
    alerts: bool = False
    """A PrometheusRule."""
    interval: Duration = Duration.parse("15s")
    """Between two readings."""
    labels: Selector = Field(default_factory=dict)
    """Labels that the Prometheus of this cluster selects monitors and rules by."""


class ControllerSpec(Part):
    cpus: float = Field(default=0.5, gt=0, le=16)
    memory: Bytes = Bytes.parse("1GiB")


class Karpenter(Part):
    """What Karpenter must know to start instances; for platform eks-karpenter."""

    node_role: str = Field(pattern=r"^[\w+=,.@-]{1,64}$")
    """IAM role of the nodes."""
    discovery: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Value of the tag karpenter.sh/discovery on subnets and security groups."""
    ami: str = Field(default="al2023@latest", pattern=r"^(al2023|bottlerocket)@[a-z0-9.]{1,15}$", max_length=30)


class Ports(Part):
    """Of an embedded cluster, on 127.0.0.1. "auto" takes the usual one, or any free one."""

    dashboard: Port = "auto"
    serve: Port = "auto"
    store: Port = "auto"


class ClusterDefinition(Part):
    name: Name
    """Of the cluster: the name of its objects, or a part of theirs."""
    platform: PlatformName | None = None
    """Where KubeRay runs. Without it, the definition is for an embedded cluster only."""
    namespace: ObjectName = "heliostat"
    """Where the objects go; it has to exist."""
    ray: RaySoftware = RaySoftware()
    head: Head = Head()
    groups: dict[Name, WorkerGroup] = Field(min_length=1)
    store: StoreSpec = Field(examples=[{"kind": "embedded", "bucket": "heliostat"}])
    applications: dict[Name, Application] = Field(default_factory=dict)
    jobs: dict[Name, JobSpec] = Field(default_factory=dict)
    tags: Tags = Field(examples=[{"team": "speech", "project": "voice"}])
    budgets: Budgets = Budgets()
    waste: WasteRules = WasteRules()
    sharing: Sharing = Sharing()
    auth: Auth = Auth()
    network: Network = Network()
    observability: Observability = Observability()
    controller: ControllerSpec = ControllerSpec()
    karpenter: Karpenter | None = None
    ports: Ports = Ports()

    def serving_groups(self, app: Application) -> tuple[str, ...]:
        """The groups that the application's replicas may run on: its own, then that one's fallback."""
        fallback = self.groups[app.group].fallback
        return (app.group, fallback) if fallback else (app.group,)

    def fallback_of(self, job: JobSpec) -> str | None:
        """The group that the job may go to while its own has no nodes to be had."""
        return job.fallback_among(self.groups)

    def workers_a_node(self, job: JobSpec) -> dict[str, int] | None:
        """How many of its workers a node takes, by group that the job may be on; None where each takes one."""
        found = {name: min(group.workers, job.gpus or group.workers) for name, group in self.groups_of(job).items()}
        return found if any(count > 1 for count in found.values()) else None

    def most_workers(self, job: JobSpec) -> dict[str, int]:
        """How many of its workers find room at once on all the nodes of each group that the job may be on."""
        return {name: job.gpus or group.workers * group.nodes.high for name, group in self.groups_of(job).items()}

    def groups_of(self, job: JobSpec) -> dict[str, WorkerGroup]:
        """The groups that the job may be on, its fallback too."""
        return job.groups_among(self.groups)

    def team_of(self, job: JobSpec) -> str:
        return job.team or self.tags.team
