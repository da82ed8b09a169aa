"""Each cause of a wait from the facts that it shows by, and the waits that nobody is to blame for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.errors import UsageError
from heliostat.plan.why import (
    NOT_DEPLOYED,
    Demand,
    Fact,
    Gang,
    Group,
    Node,
    Snapshot,
    Work,
    explain,
    explain_all,
    holds,
    matches,
)

NOW = 1_000_000.0


def group(name: str, *, gpus: float = 1, high: int = 2, **labels: str) -> Group:
    return Group(name, {"CPU": 4, "GPU": gpus}, {"heliostat.io/group": name, **labels}, 0, high)


def node(name: str, of: str, *, gpus: float = 0, ready: bool = True, age: float = 60, by: tuple[str, ...] = ()) -> Node:
    free = {"CPU": 4.0, "GPU": gpus} if ready else {}
    return Node(name, of, ready, NOW - age, free, {"heliostat.io/group": of}, held={name: {"GPU": 1} for name in by})


def asks(gpus: float = 1, *, age: float = 30, count: int = 1, **labels: str) -> Demand:
    selector = {key.replace("_", "/"): value for key, value in labels.items()}
    return Demand("task step", {"GPU": gpus, "CPU": 1}, selector, count, NOW - age)


def waiting(*demands: Demand, **fields: object) -> Work:
    return replace(Work("nightly", "job", "running", demands=demands), **fields)  # type: ignore[arg-type]


def cluster(*nodes: Node, facts: tuple[Fact, ...] = (), high: int = 2) -> Snapshot:
    groups = (group("serve", high=1), group("train", high=high))
    head = Group("head", {"CPU": 2}, {"heliostat.io/role": "head"}, 1, 1)
    return Snapshot(NOW, groups, nodes, facts=facts, head=head, head_free={"CPU": 2}, usual_start_s=4.0)


TRAIN = {"heliostat.io_group": "train"}
HELD = node("t1", "train", by=("other",)), node("t2", "train", by=("other",))


@pytest.mark.parametrize(
    ("snapshot", "work", "cause", "words"),
    [
        (cluster(), waiting(asks(**{"heliostat.io_group": "trian"})), "no-such-label", "heliostat.io/group=trian"),
        (cluster(), waiting(asks(8)), "too-large", "asks for 8 GPU, 1 CPU, and no node has more than 1 GPU"),
        (cluster(), waiting(asks(8, **TRAIN)), "too-large", "no node of train has more than 1 GPU"),
        (cluster(*HELD), waiting(asks(**TRAIN)), "group-full", "train at its maximum of 2 nodes, used by other"),
        (
            cluster(facts=(Fact("no-capacity", "train", "insufficient capacity", NOW - 3, 7, NOW - 63, 23),)),
            waiting(asks(**TRAIN)),
            "no-capacity",
            "insufficient capacity; refused 7 times in 1m, the next try in 20s",
        ),
        (
            cluster(node("t1", "train", ready=False, age=3)),
            waiting(asks(**TRAIN)),
            "node-starting",
            "node t1 of train has been starting for 3s, usually 4s",
        ),
        (
            cluster(facts=(Fact("quota", "train", "L-34B43A08 allows 64 vCPUs", NOW - 9),)),
            waiting(asks(**TRAIN)),
            "quota",
            "L-34B43A08",
        ),
        (
            cluster(node("t1", "train", ready=False), facts=(Fact("image-pull", "train", "no manifest", NOW - 9),)),
            waiting(asks(**TRAIN)),
            "image-pull",
            "no manifest",
        ),
        (
            cluster(),
            waiting(phase="failed", runtime_env_error="No matching distribution found for nonsense"),
            "runtime-env",
            "No matching distribution",
        ),
        (
            cluster(node("t1", "train", gpus=1), node("t2", "train", by=("other",))),
            waiting(gangs=(Gang("pair", (asks(**TRAIN), asks(**TRAIN)), spread=True),)),
            "gang-waits",
            "1 of 2 members of pair have room, and it waits for the last one: train at its maximum",
        ),
        (
            cluster(),
            waiting(gangs=(Gang("trio", tuple(asks(**TRAIN) for _ in range(3)), spread=True),)),
            "too-large",
            "trio needs 3 nodes at once, more than train may ever have (2 nodes)",
        ),
        (
            cluster(node("t1", "train", by=("other",))),
            waiting(gangs=(Gang("pair", (asks(**TRAIN), asks(**TRAIN)), spread=True),)),
            "gang-waits",
            "1 of 2 members of pair have room, and it waits for the last one: train at its maximum of 2 nodes, used by",
        ),
        (
            cluster(node("t1", "train", gpus=1), node("t2", "train", ready=False, age=3)),
            waiting(gangs=(Gang("pair", (asks(**TRAIN), asks(**TRAIN)), spread=True),)),
            "gang-waits",
            "and it waits for the last one: node t2 of train has been starting for 3s",
        ),
        (cluster(), waiting(asks(age=60, **TRAIN)), "unknown", "is not placed (for 1m)"),
    ],
)  # fmt: skip
def test_a_cause_is_named_and_told(snapshot: Snapshot, work: Work, cause: str, words: str) -> None:
    found = explain(snapshot, work)
    assert (found.id, found.healthy) == (cause, False)
    assert words in found.what
    assert found.do


@pytest.mark.parametrize(
    ("work", "cause"),
    [
        (waiting(running=2), "running"),
        (waiting(phase="ended"), "ended"),
        (waiting(phase="pending", since=NOW - 3), "starting"),
        (waiting(waiting_for_input=3, running=1), "waits-for-input"),
        (waiting(replace(asks(count=46, **TRAIN), moving=2), running=2), "waits-for-itself"),
        (waiting(kind="app", loading=1), "loading"),
        (waiting(kind="app", phase="asleep"), "asleep"),
    ],
)
def test_a_healthy_wait_blames_nobody(work: Work, cause: str) -> None:
    mine = tuple(replace(node, held={"nightly": {"GPU": 1}}) for node in HELD)
    found = explain(cluster(*mine), work)
    assert (found.id, found.healthy) == (cause, True)


def test_an_application_without_a_version_is_told_to_release_one() -> None:
    found = explain(Snapshot(NOW, ()), waiting(kind="app", phase="asleep", message="x", unreleased="chat"))
    assert found.do == "heliostat app release nightly chat:vN"
    first = explain(Snapshot(NOW, ()), waiting(kind="app", phase="asleep", message=NOT_DEPLOYED, unreleased="chat"))
    assert first.do == "heliostat app deploy nightly"


def test_room_that_is_there_is_being_taken_and_not_for_ever() -> None:
    new, old = node("t1", "train", gpus=1, age=5), node("t1", "train", gpus=1, age=90)
    assert explain(cluster(new), waiting(asks(**TRAIN))).id == "being-placed"
    assert explain(cluster(old), waiting(asks(age=5, **TRAIN))).id == "being-placed"
    assert explain(cluster(old), waiting(asks(age=80, **TRAIN))).id == "unknown"


def test_who_holds_only_what_is_not_lacking_is_not_blamed() -> None:
    busy = tuple(replace(one, held={"gpu-user": {"GPU": 1}, "cpu-user": {"CPU": 1}}) for one in HELD)
    assert explain(cluster(*busy), waiting(asks(**TRAIN))).what.endswith("used by gpu-user")


def test_work_that_holds_all_that_there_may_be_is_told_that_no_wait_helps() -> None:
    mine = tuple(replace(node, held={"nightly": {"GPU": 1}}) for node in HELD)
    found = explain(cluster(*mine), waiting(asks(count=3, **TRAIN)))
    assert (found.id, found.healthy) == ("too-large", False)
    assert found.what == "train has 2 nodes at most; it holds them all, and asks for room for 3 more"
    assert "fewer workers" in found.do
    leaving = (replace(mine[0], draining=True), mine[1])  # its place is about to be free
    assert explain(cluster(*leaving), waiting(asks(**TRAIN))).id == "group-full"
    assert explain(cluster(mine[0], HELD[1]), waiting(asks(**TRAIN))).what.endswith("used by nightly, other")


def test_a_driver_that_does_not_start_is_not_healthy_for_ever() -> None:
    assert explain(cluster(), waiting(phase="pending", since=NOW - 300)).id == "unknown"


def test_a_node_that_starts_ends_the_wait_whatever_another_group_was_refused() -> None:
    refused = Fact("no-capacity", "train", "insufficient capacity", NOW - 3)
    snapshot = cluster(node("s1", "serve", ready=False, age=2), facts=(refused,))
    assert explain(snapshot, waiting(asks())).id == "node-starting"


def test_a_refusal_before_the_request_is_not_its_cause() -> None:
    snapshot = cluster(facts=(Fact("no-capacity", "train", "insufficient capacity", NOW - 60),))
    assert explain(snapshot, waiting(asks(age=5, **TRAIN))).id == "node-starting"
    assert explain(snapshot, waiting(asks(age=90, **TRAIN))).id == "no-capacity"


def test_a_refusal_before_the_group_got_a_node_is_over() -> None:
    refused = Fact("no-capacity", "train", "insufficient capacity", NOW - 60)
    snapshot = cluster(node("t1", "train", age=20, by=("other",)), facts=(refused,))
    assert explain(snapshot, waiting(asks(age=90, **TRAIN))).id == "unknown"


def test_a_group_with_room_is_tried_before_capacity_is_blamed() -> None:
    refused = Fact("no-capacity", "train", "insufficient capacity", NOW - 3)
    assert explain(cluster(facts=(refused,)), waiting(asks(age=5))).id == "node-starting"  # serve has room
    full = cluster(node("s1", "serve", by=("app",)), facts=(refused,))
    assert explain(full, waiting(asks())).id == "no-capacity"


def test_a_starting_node_that_takes_long_sends_to_its_log() -> None:
    slow = cluster(node("t1", "train", ready=False, age=120))
    assert "log" in explain(slow, waiting(asks(**TRAIN))).do
    assert explain(cluster(node("t1", "train", ready=False)), waiting(asks(**TRAIN))).do != "wait for it"


def test_of_several_requests_the_hopeless_one_is_told() -> None:
    starting = node("t1", "train", ready=False, age=1)
    assert explain(cluster(starting), waiting(asks(**TRAIN), asks(8))).id == "too-large"


def test_those_that_wait_for_somebody_come_first() -> None:
    works = (waiting(running=1), replace(waiting(asks(8)), name="z"), replace(waiting(phase="ended"), name="a"))
    answers = explain_all(replace(cluster(), works=works))
    assert [(answer.work, answer.cause.id) for answer in answers] == [("z", "too-large"), ("nightly", "running")]


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="one of: nightly"):
        replace(cluster(), works=(waiting(),)).work("weekly")


def test_a_run_s_name_means_its_newest_job() -> None:
    jobs = tuple(replace(waiting(), name=name, since=at) for name, at in (("n-1-aa", 2.0), ("n-1-bb", 5.0), ("n-2", 9)))
    assert replace(cluster(), works=jobs).work("n-1").name == "n-1-bb"


@pytest.mark.parametrize(
    ("value", "selector", "does"),
    [
        ("a", "a", True),
        ("a", "!a", False),
        ("b", "!a", True),
        ("a", "in(a, b)", True),
        ("c", "in(a,b)", False),
        ("c", "!in(a,b)", True),
        (None, "a", False),
        (None, "!a", True),
    ],
)
def test_selectors_are_rays(value: str | None, selector: str, does: bool) -> None:
    labels = {} if value is None else {"tier": value}
    assert matches(labels, {"tier": selector}) is does


KINDS = ("quota", "image-pull", "no-capacity")
names = st.sampled_from(["train", "serve", "dry"])
amounts = st.integers(0, 4).map(float)
groups = st.builds(
    lambda name, gpus, high: group(name, gpus=gpus, high=high), names, amounts, st.integers(0, 3)
)  # fmt: skip
snapshots = st.builds(
    lambda found, nodes, facts: Snapshot(
        NOW, tuple({g.name: g for g in found}.values()), tuple(nodes), (), tuple(facts)
    ),
    st.lists(groups, min_size=1, max_size=3),
    st.lists(
        st.builds(
            lambda name, of, gpus, ready: node(name, of, gpus=gpus, ready=ready),
            st.uuids().map(str),
            names,
            amounts,
            st.booleans(),
        ),
        max_size=4,
    ),
    st.lists(
        st.builds(Fact, st.sampled_from(KINDS), names, st.just("no"), st.just(NOW - 5)),
        max_size=3,
    ),
)  # fmt: skip
selectors = st.one_of(st.just({}), names.map(lambda name: {"heliostat.io/group": name}))
demands = st.builds(lambda gpus, labels: Demand("task", {"GPU": gpus}, labels, 1, NOW - 20), amounts, selectors)


@settings(deadline=None)
@given(snapshots, demands)
def test_only_what_no_group_could_ever_hold_is_called_hopeless(snapshot: Snapshot, demand: Demand) -> None:
    possible = any(
        g.high > 0 and matches(g.labels, demand.labels) and holds(g.resources, demand.resources)
        for g in snapshot.groups
    )  # fmt: skip
    hopeless = explain(snapshot, waiting(demand)).id in ("no-such-label", "too-large")
    assert hopeless is not possible


@settings(deadline=None)
@given(snapshots, st.lists(demands, max_size=3), st.lists(demands, min_size=1, max_size=4), st.booleans())
def test_the_order_of_things_changes_no_answer(
    snapshot: Snapshot, loose: list[Demand], bundles: list[Demand], spread: bool
) -> None:
    work = waiting(*loose, gangs=(Gang("gang", tuple(bundles), spread),))
    other = replace(
        snapshot, groups=snapshot.groups[::-1], nodes=snapshot.nodes[::-1], facts=snapshot.facts[::-1]
    )  # fmt: skip
    turned = replace(work, demands=tuple(loose[::-1]))
    first, second = explain(snapshot, work), explain(other, turned)
    assert first.id == second.id
    assert first.what
    assert first.do


@settings(deadline=None)
@given(snapshots, demands, names)
def test_one_more_node_of_room_never_makes_a_request_hopeless(snapshot: Snapshot, demand: Demand, name: str) -> None:
    raised = tuple(replace(g, high=g.high + 1) if g.name == name else g for g in snapshot.groups)
    before, after = (explain(s, waiting(demand)).id for s in (snapshot, replace(snapshot, groups=raised)))
    assert not (after in ("no-such-label", "too-large") and before not in ("no-such-label", "too-large"))
