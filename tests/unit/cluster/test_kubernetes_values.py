"""The pure parts: objects, their order and owners, diffs, and the words for pods that do not start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.cluster.kubernetes.api import Retry
from heliostat.cluster.kubernetes.diff import ABSENT, compare
from heliostat.cluster.kubernetes.objects import (
    Ref,
    check_objects,
    cluster_of,
    in_order,
    is_ours,
    load,
    rank,
    ref_of,
)
from heliostat.cluster.kubernetes.ready import observe
from heliostat.cluster.kubernetes.refusal import read_status
from heliostat.cluster.kubernetes.scale import with_live_scale
from heliostat.cluster.kubernetes.why import explain
from heliostat.errors import UsageError
from tests.kube.kuberay import READY, pending
from tests.kube.manifests import find, mixed

Object = dict[str, Any]


def made(kind: str = "ConfigMap", name: str = "x", **rest: Any) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "ml"}, **rest}


# Objects.


def test_what_others_need_goes_in_first() -> None:
    order = [
        "Namespace",
        "ServiceAccount",
        "Secret",
        "PodDisruptionBudget",
        "NodePool",
        "Deployment",
        "RayCluster",
        "RayJob",
    ]
    assert sorted(order, key=rank) == order
    assert [thing["kind"] for thing in in_order(reversed(mixed()))] == [thing["kind"] for thing in in_order(mixed())]


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("text", "it is str, not a mapping"),
        ({"kind": "ConfigMap"}, "it has no apiVersion"),
        ({"apiVersion": "v1"}, "it has no kind"),
        ({"apiVersion": "v1", "kind": "List", "items": []}, "write its items as documents"),
        ({"apiVersion": "v1", "kind": "ConfigMap"}, "ConfigMap has no metadata"),
        (made(name="../../secrets"), "no valid metadata.name"),
        (made(name="a/b"), "no valid metadata.name"),
        (made(name="a..b"), "no valid metadata.name"),
        (made(name="a?force=true"), "no valid metadata.name"),
        (made(name=""), "no valid metadata.name"),
    ],
)
def test_an_object_that_cannot_be_addressed_is_refused(thing: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_objects([made(name="fine"), thing])
    assert words in str(caught.value)
    assert "object 2" in str(caught.value)


def test_a_folder_of_yaml_is_read_in_order_and_every_document_counts(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n")
    (tmp_path / "a.yml").write_text(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a1}\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a2}\n---\n"
    )
    (tmp_path / "README.md").write_text("not: this")
    assert [ref_of(thing).name for thing in load([tmp_path])] == ["a1", "a2", "b"]
    (tmp_path / "c.yaml").write_text("a: [1\n")
    with pytest.raises(UsageError, match="this is not YAML") as caught:
        load([tmp_path])
    assert caught.value.where.endswith("c.yaml")
    with pytest.raises(UsageError, match="no such file or folder"):
        load([tmp_path / "nothing"])


def test_yaml_that_would_make_objects_of_python_is_not_obeyed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(UsageError):
        load([tmp_path])


def test_the_cluster_is_the_one_that_the_labels_name() -> None:
    assert cluster_of(mixed("llm")) == "llm"
    with pytest.raises(UsageError, match="name several clusters: a, b"):
        cluster_of(mixed("a") + mixed("b"))
    with pytest.raises(UsageError, match="do not carry the label"):
        cluster_of([made()])


def test_an_object_is_ours_by_labels_and_by_who_applied_it() -> None:
    ours = copy.deepcopy(find(mixed(), "ConfigMap"))
    assert not is_ours(ours, "llm")
    ours["metadata"]["managedFields"] = [{"manager": "heliostat", "operation": "Apply", "fieldsV1": {}}]
    assert is_ours(ours, "llm")
    assert not is_ours(ours, "other")
    ours["metadata"]["ownerReferences"] = [{"uid": "1", "controller": True}]
    assert not is_ours(ours, "llm")
    updated = {**ours["metadata"]["managedFields"][0], "operation": "Update"}
    assert not is_ours({**ours, "metadata": {**ours["metadata"], "managedFields": [updated]}}, "llm")


# Diffs.

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TREES, TREES)
def test_a_diff_is_empty_just_when_nothing_differs(old: Any, new: Any) -> None:
    ref = Ref("v1", "ConfigMap", "ml", "x")
    change = compare(ref, made(spec=old), made(spec=new))
    same = repr(old) == repr(new) or old == new
    assert (change.verb == "same") == same
    assert all(field.old != field.new for field in change.fields if "..." not in field.old)


@given(st.lists(st.text("abcd", min_size=1, max_size=2), unique=True, max_size=5), st.randoms())
def test_the_order_of_named_entries_is_no_difference(names: list[str], chance: Any) -> None:
    entries = [{"name": name, "image": name * 2} for name in names]
    shuffled = list(entries)
    chance.shuffle(shuffled)
    assert compare(Ref("v1", "Pod", "ml", "x"), made(spec=entries), made(spec=shuffled)).verb == "same"


def test_what_only_the_server_sets_is_no_difference() -> None:
    live = made(data={"a": "1"}, status={"phase": "Active"})
    live["metadata"] |= {
        "uid": "1",
        "resourceVersion": "7",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    assert compare(ref_of(live), live, made(data={"a": "1"})).verb == "same"


@given(st.text("abcdefgh", min_size=4), st.text("ijklmnop", min_size=4))
def test_no_value_of_a_secret_is_ever_shown(old: str, new: str) -> None:
    last = {"kubectl.kubernetes.io/last-applied-configuration": f'{{"data":{{"k":"{old}"}}}}'}
    live = made("Secret", data={"k": old, "gone": old})
    live["metadata"]["annotations"] = last
    wanted = made("Secret", data={"k": new}, stringData={"more": new})
    shown = repr(compare(ref_of(live), live, wanted))
    assert old not in shown
    assert new not in shown
    assert "(hidden)" in shown
    assert ABSENT in shown


# The autoscaler's figures.

BOUNDS = st.tuples(st.integers(0, 5), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.dictionaries(st.sampled_from("abc"), BOUNDS), st.dictionaries(st.sampled_from("bcd"), st.integers(0, 30)))
def test_carried_replicas_are_the_live_ones_within_the_new_bounds(
    wanted: dict[str, tuple[int, int]], live: dict[str, int]
) -> None:
    def ray(groups: list[Object], **meta: Any) -> Object:
        spec = {"enableInTreeAutoscaling": True, "workerGroupSpecs": groups}
        return {"kind": "RayCluster", "metadata": {"name": "x", **meta}, "spec": spec}

    new = ray([{"groupName": g, "minReplicas": low, "maxReplicas": high} for g, (low, high) in wanted.items()])
    old = ray([{"groupName": g, "replicas": n} for g, n in live.items()], resourceVersion="7")
    before = copy.deepcopy(new)
    carried = with_live_scale(new, old)
    assert new == before
    assert carried["metadata"]["resourceVersion"] == "7"
    for group in carried["spec"]["workerGroupSpecs"]:
        low, high = wanted[group["groupName"]]
        assert group["replicas"] == min(max(live.get(group["groupName"], low), low), high)


def test_without_an_autoscaler_the_definition_says_how_many() -> None:
    ray = find(mixed(), "RayCluster")
    ray["spec"]["enableInTreeAutoscaling"] = False
    assert with_live_scale(ray, ray) is ray


# Is it ready, and why not.


def cluster(**status: Any) -> Object:
    ray = copy.deepcopy(find(mixed(), "RayCluster"))
    ray["metadata"]["generation"] = 2
    return {**ray, "status": status}


def pod(group: str, name: str, status: Object) -> Object:
    kind = "head" if group == "head" else "worker"
    labels = {"ray.io/cluster": "llm", "ray.io/group": group, "ray.io/node-type": kind}
    return {"metadata": {"name": name, "labels": labels}, "status": status}


UP = [pod("head", "h", READY), pod("serve", "s", READY)]


@pytest.mark.parametrize(
    ("live", "pods", "ready"),
    [
        (cluster(state="ready", observedGeneration=2), UP, True),
        (cluster(state="ready", observedGeneration=1), UP, False),  # said of the spec before
        (cluster(state="ready", observedGeneration=2), UP[:1], False),  # KubeRay's word stays while pods go
        (cluster(observedGeneration=2), UP, False),
        (cluster(), [], False),
    ],
)
def test_ready_is_what_holds_for_this_generation_and_all_pods(live: Object, pods: list[Object], ready: bool) -> None:
    assert observe(live, pods).ready is ready


def test_hosts_count_as_pods() -> None:
    live = cluster(state="ready", observedGeneration=2)
    live["spec"]["workerGroupSpecs"] = [{"groupName": "tpu", "minReplicas": 2, "maxReplicas": 2, "numOfHosts": 4}]
    assert [group.wanted for group in observe(live, []).groups] == [1, 8]


def waiting(reason: str, message: str = "", **last: Any) -> Object:
    container = {"name": "ray", "image": "ray:1", "state": {"waiting": {"reason": reason, "message": message}}}
    return {"phase": "Pending", "containerStatuses": [{**container, **last}]}


def ended(**how: Any) -> Object:
    return {"lastState": {"terminated": how}}


@pytest.mark.parametrize(
    ("status", "what", "do"),
    [
        (pending("0/5 nodes are available: 5 Insufficient cpu."), "no node has enough cpu free", "ask for less"),
        (
            pending("0/5 nodes are available: 5 Insufficient vpc.amazonaws.com/efa."),
            "no node has enough vpc.amazonaws.com/efa free",
            "larger nodes",
        ),
        (
            pending(
                "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes"
            ),
            "no node carries the labels that the group selects",
            "kubectl get nodes --show-labels",
        ),
        (
            pending("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
            "a volume claim is not bound",
            "kubectl describe pvc",
        ),
        (pending("0/1 nodes are available: 1 node(s) were unschedulable."), "nodes are cordoned", "uncordon"),
        (pending("something new"), "the scheduler finds no node: something new", "kubectl describe pod"),
        (waiting("ErrImagePull", "unauthorized"), "ray:1 cannot be pulled: unauthorized", "imagePullSecrets"),
        (waiting("CreateContainerConfigError", 'secret "s" not found'), 'secret "s" not found', "make what it names"),
        (
            waiting("CrashLoopBackOff", **ended(exitCode=1, reason="Error")),
            "the container ray ends with exit code 1 again and again",
            "kubectl logs -c ray --previous",
        ),
        (waiting("CrashLoopBackOff", **ended(exitCode=137, reason="OOMKilled")), "OOMKilled", "more memory"),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, "readiness probe", "kubectl logs"),
        ({"phase": "Failed", "reason": "Evicted"}, "a pod failed: Evicted", "kubectl logs"),
    ],
)
def test_each_way_not_to_start_has_its_words_and_one_step(status: Object, what: str, do: str) -> None:
    (cause,) = explain(cluster(observedGeneration=2), [pod("serve", "s", status)], [])
    assert what in cause.what
    assert do in cause.do
    assert (cause.groups, cause.pods) == (("serve",), 1)


def about(name: str, reason: str, message: str) -> Object:
    return {"metadata": {}, "reason": reason, "message": message, "involvedObject": {"name": name}}


def test_pods_held_up_by_one_thing_are_one_cause_and_the_larger_comes_first() -> None:
    gpus = pending("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    pods = [pod("train", f"t{i}", gpus) for i in range(3)] + [
        pod("serve", "s", gpus),
        pod("head", "h", waiting("ErrImagePull")),
    ]
    first, second = explain(cluster(observedGeneration=2), pods, [])
    assert (first.groups, first.pods) == (("serve", "train"), 4)
    assert (second.groups, second.pods) == (("head",), 1)


def test_a_node_autoscaler_that_gives_up_is_told() -> None:
    events = [about("t", "NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached")]
    causes = explain(
        cluster(), [pod("train", "t", pending("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))], events
    )
    assert any("max node group size reached" in cause.what for cause in causes)


def test_events_and_conditions_of_the_cluster_itself_are_read() -> None:
    quota = 'pods "x" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=8, used: 0, limited: 4'
    (by_event,) = explain(cluster(), [], [about("llm", "FailedToCreateWorkerPod", quota)])
    assert "the quota team is used up (requested: requests.nvidia.com/gpu=8, used: 0, limited: 4)" in by_event.what
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedToCreateWorkerPod", "message": quota}
    (by_condition,) = explain(cluster(conditions=[failure]), [], [])
    assert by_condition.what == by_event.what
    (refused,) = explain(cluster(), [], [about("llm", "InvalidRayClusterSpec", "no head")])
    assert refused.hopeless


def test_an_operator_that_is_not_there_and_a_suspended_cluster_are_told() -> None:
    (absent,) = explain(cluster(), [], [])
    assert "operator has not taken up" in absent.what
    queued = cluster()
    queued["spec"]["suspend"] = True
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team"
    (suspended,) = explain(queued, [], [])
    assert "queue team" in suspended.do


# Answers.


def test_an_answer_that_is_no_status_is_told_as_it_is() -> None:
    assert read_status(502, b"<html>Bad   Gateway</html>")["message"] == "<html>Bad Gateway</html>"
    assert read_status(503, None)["message"] == "HTTP status 503 and no more"
    assert read_status(500, b'{"kind": "Other"}')["code"] == 500


@given(st.integers(1, 6), st.one_of(st.none(), st.floats(0, 60)))
def test_a_delay_is_jittered_bounded_and_never_shorter_than_asked(attempt: int, asked: float | None) -> None:
    retry = Retry()
    delay = retry.delay(attempt, asked)
    assert (asked or 0) <= delay <= max(retry.cap_s, (asked or 0) + 1)
