"""What Ray's state API and the GCS tell, in the shapes that Ray 2.60 tells it in, as a snapshot."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from heliostat.cluster.nodes import NodeRecord, Refusal
from heliostat.cluster.snapshot import RayState, make_snapshot
from heliostat.definition import ClusterDefinition
from heliostat.plan.why import Fact, Snapshot, explain

NOW = 1_795_633_400.0
GROUP = {"role": "training", "market": "spot", "cpus": 2, "gpus": 1, "nodes": "0..2"}
DEFINITION = TypeAdapter(ClusterDefinition).validate_python(
    {
        "name": "why",
        "groups": {"train": GROUP, "dry": GROUP},
        "store": {"kind": "embedded", "bucket": "heliostat"},
        "tags": {"team": "demo", "project": "voice"},
    }
)
NODE, HEAD = "0a" * 28, "0b" * 28


def record(**fields: Any) -> NodeRecord:
    known = {"role": "training", "market": "spot", "gpus": 1.0, "cpus": 2.0, "pid": 1, "started_at": NOW - 60}
    return NodeRecord(**{"node_id": "train-1", "group": "train", **known, **fields})


def state(node: str, kind: str, **free: float) -> dict[str, Any]:
    return {"nodeId": node, "rayNodeTypeName": kind, "availableResources": free, "status": "RUNNING"}


def job(number: int, name: str, **fields: Any) -> dict[str, Any]:
    return {"submission_id": name, "job_id": f"0{number}000000", "status": "RUNNING", "start_time": 1e12, **fields}


def task(number: int, where: str = "PENDING_NODE_ASSIGNMENT", **fields: Any) -> dict[str, Any]:
    known = {"name": "f", "type": "NORMAL_TASK", "node_id": None, "required_resources": {"CPU": 1.0, "GPU": 1.0}}
    return {"job_id": f"0{number}000000", "state": where, "creation_time_ms": (NOW - 30) * 1000, **known, **fields}


def failed(*ago: float) -> list[dict[str, Any]]:
    return [{"rayNodeTypeName": "dry", "count": 1, "failedTs": str(int(NOW - s))} for s in ago]


def taken(
    jobs: list[Any],
    tasks: list[Any],
    *records: NodeRecord,
    actors: list[Any] | None = None,
    gangs: list[Any] | None = None,
    resources: dict[str, Any] | None = None,
    autoscaling: dict[str, Any] | None = None,
    refusals: dict[str, Refusal] | None = None,
) -> Snapshot:
    nodes = [state(NODE, "train", CPU=1.0), state(HEAD, "head", CPU=0.0)]
    cluster = {
        "clusterResourceState": {"nodeStates": nodes, **(resources or {})},
        "autoscalingState": autoscaling or {},
    }
    ray = RayState(jobs, tasks, actors or [], gangs or [], {}, cluster)
    return make_snapshot(ray, DEFINITION, records, at=NOW, refusals=refusals or {})


def cause(snapshot: Snapshot, name: str) -> tuple[str, str]:
    found = explain(snapshot, snapshot.work(name))
    return found.id, found.what


def test_equal_tasks_that_wait_are_one_demand_with_the_oldest_time() -> None:
    label = {"heliostat.io/group": "train"}
    waiting = [task(1, label_selector=label, creation_time_ms=(NOW - s) * 1000) for s in (10, 40, 20)]
    (work,) = taken([job(1, "a")], [*waiting, task(1, "RUNNING", label_selector=label, node_id=NODE)]).works
    (demand,) = work.demands
    assert (demand.count, demand.moving, demand.since) == (3, 1, pytest.approx(NOW - 40))
    assert demand.labels == label


def test_a_node_is_ready_once_the_gcs_knows_it_and_held_by_what_runs_there() -> None:
    ready = record(ray_node_id=NODE, ready_at=NOW - 56)
    begun = record(node_id="train-2", started_at=NOW - 2)
    ended = record(node_id="train-0", ended_at=NOW - 5)
    snapshot = taken([job(1, "a")], [task(1, "RUNNING", node_id=NODE)], ready, begun, ended)
    assert [(node.name, node.ready, dict(node.held)) for node in snapshot.nodes] == [
        ("train-1", True, {"a": {"CPU": 1.0, "GPU": 1.0}}),
        ("train-2", False, {}),
    ]
    assert snapshot.usual_start_s == pytest.approx(4)


def test_refused_launches_are_one_fact_with_their_rhythm() -> None:
    autoscaling = {"failedInstanceRequests": failed(20, 15, 10, 5), "pendingInstanceRequests": []}
    why = "insufficient capacity, 0 nodes to be had"
    snapshot = taken(
        [], [], autoscaling=autoscaling, refusals={"dry": Refusal("dry", "no-capacity", why, NOW - 5, NOW - 20)}
    )
    assert snapshot.facts == (
        Fact("no-capacity", "dry", "insufficient capacity, 0 nodes to be had", NOW - 5, 4, NOW - 20, 5.0),
    )


def test_a_node_that_is_asked_for_counts_as_starting_unless_its_group_is_refused() -> None:
    asked = [{"rayNodeTypeName": name, "count": 1, "requestTs": str(int(NOW - 3))} for name in ("train", "dry")]
    autoscaling = {"failedInstanceRequests": failed(5), "pendingInstanceRequests": asked}
    waits = [task(n, label_selector={"heliostat.io/group": name}) for n, name in ((1, "train"), (2, "dry"))]
    snapshot = taken([job(1, "a"), job(2, "b")], waits, autoscaling=autoscaling)
    assert [node.group for node in snapshot.nodes] == ["train"]
    assert cause(snapshot, "a")[0] == "node-starting"
    assert cause(snapshot, "b")[0] == "no-capacity"


def test_a_gang_knows_its_strategy_from_the_gcs() -> None:
    bundle = {"unit_resources": {"GPU": 1.0}, "label_selector": {"heliostat.io/group": "train"}, "node_id": ""}
    group = {"placement_group_id": "9f" * 18, "name": "gang", "creator_job_id": "01000000", "state": "PENDING"}
    rows = [{**group, "bundles": [bundle] * 3}]
    told = {"pendingGangResourceRequests": [{"details": f"{'9f' * 18}:STRICT_SPREAD|PENDING"}]}
    snapshot = taken([job(1, "a")], [], gangs=rows, resources=told)
    assert cause(snapshot, "a") == (
        "too-large",
        "gang needs 3 nodes at once, more than train may ever have (2 nodes)",
    )


def test_an_actor_whose_constructor_runs_is_loading_and_holds_its_node() -> None:
    actor = {"actor_id": "ab", "class_name": "Slow", "state": "PENDING_CREATION", "node_id": None, "job_id": "01000000"}
    asked = {**actor, "required_resources": {"GPU": 1.0}}
    made = task(1, "RUNNING", type="ACTOR_CREATION_TASK", name="Slow.__init__", actor_id="ab", node_id=NODE)
    snapshot = taken([job(1, "a")], [made], record(ray_node_id=NODE), actors=[asked])
    assert cause(snapshot, "a")[0] == "loading"
    assert dict(snapshot.nodes[0].held) == {"a": {"GPU": 1.0}}


def test_an_actor_without_a_node_waits_since_it_was_asked_for() -> None:
    actor = {"actor_id": "ab", "class_name": "Slow", "state": "PENDING_CREATION", "node_id": None, "job_id": "01000000"}
    made = task(1, "PENDING_NODE_ASSIGNMENT", type="ACTOR_CREATION_TASK", actor_id="ab")
    asked = {"pendingResourceRequests": [{"request": {"resourcesBundle": {"GPU": 1.0}, "labelSelectors": [{}]}}]}
    rows = [{**actor, "required_resources": {"GPU": 1.0}}]
    (work,) = taken([job(1, "a")], [made], actors=rows, resources=asked).works
    assert [(d.what, d.since, d.leased) for d in work.demands] == [("Slow", pytest.approx(NOW - 30), False)]
    placed = taken([job(1, "a")], [made], actors=rows)  # Ray asks for no node any more
    assert cause(placed, "a")[0] == "loading"


TRACEBACK = "runtime_env setup failed: Failed\nTraceback (most recent call last):\n  File x\nConnectionError: refused\n"


@pytest.mark.parametrize(
    ("rows", "actors", "fields"),
    [
        ([], [], {"status": "FAILED", "message": TRACEBACK}),
        ([task(1, "FAILED", error_type="RUNTIME_ENV_SETUP_FAILED", error_message=TRACEBACK)], [], {}),
        (
            [],
            [task(1, "DEAD", death_cause={"runtime_env_failed_context": {"error_message": TRACEBACK}})],
            {"status": "FAILED"},
        ),
    ],
)
def test_a_failed_runtime_environment_is_told_by_its_last_words(
    rows: list[Any], actors: list[Any], fields: dict[str, Any]
) -> None:
    snapshot = taken([job(1, "a", **fields)], rows, actors=actors)
    assert cause(snapshot, "a") == ("runtime-env", "its runtime environment cannot be made: ConnectionError: refused")


def test_a_job_that_failed_for_another_reason_is_not_said_to_lack_its_environment() -> None:
    message = "Job entrypoint command failed with exit code 1\nValueError: environment not given"
    found = cause(taken([job(1, "a", status="FAILED", message=message)], []), "a")
    assert found == ("ended", "it has failed: ValueError: environment not given")
