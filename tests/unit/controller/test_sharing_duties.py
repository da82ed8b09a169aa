"""What the duties decide, from what they see; and the words between controller and driver, over a real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.cluster.nodes import NodeRecord, clear_refusal, note_refusal, read_refusal
from heliostat.controller import queue as duty
from heliostat.controller.peaks import CALM_S, Pool, next_bounds
from heliostat.controller.queue import View, capacity, growth, requests, running
from heliostat.controller.sick import broken, loses_workers, unresponsive
from heliostat.definition import load
from heliostat.errors import JobError
from heliostat.plan.sick import GpuHealth
from heliostat.store import Store
from heliostat.train import bounds, queued
from heliostat.train.bounds import Bound, Held, Reins
from heliostat.train.queued import QueuedJob, QueueState

LAPTOP = load(Path(__file__).parents[3] / "cluster" / "laptop.yaml")
NOW = 1000.0


def job(name: str, *, started_at: float | None = None, run: str = "") -> QueuedJob:
    made = queued.wanted(LAPTOP, "intent-classifier", run=run or name, package="zip", now=NOW)
    return made.model_copy(update={"job_id": name, "started_at": started_at})


def held(run: str, nodes: int, *, low: int = 1, high: int = 3, group: str = "train") -> Held:
    return Held(run=run, group=group, home="train", nodes=nodes, low=low, high=high, at=NOW)


def test_a_part_is_on_the_node_that_its_gang_names() -> None:
    part = job("a", started_at=NOW).model_copy(update={"nodes": 1, "gpus_per_node": 4.0, "node_gpus": {"train": 8.0}})
    [new] = running(View((), (part,), {}))
    [known] = running(View((), (part,), {"a": held("a", 1).model_copy(update={"node": "x"})}))
    assert (new.on, known.on, known.request.is_part) == ("", "x", True)


def test_the_trials_of_a_queued_sweep_hold_what_the_sweep_was_given() -> None:
    sweep, trial, stranger = job("sweep", started_at=1.0), held("trial", 1), held("by-hand", 1)
    alone = View((), (sweep,), {"by-hand": stranger})
    with_trial = View((), (sweep,), {"by-hand": stranger, "trial": trial.model_copy(update={"job_id": "sweep"})})
    assert capacity(LAPTOP, with_trial) == capacity(LAPTOP, alone)


def test_a_job_of_the_definition_waits_as_what_the_definition_says() -> None:
    made = job("one")
    assert (made.team, made.group, made.nodes, made.priority) == ("demo", "train", 2, 0)
    assert made.request["runtime_env"]["env_vars"]["HELIOSTAT_TEAM"] == "demo"


def test_what_a_gang_says_that_it_holds_counts_for_more_than_what_was_written() -> None:
    view = View((job("waits"),), (job("runs", started_at=1.0), job("new", started_at=2.0)), {"runs": held("runs", 3)})
    assert [(r.job, r.nodes) for r in requests(view)] == [("waits", 2)]
    assert [(r.request.job, r.request.nodes) for r in running(view)] == [("runs", 3), ("new", 2)]


def test_a_gang_that_has_left_waits_again_and_one_on_its_fallback_counts_there() -> None:
    left, away = job("left", started_at=1.0), job("away", started_at=2.0)
    view = View((), (left, away), {"left": held("left", 0), "away": held("away", 2, group="steady")},
                frozenset(("left",)), {"left": NOW})  # fmt: skip
    assert [(r.job, r.submitted_at) for r in requests(view)] == [("left", NOW)]
    assert [(r.request.job, r.request.group) for r in running(view)] == [("away", "steady")]


def test_an_elastic_gang_does_not_grow_while_others_wait_for_its_group() -> None:
    view = View((), (), {"a": held("a", 2), "whole": held("whole", 3, low=3)})
    assert growth(view, {"train"}) == {"a": 2}
    assert growth(view, set()) == {}
    bound = replace(view, kept=frozenset({"a"}))
    assert growth(bound, {"train"}) == {}
    assert growth(bound, set()) == {"a": None}


def test_what_nobody_queued_holds_is_not_given_away() -> None:
    view = View((), (), {"by-hand": held("by-hand", 2)})
    assert capacity(LAPTOP, view) == {"train": 1, "train-on-demand": 2}


def test_the_queue_s_words_are_told_when_they_change_and_not_every_second() -> None:
    assert duty._plain("needs 2 nodes of train at once, 1 free; waits 5s") == (
        duty._plain("needs 2 nodes of train at once, 1 free; waits 9s")
    )


def pool(*, refused_at: float = NOW, free: float = 0, **fields: object) -> Pool:
    known = {"held": {"a": held("a", 3)}, "bounds": {}, "gpus_per_node": {"train": 1.0}}
    return Pool(refused_at, free, **{**known, **fields})  # type: ignore[arg-type]


def test_at_a_peak_the_gang_with_the_most_to_spare_gives_a_node() -> None:
    gangs = {"a": held("a", 3), "b": held("b", 2), "whole": held("whole", 3, low=3)}
    (found,) = next_bounds(pool(held=gangs), NOW).items()
    assert found == ("a", Bound(nodes=2, why="serving needs a GPU for its peak"))


@pytest.mark.parametrize(
    "state",
    [
        pool(refused_at=float("-inf")),  # nobody was refused
        pool(free=1),  # there is room by now
        pool(held={"whole": held("whole", 3, low=3)}),  # nothing to spare
        pool(bounds={"a": Bound(nodes=2, why="")}),  # one is on its way
        pool(
            held={"a": held("a", 2)}, bounds={"a": Bound(nodes=2, why="")}, serving=1, serving_before=1
        ),  # not used yet
    ],
)
def test_nothing_is_taken_without_need(state: Pool) -> None:
    assert next_bounds(state, NOW) == {}


def test_after_the_peak_the_node_returns_once_there_is_room() -> None:
    bound = {"a": Bound(nodes=2, why="")}
    calm = NOW + CALM_S
    assert next_bounds(pool(held={"a": held("a", 2)}, bounds=bound), calm) == {}
    assert next_bounds(pool(held={"a": held("a", 2)}, bounds=bound, free=1), calm) == {"a": None}
    assert next_bounds(pool(held={"a": held("a", 2)}, bounds=bound, free=1), calm - 1) == {}
    more = next_bounds(pool(held={"a": held("a", 1)}, bounds={"a": Bound(nodes=1, why="w")}, free=1), calm)
    assert more == {"a": Bound(nodes=2, why="w")}


@given(st.integers(0, 4), st.integers(1, 3), st.floats(0, 60))
def test_no_gang_is_bound_below_what_it_needs(nodes: int, low: int, later: float) -> None:
    for bound in next_bounds(pool(held={"a": held("a", nodes, low=low)}), NOW + later).values():
        assert bound is None or bound.nodes >= low


def node(name: str, **fields: object) -> NodeRecord:
    known = {"group": "train", "role": "training", "market": "spot", "gpus": 1.0, "cpus": 1.0, "pid": 1,
             "started_at": 1.0, "ray_node_id": f"ray-{name}"}  # fmt: skip
    return NodeRecord(node_id=name, **{**known, **fields})  # type: ignore[arg-type]


def test_a_node_that_ray_gave_up_and_that_still_runs_is_frozen() -> None:
    rows = [
        {"node_id": "ray-a", "state": "DEAD", "state_message": "health check failed"},
        {"node_id": "ray-b", "state": "ALIVE"},
        {"node_id": "ray-ended", "state": "DEAD", "state_message": "health check failed"},
        {"node_id": "ray-leaving", "state": "DEAD", "state_message": "idle termination by the autoscaler"},
    ]
    answer = {"data": {"result": {"result": rows}}}
    (found,) = unresponsive({"ray-a": node("a"), "ray-b": node("b"), "ray-leaving": node("leaving")}, answer)
    assert (found.node, found.kind, found.evidence, found.answers) == (
        "ray-a", "unresponsive", "health check failed", False,
    )  # fmt: skip


def test_workers_lost_again_and_again_on_one_node_blame_it() -> None:
    gangs = [held("a", 1).model_copy(update={"losses": {"x": 2, "y": 1}}),
             held("b", 1).model_copy(update={"losses": {"x": 1}})]  # fmt: skip
    assert [verdict.node for verdict in loses_workers(gangs)] == ["x"]


def test_a_broken_gpu_blames_the_node_that_holds_it() -> None:
    nodes = [node("a", devices=(0,)), node("b", devices=(1,))]
    (found,) = broken(nodes, [GpuHealth(0, "p", 0), GpuHealth(1, "q", 4)])
    assert (found.node, found.kind) == ("ray-b", "gpu-errors")


def test_a_refusal_is_counted_until_a_node_comes(tmp_path: Path) -> None:
    note_refusal(tmp_path, "train", "no-capacity", "none", 10.0)
    assert note_refusal(tmp_path, "train", "no-capacity", "none", 11.0).times == 2
    found = read_refusal(tmp_path, "train")
    assert found is not None
    assert (found.first_at, found.at) == (10.0, 11.0)
    clear_refusal(tmp_path, "train")
    assert read_refusal(tmp_path, "train") is None


# --- over a real store


@pytest.mark.real
def test_a_run_stands_once_in_the_queue_and_one_that_is_gone_makes_way(store: Store) -> None:
    first, again = job("a-1", run="a"), job("a-2", run="a")
    queued.enqueue(store, first, living=())
    with pytest.raises(JobError, match="in the queue already as job a-1"):
        queued.enqueue(store, again, living=())
    assert queued.mark_started(store, "a-1", NOW)
    with pytest.raises(JobError, match="running already as job a-1"):
        queued.enqueue(store, again, living={"a-1"})
    queued.enqueue(store, again, living=())
    assert [one.job_id for one in queued.read_queue(store)] == ["a-2"]
    queued.write_state(store, QueueState(at=NOW, waits={"a-2": "needs 2 nodes"}))
    assert [(row.status, row.why) for row in queued.queue_rows(store)] == [("QUEUED", "needs 2 nodes")]
    queued.remove(store, "a-2")
    assert not queued.mark_started(store, "a-2", NOW)


@pytest.mark.real
def test_the_least_bound_counts_and_too_few_is_none(store: Store) -> None:
    reins = Reins(store, "r", "train", 2, 4)
    reins._read()
    assert reins.most == 4
    bounds.bind(store, "r", "queue", 3, "b")
    bounds.bind(store, "r", "peak", 2, "serving")
    reins._read()
    assert (reins.most, reins.why) == (2, "serving")
    bounds.bind(store, "r", "peak", 1, "serving")
    reins._read()
    assert reins.most == 0
    bounds.bind(store, "r", "peak", None)
    reins._read()
    assert reins.most == 3
    reins.hold("train", 3)
    reins._tell()
    assert bounds.read_held(store, _at(store))["r"].nodes == 3
    bounds.forget(store, "r")
    assert store.list("gangs/") == []


@pytest.mark.real
def test_nodes_of_many_gpus_are_counted_as_nodes(store: Store) -> None:
    reins = Reins(store, "r", "train", 12, 32, a_node={"train": 8, "steady": 4})
    reins.hold("train", 24)
    reins._tell()
    held = bounds.read_held(store, _at(store))["r"]
    assert (held.nodes, held.low, held.high) == (3, 2, 4)
    bounds.bind(store, "r", "peak", 2, "serving")
    reins._read()
    assert reins.most == 16
    reins.hold("steady", 16)
    assert reins.most == 0, "two nodes of four are too few"
    reins._tell()
    assert bounds.read_held(store, _at(store))["r"].nodes == 4


@pytest.mark.real
def test_one_gang_of_a_group_may_hold_a_part_and_the_next_when_it_is_done(store: Store) -> None:
    first, second = Reins(store, "one", "train", 2, 2), Reins(store, "two", "train", 2, 2)
    other = Reins(store, "three", "steady", 2, 2)
    assert (first.may_place(), second.may_place(), other.may_place()) == (True, False, True)
    assert first.may_place()
    first.release()
    assert second.may_place()
    assert not first.may_place()


def _at(store: Store) -> float:
    found, _ = store.get_json("gangs/r/held.json")
    return float(found["at"])  # type: ignore[index, call-overload, arg-type]
