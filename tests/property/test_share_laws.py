"""Laws of the queue, and an hour of it: shares are kept, gangs start whole, nobody starves, nothing stops for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.errors import UsageError
from heliostat.plan.share import Decision, Policy, Request, Running, charge, decide

TEAMS = ("search", "speech", "vision")
wholes = st.builds(
    Request,
    job=st.uuids().map(str),
    team=st.sampled_from(TEAMS),
    group=st.sampled_from(["a100", "h100"]),
    nodes=st.integers(1, 10),
    gpus_per_node=st.sampled_from([1.0, 8.0]),
    submitted_at=st.integers(0, 1000).map(float),
    priority=st.integers(-1, 1),
)
NODE = 8.0  # GPUs
parts = st.builds(
    lambda whole, gpus: replace(whole, nodes=1, gpus_per_node=gpus, node_gpus=NODE),
    wholes,
    st.integers(1, 8).map(float),  # all of a node is a whole one
)
requests = wholes | parts
capacities = st.fixed_dictionaries({"a100": st.integers(0, 8), "h100": st.integers(0, 8)})
usages = st.dictionaries(st.sampled_from(TEAMS), st.floats(0, 1e6), max_size=3)
policies = st.builds(
    lambda shares, patience: Policy(shares, patience_s=patience),
    st.dictionaries(st.sampled_from(TEAMS), st.floats(0.1, 10), max_size=3),
    st.sampled_from([0.0, 300.0, 1e9]),
)
queues = st.lists(requests, max_size=10)


@dataclass
class Nodes:
    """GPUs free on each node of a group, and who is where: the test's own count of what fits."""

    free: list[float]
    at: dict[str, list[int]] = field(default_factory=dict)

    def place(self, request: Request) -> bool:
        if request.gpus_per_node < request.node_gpus:
            able = [(left, node) for node, left in enumerate(self.free) if left >= request.gpus_per_node]
            chosen, takes = [node for _, node in sorted(able)[:1]], request.gpus_per_node
        else:
            chosen = [node for node, left in enumerate(self.free) if left == NODE][: request.nodes]
            takes = NODE
        if len(chosen) < request.nodes:
            return False
        self.at[request.job] = chosen
        for node in chosen:
            self.free[node] -= takes
        return True

    def remove(self, request: Request) -> None:
        for node in self.at.pop(request.job):
            self.free[node] += request.gpus_per_node if request.gpus_per_node < request.node_gpus else NODE


def cluster(capacity: dict[str, int]) -> dict[str, Nodes]:
    return {group: Nodes([NODE] * nodes) for group, nodes in capacity.items()}


def whole(running: list[Request], capacity: dict[str, int], nodes: dict[str, Nodes] | None = None) -> list[Running]:
    """As many of them as fit, as if they ran."""
    nodes, found = nodes or cluster(capacity), []
    for request in running:
        if nodes[request.group].place(request):
            on = str(nodes[request.group].at[request.job][0]) if request.is_part else ""
            found.append(Running(request, request.submitted_at, on=on))
    return found


@settings(deadline=None)
@given(queues, queues, capacities, usages, policies)
def test_gangs_start_whole_and_never_beyond_capacity(
    queue: list[Request], others: list[Request], capacity: dict[str, int], usage: dict[str, float], policy: Policy
) -> None:
    nodes = cluster(capacity)
    running = whole(others, capacity, nodes)
    made = decide(queue, running, capacity, usage, policy, now=2000)
    by_name = {request.job: request for request in queue}
    assert all(nodes[by_name[job].group].place(by_name[job]) for job in made.start)
    assert sorted([*made.start, *(wait.job for wait in made.waits)]) == sorted(by_name)


@settings(deadline=None)
@given(queues, queues, capacities, policies, st.lists(st.sampled_from(["", "x", "y"]), min_size=10, max_size=10))
def test_where_more_runs_than_there_is_no_more_gpus_are_given_than_there_are(
    queue: list[Request], others: list[Request], capacity: dict[str, int], policy: Policy, on: list[str]
) -> None:
    running = [Running(r, r.submitted_at, on=o if r.is_part else "") for r, o in zip(others, on, strict=False)]
    made = decide(queue, running, capacity, {}, policy, now=2000)
    for group, nodes in capacity.items():
        started = sum(r.size for r in queue if r.job in made.start and r.group == group)
        assert not started or started + sum(o.request.size for o in running if o.request.group == group) <= nodes


@settings(deadline=None)
@given(queues, capacities, usages, policies)
def test_an_empty_cluster_with_work_that_fits_always_starts_some(
    queue: list[Request], capacity: dict[str, int], usage: dict[str, float], policy: Policy
) -> None:
    made = decide(queue, [], capacity, usage, policy, now=2000)
    for group in capacity:
        fitting = [request.job for request in queue if request.group == group and request.nodes <= capacity[group]]
        assert bool(fitting) is bool(set(made.start) & set(fitting))


@settings(deadline=None)
@given(queues, queues, capacities, usages, policies, st.randoms())
def test_the_order_in_which_things_are_told_decides_nothing(
    queue: list[Request],
    others: list[Request],
    capacity: dict[str, int],
    usage: dict[str, float],
    policy: Policy,
    chance: random.Random,
) -> None:
    running = whole(others, capacity)
    first = decide(queue, running, capacity, usage, policy, now=2000)
    chance.shuffle(queue)
    chance.shuffle(running)
    assert decide(queue, running, capacity, usage, policy, now=2000) == first


@settings(deadline=None)
@given(queues, queues, capacities, usages, policies)
def test_only_jobs_of_teams_above_their_share_are_asked_to_leave_and_never_in_vain(
    queue: list[Request], others: list[Request], capacity: dict[str, int], usage: dict[str, float], policy: Policy
) -> None:
    nodes = cluster(capacity)
    running = whole(others, capacity, nodes)
    made = decide(queue, running, capacity, usage, policy, now=2000)
    for request in queue:
        assert request.job not in made.start or nodes[request.group].place(request)
    for group in capacity:
        gone = [o for o in running if o.request.job in made.leave and o.request.group == group]
        stay = [o for o in running if o.request.job not in made.leave and o.request.group == group]
        if not gone:
            continue
        for one in gone:
            nodes[group].remove(one.request)
        assert any(nodes[group].place(r) for r in queue if r.group == group and r.job not in made.start)
        teams = {r.team for r in queue if r.group == group} | {
            o.request.team for o in running if o.request.group == group
        }
        for team in {o.request.team for o in gone}:
            due = capacity[group] * policy.share(team) / sum(map(policy.share, teams))
            assert sum(o.request.size for o in stay if o.request.team == team) >= due - 1e-6


# --- an hour of it


@dataclass
class World:
    """A cluster of one group, second by second. Jobs run for `lasts`; one that leaves comes back with what is left."""

    policy: Policy
    nodes: int
    lasts: dict[str, float] = field(default_factory=dict)
    queue: list[Request] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    now: float = 0.0

    def submit(self, job: str, team: str, nodes: int, lasts: float, priority: int = 0) -> None:
        self.lasts[job] = lasts
        self.queue.append(Request(job, team, "a100", nodes, 1, self.now, priority))

    def step(self, checkpoint_s: float = 60.0) -> Decision:
        made = decide(self.queue, self.running, {"a100": self.nodes}, self.usage, self.policy, now=self.now)
        for job in made.start:
            request = next(r for r in self.queue if r.job == job)
            self.queue.remove(request)
            self.waited.setdefault(job, self.now - request.submitted_at)
            self.running.append(Running(request, self.now))
        self.running = [replace(o, leaving=True) if o.request.job in made.leave else o for o in self.running]
        self.usage = charge(self.usage, self.running, 1.0, half_life_s=self.policy.half_life_s)
        self.now += 1
        for one in list(self.running):
            job, team = one.request.job, one.request.team
            self.spent[team] = self.spent.get(team, 0) + one.request.gpus
            self.lasts[job] -= 1
            at_checkpoint = (self.now - one.started_at) % checkpoint_s == 0
            if self.lasts[job] <= 0:
                self.done.append(job)
                self.running.remove(one)
            elif one.leaving and at_checkpoint:
                self.running.remove(one)
                self.queue.append(replace(one.request, submitted_at=self.now))
        return made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_over_an_hour_each_team_gets_its_share_within_five_per_cent(seed: int) -> None:
    """Both have more work than there is room for, of all sizes, speech in longer jobs; 3 to 1 is wanted."""
    chance = random.Random(seed)
    world = World(Policy({"search": 3, "speech": 1}, patience_s=120), nodes=8)
    for second in range(3600):
        for team, longest in (("search", 240), ("speech", 480)):
            if sum(r.team == team for r in world.queue) < 4:
                size = chance.choice([1, 1, 2, 4])
                world.submit(f"{team}-{second}", team, size, chance.uniform(30, longest), chance.choice([-1, 0, 1]))
        world.step()
    whole = sum(world.spent.values())
    assert world.spent["search"] / whole == pytest.approx(0.75, abs=0.05)
    assert whole / (8 * 3600) > 0.85  # what is kept free for gangs costs some


def test_small_jobs_that_share_nodes_are_done_in_a_quarter_of_the_time() -> None:
    """32 jobs of 2 GPUs and 100 s on two nodes of eight: eight at once where they share, two where each has a node."""

    def lasts(node_gpus: float) -> float:
        world = World(Policy({}), nodes=2)
        for number in range(32):
            world.lasts[str(number)] = 100.0
            world.queue.append(Request(str(number), "search", "a100", 1, 2.0, 0.0, node_gpus=node_gpus))
        while len(world.done) < 32:
            world.step()
        return world.now

    assert (lasts(NODE), lasts(0.0)) == (400, 1600)


def test_two_gangs_that_each_need_every_node_run_one_after_the_other() -> None:
    world = World(Policy({"search": 1, "speech": 1}), nodes=8)
    world.submit("a", "search", 8, 600)
    world.submit("b", "speech", 8, 600)
    for _ in range(1300):
        world.step()
        assert sum(one.request.nodes for one in world.running) in (0, 8)
    assert sorted(world.done) == ["a", "b"]


def test_a_stream_of_small_jobs_does_not_starve_a_gang() -> None:
    """Without patience's end the gang would wait for ever: some small job always runs."""

    def waited(patience_s: float) -> float | None:
        world = World(Policy({}, patience_s=patience_s), nodes=8)
        for second in range(3600):
            if second % 10 == 0:
                world.submit(f"small-{second}", "search", 1, 75)
            if second == 60:
                world.submit("gang", "speech", 8, 60)
            world.step()
        return world.waited.get("gang")

    found = waited(300)
    assert found is not None
    assert found <= 300 + 75 + 2
    assert waited(1e9) is None


def test_within_a_team_priority_decides_and_no_team_gains_by_urgency() -> None:
    world = World(Policy({"search": 1, "speech": 1}), nodes=1)
    for number in range(3):
        world.submit(f"low-{number}", "search", 1, 100, priority=-1)
        world.submit(f"high-{number}", "search", 1, 100, priority=1)
        world.submit(f"other-{number}", "speech", 1, 100, priority=-1)
    for _ in range(700):
        world.step()
    mine = [job for job in world.done if not job.startswith("other")]
    assert mine[:3] == ["high-0", "high-1", "high-2"]
    assert {job.split("-")[0] for job in world.done[:2]} == {"high", "other"}


def test_a_team_below_its_share_gets_nodes_back_at_a_checkpoint() -> None:
    world = World(Policy({"search": 1, "speech": 1}, patience_s=100), nodes=8)
    for number in range(8):
        world.submit(f"long-{number}", "search", 1, 100_000)
    world.step()
    assert len(world.running) == 8  # alone, it may have everything
    world.submit("due", "speech", 4, 600)
    while "due" not in world.waited:
        world.step(checkpoint_s=60)
        assert world.now < 400
    assert world.waited["due"] <= 100 + 60 + 2
    assert sum(one.request.nodes for one in world.running if one.request.team == "search") == 4


def test_a_job_that_never_fits_is_told_so_and_holds_up_nobody() -> None:
    policy = Policy({}, patience_s=0)
    huge, small = (Request(job, "search", "a100", n, 1, 0.0) for job, n in (("huge", 9), ("small", 1)))
    made = decide([huge, small], [], {"a100": 8}, {}, policy, now=1000)
    assert made.start == ("small",)
    assert [(wait.job, wait.hopeless) for wait in made.waits] == [("huge", True)]
    assert "never has more than 8" in made.waits[0].why


def part(job: str, gpus: float, team: str = "search", submitted_at: float = 0.0) -> Request:
    return Request(job, team, "a100", 1, gpus, submitted_at, node_gpus=NODE)


def test_jobs_that_need_a_part_share_a_node_and_leave_the_others_whole() -> None:
    queue = [part(f"small-{number}", 2) for number in range(4)]
    gang = Request("gang", "search", "a100", 3, NODE, 1.0)
    assert decide([*queue, gang], [], {"a100": 4}, {}, Policy({}), now=2).waits == ()
    fifth = decide([*queue, part("fifth", 2), gang], [], {"a100": 4}, {}, Policy({}), now=2)
    assert [wait.why for wait in fifth.waits] == ["needs 3 nodes of a100 at once, 2 free; waits 1s"]


def test_a_part_goes_where_there_is_room_and_is_told_how_much_there_is() -> None:
    here = [Running(part(job, 5), 0.0, on=job) for job in ("a", "b")]
    made = decide([part("large", 4), part("fits", 3)], here, {"a100": 2}, {}, Policy({}), now=7)
    assert made.start == ("fits",)
    assert [wait.why for wait in made.waits] == ["needs 4 GPUs of a node of a100, 3 free on one; waits 7s"]


def test_more_that_runs_than_there_is_room_for_starts_nothing() -> None:
    """A reclaim: one job has come to its new node, the other still names the one that is gone."""
    here = [Running(part("a", 4), 0.0, on="new"), Running(part("b", 4), 0.0, on="gone")]
    assert decide([part("c", 4)], here, {"a100": 1}, {}, Policy({}), now=1).start == ()
    assert decide([part("c", 4)], here, {"a100": 2}, {}, Policy({}), now=1).start == ("c",)


def test_a_job_that_may_not_leave_does_not_keep_its_node_s_others() -> None:
    """ "small" is the youngest, and all that its team has."""
    policy = Policy({"search": 2, "speech": 1, "vision": 1}, patience_s=10)
    here = [
        Running(part("small", 1, "vision"), 9.0, on="a"),
        Running(part("old", 3, "speech"), 2.0, on="a"),
        Running(part("b", 4, "speech"), 3.0, on="a"),
    ]
    made = decide([part("want", 4)], here, {"a100": 1}, {}, policy, now=20)
    assert made.leave == ("b",)


def test_only_those_leave_whose_node_comes_free() -> None:
    """A whole node is due. The youngest job of all is no help: whoever shares its node has run for the longest."""
    policy = Policy({"search": 3, "speech": 2}, patience_s=10)
    here = [
        Running(part("long", 6, "speech"), 1.0, on="a"),
        Running(part("young", 1, "speech"), 9.0, on="a"),
        Running(part("x", 4, "speech"), 3.0, on="b"),
        Running(part("y", 4, "speech"), 2.0, on="b"),
    ]
    due = Request("due", "search", "a100", 1, NODE, 0.0)
    made = decide([due], here, {"a100": 2}, {}, policy, now=20)
    assert sorted(made.leave) == ["x", "y"]


def test_a_part_of_several_nodes_is_refused() -> None:
    with pytest.raises(UsageError, match="2 GPUs of 3 nodes"):
        decide([replace(part("a", 2), nodes=3)], [], {"a100": 3}, {}, Policy({}), now=0)


def test_what_others_hold_now_makes_no_job_hopeless() -> None:
    two = Request("two", "search", "a100", 2, 1, 0.0)
    [wait] = decide([two], [], {"a100": 1}, {}, Policy({}), now=1, most={"a100": 3}).waits
    assert (wait.why, wait.hopeless) == ("needs 2 nodes of a100 at once, 1 free; waits 1s", False)


def test_no_nodes_are_kept_for_a_job_for_which_strangers_would_have_to_go() -> None:
    policy = Policy({}, patience_s=10)
    large, small = Request("large", "search", "a100", 3, NODE, 0.0), Request("small", "speech", "a100", 1, NODE, 50.0)
    made = decide([large, small], [], {"a100": 1}, {}, policy, now=60, most={"a100": 4})
    assert made.start == ("small",)
    kept = decide([large, small], [Running(replace(large, job="r", nodes=2), 0.0)], {"a100": 3}, {}, policy, now=60)
    assert kept.start == ()


@pytest.mark.parametrize("share", [0, -1, float("inf"), float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share of search"):
        Policy({"search": share})


def test_a_job_that_stands_twice_is_refused() -> None:
    request = Request("a", "search", "a100", 1, 1, 0.0)
    with pytest.raises(UsageError, match="stands twice"):
        decide([request], [Running(request, 0.0)], {"a100": 1}, {}, Policy({}), now=0)
