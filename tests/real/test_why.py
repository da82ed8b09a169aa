"""Why work waits, on a real cluster: each cause made for real and named, and real waits that blame nobody."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heliostat import sdk
from heliostat.cluster import embedded, processes
from heliostat.cluster.nodes import set_capacity
from heliostat.errors import JobError, UsageError
from heliostat.events import Event, read_spool
from heliostat.plan.why import Cause, Snapshot, explain, explain_all
from heliostat.sdk import Platform

pytestmark = [pytest.mark.cluster, pytest.mark.real, pytest.mark.timeout(240)]

DEFINITION = """\
name: why
head:
  cpus: 3
groups:
  serve: {role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: 0..1, idle_timeout: 60s}
  train: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..2, idle_timeout: 60s}
  dry: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..2, idle_timeout: 60s, fallback: spare}
  spare: {role: training, market: on-demand, cpus: 1, gpus: 1, nodes: 0..1, idle_timeout: 5s}
  wide: {role: training, market: spot, cpus: 2, gpus: 2, nodes: 0..1, idle_timeout: 5s}
  large: {role: training, market: spot, cpus: 1, gpus: 6, nodes: 0..1, idle_timeout: 60s}
budgets: {max_gpus: 5}
store: {kind: embedded, bucket: heliostat}
tags: {team: demo, project: voice}
jobs:
  whole: {entrypoint: sleep 900, group: train, publishes: whole, nodes: 2}
  part: {entrypoint: python -m train_jobs.steady --workers 1 --steps 100000, group: wide, publishes: steady, gpus: 1}
  trains: {entrypoint: python -m train_jobs.steady --workers 1, group: dry, publishes: steady, falls_back: true}
applications:
  chat: {recipe: "apps.chat:Chat", model: chat@production, group: serve, route: /chat, replicas: 1..1}
"""
STEADY = Path(__file__).parents[1] / "support" / "steady_job.py"
START = "import ray, time\nray.init(log_to_driver=False)\n"
LIMIT_S = 60.0
HOW_SOON: dict[str, float] = {}


def task(group: str | None, *, gpus: float = 1) -> str:
    label = f", label_selector={{'heliostat.io/group': {group!r}}}" if group else ""
    return f"@ray.remote(num_gpus={gpus}{label})\ndef work(): time.sleep(900)\nray.get(work.remote())"


def gang(group: str, nodes: int) -> str:
    labels = [{"heliostat.io/group": group}] * nodes
    return (
        "from ray.util.placement_group import placement_group\n"
        f"gang = placement_group([{{'GPU': 1, 'CPU': 1}}] * {nodes}, strategy='STRICT_SPREAD', name='gang',\n"
        f"    bundle_label_selector={labels!r})\nray.get(gang.ready())"
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    file = home / "why.yaml"
    file.write_text(DEFINITION)
    (home / "train_jobs").mkdir()
    shutil.copy(STEADY, home / "train_jobs" / "steady.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(home))
        made = sdk.up(file)
        assert made.settings.state_dir is not None
        set_capacity(made.settings.state_dir, "dry", 0)
        try:
            yield made
        finally:
            embedded.down("why")
            record = embedded.read_record("why")
            assert record is not None
            assert processes.owned(embedded.mark(record)) == []
            sys.stdout.write(json.dumps({"named_after_s": {k: round(v, 1) for k, v in HOW_SOON.items()}}) + "\n")


@pytest.fixture
def platform(cluster: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    assert cluster.settings.state_dir is not None
    monkeypatch.setenv("HELIOSTAT_HOME", str(cluster.settings.state_dir.parents[1]))
    return cluster


def snapshot(platform: Platform) -> Snapshot:
    return platform.snapshot()


def submit(platform: Platform, name: str, code: str, **options: object) -> None:
    from heliostat.train.submit import _client  # it sets Ray's token before Ray is imported

    _client(platform.settings).submit_job(
        submission_id=name,
        entrypoint=f"{shlex.quote(sys.executable)} -c {shlex.quote(START + code)}",
        runtime_env=options.get("runtime_env"),
    )


@pytest.fixture
def job(platform: Platform, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Submits a job of the test's own name, stopped when the test ends."""
    names: list[str] = []

    def send(code: str, *, name: str, **options: object) -> str:
        submit(platform, name, code, **options)
        names.append(name)
        return name

    yield send
    from heliostat.train.submit import stop

    for name in names:
        stop(platform.settings, name)


def cause_of(platform: Platform, name: str) -> Cause:
    found = snapshot(platform)
    return explain(found, found.work(name))


def until(platform: Platform, name: str, *causes: str, limit_s: float = LIMIT_S) -> Cause:
    """Asks until one of these is the cause. What is told meanwhile may only be that it starts, or that a node does."""
    began, seen = time.monotonic(), []
    while time.monotonic() - began < limit_s:
        try:
            found = cause_of(platform, name)
        except UsageError:  # Ray does not know it yet
            continue
        if found.id in causes:
            HOW_SOON.setdefault(f"{name}: {found.id}", time.monotonic() - began)
            assert found.do
            return found
        seen.append(found)
        time.sleep(0.3)
    raise AssertionError(f"{name} was not found to be {' or '.join(causes)} within {limit_s} s, but: {seen[-1:]}")


def placed(platform: Platform, name: str) -> str:
    """Waits until something of the job runs, not only its driver."""
    deadline = time.monotonic() + LIMIT_S
    while snapshot(platform).work(name).running == 0:
        assert time.monotonic() < deadline, f"nothing of {name} runs"
        time.sleep(0.3)
    return name


def stays_healthy(platform: Platform, name: str, cause: str, *, for_s: float = 6) -> None:
    until(platform, name, cause)
    began = time.monotonic()
    while time.monotonic() - began < for_s:
        found = cause_of(platform, name)
        assert found.healthy, found
        time.sleep(0.5)


def test_a_label_that_no_group_has(platform: Platform, job: Callable[..., str]) -> None:
    name = job(task("trian"), name="no-label")
    assert "heliostat.io/group=trian" in until(platform, name, "no-such-label").what


def test_actors_that_have_no_node_are_not_said_to_load(platform: Platform, job: Callable[..., str]) -> None:
    actor = (
        "@ray.remote(num_gpus=1, label_selector={{'heliostat.io/group': {!r}}})\nclass Idle:\n    def ping(self): ...\n"
    )
    wait = "a, b = Idle.remote(), Idle.remote()\nray.get([a.ping.remote(), b.ping.remote()])\ntime.sleep(900)"
    until(platform, job(actor.format("dry") + wait, name="dry-actor"), "no-capacity")
    until(platform, job(actor.format("serve") + wait, name="full-actor"), "too-large")  # by itself


def test_a_request_larger_than_any_node(platform: Platform, job: Callable[..., str]) -> None:
    name = job(task(None, gpus=8), name="too-large")
    assert "no node has more than 6 GPU" in until(platform, name, "too-large").what


def test_a_market_without_capacity(platform: Platform, job: Callable[..., str]) -> None:
    name = job(task("dry"), name="dry-market")
    found = until(platform, name, "no-capacity")
    assert "insufficient capacity, 0 nodes to be had" in found.what
    time.sleep(5)
    again = cause_of(platform, name)
    assert again.id == "no-capacity"
    assert "the next try" in again.what


def test_a_runtime_environment_that_fails(platform: Platform, job: Callable[..., str]) -> None:
    name = job("time.sleep(60)", name="bad-env", runtime_env={"working_dir": "https://127.0.0.1:1/none.zip"})
    assert "none.zip" in until(platform, name, "runtime-env").what


def test_a_node_that_starts_then_a_group_at_its_maximum(platform: Platform, job: Callable[..., str]) -> None:
    first = job(task("serve"), name="holder")
    told = until(platform, first, "node-starting", "running")
    assert told.id == "running" or "serve" in told.what  # the node may come up between two looks
    until(platform, placed(platform, first), "running")
    second = job(task("serve"), name="group-full")
    assert "serve at its maximum of 1 node, used by holder" in until(platform, second, "group-full").what


@pytest.mark.slow
def test_a_gang_that_waits_for_its_last_member_and_one_that_never_fits(
    platform: Platform, job: Callable[..., str]
) -> None:
    placed(platform, job(task("train"), name="one-of-two"))
    pair = job(gang("train", 2), name="pair")
    found = until(platform, pair, "gang-waits")
    assert "1 of 2 members of gang have room, and it waits for the last one: train at its maximum" in found.what
    trio = job(gang("train", 3), name="trio")
    assert "gang needs 3 nodes at once" in until(platform, trio, "too-large").what


def test_a_cluster_at_its_limit_of_gpus(platform: Platform, job: Callable[..., str]) -> None:
    name = job(task("large", gpus=6), name="beyond-quota")
    assert "of its 5 GPUs (budgets.max_gpus)" in until(platform, name, "quota").what


def test_a_job_that_waits_for_its_turn_in_the_queue(platform: Platform) -> None:
    first, second = platform.jobs.submit("whole"), platform.jobs.submit("whole")
    try:
        deadline = time.monotonic() + LIMIT_S
        while "needs 2 nodes of train at once, 0 free" not in (found := until(platform, second.job_id, "queued")).what:
            assert time.monotonic() < deadline, found.what  # at first the controller has not looked at it yet
            time.sleep(0.3)
        rows = {row.job_id: row.status for row in platform.jobs.list()}
        assert rows[second.job_id] == "QUEUED"
        assert rows[first.job_id] in ("PENDING", "RUNNING")
        with pytest.raises(JobError, match="has not started: needs 2 nodes"):
            platform.jobs.logs(second.job_id)
    finally:
        had = [platform.jobs.stop(one.job_id) for one in (second, first)]
    assert had[0] == "QUEUED"
    assert had[1] in ("PENDING", "RUNNING")
    deadline = time.monotonic() + LIMIT_S
    while (again := platform.jobs.stop(first.job_id)) != "STOPPED":  # there is nothing to stop any more
        assert time.monotonic() < deadline, again
        time.sleep(0.3)
    assert second.job_id not in {row.job_id for row in platform.jobs.list()}


def test_jobs_that_need_a_part_share_a_node_and_one_more_waits_for_room(platform: Platform) -> None:
    jobs = [platform.jobs.submit("part") for _ in range(3)]
    try:
        one, other = (trains_on(platform, job.run, "wide") for job in jobs[:2])
        assert one.fields["node"] == other.fields["node"]
        assert one.fields["gpus"] == other.fields["gpus"] == 1  # what the meter counts
        last = until(platform, jobs[2].job_id, "queued").what
        assert "needs 1 GPU of a node of wide, 0 free on one" in last
        platform.jobs.stop(jobs[0].job_id)
        trains_on(platform, jobs[2].run, "wide")
    finally:
        for job in jobs:
            platform.jobs.stop(job.job_id)


@pytest.mark.parametrize(
    ("name", "code", "cause"),
    [
        ("computes", "time.sleep(900)", "running"),
        (
            "depends",
            "@ray.remote(num_cpus=0.1)\ndef slow(): time.sleep(900)\n"
            "@ray.remote(num_cpus=0.1)\ndef use(x): return x\nray.get(use.remote(slow.remote()))",
            "waits-for-input",
        ),
        (
            "waves",
            "@ray.remote(num_cpus=1, label_selector={'heliostat.io/role': 'head'})\ndef slow(): time.sleep(1)\n"
            "ray.get([slow.remote() for _ in range(500)])",
            "waits-for-itself",
        ),
        (
            "loads",
            "@ray.remote(num_cpus=0.1)\nclass Slow:\n    def __init__(self): time.sleep(900)\n    def ping(self): ...\n"
            "ray.get(Slow.remote().ping.remote())",
            "loading",
        ),
    ],
)
def test_a_healthy_wait_blames_nobody(
    platform: Platform, job: Callable[..., str], name: str, code: str, cause: str
) -> None:
    stays_healthy(platform, job(code, name=name), cause)


def test_an_application_that_nobody_asks_sleeps(platform: Platform) -> None:
    assert cause_of(platform, "chat").id == "asleep"


def test_a_job_that_was_just_submitted_is_starting_and_a_stopped_one_has_ended(platform: Platform) -> None:
    from heliostat.train.submit import stop

    submit(platform, "brief", "time.sleep(900)")
    assert cause_of(platform, "brief").healthy
    until(platform, "brief", "running")
    stop(platform.settings, "brief")
    until(platform, "brief", "ended")
    assert "brief" not in {answer.work for answer in explain_all(snapshot(platform))}


def test_an_unknown_name_is_told_with_the_known_ones(platform: Platform) -> None:
    with pytest.raises(UsageError, match="there is no job and no application 'nothing'"):
        cause_of(platform, "nothing")


def test_the_file_has_no_groups_that_the_snapshot_lacks(platform: Platform, tmp_path: Path) -> None:
    assert {group.name for group in snapshot(platform).groups} == set(platform.definition.groups)


def test_a_limit_of_the_market_is_for_groups_that_there_are(platform: Platform) -> None:
    with pytest.raises(UsageError, match="the definition has no group 'trian'"):
        platform.limit_capacity("trian", 0)


@pytest.mark.slow
def test_without_spot_a_training_goes_to_the_fallback_and_returns_at_a_checkpoint(platform: Platform) -> None:
    """The last test here: it leaves a node of `dry`, which others want to have none."""
    job = platform.jobs.submit("trains", arguments=["--steps", "100000", "--pause", "0.1"])
    on_spare = worker_began(platform, job.run, "spare")
    platform.limit_capacity("dry", None)
    on_dry = worker_began(platform, job.run, "dry")
    steps = [event.fields["step"] for event in read_spool(platform.settings.spool) if event.kind == "step"]
    platform.jobs.stop(job.job_id)
    assert on_spare < on_dry
    assert len(steps) == len(set(steps)), "a step was made twice"


def worker_began(platform: Platform, run: str, group: str) -> float:
    """When a worker of the run began on a node of the group; waits for it, and for three steps there."""
    return trains_on(platform, run, group).time_s


def trains_on(platform: Platform, run: str, group: str) -> Event:
    deadline = time.monotonic() + 2 * LIMIT_S
    while time.monotonic() < deadline:
        events = [event for event in read_spool(platform.settings.spool) if event.fields.get("run") == run]
        began = [e for e in events if e.kind == "worker_started" and e.fields["node"].startswith(f"{group}-")]
        if began and sum(e.kind == "step" and e.time_s > began[-1].time_s for e in events) >= 3:
            return began[-1]
        time.sleep(0.3)
    raise AssertionError(f"no worker of {run} trains on {group}")
