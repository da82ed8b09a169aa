"""The contract of the stand-in API: its answers, pinned against shapes that Kubernetes documents.

The Status objects are those that apimachinery's `pkg/api/errors` and `managedfields/internal/conflict.go` make; the
rules of ownership are those of the Server-Side Apply page, and recordings of the library behind it; watches and expired
versions those of the API concepts page. Spoken to by plain HTTP, so that nothing of the client under test is in it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kube.machinery import CORE_KINDS, Cluster, Object, Refusal, owned_part, webhook_denied
from tests.kube.record.scenarios import held
from tests.kube.stand_in_api import TOKEN, Fault, StandInApi, running

RECORDED = Path(__file__).parents[2] / "golden" / "server-side-apply.json"
MAPS = "/api/v1/namespaces/ml/configmaps"
RAYS = "/apis/ray.io/v1/namespaces/ml/rayclusters"
APPLY = "application/apply-patch+yaml"


@pytest.fixture
def server() -> Iterator[StandInApi]:
    with running(StandInApi()) as api:
        api.cluster.update(api.cluster.kind("Namespace"), "", "ml", lambda _: None, manager="kubectl")
        yield api


@pytest.fixture
def http(server: StandInApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10) as client:
        yield client


def config_map(data: Object, *, name: str = "test-cm", **meta: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "ml", "labels": {"test-label": "test"}, **meta},
        "data": data,
    }


def ray(groups: list[Object], **spec: Any) -> Object:
    meta = {"name": "llm", "namespace": "ml"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": meta,
        "spec": {"workerGroupSpecs": groups, **spec},
    }


def applied(http: httpx.Client, path: str, thing: Object, manager: str, **query: str) -> httpx.Response:
    query = {"fieldManager": manager, **query}
    return http.patch(path, params=query, content=json.dumps(thing), headers={"Content-Type": APPLY})


@pytest.fixture
def put(http: httpx.Client) -> Callable[..., httpx.Response]:
    def apply_map(data: Object, manager: str = "kubectl", **query: str) -> httpx.Response:
        return applied(http, f"{MAPS}/test-cm", config_map(data), manager, **query)

    return apply_map


def test_an_applied_object_carries_who_holds_which_field(put: Callable[..., httpx.Response]) -> None:
    answer = put({"key": "some value"})
    assert answer.status_code == 201
    (entry,) = answer.json()["metadata"]["managedFields"]
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "manager": "kubectl",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": {"f:test-label": {}}}, "f:data": {"f:key": {}}},
    }
    meta = answer.json()["metadata"]
    assert meta["generation"] == 1
    assert {"uid", "creationTimestamp", "resourceVersion"} <= set(meta)
    assert put({"key": "some value"}).status_code == 200


def test_the_same_again_writes_nothing(put: Callable[..., httpx.Response]) -> None:
    first = put({"key": "a"}).json()["metadata"]["resourceVersion"]
    assert put({"key": "a"}).json()["metadata"]["resourceVersion"] == first


def test_an_apply_over_another_appliers_field_is_the_documented_conflict(put: Callable[..., httpx.Response]) -> None:
    put({"key": "a"})
    answer = put({"key": "b"}, manager="heliostat")
    assert answer.status_code == 409
    assert answer.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'Apply failed with 1 conflict: conflict with "kubectl": .data.key',
        "reason": "Conflict",
        "details": {
            "causes": [
                {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl"', "field": ".data.key"},
            ]
        },
        "code": 409,
    }


def test_a_conflict_with_an_updater_tells_version_and_time(http: httpx.Client) -> None:
    applied(http, f"{RAYS}/llm", ray([{"groupName": "a"}]), "heliostat")
    patch = [{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 2}]
    headers = {"Content-Type": "application/json-patch+json", "User-Agent": "python-requests/2.32.5"}
    assert http.patch(f"{RAYS}/llm", content=json.dumps(patch), headers=headers).status_code == 200
    status = applied(http, f"{RAYS}/llm", ray([{"groupName": "a", "maxReplicas": 3}]), "heliostat").json()
    (cause,) = status["details"]["causes"]
    assert cause["field"] == ".spec.workerGroupSpecs"  # the whole list, for it is atomic
    assert cause["message"].startswith('conflict with "python-requests" using ray.io/v1 at 20')


def test_several_conflicts_are_all_told(put: Callable[..., httpx.Response]) -> None:
    put({"a": "1", "b": "1"})
    status = put({"a": "2", "b": "2"}, manager="heliostat").json()
    assert status["message"] == 'Apply failed with 2 conflicts: conflicts with "kubectl":\n- .data.a\n- .data.b'
    assert [cause["field"] for cause in status["details"]["causes"]] == [".data.a", ".data.b"]


def test_force_takes_the_field_and_equal_values_are_shared(put: Callable[..., httpx.Response]) -> None:
    put({"a": "1", "b": "1"})
    answer = put({"a": "2", "b": "1"}, manager="heliostat", force="true").json()
    held = {entry["manager"]: entry["fieldsV1"]["f:data"] for entry in answer["metadata"]["managedFields"]}
    assert held == {"kubectl": {"f:b": {}}, "heliostat": {"f:a": {}, "f:b": {}}}
    assert answer["data"] == {"a": "2", "b": "1"}


def test_a_field_no_longer_applied_goes_unless_another_holds_it(put: Callable[..., httpx.Response]) -> None:
    put({"mine": "1", "ours": "1"}, manager="heliostat")
    put({"ours": "1"}, manager="kubectl")
    assert put({}, manager="heliostat").json()["data"] == {"ours": "1"}


def test_a_dry_run_answers_in_full_and_changes_nothing(http: httpx.Client, put: Callable[..., httpx.Response]) -> None:
    assert put({"key": "a"}, dryRun="All").status_code == 201
    assert http.get(f"{MAPS}/test-cm").status_code == 404
    put({"key": "a"})
    before = http.get(f"{MAPS}/test-cm").json()
    assert put({"key": "b"}, dryRun="All").json()["data"] == {"key": "b"}
    assert put({"key": "b"}, manager="heliostat", dryRun="All").status_code == 409
    assert http.get(f"{MAPS}/test-cm").json() == before


def test_a_version_in_the_object_is_a_condition(http: httpx.Client, put: Callable[..., httpx.Response]) -> None:
    version = put({"key": "a"}).json()["metadata"]["resourceVersion"]
    put({"key": "b"})
    answer = applied(http, f"{MAPS}/test-cm", config_map({"key": "c"}, resourceVersion=version), "kubectl")
    assert answer.status_code == 409
    assert answer.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'Operation cannot be fulfilled on configmaps "test-cm": the object has been modified; please apply '
        "your changes to the latest version and try again",
        "reason": "Conflict",
        "details": {"name": "test-cm", "kind": "configmaps"},
        "code": 409,
    }


def test_the_generation_counts_changes_of_the_spec_and_not_of_the_status(
    server: StandInApi, http: httpx.Client
) -> None:
    applied(http, f"{RAYS}/llm", ray([], rayVersion="2.59.0"), "heliostat")
    kind = server.cluster.kind("RayCluster")
    server.cluster.update(
        kind, "ml", "llm", lambda t: t.update(status={"state": "ready"}), manager="o", subresource="status"
    )
    assert http.get(f"{RAYS}/llm").json()["metadata"]["generation"] == 1
    again = applied(http, f"{RAYS}/llm", ray([], rayVersion="2.60.0"), "heliostat").json()
    assert again["metadata"]["generation"] == 2
    assert again["status"] == {"state": "ready"}


def test_what_is_not_there_is_not_found(http: httpx.Client) -> None:
    assert http.get(f"{RAYS}/llm").json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'rayclusters.ray.io "llm" not found',
        "reason": "NotFound",
        "details": {"name": "llm", "group": "ray.io", "kind": "rayclusters"},
        "code": 404,
    }
    elsewhere = applied(http, "/api/v1/namespaces/nowhere/configmaps/x", config_map({}, name="x"), "kubectl")
    assert elsewhere.json()["message"] == 'namespaces "nowhere" not found'


def test_an_api_group_that_is_not_installed_is_a_bare_404() -> None:
    with running(StandInApi(Cluster(kinds=CORE_KINDS))) as api:
        answer = httpx.get(f"{api.url}/apis/ray.io/v1", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.text) == (404, "404 page not found\n")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_discovery_lists_resources_and_subresources(http: httpx.Client) -> None:
    answer = http.get("/apis/ray.io/v1").json()
    assert (answer["kind"], answer["groupVersion"]) == ("APIResourceList", "ray.io/v1")
    names = {entry["name"] for entry in answer["resources"]}
    assert {"rayclusters", "rayclusters/status"} <= names
    assert all({"name", "singularName", "namespaced", "kind", "verbs"} <= set(entry) for entry in answer["resources"])


def test_forbidden_names_user_verb_resource_group_and_namespace(server: StandInApi, http: httpx.Client) -> None:
    server.denied.add(("get", "rayclusters"))
    assert http.get(f"{RAYS}/llm").json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'rayclusters.ray.io "llm" is forbidden: User "dev" cannot get resource "rayclusters" in API group '
        '"ray.io" in the namespace "ml"',
        "reason": "Forbidden",
        "details": {"name": "llm", "group": "ray.io", "kind": "rayclusters"},
        "code": 403,
    }


def test_an_apply_that_makes_an_object_needs_create_too(server: StandInApi, put: Callable[..., httpx.Response]) -> None:
    server.denied.add(("create", "configmaps"))
    assert 'cannot create resource "configmaps"' in put({}).json()["message"]


def test_without_a_token_it_is_unauthorized(server: StandInApi) -> None:
    assert httpx.get(f"{server.url}{MAPS}").json()["reason"] == "Unauthorized"


def test_an_apply_without_a_manager_is_invalid(http: httpx.Client) -> None:
    answer = http.patch(f"{MAPS}/x", content=json.dumps(config_map({})), headers={"Content-Type": APPLY})
    assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")


def test_an_unknown_field_is_an_internal_error_that_says_so(http: httpx.Client) -> None:
    answer = applied(http, f"{RAYS}/llm", ray([], idleTerminationOptions={}), "heliostat", fieldValidation="Strict")
    assert answer.status_code == 500
    assert answer.json()["message"] == (
        "failed to create typed patch object (ml/llm; ray.io/v1, Kind=RayCluster): .spec.idleTerminationOptions: "
        "field not declared in schema"
    )


def test_a_webhook_refuses_in_its_own_words(server: StandInApi, put: Callable[..., httpx.Response]) -> None:
    def refuse(verb: str, kind: object, thing: Object) -> None:
        raise webhook_denied("policy.example.com", "no cost centre")

    server.cluster.admission.append(refuse)
    answer = put({}, dryRun="All")
    assert answer.status_code == 403
    assert answer.json()["message"] == 'admission webhook "policy.example.com" denied the request: no cost centre'


def test_a_delete_holds_its_preconditions(http: httpx.Client, put: Callable[..., httpx.Response]) -> None:
    put({})
    wrong = http.request("DELETE", f"{MAPS}/test-cm", json={"preconditions": {"uid": "another"}})
    assert wrong.status_code == 409
    assert "Precondition failed: UID in precondition: another, UID in object meta: " in wrong.json()["message"]
    assert http.request("DELETE", f"{MAPS}/test-cm", json={}).status_code == 200
    assert http.request("DELETE", f"{MAPS}/test-cm", json={}).status_code == 404


def test_a_foreground_delete_waits_for_what_depends_on_it(http: httpx.Client, server: StandInApi) -> None:
    owner = applied(http, f"{RAYS}/llm", ray([]), "heliostat").json()["metadata"]["uid"]
    pods = server.cluster.kind("Pod")

    def own(pod: Object) -> None:
        pod["metadata"] |= {"ownerReferences": [{"uid": owner}], "finalizers": ["example.com/slow"]}

    server.cluster.update(pods, "ml", "worker", own, manager="kuberay-operator")
    gone = http.request("DELETE", f"{RAYS}/llm", json={"propagationPolicy": "Foreground"}).json()["metadata"]
    assert gone["finalizers"] == ["foregroundDeletion"]
    assert gone["deletionTimestamp"]
    server.cluster.collect()
    assert http.get(f"{RAYS}/llm").status_code == 200
    server.cluster.update(pods, "ml", "worker", lambda pod: pod["metadata"].pop("finalizers"), manager="kubelet")
    for _ in range(3):
        server.cluster.collect()
    assert http.get(f"{RAYS}/llm").status_code == 404
    assert http.get("/api/v1/namespaces/ml/pods/worker").status_code == 404


def test_a_namespace_that_goes_takes_nothing_new(http: httpx.Client, put: Callable[..., httpx.Response]) -> None:
    put({}, manager="kubectl")
    kept = config_map({}, name="kept", finalizers=["example.com/slow"])
    applied(http, f"{MAPS}/kept", kept, "kubectl")
    assert http.request("DELETE", "/api/v1/namespaces/ml", json={}).json()["status"]["phase"] == "Terminating"
    status = applied(http, f"{MAPS}/new", config_map({}, name="new"), "kubectl").json()
    assert status["code"] == 403
    assert "unable to create new content in namespace ml because it is being terminated" in status["message"]
    assert status["details"]["causes"][0]["reason"] == "NamespaceTerminating"


def test_a_list_is_paged_and_its_entries_leave_out_their_kind(http: httpx.Client) -> None:
    for name in ("a", "b", "c"):
        applied(http, f"{MAPS}/{name}", config_map({}, name=name), "kubectl")
    first = http.get(MAPS, params={"limit": 2, "labelSelector": "test-label=test"}).json()
    assert first["kind"] == "ConfigMapList"
    assert first["metadata"]["remainingItemCount"] == 1
    assert "kind" not in first["items"][0]
    rest = http.get(MAPS, params={"limit": 2, "continue": first["metadata"]["continue"]}).json()
    assert [entry["metadata"]["name"] for entry in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert "continue" not in rest["metadata"]
    assert http.get(MAPS, params={"labelSelector": "test-label=other"}).json()["items"] == []


def test_a_watch_tells_what_came_after_its_version_and_ends_with_a_bookmark(
    http: httpx.Client, put: Callable[..., httpx.Response]
) -> None:
    version = put({"key": "a"}).json()["metadata"]["resourceVersion"]
    put({"key": "b"})
    http.request("DELETE", f"{MAPS}/test-cm", json={})
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "0", "allowWatchBookmarks": "true"}
    events = [json.loads(line) for line in http.get(MAPS, params=query).text.splitlines()]
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED", "BOOKMARK"]
    assert events[0]["object"]["data"] == {"key": "b"}
    assert set(events[2]["object"]["metadata"]) == {"resourceVersion"}


def test_a_watch_from_a_forgotten_version_is_gone(
    server: StandInApi, http: httpx.Client, put: Callable[..., httpx.Response]
) -> None:
    version = put({}).json()["metadata"]["resourceVersion"]
    server.cluster.compact()
    (line,) = http.get(MAPS, params={"watch": "true", "resourceVersion": version}).text.splitlines()
    event = json.loads(line)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert event["object"]["message"].startswith(f"too old resource version: {version} (")


@pytest.mark.parametrize("what", ["drop", "lose"])
def test_a_broken_connection_breaks_before_or_after_the_write(
    server: StandInApi, http: httpx.Client, put: Callable[..., httpx.Response], what: str
) -> None:
    server.faults.append(Fault(what, method="PATCH"))
    with pytest.raises(httpx.TransportError):
        put({})
    assert http.get(f"{MAPS}/test-cm").status_code == (200 if what == "lose" else 404)


def tidy(value: Any) -> Any:
    """Without empty maps and nulls: the library leaves a null where the last entry went, the API server drops it."""
    if isinstance(value, dict):
        return {key: kept for key, inner in value.items() if (kept := tidy(inner)) not in (None, {})}
    return value


def replayed(cluster: Cluster, one: Object) -> list[list[str]]:
    """One recorded operation on the stand-in. Returns the conflicts."""
    kind, sent = cluster.kind("ConfigMap"), copy.deepcopy(one["object"])
    meta = {"name": "x", "namespace": "ml", **sent.pop("metadata", {})}

    def replace(thing: Object) -> None:
        for key in set(thing) - {"apiVersion", "kind", "metadata"}:
            del thing[key]
        thing["metadata"].pop("labels", None)
        thing["metadata"].update(meta)
        thing.update(sent)

    if one["op"] == "Update":
        cluster.update(kind, "ml", "x", replace, manager=one["manager"])
        return []
    try:
        body = {**sent, "metadata": meta}
        cluster.apply(kind, "ml", "x", body, manager=one["manager"], force=one["force"], dry_run=False)
    except Refusal as refusal:
        causes = refusal.status["details"]["causes"]
        return sorted([cause["message"].split('"')[1], cause["field"]] for cause in causes)
    return []


def test_conflicts_values_and_ownership_are_what_kubernetes_own_library_says() -> None:
    """150 recorded scenarios of two appliers and two updaters; how they were recorded stands in tests/kube/record."""
    scenarios = json.loads(RECORDED.read_text())
    conflicts = 0
    for number, operations in enumerate(scenarios):
        cluster = Cluster()
        cluster.update(cluster.kind("Namespace"), "", "ml", lambda _: None, manager="kubectl")
        for one in operations:
            assert replayed(cluster, one) == one["conflicts"], f"scenario {number}: {one}"
            conflicts += len(one["conflicts"])
            live = cluster.read(cluster.kind("ConfigMap"), "ml", "x")
            assert tidy(owned_part(live)) == tidy(one["live"] or {}), f"scenario {number}: {one}"
            entries = live["metadata"].get("managedFields", [])
            found = {f"{e['manager']}/{e['operation']}": held(e["fieldsV1"]) for e in entries}
            assert {name: leaves for name, leaves in found.items() if leaves} == one["held"], (
                f"scenario {number}: {one}"
            )
    assert len(scenarios) == 150
    assert conflicts > 50
