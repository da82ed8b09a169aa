"""Plan, apply, wait and remove against the stand-in API: what is written, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from heliostat.cluster import kubernetes as k8s
from heliostat.cluster.kubernetes import api as api_module
from heliostat.cluster.kubernetes.api import Retry, WriteRaced
from heliostat.cluster.kubernetes.diff import lines
from heliostat.errors import (
    AdmissionRefused,
    ClusterError,
    FieldConflict,
    Forbidden,
    KindMissing,
    KubernetesError,
    NotOurs,
    NotReady,
    UsageError,
)
from tests.kube.kuberay import NO_GPU, READY, KubeRay, event, operating, pending
from tests.kube.machinery import CORE_KINDS, OTHER_KINDS, RAY_KINDS, Cluster, Object, Refusal, status, webhook_denied
from tests.kube.manifests import SECRET_VALUE, find, mixed
from tests.kube.stand_in_api import TOKEN, Fault, StandInApi, running

RAYS = "/apis/ray.io/v1/namespaces/ml/rayclusters"


@pytest.fixture
def server() -> Iterator[StandInApi]:
    with running(StandInApi()) as made:
        yield made


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def api(server: StandInApi, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> k8s.Api:
    """Waits are recorded, and cut to what the stand-in needs to get on."""
    return connect(server, slept, tmp_path, monkeypatch)


def connect(server: StandInApi, slept: list[float], folder: Path, patch: pytest.MonkeyPatch) -> k8s.Api:
    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(min(seconds, 0.02))

    patch.setenv("KUBECONFIG", str(server.kubeconfig(folder)))
    return k8s.Api.connect(retry=Retry(sleep=sleep, draw=lambda low, high: high), timeout_s=(1.0, 1.0))


def bring(api: k8s.Api, objects: list[Object], **options: Any) -> k8s.Plan:
    planned = k8s.plan(api, objects, cluster="llm", **options)
    k8s.apply(api, planned)
    return planned


def verbs(planned: k8s.Plan) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for change in planned.changes:
        told.setdefault(change.verb, []).append(change.ref.kind)
    return told


def text(planned: k8s.Plan) -> str:
    return "\n".join(line for change in planned.changes for line in lines(change))


def by_hand(
    server: StandInApi, kind: str, name: str, change: Callable[[Object], None], manager: str = "kubectl-edit"
) -> None:
    """Somebody else writes, past the server's own faults."""
    namespace = "" if kind == "Namespace" else "ml"
    server.cluster.update(server.cluster.kind(kind), namespace, name, change, manager=manager)


def live(server: StandInApi, kind: str, name: str) -> Object:
    return server.cluster.read(server.cluster.kind(kind), "" if kind == "Namespace" else "ml", name)


def there(server: StandInApi) -> set[tuple[str, str]]:
    return {(kind.kind, name) for kind, _, name in server.cluster.objects if kind.kind not in ("Pod", "Event")}


def eventually(holds: Callable[[], bool], limit_s: float = 5) -> None:
    """What the server does on its own time."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Plan and apply.


def test_a_plan_writes_nothing_and_goes_by_rank(server: StandInApi, api: k8s.Api) -> None:
    planned = k8s.plan(api, mixed(), cluster="llm")
    assert there(server) == set()
    assert verbs(planned) == {
        "create": [
            "Namespace",
            "ServiceAccount",
            "Role",
            "RoleBinding",
            "Secret",
            "ConfigMap",
            "PersistentVolumeClaim",
            "Service",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "RayCluster",
        ]
    }


def test_a_plan_in_a_namespace_that_exists_is_checked_by_the_server_in_full(server: StandInApi, api: k8s.Api) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    planned = k8s.plan(api, mixed(), cluster="llm")
    assert server.count("PATCH", "dryRun=All") == server.count("PATCH") == 10
    assert not any(step.unchecked for step in planned.steps)


def test_in_a_new_namespace_all_is_checked_before_any_of_it_is_written(server: StandInApi, api: k8s.Api) -> None:
    def refuse(verb: str, kind: object, thing: Object) -> None:
        if thing["kind"] == "RayCluster":
            raise webhook_denied("policy.example.com", "no cost centre")

    server.cluster.admission.append(refuse)
    with pytest.raises(AdmissionRefused, match="no cost centre"):
        bring(api, mixed())
    assert there(server) == {("Namespace", "ml")}


def test_the_same_again_has_nothing_to_do(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    version = server.cluster.version
    planned = bring(api, mixed())
    assert planned.pending == 0
    assert server.cluster.version == version


def test_every_object_is_labelled_as_its_clusters(server: StandInApi, api: k8s.Api) -> None:
    bare = mixed()
    for thing in bare:
        thing["metadata"].pop("labels")
    bring(api, bare)
    for kind, name in there(server):
        assert live(server, kind, name)["metadata"]["labels"]["heliostat.io/cluster"] == "llm"


def test_a_diff_names_each_field_with_old_and_new_and_shows_no_secret(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    changed = mixed()
    groups = find(changed, "RayCluster")["spec"]["workerGroupSpecs"]
    groups[1]["maxReplicas"] = 9
    groups.insert(0, {**copy.deepcopy(groups[0]), "groupName": "embed"})
    groups[1]["template"]["spec"]["containers"][0]["env"][0]["value"] = "neither-this"
    find(changed, "Secret")["data"] = {"secret-key": "bmV3", "second": "dHdv"}
    find(changed, "ConfigMap")["data"] = {"region": "eu-west-1"}
    shown = text(k8s.plan(api, changed, cluster="llm"))
    assert "spec.workerGroupSpecs[train].maxReplicas: 8 -> 9" in shown
    assert "spec.workerGroupSpecs[embed]: (absent) -> " in shown
    assert 'data.region: "eu-central-1" -> "eu-west-1"' in shown
    assert 'data.budget: "100" -> (absent)' in shown
    assert "data.secret-key: (hidden) -> (hidden)" in shown
    assert "data.second: (absent) -> (hidden)" in shown
    assert "env[S3_SECRET_KEY].value: (hidden) -> (hidden)" in shown
    assert not any(value in shown for value in (SECRET_VALUE, "bmV3", "dHdv", "do-not-show", "neither-this"))


def test_what_is_no_longer_rendered_goes_and_claims_stay(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    fewer = [thing for thing in mixed() if thing["kind"] not in ("ConfigMap", "PersistentVolumeClaim", "Namespace")]
    planned = bring(api, fewer)
    assert verbs(planned)["delete"] == ["ConfigMap"]
    assert verbs(planned)["keep"] == ["PersistentVolumeClaim", "Namespace"]
    rest = {(thing["kind"], thing["metadata"]["name"]) for thing in mixed() if thing["kind"] != "ConfigMap"}
    eventually(lambda: there(server) == rest)
    bring(api, fewer, with_data=True)
    eventually(lambda: ("PersistentVolumeClaim", "llm-cache") not in there(server))
    assert ("Namespace", "ml") in there(server)


def test_what_only_looks_like_ours_is_not_deleted(server: StandInApi, api: k8s.Api) -> None:
    """Labels are copied by controllers and by people. What we did not apply is not ours."""
    bring(api, mixed())
    labels = mixed()[0]["metadata"]["labels"]
    by_hand(server, "ConfigMap", "copied", lambda thing: thing["metadata"].update(labels=labels))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other", "namespace": "ml"}}
    k8s.apply(api, k8s.plan(api, [other], cluster="embeddings"))
    assert "delete" not in verbs(k8s.plan(api, mixed(), cluster="llm"))
    k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm"))
    assert {("ConfigMap", "copied"), ("ConfigMap", "other")} <= there(server)


def test_an_object_of_that_name_that_is_not_ours_stops_the_plan(server: StandInApi, api: k8s.Api) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    by_hand(server, "ConfigMap", "llm-settings", lambda thing: thing.update(data={"owner": "somebody"}))
    by_hand(server, "Service", "llm-front", lambda _: None)
    with pytest.raises(NotOurs) as caught:
        k8s.plan(api, mixed(), cluster="llm")
    assert "ConfigMap ml/llm-settings exists and is not llm's" in str(caught.value)
    assert "Service ml/llm-front" in str(caught.value)
    assert "--take-over" in caught.value.do
    bring(api, mixed(), take_over=True)
    assert live(server, "ConfigMap", "llm-settings")["data"]["owner"] == "somebody"  # only what we render is taken


def test_another_clusters_object_cannot_be_taken_over(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    mine = mixed()
    for thing in mine:
        thing["metadata"].pop("labels")
    with pytest.raises(NotOurs, match="belongs to the cluster llm, not to other"):
        k8s.plan(api, mine, cluster="other", take_over=True)


def test_a_namespace_that_was_there_is_used_and_never_changed_or_deleted(server: StandInApi, api: k8s.Api) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    before = live(server, "Namespace", "ml")
    assert "used as it is" in text(bring(api, mixed()))
    k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm", with_data=True))
    assert there(server) == {("Namespace", "ml")}
    assert live(server, "Namespace", "ml") == before


def ray_job(name: str = "nightly") -> Object:
    meta = {"name": name, "namespace": "ml", "labels": mixed()[0]["metadata"]["labels"]}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": {"entrypoint": "true"}}


def test_a_part_of_a_cluster_deletes_nothing_of_the_rest(server: StandInApi, api: k8s.Api) -> None:
    """A job is brought in by itself, and stays when the rest is applied again."""
    bring(api, mixed())
    planned = bring(api, [ray_job()])
    assert verbs(planned) == {"create": ["RayJob"]}
    assert "nothing else is deleted" in planned.notes[0]
    assert verbs(bring(api, mixed()))["keep"] == ["RayJob"]
    assert len(there(server)) == 12
    k8s.remove(api, k8s.plan_removal(api, [ray_job()], cluster="llm"))
    assert ("RayJob", "nightly") not in there(server)
    assert len(there(server)) == 11


def node_pool(name: str) -> Object:
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"limits": {"cpu": 8}},
    }


def test_two_clusters_of_one_name_in_two_namespaces_leave_each_others_node_pools_alone(
    slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(StandInApi(Cluster(kinds=CORE_KINDS + RAY_KINDS + OTHER_KINDS))) as server:
        api = connect(server, slept, tmp_path, monkeypatch)
        production = [*mixed(namespace="production"), node_pool("llm-serve"), node_pool("llm-train")]
        bring(api, production)
        staging = [*mixed(namespace="staging"), node_pool("llm-staging")]
        assert "delete" not in verbs(bring(api, staging))
        with pytest.raises(NotOurs, match="cluster of the same name in namespace production"):
            k8s.plan(api, [*staging, node_pool("llm-serve")], cluster="llm")
        k8s.remove(api, k8s.plan_removal(api, staging, cluster="llm", with_data=True))
        assert k8s.plan(api, production, cluster="llm").pending == 0


def test_four_that_apply_at_once_make_one_of_each(server: StandInApi, api: k8s.Api) -> None:
    """Two pipelines at the same moment do no harm: an apply says the whole of what is wanted."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(bring, api, mixed()) for _ in range(4)]:
            done.result()
    assert len(there(server)) == 11
    for kind, name in there(server):
        managers = [entry["manager"] for entry in live(server, kind, name)["metadata"]["managedFields"]]
        assert managers == ["heliostat"]
    assert k8s.plan(api, mixed(), cluster="llm").pending == 0


# Who holds which field.


def test_a_conflict_names_field_and_owner_and_changes_nothing(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    by_hand(server, "ConfigMap", "llm-settings", lambda thing: thing["data"].update(region="us-east-1"))
    by_hand(
        server, "PodDisruptionBudget", "llm-serving", lambda thing: thing["spec"].update(minAvailable=2), "ops-tool"
    )
    changed = mixed()
    find(changed, "Service")["spec"]["ports"][0]["port"] = 9000
    planned = k8s.plan(api, changed, cluster="llm")
    assert 'data.region: "us-east-1" -> "eu-central-1"' in text(planned)
    assert ".data.region: held by kubectl-edit" in text(planned)
    version = server.cluster.version
    with pytest.raises(FieldConflict) as caught:
        k8s.apply(api, planned)
    assert server.cluster.version == version
    assert "2 fields belong to another manager, and nothing was changed" in str(caught.value)
    assert "ConfigMap ml/llm-settings: .data.region is held by kubectl-edit" in str(caught.value)
    assert "PodDisruptionBudget ml/llm-serving: .spec.minAvailable is held by ops-tool" in str(caught.value)
    assert "--take-over" in caught.value.do
    bring(api, changed, take_over=True)
    assert live(server, "ConfigMap", "llm-settings")["data"]["region"] == "eu-central-1"
    assert k8s.plan(api, changed, cluster="llm").pending == 0


def test_a_conflict_that_comes_after_the_plan_stops_the_apply(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    changed = mixed()
    find(changed, "ConfigMap")["data"]["region"] = "eu-west-1"
    planned = k8s.plan(api, changed, cluster="llm")
    by_hand(server, "ConfigMap", "llm-settings", lambda thing: thing["data"].update(region="us-east-1"))
    with pytest.raises(FieldConflict, match="it came in between"):
        k8s.apply(api, planned)
    assert live(server, "ConfigMap", "llm-settings")["data"]["region"] == "us-east-1"


def autoscale(server: StandInApi, group: int, replicas: int, delete: list[str] | None = None) -> None:
    """What Ray's autoscaler sends, built by Ray's own functions and sent by the library that it uses."""
    from ray.autoscaler._private.kuberay.node_provider import worker_delete_patch, worker_replica_patch

    patch = [worker_replica_patch(group, replicas)]
    if delete is not None:
        patch.append(worker_delete_patch(group, delete))
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-type": "application/json-patch+json"}
    requests.patch(f"{server.url}{RAYS}/llm", json.dumps(patch), headers=headers, timeout=10).raise_for_status()


def groups_of(server: StandInApi) -> dict[str, Object]:
    return {group["groupName"]: group for group in live(server, "RayCluster", "llm")["spec"]["workerGroupSpecs"]}


def test_an_apply_leaves_the_autoscalers_figures_alone(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    autoscale(server, 1, 5, ["llm-train-3"])
    assert k8s.plan(api, mixed(), cluster="llm").pending == 0  # though the autoscaler holds the list now
    changed = mixed()
    groups = find(changed, "RayCluster")["spec"]["workerGroupSpecs"]
    groups[1]["maxReplicas"] = 6
    groups.reverse()  # found by name, not by place
    groups.append({**copy.deepcopy(groups[0]), "groupName": "late", "minReplicas": 2})
    planned = bring(api, changed)
    assert not any(change.conflicts for change in planned.changes)
    after = groups_of(server)
    assert (after["train"]["replicas"], after["train"]["maxReplicas"]) == (5, 6)
    assert after["train"]["scaleStrategy"] == {"workersToDelete": ["llm-train-3"]}
    assert after["serve"]["replicas"] == 1
    assert after["late"]["replicas"] == 2


def test_a_lower_maximum_bounds_the_carried_replicas(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    autoscale(server, 1, 7)
    changed = mixed()
    find(changed, "RayCluster")["spec"]["workerGroupSpecs"][1]["maxReplicas"] = 3
    bring(api, changed)
    assert groups_of(server)["train"]["replicas"] == 3


def test_a_scale_up_between_read_and_write_is_not_undone(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    autoscale(server, 1, 2)
    changed = mixed()
    find(changed, "RayCluster")["spec"]["workerGroupSpecs"][1]["maxReplicas"] = 9
    planned = k8s.plan(api, changed, cluster="llm")
    fault = Fault("call", method="PATCH", path="/rayclusters/llm?", call=lambda: autoscale(server, 1, 4))
    server.faults.append(fault)
    k8s.apply(api, planned)
    assert fault.times == 0
    assert (groups_of(server)["train"]["replicas"], groups_of(server)["train"]["maxReplicas"]) == (4, 9)


def test_a_hand_on_the_list_of_groups_is_still_a_conflict(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    by_hand(server, "RayCluster", "llm", lambda thing: thing["spec"]["workerGroupSpecs"][0].update(maxReplicas=40))
    with pytest.raises(FieldConflict, match=r"\.spec\.workerGroupSpecs is held by kubectl-edit"):
        bring(api, mixed())


def test_an_object_on_its_way_out_is_not_written_to(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    hold = ["example.com/slow"]
    by_hand(server, "RayCluster", "llm", lambda thing: thing["metadata"].update(finalizers=hold))
    server.cluster.delete(server.cluster.kind("RayCluster"), "ml", "llm", {})
    with pytest.raises(KubernetesError, match="it is being deleted"):
        k8s.plan(api, mixed(), cluster="llm")


# What the server refuses.


def test_missing_kinds_are_told_all_at_once_with_what_to_install(
    slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"}
    objects = [*mixed(), {**monitor, "metadata": {"name": "llm", "namespace": "ml"}}]
    with running(StandInApi(Cluster(kinds=CORE_KINDS))) as server:
        with pytest.raises(KindMissing) as caught:
            k8s.plan(connect(server, slept, tmp_path, monkeypatch), objects, cluster="llm")
        assert there(server) == set()
    assert "PodMonitor (monitoring.coreos.com/v1), RayCluster (ray.io/v1)" in str(caught.value)
    assert "install KubeRay 1.7" in caught.value.do
    assert "Prometheus operator" in caught.value.do


@pytest.mark.parametrize(
    ("verb", "plural", "rule"),
    [
        ("get", "rayclusters", '{apiGroups: ["ray.io"], resources: ["rayclusters"], verbs: ["get"]}'),
        ("patch", "rayclusters", '{apiGroups: ["ray.io"], resources: ["rayclusters"], verbs: ["patch"]}'),
        ("create", "configmaps", '{apiGroups: [""], resources: ["configmaps"], verbs: ["create"]}'),
        ("list", "secrets", '{apiGroups: [""], resources: ["secrets"], verbs: ["list"]}'),
    ],
)
def test_a_missing_permission_is_told_with_the_rule_that_grants_it(
    server: StandInApi, api: k8s.Api, verb: str, plural: str, rule: str
) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    server.denied.add((verb, plural))
    with pytest.raises(Forbidden) as caught:
        k8s.plan(api, mixed(), cluster="llm")
    group = "rayclusters.ray.io" if plural == "rayclusters" else plural
    assert f"dev may not {verb} {group} in namespace ml" in str(caught.value)
    assert caught.value.do == f"add to a Role in namespace ml: {rule}"
    assert there(server) == {("Namespace", "ml")}


def test_a_missing_permission_to_delete_or_to_watch_is_told_too(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    server.denied |= {("delete", "rayclusters"), ("watch", "rayclusters")}
    with pytest.raises(Forbidden, match="may not watch rayclusters"):
        k8s.wait_ready(api, mixed(), limit_s=5)
    with pytest.raises(Forbidden, match="may not delete rayclusters"):
        k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm"))


def test_a_permission_at_cluster_scope_asks_for_a_cluster_role(server: StandInApi, api: k8s.Api) -> None:
    server.denied.add(("create", "namespaces"))
    with pytest.raises(Forbidden, match="in the whole cluster") as caught:
        k8s.plan(api, mixed(), cluster="llm")
    assert caught.value.do.startswith("add to a ClusterRole: ")


def test_kinds_that_are_not_rendered_and_may_not_be_listed_are_a_note(server: StandInApi, api: k8s.Api) -> None:
    server.denied |= {("list", "clusterroles"), ("list", "deployments")}
    planned = k8s.plan(api, mixed(), cluster="llm")
    assert len(planned.notes) == 2
    assert "ClusterRoles of ours were not looked for: dev may not list clusterroles" in planned.notes[0]


def test_a_webhook_is_passed_on_verbatim_with_the_objects_name(server: StandInApi, api: k8s.Api) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)

    def refuse(verb: str, kind: object, thing: Object) -> None:
        if thing["kind"] == "RayCluster":
            raise webhook_denied("policy.example.com", "label cost-centre is missing (rule 7)", code=400)

    server.cluster.admission.append(refuse)
    with pytest.raises(AdmissionRefused) as caught:
        bring(api, mixed())
    expected = 'admission webhook "policy.example.com" denied the request: label cost-centre is missing (rule 7)'
    assert caught.value.what == expected
    assert caught.value.where == "RayCluster ml/llm"
    assert "policy.example.com" in caught.value.do
    assert there(server) == {("Namespace", "ml")}


def refusing(code: int, message: str, reason: str = "", **details: Any) -> Refusal:
    return Refusal(status(code, reason, message, **details))


@pytest.mark.parametrize(
    ("refusal", "kind", "words", "cure"),
    [
        (
            refusing(
                403, 'services "llm-front" is forbidden: exceeded quota: team, requested: services=1', "Forbidden"
            ),
            AdmissionRefused,
            "exceeded quota: team",
            "ResourceQuota team",
        ),
        (
            refusing(
                403,
                'services "x" is forbidden: unable to create new content in namespace ml because it is being '
                "terminated",
                "Forbidden",
            ),
            AdmissionRefused,
            "being terminated",
            "wait until the namespace is gone",
        ),
        (
            refusing(422, 'Service "llm-front" is invalid: spec.ports[0].port: Invalid value: 0', "Invalid"),
            KubernetesError,
            "finds it invalid",
            "correct the definition",
        ),
        (refusing(401, "Unauthorized", "Unauthorized"), Forbidden, "not logged in", "log in"),
        (
            refusing(
                422, "services is forbidden: ValidatingAdmissionPolicy 'freeze' with binding 'b' denied request: no"
            ),
            AdmissionRefused,
            "freeze",
            "admission policy freeze",
        ),
    ],
)
def test_each_refusal_has_its_words_and_its_cure(
    server: StandInApi, api: k8s.Api, refusal: Refusal, kind: type[Exception], words: str, cure: str
) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    server.faults.append(Fault("refuse", refusal, method="PATCH", path="/services/"))
    with pytest.raises(kind, match=words) as caught:
        k8s.plan(api, mixed(), cluster="llm")
    assert cure in str(caught.value)
    assert "Service ml/llm-front" in str(caught.value)


def test_a_field_that_the_crds_lack_is_told_at_once(server: StandInApi, api: k8s.Api, slept: list[float]) -> None:
    """The server says it with a 500, which is not one to try again."""
    by_hand(server, "Namespace", "ml", lambda _: None)
    changed = mixed()
    find(changed, "RayCluster")["spec"]["idleTerminationOptions"] = {}
    with pytest.raises(KubernetesError, match=r"\.spec\.idleTerminationOptions: field not declared") as caught:
        k8s.plan(api, changed, cluster="llm")
    assert "older than KubeRay 1.7" in caught.value.do
    assert slept == []


def test_a_secrets_value_stays_out_of_the_servers_words(server: StandInApi, api: k8s.Api) -> None:
    by_hand(server, "Namespace", "ml", lambda _: None)
    told = refusing(422, f'Secret "llm-store" is invalid: data[secret-key]: Invalid value: "{SECRET_VALUE}"', "Invalid")
    server.faults.append(Fault("refuse", told, method="PATCH", path="/secrets/"))
    with pytest.raises(KubernetesError) as caught:
        k8s.plan(api, mixed(), cluster="llm")
    assert SECRET_VALUE not in str(caught.value)
    assert "(hidden)" in str(caught.value)


# What goes wrong on the way.


def busy(seconds: int) -> Refusal:
    return Refusal(status(429, "TooManyRequests", "too many requests"), {"Retry-After": str(seconds)})


def test_retry_after_is_waited_for(server: StandInApi, api: k8s.Api, slept: list[float]) -> None:
    server.faults.append(Fault("refuse", busy(3), times=2))
    assert k8s.plan(api, mixed(), cluster="llm").pending == 11
    assert [seconds for seconds in slept if seconds >= 3] == slept[:2]
    assert max(slept) <= 4


def test_retry_after_in_the_status_counts_too(server: StandInApi, api: k8s.Api, slept: list[float]) -> None:
    told = refusing(500, "The get operation could not be completed", "ServerTimeout", retryAfterSeconds=7)
    server.faults.append(Fault("refuse", told))
    k8s.plan(api, mixed(), cluster="llm")
    assert 7 <= slept[0] <= 8


def test_a_server_that_asks_for_more_patience_than_there_is_ends_it(server: StandInApi, api: k8s.Api) -> None:
    server.faults.append(Fault("refuse", busy(3600), times=99))
    with pytest.raises(KubernetesError, match=r"too many requests \(tried 1 times\)"):
        k8s.plan(api, mixed(), cluster="llm")


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_passing_error_is_passed_over_and_a_lasting_one_ends_it(
    server: StandInApi, api: k8s.Api, slept: list[float], code: int
) -> None:
    bring(api, mixed())
    changed = mixed()
    find(changed, "ConfigMap")["data"]["region"] = "eu-west-1"
    server.faults.append(Fault("refuse", refusing(code, "etcdserver: leader changed", "InternalError"), times=3))
    bring(api, changed)
    assert live(server, "ConfigMap", "llm-settings")["data"]["region"] == "eu-west-1"
    assert slept[-3:] == [0.5, 1.0, 2.0]
    server.faults.append(Fault("refuse", refusing(code, "etcdserver: leader changed", "InternalError"), times=99))
    with pytest.raises(KubernetesError, match=r"leader changed \(tried 6 times\)"):
        k8s.plan(api, mixed(), cluster="llm")


@pytest.mark.parametrize("what", ["drop", "lose", "hang"])
def test_a_lost_answer_to_any_write_changes_nothing_in_the_end(server: StandInApi, api: k8s.Api, what: str) -> None:
    """Each write once: at the first try of every object, the connection breaks."""
    planned = k8s.plan(api, mixed(), cluster="llm")
    paths = (
        ("/configmaps/", "/rayclusters/") if what == "hang" else ("/namespaces/ml?", "/configmaps/", "/rayclusters/")
    )
    server.faults += [Fault(what, method="PATCH", path=path) for path in paths]
    k8s.apply(api, planned)
    assert all(fault.times == 0 for fault in server.faults)
    assert len(there(server)) == 11
    assert k8s.plan(api, mixed(), cluster="llm").pending == 0


def test_a_lost_answer_to_a_delete_is_a_delete(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    server.faults += [Fault("lose", method="DELETE", path=path) for path in ("/rayclusters/", "/secrets/")]
    k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm", with_data=True))
    assert there(server) == set()


def test_a_write_that_raced_is_decided_again(server: StandInApi, api: k8s.Api) -> None:
    told = "Operation cannot be fulfilled on configmaps: the object has been modified"
    fault = Fault("refuse", refusing(409, told, "Conflict"), method="PATCH", path="/configmaps/", times=3)
    exists = Fault("refuse", refusing(409, "already exists", "AlreadyExists"), method="PATCH", path="/services/")
    server.faults += [fault, exists]
    bring(api, mixed())
    assert (fault.times, exists.times) == (0, 0)
    server.faults.append(
        Fault("refuse", refusing(409, told, "Conflict"), method="PATCH", path="/configmaps/", times=99)
    )
    with pytest.raises(WriteRaced, match="has been modified"):
        k8s.plan(api, mixed(), cluster="llm")


def test_nobody_at_the_address_is_told_with_the_address(
    slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(StandInApi()) as server:
        api = connect(server, slept, tmp_path, monkeypatch)
    with pytest.raises(KubernetesError, match="does not answer") as caught:
        k8s.plan(api, mixed(), cluster="llm")
    assert caught.value.where in server.url
    assert "kubectl cluster-info" in caught.value.do


def test_no_kubeconfig_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(KubernetesError, match="no way to a Kubernetes API server") as caught:
        k8s.Api.connect()
    assert "KUBECONFIG" in caught.value.do


def test_a_list_whose_pages_expired_starts_again(
    server: StandInApi, api: k8s.Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "PAGE", 2)
    for index in range(5):
        kind = server.cluster.kind("Namespace")
        server.cluster.update(kind, "", f"n{index}", lambda _: None, manager="kubectl")
    expired = refusing(410, "The provided continue parameter is too old", "Expired")
    server.faults.append(Fault("refuse", expired, path="continue=4"))
    names = [thing["metadata"]["name"] for thing in api.find("v1", "Namespace")]
    assert names == [f"n{index}" for index in range(5)]
    assert server.count("GET", "continue=2") == 2


# Waiting.


def test_it_waits_until_ready_and_tells_how_far_it_is(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    told: list[str] = []
    fates = {"serve": pending(NO_GPU)}
    with operating(KubeRay(server.cluster, lambda group, index: fates.get(group, READY))):

        def progress(line: str) -> None:
            told.append(line)
            if "serve 0/1" in line and "nvidia" in line:
                fates["serve"] = READY

        (state,) = k8s.wait_ready(api, mixed(), limit_s=20, progress=progress)
    assert state.ready
    assert told[-1] == "RayCluster ml/llm is ready: head 1/1, serve 1/1, train 0/0"
    assert any("no node has enough nvidia.com/gpu free" in line for line in told)


@pytest.mark.parametrize(
    ("how", "reads_again"), [("expired", True), ("forgotten", True), ("failed", False), ("cut", False), ("drop", False)]
)
def test_a_watch_that_breaks_goes_on_where_it_was_or_from_a_fresh_read(
    server: StandInApi, api: k8s.Api, how: str, reads_again: bool
) -> None:
    bring(api, mixed())
    watch = "watch=true"
    broken = {
        "expired": Fault("refuse", refusing(410, "too old resource version: 1 (2)", "Expired"), path=watch, times=2),
        "forgotten": Fault("call", path=watch, times=2, call=server.cluster.compact),
        "failed": Fault("refuse", refusing(500, "watch chan error", "InternalError"), path=watch, times=2),
        "cut": Fault("cut", path=watch, times=2),
        "drop": Fault("drop", path=watch, times=2),
    }[how]
    server.faults.append(broken)
    begun = len(server.requests)
    fate = lambda group, _: pending(NO_GPU) if group == "serve" and broken.times else READY  # noqa: E731
    with operating(KubeRay(server.cluster, fate)):
        (state,) = k8s.wait_ready(api, mixed(), limit_s=20)
    assert state.ready
    assert broken.times == 0
    reads = [r for r in server.requests[begun:] if r.verb == "list" and "/rayclusters?" in r.url]
    assert len(reads) == (3 if reads_again else 1)


def test_a_cut_watch_is_resumed_after_the_last_version_seen(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    ref = k8s.objects.ref_of(find(mixed(), "RayCluster"))
    seen: list[str] = []
    versions = iter(range(3))

    def report(thing: Object) -> None:
        thing["status"] = {"n": next(versions)}

    server.faults.append(Fault("cut", path="watch=true"))
    kind = server.cluster.kind("RayCluster")
    server.faults.insert(
        0,
        Fault(
            "call",
            path="watch=true",
            call=lambda: server.cluster.update(kind, "ml", "llm", report, manager="o", subresource="status"),
        ),
    )
    done = time.monotonic() + 5
    for live_now in api.follow(ref, tick_s=1, until=lambda: len(seen) >= 2 or time.monotonic() > done):
        assert live_now is not None
        if live_now.get("status"):
            seen.append(live_now["metadata"]["resourceVersion"])
    assert seen
    lists = [r for r in server.requests if r.verb == "list" and "rayclusters?fieldSelector" in r.url]
    assert len(lists) == 1  # no fresh read was needed


def test_time_out_says_why_grouped_with_one_step_each(server: StandInApi, api: k8s.Api) -> None:
    objects = mixed()
    groups = find(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    groups[0]["minReplicas"], groups[1]["minReplicas"] = 3, 2
    bring(api, objects)
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "ray:nope"'}
    pull = {
        "phase": "Pending",
        "containerStatuses": [{"name": "ray", "image": "ray:nope", "state": {"waiting": waiting}}],
    }
    fates = {"head": READY, "serve": pending(NO_GPU), "train": pull}
    ray = KubeRay(server.cluster, lambda group, index: fates[group])
    ray.step()
    pod = live(server, "Pod", "llm-train-0")
    event(server.cluster, pod, "Failed", 'Failed to pull image "ray:nope": manifest unknown')
    cluster = live(server, "RayCluster", "llm")
    quota = (
        'pods "llm-x" is forbidden: exceeded quota: team-gpu, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4'
    )
    event(
        server.cluster,
        cluster,
        "FailedToCreateWorkerPod",
        f"Failed to create worker Pod for the cluster ml/llm, {quota}",
    )
    with pytest.raises(NotReady) as caught:
        k8s.wait_ready(api, objects, limit_s=0.5)
    told = caught.value.what.splitlines()
    assert told[0] == "RayCluster ml/llm is not taken up yet: head 1/1, serve 0/3, train 0/2"
    assert told[1:] == [
        "  - no node has enough nvidia.com/gpu free (serve, 3 pods): add nodes of that kind or raise the node pool's "
        "limit, and see that its device plugin runs",
        "  - nodes are tainted nvidia.com/gpu: present, and the group does not tolerate it (serve, 3 pods): add the "
        "toleration to the group in the definition, or use other nodes",
        '  - the image ray:nope cannot be pulled: Failed to pull image "ray:nope": manifest unknown (train, 1 pod): '
        "check its name and tag, and that the nodes may read the registry (imagePullSecrets)",
        '  - the image ray:nope cannot be pulled: Back-off pulling image "ray:nope" (train, 1 pod): check its name and '
        "tag, and that the nodes may read the registry (imagePullSecrets)",
        "  - the quota team-gpu is used up (requested: requests.nvidia.com/gpu=1, used: 4, limited: 4): ask for less, "
        "or raise it: kubectl describe resourcequota team-gpu",
    ]


def test_a_cluster_that_kuberay_does_not_accept_is_not_waited_for(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    event(
        server.cluster, live(server, "RayCluster", "llm"), "InvalidRayClusterSpec", "The RayCluster spec is invalid: x"
    )
    begun = time.monotonic()
    with pytest.raises(NotReady, match="KubeRay does not accept the RayCluster"):
        k8s.wait_ready(api, mixed(), limit_s=60)
    assert time.monotonic() - begun < 10


def test_a_deleted_cluster_is_not_waited_for(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    server.cluster.delete(server.cluster.kind("RayCluster"), "ml", "llm", {})
    with pytest.raises(NotReady, match="not there any more"):
        k8s.wait_ready(api, mixed(), limit_s=60)


# Removing.


def test_removal_takes_workloads_first_and_leaves_claims_and_their_namespace(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    with operating(KubeRay(server.cluster)):
        k8s.wait_ready(api, mixed(), limit_s=10)
        planned = k8s.plan_removal(api, mixed(), cluster="llm")
        assert verbs(planned)["delete"][0] == "RayCluster"
        k8s.remove(api, planned, limit_s=20)
    assert there(server) == {("Namespace", "ml"), ("PersistentVolumeClaim", "llm-cache")}
    deleted = [request.url for request in server.requests if request.method == "DELETE"]
    assert "/rayclusters/" in deleted[0]
    again = k8s.plan_removal(api, mixed(), cluster="llm")
    assert again.pending == 0
    everything = k8s.plan_removal(api, mixed(), cluster="llm", with_data=True)
    k8s.remove(api, everything)
    assert there(server) == set()


def test_a_namespace_with_guests_stays_even_with_data(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    by_hand(server, "Deployment", "somebodys", lambda _: None)
    planned = k8s.plan_removal(api, mixed(), cluster="llm", with_data=True)
    assert "others live in it: Deployment ml/somebodys" in text(planned)
    k8s.remove(api, planned)
    assert there(server) == {("Namespace", "ml"), ("Deployment", "somebodys")}


def test_an_object_that_changed_hands_in_between_is_not_deleted(server: StandInApi, api: k8s.Api) -> None:
    """Deleted and made again by somebody else, right before our DELETE arrives."""
    bring(api, mixed())
    planned = k8s.plan_removal(api, mixed(), cluster="llm")

    def replace() -> None:
        server.cluster.delete(server.cluster.kind("ConfigMap"), "ml", "llm-settings", {})
        by_hand(server, "ConfigMap", "llm-settings", lambda thing: thing.update(data={"mine": "now"}))

    server.faults.append(Fault("call", method="DELETE", path="/configmaps/", call=replace))
    k8s.remove(api, planned)
    assert live(server, "ConfigMap", "llm-settings")["data"] == {"mine": "now"}


def test_what_a_finalizer_holds_is_told(server: StandInApi, api: k8s.Api) -> None:
    bring(api, mixed())
    hold = ["example.com/controller-is-down"]
    by_hand(server, "RayCluster", "llm", lambda thing: thing["metadata"].update(finalizers=hold))
    with pytest.raises(ClusterError, match=r"RayCluster ml/llm \(example.com/controller-is-down") as caught:
        k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm"), limit_s=0.2)
    assert "run it again" in caught.value.do
    assert ("ServiceAccount", "llm-controller") in there(server)  # the pods may still need it
    by_hand(server, "RayCluster", "llm", lambda thing: thing["metadata"].pop("finalizers"))
    k8s.remove(api, k8s.plan_removal(api, mixed(), cluster="llm"))
    assert there(server) == {("Namespace", "ml"), ("PersistentVolumeClaim", "llm-cache")}


# What heliostat render made.


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "golden").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_golden_rendering_goes_in_comes_up_stays_and_comes_out(
    file: Path, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = k8s.load([file])
    name = k8s.cluster_of(objects)
    kinds = CORE_KINDS + RAY_KINDS + OTHER_KINDS
    with running(StandInApi(Cluster(kinds=kinds))) as server, operating(KubeRay(server.cluster)):
        for namespace in k8s.objects.namespaces_of(objects):
            server.cluster.update(server.cluster.kind("Namespace"), "", namespace, lambda _: None, manager="kubectl")
        api = connect(server, slept, tmp_path, monkeypatch)
        planned = k8s.plan(api, objects, cluster=name)
        assert planned.pending == len(objects)
        k8s.apply(api, planned)
        assert all(state.ready for state in k8s.wait_ready(api, objects, limit_s=20))
        assert k8s.plan(api, objects, cluster=name).pending == 0
        k8s.remove(api, k8s.plan_removal(api, objects, cluster=name, with_data=True))
        assert {kind for kind, _ in there(server)} == {"Namespace"}


# What is wrong with the manifests.


def test_manifests_are_checked_before_anything_is_asked(server: StandInApi, api: k8s.Api) -> None:
    twice = mixed()
    with pytest.raises(UsageError, match="is there twice"):
        k8s.plan(api, [*twice, twice[0]], cluster="llm")
    nowhere = mixed()
    find(nowhere, "ConfigMap")["metadata"].pop("namespace")
    find(nowhere, "Namespace")["metadata"]["namespace"] = "ml"
    with pytest.raises(
        UsageError, match=r"ConfigMap llm-settings has no metadata.namespace; .*belongs to no namespace"
    ):
        k8s.plan(api, nowhere, cluster="llm")
    with pytest.raises(UsageError, match="labelled as the cluster other's"):
        k8s.plan(api, mixed("other"), cluster="llm")
    absent = mixed(with_namespace=False)
    with pytest.raises(KubernetesError, match='namespaces "ml" not found') as caught:
        k8s.plan(api, absent, cluster="llm")
    assert caught.value.do == "make it first: kubectl create namespace ml"
    assert there(server) == set()
