"""The rendered objects: valid against the schemas of their kinds, and right in what no schema says."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from heliostat.cli.render import as_yaml, chosen
from heliostat.cluster.manifests import ray_jobs, render
from heliostat.cluster.manifests.meta import LABEL_CLUSTER, owner_labels
from heliostat.definition import ClusterDefinition, load
from heliostat.errors import UsageError
from heliostat.settings import Settings
from tests.support.kube_schemas import UNVALIDATED, crd_folder, validate
from tests.support.kuberay_rules import operator_mistakes

ROOT = Path(__file__).parents[3]
EXAMPLES = ("aws", "aws-staging", "gcp", "azure", "onprem")

needs_crds = pytest.mark.skipif(crd_folder() is None, reason="KubeRay's CRDs are not beside this checkout")


def example(name: str) -> ClusterDefinition:
    return load(ROOT / "cluster" / f"{name}.yaml")


def everything(definition: ClusterDefinition) -> list[dict[str, Any]]:
    return [*chosen(definition, "all"), *chosen(definition, "rayservice"), *chosen(definition, "rayjob")]


def one(definition: ClusterDefinition, kind: str, name: str | None = None) -> Any:
    found = [m for m in everything(definition) if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    (item,) = found
    return item


def group(definition: ClusterDefinition, name: str) -> Any:
    specs = one(definition, "RayCluster")["spec"]["workerGroupSpecs"]
    (spec,) = [spec for spec in specs if spec["groupName"] == name]
    return spec


def pod(definition: ClusterDefinition, name: str) -> Any:
    return group(definition, name)["template"]["spec"]


@needs_crds
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_object_is_valid_against_a_named_schema_or_listed_as_unvalidated(name: str) -> None:
    counts: Counter[str] = Counter()
    for item in everything(example(name)):
        verdict = validate(item)
        assert verdict.mistakes == (), (verdict.kind, verdict.mistakes)
        assert (verdict.schema is None) == (verdict.kind in UNVALIDATED), verdict.kind
        assert operator_mistakes(item) == []
        counts[verdict.schema or "unvalidated"] += 1
    print(name, dict(counts))  # noqa: T201  # shown with -s, for the record
    assert counts["KubeRay CRD"] >= 3


@needs_crds
@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(idleTerminationOptions={"timeoutSeconds": 60}),
        lambda spec: spec["upgradeStrategy"].update(type="New"),
        lambda spec: spec["workerGroupSpecs"][0].update(priority="1"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(nodeSelectors={}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(cpu="a"),
    ],
)
def test_the_check_itself_refuses_what_the_api_server_would(spoil: Any) -> None:
    cluster = one(example("aws"), "RayCluster")
    assert validate(cluster).mistakes == ()
    spoil(cluster["spec"])
    assert validate(cluster).mistakes


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_object_names_its_owner_and_so_does_every_pod(name: str) -> None:
    definition = example(name)
    for item in everything(definition):
        assert owner_labels(definition).items() <= item["metadata"]["labels"].items(), item["kind"]
    cluster = one(definition, "RayCluster")["spec"]
    templates = [cluster["headGroupSpec"]["template"]] + [spec["template"] for spec in cluster["workerGroupSpecs"]]
    templates.append(one(definition, "Deployment")["spec"]["template"])
    for template in templates:
        assert owner_labels(definition).items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_two_objects_are_the_same_one(name: str) -> None:
    keys = [(m["apiVersion"], m["kind"], m["metadata"]["name"]) for m in everything(example(name))]
    assert len(keys) == len(set(keys))


def test_serving_on_demand_and_training_on_spot_stand_in_one_cluster() -> None:
    specs = one(example("aws"), "RayCluster")["spec"]["workerGroupSpecs"]
    found = {s["groupName"]: (s["labels"]["heliostat.io/role"], s["labels"]["ray.io/market-type"]) for s in specs}
    assert found["serve"] == ("serving", "on-demand")
    assert found["train-h100"] == ("training", "spot")


def test_autoscaler_v2_is_on_and_its_environment_is_left_to_the_operator() -> None:
    spec = one(example("aws"), "RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    env = {entry["name"] for entry in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    assert "RAY_enable_autoscaler_v2" not in env  # the webhook refuses both
    assert spec["authOptions"] == {"mode": "token", "secretName": "voice-ray-token"}
    assert spec["gcsFaultToleranceOptions"]["backend"] == "redis"


@pytest.mark.parametrize(
    ("name", "group_name", "labels"),
    [
        ("aws", "train-h100", {"karpenter.sh/capacity-type": "spot", "heliostat.io/group": "train-h100"}),
        ("gcp", "train-h100", {"cloud.google.com/compute-class": "voice-train-h100"}),
        ("gcp", "serve-small", {"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}),
        ("azure", "train-a100", {"kubernetes.azure.com/scalesetpriority": "spot"}),
        ("onprem", "train", {"voice.example/pool": "training"}),
    ],
)
def test_pods_select_their_machines_by_the_platforms_own_labels(name: str, group_name: str, labels: Any) -> None:
    assert labels.items() <= pod(example(name), group_name)["nodeSelector"].items()


def test_eks_without_karpenter_selects_managed_groups(tmp_path: Path) -> None:
    text = (ROOT / "cluster" / "aws.yaml").read_text()
    (tmp_path / "aws.yaml").write_text(text)
    over = tmp_path / "eks.yaml"
    over.write_text("extends: aws.yaml\nplatform: eks\nkarpenter: null\n")
    definition = load(over)
    spec = pod(definition, "train-h100")
    assert spec["nodeSelector"]["eks.amazonaws.com/capacityType"] == "SPOT"
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (expression,) = terms[0]["matchExpressions"]
    assert expression["operator"] == "In"
    assert "NVIDIA-H100-80GB-HBM3" in expression["values"]
    assert not any(item["kind"] == "NodePool" for item in render(definition))


def test_azure_pods_off_spot_stay_off_spot_and_those_on_it_tolerate_its_taint() -> None:
    definition = example("azure")
    (term,) = pod(definition, "serve")["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    key = "kubernetes.azure.com/scalesetpriority"
    assert {"key": key, "operator": "NotIn", "values": ["spot"]} in term["matchExpressions"]
    taint = {"key": key, "operator": "Equal", "value": "spot", "effect": "NoSchedule"}
    assert taint in pod(definition, "train-a100")["tolerations"]
    assert taint not in pod(definition, "serve")["tolerations"]


@pytest.mark.parametrize(
    ("name", "group_name", "resource", "count", "ray"),
    [
        ("aws", "train-h100", "nvidia.com/gpu", "8", {"GPU": "8"}),
        ("aws", "train-neuron", "aws.amazon.com/neuron", "16", {"neuron_cores": "32"}),
        ("gcp", "train-tpu", "google.com/tpu", "4", {"TPU": "4"}),
        ("gcp", "serve-small", "nvidia.com/gpu", "1", {"GPU": "1"}),
        ("onprem", "serve", "nvidia.com/mig-1g.10gb", "1", {"GPU": "1"}),
    ],
)
def test_accelerators_have_their_own_resource_names_and_ray_counts_them(
    name: str, group_name: str, resource: str, count: str, ray: dict[str, str]
) -> None:
    spec = group(example(name), group_name)
    amounts = spec["template"]["spec"]["containers"][0]["resources"]
    assert amounts["limits"][resource] == amounts["requests"][resource] == count
    assert ray.items() <= spec["resources"].items()
    # Both at once are refused by the operator.
    assert spec["rayStartParams"] == {}


def test_a_tpu_slice_of_sixteen_chips_is_four_hosts_of_four() -> None:
    assert group(example("gcp"), "train-tpu")["numOfHosts"] == 4


def test_a_training_group_has_its_fabric_huge_pages_and_shared_memory() -> None:
    spec = pod(example("aws"), "train-h100")
    (container,) = spec["containers"]
    limits = container["resources"]["limits"]
    assert (limits["vpc.amazonaws.com/efa"], limits["hugepages-2Mi"]) == ("32", "5120Mi")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "512Gi"}
    assert volumes["data-datasets"]["persistentVolumeClaim"] == {"claimName": "voice-lustre", "readOnly": True}
    assert {"mountPath": "/dev/shm", "name": "shm"} in container["volumeMounts"]  # noqa: S108  # a mount point
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


def test_compact_nodes_are_in_one_zone_and_one_network_block() -> None:
    affinity = pod(example("aws"), "train-h100")["affinity"]["podAffinity"]
    (required,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["topologyKey"] == "topology.kubernetes.io/zone"
    assert required["labelSelector"]["matchLabels"]["heliostat.io/group"] == "train-h100"
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"].startswith("topology.k8s.aws/")


@pytest.mark.parametrize(
    ("name", "group_name", "grace", "usable"),
    [
        ("aws", "train-h100", 120, 110),
        ("gcp", "train-h100", 30, 13),
        ("azure", "train-a100", 30, 25),
        ("azure", "serve", 120, 110),
        ("onprem", "train", 120, 110),
    ],
)
def test_a_pod_leaves_within_the_clouds_notice(name: str, group_name: str, grace: int, usable: int) -> None:
    spec = pod(example(name), group_name)
    assert spec["terminationGracePeriodSeconds"] == grace
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert f"--deadline-remaining-seconds={usable}" in command
    assert usable < grace


def test_the_fence_opens_the_cluster_to_itself_and_a_few_ports_to_others() -> None:
    spec = one(example("aws"), "NetworkPolicy")["spec"]
    assert spec["podSelector"] == {"matchLabels": {LABEL_CLUSTER: "voice"}}
    inside, *others = spec["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": {LABEL_CLUSTER: "voice"}}}]}
    opened = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: [
            port["port"] for port in rule["ports"]
        ]
        for rule in others
    }
    # Neither HAProxy's statistics (8404), nor the replicas' ports (30000 and up), nor GCS.
    assert opened == {"kuberay-operator": [8265, 52365, 8000], "monitoring": [8080, 9101], "web": [8000]}


def test_the_head_is_never_evicted_and_serving_nodes_go_one_at_a_time() -> None:
    budgets = {
        m["metadata"]["name"]: m["spec"]["maxUnavailable"]
        for m in render(example("aws"))
        if m["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {"voice-head": 0, "voice-serve": 1}


def test_the_settings_in_the_config_map_are_settings_and_hold_no_secret() -> None:
    text = one(example("aws"), "ConfigMap")["data"]["settings.json"]
    settings = Settings.model_validate_json(text)
    assert settings.dashboard_url == "http://voice-head-svc.voice.svc:8265"
    assert settings.store.bucket == "acme-voice-models"
    assert settings.store.secret_access_key is None
    assert settings.state_dir is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_secrets_are_named_and_never_made(name: str) -> None:
    assert not any(item["kind"] == "Secret" for item in everything(example(name)))


def test_a_shared_job_runs_on_the_cluster_and_an_own_one_brings_and_ends_its_own() -> None:
    jobs = {item["metadata"]["name"]: item for item in ray_jobs(example("aws"))}
    shared, own = jobs["voice-intent-classifier"]["spec"], jobs["voice-nightly"]
    assert shared["clusterSelector"] == {"ray.io/cluster": "voice"}
    assert "rayClusterSpec" not in shared
    assert not shared["shutdownAfterJobFinishes"]
    assert own["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "voice-training"
    (group_spec,) = own["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group_spec["groupName"] == "train-h100"
    # Kueue admits it whole: no autoscaler, the upper bound from the start.
    assert not own["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert group_spec["replicas"] == group_spec["minReplicas"] == group_spec["maxReplicas"] == 4
    assert own["spec"]["shutdownAfterJobFinishes"]
    assert (own["spec"]["activeDeadlineSeconds"], own["spec"]["backoffLimit"]) == (21600, 2)


def test_a_ray_service_has_the_serving_groups_and_a_configuration_that_serve_takes() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    spec = one(example("aws"), "RayService")["spec"]
    groups = [g["groupName"] for g in spec["rayClusterConfig"]["workerGroupSpecs"]]
    assert groups == ["serve", "serve-spot"]
    config = json.loads(spec["serveConfigV2"])
    schema.ServeDeploySchema.model_validate(config)
    (app,) = config["applications"]
    actor = app["deployments"][0]["ray_actor_options"]
    assert actor["label_selector"] == {"heliostat.io/group": "in(serve-spot, serve)"}


def test_karpenter_starts_what_the_groups_ask_for() -> None:
    definition = example("aws")
    pool = one(definition, "NodePool", "voice-train-h100")["spec"]
    requirements = {entry["key"]: entry["values"] for entry in pool["template"]["spec"]["requirements"]}
    assert requirements == {
        "karpenter.sh/capacity-type": ["spot"],
        "node.kubernetes.io/instance-type": ["p5.48xlarge"],
        "topology.kubernetes.io/zone": ["us-east-1a"],
    }
    assert pool["limits"] == {"nvidia.com/gpu": "32"}
    assert pool["template"]["spec"]["taints"] == [{"key": "voice/training", "effect": "NoSchedule"}]
    assert one(definition, "EC2NodeClass", "voice-train-h100")["spec"]["instanceStorePolicy"] == "RAID0"
    spot = one(definition, "NodePool", "voice-serve-spot")["spec"]["template"]["spec"]["requirements"]
    assert {"key": "karpenter.k8s.aws/instance-gpu-name", "operator": "In", "values": ["l4"]} in spot


def test_gke_gets_a_compute_class_for_every_group_that_it_can_provide() -> None:
    definition = example("gcp")
    classes = {m["metadata"]["name"]: m["spec"] for m in render(definition) if m["kind"] == "ComputeClass"}
    assert set(classes) == {"voice-serve", "voice-train-h100", "voice-train-tpu"}  # MIG parts are a pool's own
    (rule,) = classes["voice-train-h100"]["priorities"]
    assert rule == {
        "machineType": "a3-highgpu-8g",
        "gpu": {"type": "nvidia-h100-80gb", "count": 8},
        "spot": True,
        "location": {"zones": ["us-central1-a"]},
    }
    (slice_rule,) = classes["voice-train-tpu"]["priorities"]
    assert slice_rule["tpu"] == {"type": "tpu-v6e-slice", "count": 4, "topology": "4x4"}
    assert slice_rule["reservations"]["specific"] == [{"name": "voice-v6e"}]


def test_a_budget_is_a_quota_and_two_alerts() -> None:
    definition = example("aws")
    hard = one(definition, "ResourceQuota")["spec"]["hard"]
    assert hard == {"requests.nvidia.com/gpu": "64", "requests.aws.amazon.com/neuron": "64"}
    rules = one(definition, "PrometheusRule")["spec"]["groups"][0]["rules"]
    limits = {rule["alert"]: rule["expr"].rsplit("> ", 1)[1] for rule in rules if "GpuHours" in rule["alert"]}
    assert limits == {"HeliostatGpuHoursNearlySpent": "6400", "HeliostatGpuHoursSpent": "8000"}


def test_the_order_is_one_that_can_be_applied() -> None:
    kinds = [item["kind"] for item in render(example("aws"))]
    for earlier, later in (("ServiceAccount", "RayCluster"), ("ConfigMap", "RayCluster"), ("EC2NodeClass", "NodePool")):
        assert kinds.index(earlier) < kinds.index(later)


def test_a_definition_without_a_platform_is_not_rendered() -> None:
    with pytest.raises(UsageError, match="names no platform"):
        render(example("laptop"))


def test_an_unknown_kind_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="raycluster"):
        chosen(example("aws"), "raycloud")


def test_the_yaml_is_read_back_as_what_was_rendered_and_has_no_anchors() -> None:
    from ruamel.yaml import YAML

    objects = everything(example("aws"))
    text = as_yaml(objects)
    assert "&id" not in text
    assert list(YAML(typ="safe").load_all(text)) == objects


def test_ray_takes_the_labels_that_the_operator_passes_on() -> None:
    labels = pytest.importorskip("ray._private.label_utils", reason="ray is not installed")
    for name in EXAMPLES:
        for spec in one(example(name), "RayCluster")["spec"]["workerGroupSpecs"]:
            line = ",".join(f"{key}={value}" for key, value in spec["labels"].items())
            assert labels.parse_node_labels_string(line) == spec["labels"]


def test_the_command_that_a_leaving_pod_runs_is_one_that_ray_and_bash_know(tmp_path: Path) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="ray is not installed")
    (container,) = pod(example("aws"), "train-h100")["containers"]
    shell, flag, command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("/bin/bash", "-c")
    words = shlex.split(command.partition("&&")[0])
    known = {option for parameter in scripts.drain_node.params for option in parameter.opts}
    assert words[:2] == ["ray", "drain-node"]
    assert {word.partition("=")[0] for word in words[2:]} <= known
    # A ray that fails, or that is not there any more, does not hold the pod up.
    empty = {"PATH": "/usr/bin:/bin", "RAY_ADDRESS": "127.0.0.1:1"}
    (tmp_path / "ray").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "ray").chmod(0o755)
    done = subprocess.run(
        [shell, flag, command], env={**empty, "PATH": f"{tmp_path}:{empty['PATH']}"}, timeout=30, check=False
    )
    assert done.returncode == 0
