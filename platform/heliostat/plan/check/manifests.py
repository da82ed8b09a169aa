"""RayCluster, RayService and RayJob manifests, whoever wrote them, as clusters for the rules. No CRD is needed.

What Ray and KubeRay do where a field is left out is followed: the pod's limits stand for what Ray counts, the operator
mounts /dev/shm in RAM, the group's name and Ray's own labels are known without being written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from heliostat.plan.check import cards
from heliostat.plan.check.model import (
    PRODUCTION_WORDS,
    TRIAL_WORDS,
    Cluster,
    Group,
    Head,
    Kind,
    Market,
    ModelUse,
    Role,
    Spot,
    Work,
    words,
)
from heliostat.plan.check.yaml_file import Document, Field
from heliostat.plan.params import shape_of_size
from heliostat.plan.workload import Dtype

ZONES = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
INSTANCES = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
EFA = "vpc.amazonaws.com/efa"
LABEL_TYPE = "ray.io/accelerator-type"
LABEL_MARKET = "ray.io/market-type"
LABEL_ROLE = "heliostat.io/role"
# Labels that Ray gives every node by itself or from its environment.
RAYS_OWN = ("ray.io/",)
SERVING_WORDS = {"serve", "serving", "server", "inference", "infer", "predict"}
TRAINING_WORDS = {"train", "training", "trainer", "trainers", "finetune", "finetuning", "pretrain"}
OWNER_TAGS = {
    "team": ("team", "owner", "squad"),
    "project": ("project", "cost-center", "cost-centre", "costcenter", "cost_center", "product", "application"),
}
EXPOSING = ("LoadBalancer", "NodePort")
# Weights are read from one of these by servers and by hand-written deployments.
WEIGHT_VARIABLES = ("MODEL_PATH", "MODEL_DIR", "MODEL_NAME_OR_PATH", "MODEL_ID", "WEIGHTS_PATH", "CHECKPOINT_PATH")
QUANTISED_WORDS: tuple[tuple[str, Dtype], ...] = (
    ("awq", "int4"),
    ("gptq", "int4"),
    ("int4", "int4"),
    ("w4a16", "int4"),
    ("bitsandbytes", "nf4"),
    ("fp8", "fp8"),
    ("int8", "int8"),
)
SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])")


def is_manifest(document: Document) -> bool:
    return "apiVersion" in document.value and "kind" in document.value


def read_clusters(documents: Sequence[Document]) -> list[tuple[Cluster, Document]]:
    """Every cluster that the documents describe. A RayJob that runs on a cluster of another file has no groups."""
    objects = [item for document in documents for item in _objects(document)]
    found: list[tuple[Cluster, Document]] = []
    for item in objects:
        api, kind = item["apiVersion"].text() or "", item["kind"].text() or ""
        if api.startswith("ray.io/") and kind in ("RayCluster", "RayService", "RayJob", "RayCronJob"):
            found.append((_cluster(item, kind, objects), item.document))
    return found


def _objects(document: Document) -> list[Field]:
    """The document's object, or those of its List."""
    return list(document.root["items"].items()) if document.value.get("kind") == "List" else [document.root]


def _cluster(root: Field, kind: str, objects: Sequence[Field]) -> Cluster:
    spec = root["spec"]
    if kind == "RayCronJob":
        spec, kind = spec["jobTemplate"], "RayJob"
    cluster = {"RayService": spec["rayClusterConfig"], "RayJob": spec["rayClusterSpec"]}.get(kind, spec)
    name = root["metadata"]["name"].text() or kind
    labels = root["metadata"]["labels"].texts()
    role: Role | None = {"RayService": "serving", "RayJob": "training"}.get(kind)  # type: ignore[assignment]
    groups = tuple(_group(item, role, cluster) for item in cluster["workerGroupSpecs"].items())
    known: Kind = kind  # type: ignore[assignment]  # one of the three, see above
    works = _serve_works(spec["serveConfigV2"]) if kind == "RayService" else _job_works(spec, name, kind)
    autoscaled = cluster["enableInTreeAutoscaling"].flag()
    return Cluster(
        name,
        root["metadata"].path,
        known,
        _head(cluster["headGroupSpec"]),
        groups,
        tuple(works),
        autoscaled=autoscaled or not cluster,
        fixed_on_purpose="kueue.x-k8s.io/queue-name" in labels,
        elastic=any(_is_elastic(item) for item in cluster["workerGroupSpecs"].items()),
        ends_with_job=kind == "RayJob" and _ends(spec),
        production=_is_production(root, by_kind=kind == "RayService"),
        fault_tolerant=not cluster or _fault_tolerant(root, cluster),
        auth=not cluster or _auth(cluster),
        exposed=_exposed(cluster["headGroupSpec"], objects, name),
        tags=_tags(root, cluster),
        cpu_scalers=tuple(_cpu_scalers(objects, name)),
        places={
            "autoscaled": cluster["enableInTreeAutoscaling"].path if cluster else spec.path,
            "fault_tolerance": cluster["gcsFaultToleranceOptions"].path,
            "auth": cluster["authOptions"].path,
            "exposed": cluster["headGroupSpec"]["serviceType"].path,
            "end": spec["shutdownAfterJobFinishes"].path,
        },
    )


def _is_elastic(item: Field) -> bool:
    low, high = item["minReplicas"].count(), item["maxReplicas"].count()
    return high is not None and (low or 0) < high


def _ends(spec: Field) -> bool:
    """Whether the cluster goes with its job; a job on a cluster of others leaves nothing."""
    policies = [rule["policy"].text() for rule in spec["deletionStrategy"]["deletionRules"].items()]
    policies += [spec["deletionStrategy"][end]["policy"].text() for end in ("onSuccess", "onFailure")]
    deletes = any(policy in ("DeleteCluster", "DeleteWorkers", "DeleteSelf") for policy in policies)
    return spec["shutdownAfterJobFinishes"].flag() or deletes or not spec["rayClusterSpec"]


def _fault_tolerant(root: Field, cluster: Field) -> bool:
    annotation = root["metadata"]["annotations"]["ray.io/ft-enabled"].text()
    return bool(cluster["gcsFaultToleranceOptions"]) or annotation == "true"


def _auth(cluster: Field) -> bool:
    container = _ray_container(cluster["headGroupSpec"])
    by_environment = _env(container).get("RAY_AUTH_MODE") == "token"
    return cluster["authOptions"]["mode"].text() == "token" or by_environment


def _exposed(head: Field, objects: Sequence[Field], name: str) -> str | None:
    service = head["serviceType"].text()
    if service in EXPOSING:
        return f"serviceType: {service}"
    if head["enableIngress"].flag():
        return "enableIngress: true"
    for item in objects:
        if item["kind"].text() == "Ingress" and f"{name}-head-svc" in json.dumps(item.value, default=str):
            return f"the Ingress {item['metadata']['name'].text()}"
    return None


def _is_production(root: Field, *, by_kind: bool) -> bool:
    """By its name, namespace or environment label; `by_kind`: unless one of these says that it is not."""
    metadata = root["metadata"]
    said = words(metadata["name"].text()) | words(metadata["namespace"].text())
    for key, text in metadata["labels"].texts().items():
        said |= words(text) if key.split("/")[-1].startswith("env") else set()
    return bool(said & PRODUCTION_WORDS) or (by_kind and not said & TRIAL_WORDS)


def _tags(root: Field, cluster: Field) -> frozenset[str]:
    labels = {
        **root["metadata"]["labels"].texts(),
        **root["metadata"]["annotations"].texts(),
        **cluster["headGroupSpec"]["template"]["metadata"]["labels"].texts(),
    }
    keys = {key.split("/")[-1].lower() for key in labels}
    return frozenset(tag for tag, spellings in OWNER_TAGS.items() if keys & set(spellings))


def _cpu_scalers(objects: Sequence[Field], name: str) -> Iterable[Spot]:
    """HorizontalPodAutoscalers and KEDA's ScaledObjects that scale the cluster by CPU."""
    for item in objects:
        spec, kind = item["spec"], item["kind"].text()
        if kind not in ("HorizontalPodAutoscaler", "ScaledObject"):
            continue
        target = spec["scaleTargetRef"]
        scaled = target["name"].text() or ""
        if scaled != name and not scaled.startswith(f"{name}-"):
            continue
        own = item["metadata"]["name"].text() or str(kind)
        scaler = Spot(f"{kind} {own}", "metadata", line=spec.document.line(spec.path))
        for metric in spec["metrics"].items():
            if metric["resource"]["name"].text() == "cpu":
                yield scaler
        if spec["targetCPUUtilizationPercentage"]:
            yield scaler
        for trigger in spec["triggers"].items():
            if trigger["type"].text() == "cpu":
                yield scaler


# --- pods


def _head(head: Field) -> Head:
    container, params = _ray_container(head), head["rayStartParams"]
    gpus, _ = _devices(container)
    told = head["resources"]["GPU"].number() if head["resources"]["GPU"] else params["num-gpus"].number()
    resources = _ray_resources(head, container, gpus)
    place = params["num-gpus"] if told else container["resources"]["limits"]
    return Head(
        "head",
        head.path,
        max(gpus, told or 0) if told != 0 else gpus,
        resources,
        {**head["labels"].texts()},
        container["image"].text(),
        places={"gpus": place.path, "image": container["image"].path},
    )


def _group(item: Field, default: Role | None, cluster: Field) -> Group:
    name = item["groupName"].text() or item.path
    pod, container = item["template"]["spec"], _ray_container(item)
    gpus, device = _devices(container)
    labels, selected = item["labels"].texts() | _label_params(item), _selected(pod)
    limits = container["resources"]["limits"]
    instance = next((values[0] for key in INSTANCES if len(values := selected.get(key, [])) == 1), None)
    problem, shared = _shared_memory(item, pod, container)
    idle = item["idleTimeoutSeconds"] or cluster["autoscalerOptions"]["idleTimeoutSeconds"]
    low = item["minReplicas"].count() if item["minReplicas"] else None
    on_gke = any(key.startswith("cloud.google.com/") for key in selected)
    return Group(
        name,
        item.path,
        role=_role(labels, name) or default,
        market=_market(labels, selected),
        card=_card(labels, selected, instance),
        mig=_part_of_card(device),
        gpus=gpus,
        resources=_ray_resources(item, container, gpus),
        labels=labels,
        labels_complete=True,
        cpus=_asked(container, "cpu"),
        memory_bytes=_asked(container, "memory"),
        instance=instance,
        low=_floor(item, low),
        high=item["maxReplicas"].count() if item["maxReplicas"] else item["replicas"].count(),
        hosts=item["numOfHosts"].count() or 1,
        idle_timeout_s=idle.number(),
        close=_close(pod, selected, limits),
        fabric=_fabric(item, pod, limits),
        fabric_applies=not on_gke,
        efa=_asked(container, EFA) or 0,
        tolerates=bool(list(pod["tolerations"].items())) or "cloud.google.com/gke-accelerator" in selected,
        shared_memory_bytes=shared,
        shared_memory_problem=problem,
        image=container["image"].text(),
        mounts=tuple(m for mount in container["volumeMounts"].items() if (m := mount["mountPath"].text())),
        env=_env(container),
        places={
            "nodes": item["minReplicas" if item["minReplicas"] else "replicas"].path,
            "market": pod["nodeSelector"].path,
            "gpus": limits.path,
            "instance": pod["nodeSelector"].path,
            "tolerations": pod["tolerations"].path,
            "image": container["image"].path,
            "idle": idle.path,
            "shm": pod["volumes"].path,
            "efa": limits[EFA].path,
            "env": container["env"].path,
        },
    )


def _floor(item: Field, low: int | None) -> int:
    return low if low is not None else (item["replicas"].count() or 0)


def _ray_container(group: Field) -> Field:
    """The first one, in which KubeRay starts Ray."""
    containers = group["template"]["spec"]["containers"]
    return next(containers.items(), Field(None, containers.path, containers.document))


def _asked(container: Field, resource: str) -> float | None:
    """The request; the limit where there is none, as Kubernetes has it."""
    for kind in ("requests", "limits"):
        found = container["resources"][kind][resource].number()
        if found is not None:
            return found
    return None


def _devices(container: Field) -> tuple[float, str | None]:
    """How many accelerators the pod asks for, and of which resource."""
    for kind in ("limits", "requests"):
        for key in container["resources"][kind].names():
            count = container["resources"][kind][key].number() or 0
            if cards.is_device(key) and count:
                return count, key
    return 0, None


def _part_of_card(device: str | None) -> str | None:
    """The MIG profile that the resource names, or "shared" for time slices; None for whole cards."""
    if device and device.startswith("nvidia.com/mig-"):
        return device.removeprefix("nvidia.com/mig-")
    return "shared" if device and device.startswith("nvidia.com/gpu.") else None


def _ray_resources(group: Field, container: Field, devices: float) -> dict[str, float]:
    """What Ray counts: the group's resources, over its start parameters, over the pod's limits."""
    params, own = group["rayStartParams"], group["resources"]
    cpus = own["CPU"].number() if own["CPU"] else params["num-cpus"].number()
    if cpus is None:
        limit = container["resources"]["limits"]["cpu"].number() or _asked(container, "cpu")
        cpus = float(-(-limit // 1)) if limit is not None else None
    gpus = own["GPU"].number() if own["GPU"] else params["num-gpus"].number()
    kind = _devices(container)[1] or ""
    if gpus is None:
        gpus = devices if kind.startswith(("nvidia.com/", "amd.com/")) else 0
    found = {"GPU": gpus, **({} if cpus is None else {"CPU": cpus})}
    if kind == "google.com/tpu":
        found["TPU"] = devices
    if kind.startswith("aws.amazon.com/neuron"):
        found["neuron_cores"] = devices * 2
    found |= _custom(params["resources"])
    return found | {key: own[key].number() or 0 for key in own.names() if key not in ("CPU", "GPU")}


def _custom(param: Field) -> dict[str, float]:
    """rayStartParams.resources is JSON within quotes, often twice."""
    text = (param.text() or "").strip().strip("\"'").replace('\\"', '"')
    try:
        found = json.loads(text) if text else {}
        return {str(key): float(value) for key, value in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise param.wrong('JSON in quotes, such as \'"{\\"disk\\": 1}"\'') from error


def _label_params(item: Field) -> dict[str, str]:
    """rayStartParams.labels: a=b,c=d."""
    text = item["rayStartParams"]["labels"].text() or ""
    return dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)


def _selected(pod: Field) -> dict[str, list[str]]:
    """Labels that the nodes must have, each with the values allowed; "!" before those forbidden."""
    found = {key: [text] for key, text in pod["nodeSelector"].texts().items()}
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = list(required["nodeSelectorTerms"].items())
    if len(terms) == 1:  # several are alternatives
        for rule in terms[0]["matchExpressions"].items():
            key, operator = rule["key"].text() or "", rule["operator"].text()
            values = [text for value in rule["values"].items() if (text := value.text()) is not None]
            if operator == "In":
                found.setdefault(key, values)
            elif operator == "NotIn":
                found.setdefault(f"!{key}", values)
    return found


def _market(labels: dict[str, str], selected: dict[str, list[str]]) -> Market | None:
    said = [labels.get(LABEL_MARKET, "")]
    for key in ("karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType"):
        said += selected.get(key, [])
    words = {word.lower().replace("_", "-") for word in said if word}
    if selected.get("cloud.google.com/gke-spot") == ["true"]:
        words.add("spot")
    if selected.get("cloud.google.com/gke-preemptible") == ["true"]:
        words.add("spot")
    if selected.get("kubernetes.azure.com/scalesetpriority") == ["spot"]:
        words.add("spot")
    for key, value in (("cloud.google.com/gke-spot", "true"), ("kubernetes.azure.com/scalesetpriority", "spot")):
        if value in selected.get(f"!{key}", []):
            words.add("on-demand")
    if selected.get("cloud.google.com/gke-spot") == ["false"]:
        words.add("on-demand")
    if words & {"reserved", "capacity-block"}:
        return "reserved"
    if words == {"spot"}:
        return "spot"
    return "on-demand" if words == {"on-demand"} else None


def _card(labels: dict[str, str], selected: dict[str, list[str]], instance: str | None) -> str | None:
    known = cards.instance(instance) if instance else None
    if known and known.accelerator:
        return known.accelerator
    products = {cards.by_product(product) for product in selected.get("nvidia.com/gpu.product", [])}
    for key in ("cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name"):
        products |= {cards.by_cloud_name(name) for name in selected.get(key, [])}
    if len(products) == 1 and None not in products:
        return products.pop()
    return cards.by_ray_type(labels[LABEL_TYPE]) if LABEL_TYPE in labels else None


def _close(pod: Field, selected: dict[str, list[str]], limits: Field) -> bool:
    """One zone by selector or affinity; or a fabric that ends at the zone's wall."""
    if any(len(selected.get(zone, [])) == 1 for zone in ZONES):
        return True
    if any("placement-group" in key or "compact" in key or "topology" in key for key in selected if key not in ZONES):
        return True
    near = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    if any((rule["topologyKey"].text() or "") != "kubernetes.io/hostname" for rule in near.items()):
        return True
    return any(key.startswith(("rdma/", "nvidia.com/rdma", "nvidia.com/hostdev")) for key in limits.names())


def _fabric(item: Field, pod: Field, limits: Field) -> bool:
    networks = any(
        "networks" in key or "interfaces" in key for key in item["template"]["metadata"]["annotations"].names()
    )
    interfaces = (
        EFA,
        "rdma/",
        "nvidia.com/rdma",
        "nvidia.com/hostdev",
        "mellanox.com/",
        "openshift.io/",
    )
    return networks or any(key.startswith(interfaces) for key in limits.names()) or pod["hostNetwork"].flag()


def _shared_memory(item: Field, pod: Field, container: Field) -> tuple[str | None, float | None]:
    """(what is wrong with /dev/shm, its limit in bytes if the file gives one)."""
    mounts = {m["mountPath"].text(): m["name"].text() for m in container["volumeMounts"].items()}
    name = mounts.get("/dev/shm")  # noqa: S108  # a mount point
    if name is None:
        if item["rayStartParams"]["plasma-directory"].text() not in (None, "/dev/shm"):  # noqa: S108
            return "with plasma-directory elsewhere nothing mounts /dev/shm, which is then 64 MiB", None
        return None, None
    volume = next((v for v in pod["volumes"].items() if v["name"].text() == name), None)
    if volume is None or not volume["emptyDir"]:
        return None, None
    if volume["emptyDir"]["medium"].text() != "Memory":
        return f"the volume {name} on /dev/shm lies on disk", None
    return None, volume["emptyDir"]["sizeLimit"].number()


def _env(container: Field) -> dict[str, str]:
    return {
        name: value
        for item in container["env"].items()
        if (name := item["name"].text()) and (value := item["value"].text()) is not None
    }


def _role(labels: dict[str, str], name: str) -> Role | None:
    if labels.get(LABEL_ROLE) in ("serving", "training"):
        return labels[LABEL_ROLE]  # type: ignore[return-value]  # one of the two
    said = words(name)
    if said & SERVING_WORDS and not said & TRAINING_WORDS:
        return "serving"
    return "training" if said & TRAINING_WORDS and not said & SERVING_WORDS else None


# --- work


def _job_works(spec: Field, name: str, kind: str) -> list[Work]:
    """The driver's own requests, and weights on the machine that the environment names."""
    if kind != "RayJob":
        return []
    resources = {
        key: number
        for key, field in (("CPU", "entrypointNumCpus"), ("GPU", "entrypointNumGpus"))
        if (number := spec[field].number())
    }
    resources |= _custom(spec["entrypointResources"])
    variables = spec["runtimeEnvYAML"].embedded()["env_vars"].texts()
    places = {"resources": spec["entrypointNumGpus" if spec["entrypointNumGpus"] else "entrypointResources"].path}
    place = spec["entrypoint"].path
    weights = next((variables[key] for key in WEIGHT_VARIABLES if variables.get(key, "").startswith("/")), None)
    return [Work(name, place, role="training", resources=resources, local_weights=weights, places=places)]


def _serve_works(config: Field) -> list[Work]:
    works: list[Work] = []
    for app in config.embedded()["applications"].items():
        name = app["name"].text() or "default"
        works += _by_environment(app, name)
        works += [_llm(item, name) for item in _inline(app["args"]["llm_configs"])]
        for deployment in app["deployments"].items():
            works.append(_deployment(deployment, name))
    return works


def _by_environment(app: Field, name: str) -> list[Work]:
    """A model that the application's environment names, as hand-written vLLM deployments do."""
    place = app["runtime_env"]["env_vars"]
    env = place.texts()
    model, tensor = env.get("MODEL_ID", ""), env.get("TENSOR_PARALLELISM", "1")
    if not model or not tensor.isdecimal() or env.get("PIPELINE_PARALLELISM", "1") != "1":
        return []
    use = _model(model, Field(None, place.path, place.document), max(1, int(tensor)))
    return [Work(name, app.path, model=use, places={"model": place.path})] if use else []


def _inline(configs: Field) -> list[Field]:
    """Of llm_configs those written here; a text among them is a path to another file."""
    return [item for item in configs.items() if isinstance(item.value, dict)]


def _deployment(deployment: Field, app: str) -> Work:
    options = deployment["ray_actor_options"]
    env = options["runtime_env"]["env_vars"].texts()
    return Work(
        f"{app}/{deployment['name'].text() or 'deployment'}",
        deployment.path,
        resources=_actor(options),
        labels=_wanted_labels(options),
        local_weights=next((env[key] for key in WEIGHT_VARIABLES if env.get(key, "").startswith("/")), None),
        places={"resources": options.path, "weights": options["runtime_env"].path},
    )


def _actor(options: Field) -> dict[str, float]:
    resources = {
        key: number for key, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if (number := options[field].number())
    }
    return resources | {key: options["resources"][key].number() or 0 for key in options["resources"].names()}


def _wanted_labels(options: Field) -> dict[str, str]:
    """Equalities alone."""
    labels = {k: v for k, v in options["label_selector"].texts().items() if not v.startswith(("!", "in("))}
    kind = options["accelerator_type"].text()
    return {**labels, **({LABEL_TYPE: kind} if kind else {})}


def _llm(config: Field, app: str) -> Work:
    """One of ray.serve.llm's llm_configs: a model over tensor_parallel_size GPUs."""
    loading, engine = config["model_loading_config"], config["engine_kwargs"]
    source = loading["model_source"].value if isinstance(loading["model_source"].value, str) else None
    name = source or loading["model_id"].text() or app
    tensor = engine["tensor_parallel_size"].count() or 1
    kind = config["accelerator_type"].text()
    return Work(
        f"{app}/{loading['model_id'].text() or name}",
        config.path,
        resources={"GPU": 1.0} if kind else {},
        labels={LABEL_TYPE: kind} if kind else {},
        model=_model(name, engine, tensor),
        local_weights=name if name.startswith("/") else None,
        places={"resources": config["accelerator_type"].path, "weights": loading.path, "model": loading.path},
    )


def _model(name: str, engine: Field, tensor: int) -> ModelUse | None:
    """From the size that models carry in their names, such as Llama-3.1-8B-Instruct. None where there is none."""
    found = SIZE_IN_NAME.search(name.rsplit("/", 1)[-1])
    if found is None or re.search(r"\d+x\d+b", name.lower()):
        return None
    quantised = (engine["quantization"].text() or name).lower()
    dtype: Dtype = "bf16"
    for word, meant in QUANTISED_WORDS:
        if word in quantised:
            dtype = meant
            break
    shape = shape_of_size(f"{found[1]}B")
    pipeline = engine["pipeline_parallel_size"].count() or 1
    if pipeline > 1:
        return None  # the arithmetic has no pipeline stages for serving
    return ModelUse(name, shape, dtype, engine["max_model_len"].count(), tensor)
