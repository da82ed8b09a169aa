"""Training on the embedded cluster while its spot nodes are taken away, and with the user's own data and mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from heliostat import sdk
from heliostat.cluster import embedded, processes, reclaim
from heliostat.cluster.nodes import set_capacity
from heliostat.definition import JobSpec
from heliostat.errors import JobFailed
from heliostat.events import Event, read_spool
from heliostat.sdk import Platform
from heliostat.serve import desired
from heliostat.train.job import DEADLINE
from heliostat.train.logs import read_logs
from heliostat.train.market import Terms
from heliostat.train.submit import SubmittedJob, submit

pytestmark = [pytest.mark.cluster, pytest.mark.real, pytest.mark.timeout(280)]
JOB = "intent-classifier"
LAPTOP = Path(__file__).parents[2] / "cluster" / "laptop.yaml"
COMMANDS = {
    "light": ["turn on the lamp", "switch the light off", "make it brighter", "dim the kitchen lights"],
    "music": ["play some jazz", "next song please", "stop the music", "turn the volume up"],
    "weather": ["will it rain", "how warm is it", "is it windy today", "do I need an umbrella"],
}


def write_csv(path: Path, copies: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for copy in range(copies):
            for label, texts in COMMANDS.items():
                writer.writerows([f"{text} {'now ' * (copy % 3)}{copy}", label] for text in texts)
    return path


def events_of(platform: Platform, job: SubmittedJob, kind: str) -> list[Event]:
    return [
        event
        for event in read_spool(platform.settings.spool)
        if event.kind == kind and event.fields.get("run") == job.run
    ]


@pytest.mark.slow
def test_a_node_killed_without_notice_costs_an_interval_at_most(platform: Platform, tmp_path: Path) -> None:
    """One's own data in, a killed node on the way, a model that learned it out."""
    data = write_csv(tmp_path / "mine.csv", copies=40)
    arguments = ["--train", str(data), "--test", str(data), "--epochs", "8", "--checkpoint-every", "15"]
    job = platform.jobs.submit(JOB, arguments=arguments)
    killed = threading.Event()

    def kill_once(status: str) -> None:
        if not killed.is_set() and len(events_of(platform, job, "step")) >= 50:
            platform.reclaim("train", notice_s=0)
            killed.set()

    trained = platform.jobs.wait(job, limit_s=240, on_status=kill_once)
    assert killed.is_set()
    steps = [int(event.fields["step"]) for event in events_of(platform, job, "step")]
    total = int(events_of(platform, job, "step")[0].fields["total"])
    assert set(steps) == set(range(1, total + 1))
    assert 0 <= len(steps) - total <= 15
    assert len(events_of(platform, job, "train_resumed")) == 1
    assert trained.metrics["accuracy"] > 0.95

    again = platform.jobs.submit(JOB, arguments=arguments, run=job.run)  # the same run once more
    assert platform.jobs.wait(again, limit_s=60) == trained
    assert len(events_of(platform, job, "step")) == len(steps)  # nothing was trained again


def test_a_mistake_in_the_users_file_is_told_and_no_node_is_started(platform: Platform, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("text,intent\nturn on,light\n")
    before = len(platform.nodes())
    begun = time.monotonic()
    job = platform.jobs.submit(JOB, arguments=["--train", str(bad), "--test", str(bad)])
    with pytest.raises(JobFailed, match="label"):
        platform.jobs.wait(job, limit_s=60)
    assert time.monotonic() - begun < 40
    assert len(platform.nodes()) <= before


def test_an_error_of_the_training_function_ends_the_run_at_once_with_its_own_words(platform: Platform) -> None:
    spec = JobSpec(entrypoint=f"python {Path(__file__).with_name('broken_job.py')}", group="train", publishes="broken")
    job = submit(platform.settings, "broken", spec, package=desired.package(platform.settings))
    with pytest.raises(JobFailed, match="there is no column 'label'"):
        platform.jobs.wait(job, limit_s=120)
    assert len(events_of(platform, job, "attempt")) == 1  # one try


def test_a_plain_ray_train_script_is_a_job_like_any_other(platform: Platform) -> None:
    """On its group, its state in the store, its model published, its log kept."""
    script = Path(__file__).with_name("ray_train_job.py")
    spec = JobSpec(entrypoint=f"python {script}", group="train", publishes="plain")
    job = submit(platform.settings, "plain", spec, package=desired.package(platform.settings))
    trained = platform.jobs.wait(job, limit_s=150)
    assert trained.metrics["weight"] == 6
    assert trained.read(platform.store)["weight.txt"] == b"6.0"
    assert platform.store.list(f"runs/{job.run}/ray-train")
    assert platform.models.publish(trained, name="plain").version == 1
    again = submit(platform.settings, "plain", spec, run=job.run, package=desired.package(platform.settings))
    assert platform.jobs.wait(again, limit_s=120).metrics["weight"] == 6  # resumed: nothing was left to do


def wait_for(what: Callable[[], object], *, limit_s: float, why: str) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, f"{why}: not within {limit_s:g} s"
        time.sleep(0.05)


def owned_with(platform: Platform, text: str) -> list[processes.OwnedProcess]:
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    return [process for process in processes.owned(embedded.mark(record)) if text in process.command]


def steps_of(platform: Platform, job: SubmittedJob) -> list[int]:
    return [int(event.fields["step"]) for event in events_of(platform, job, "step")]


@pytest.mark.slow
def test_a_killed_driver_a_killed_controller_and_a_killed_store_are_outlasted(
    platform: Platform, tmp_path: Path
) -> None:
    """The driver is started again and resumes; the training goes on while the store is away, up to its interval."""
    data = write_csv(tmp_path / "mine.csv", copies=30)
    arguments = ["--train", str(data), "--test", str(data), "--epochs", "6", "--checkpoint-every", "10"]
    job = platform.jobs.submit(JOB, arguments=arguments)
    wait_for(lambda: len(steps_of(platform, job)) >= 15, limit_s=90, why="the first steps")
    drivers = [p for p in owned_with(platform, "train_jobs.intent_classifier") if "supervise" not in p.command]
    assert drivers
    processes.kill(drivers, signal.SIGKILL)
    wait_for(lambda: len(events_of(platform, job, "train_resumed")) == 1, limit_s=60, why="resuming without its driver")
    seen = len(steps_of(platform, job))
    wait_for(lambda: len(steps_of(platform, job)) >= seen + 5, limit_s=60, why="steps of the second driver")

    gone = owned_with(platform, " mini ") + owned_with(platform, "heliostat.controller")
    assert len(gone) == 2
    processes.kill(gone, signal.SIGKILL)
    time.sleep(2)
    sdk.up(LAPTOP, name=platform.settings.cluster)  # finds the rest running, and starts these two again
    try:
        platform.jobs.wait(job, limit_s=200)
    except JobFailed as error:
        pytest.fail(f"{error}\n{platform.jobs.logs(job.job_id)[-4000:]}")
    steps = steps_of(platform, job)
    assert set(steps) == set(range(1, max(steps) + 1))
    assert len(steps) - max(steps) <= 2 * 10  # the driver's loss, and one more if the store's hit a restore
    assert "killed by signal 9; starting it again" in platform.jobs.logs(job.job_id)
    shipped = "what the second controller ships"
    wait_for(
        lambda: [e for e in platform.events() if e.kind == "train_finished" and e.fields["run"] == job.run],
        limit_s=30,
        why=shipped,
    )


@pytest.mark.slow
def test_an_elastic_run_shrinks_in_seconds_and_grows_back_without_recomputing(
    platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 workers, a market run dry, 1 worker, capacity back, 2 workers."""
    state_dir = platform.settings.state_dir
    assert state_dir is not None
    data = write_csv(tmp_path / "mine.csv", copies=40)
    arguments = ["--train", str(data), "--test", str(data), "--epochs", "16", "--checkpoint-every", "10"]
    job = platform.jobs.submit(JOB, arguments=[*arguments, "--min-workers", "1"])
    try:
        wait_for(lambda: len(worlds(platform, job, 2)) >= 15, limit_s=90, why="steps of two workers")
        set_capacity(state_dir, "train", 1)
        nodes = [node for node in platform.nodes() if node.group == "train" and node.ready_at]
        busy = events_of(platform, job, "attempt")[-1].fields["nodes"]
        victim = next(node for node in nodes if node.ray_node_id in busy)
        for node in nodes:  # the spare ones as well: the market has one node left for us
            if node is not victim and node.ray_node_id not in busy:
                platform_kill(platform, node.node_id)
        killed_at = time.time()
        platform_kill(platform, victim.node_id)
        wait_for(lambda: len(worlds(platform, job, 1)) >= 12, limit_s=60, why="steps of one worker")
        shrunk = worlds(platform, job, 1)[0].time_s - killed_at
    finally:
        set_capacity(state_dir, "train", None)
    back_at = time.time()
    wait_for(
        lambda: [e for e in worlds(platform, job, 2) if e.time_s > back_at],
        limit_s=90,
        why="steps of two workers again",
    )
    grown = next(event for event in worlds(platform, job, 2) if event.time_s > back_at)
    last_alone = worlds(platform, job, 1)[-1]
    platform.jobs.wait(job, limit_s=150)
    with capsys.disabled():
        print(  # noqa: T201  # the figures that the test is for
            f"\nkill to the next step with one worker {shrunk:.1f} s; "
            f"capacity back to the next step with two {grown.time_s - back_at:.1f} s, "
            f"gap {grown.time_s - last_alone.time_s:.1f} s, "
            f"{int(last_alone.fields['step']) + 1 - int(grown.fields['step'])} steps again"
        )
    assert int(grown.fields["step"]) == int(last_alone.fields["step"]) + 1  # nothing was computed again
    steps = steps_of(platform, job)
    assert set(steps) == set(range(1, max(steps) + 1))
    assert len(steps) - max(steps) <= 10
    curve = [float(event.fields["loss"]) for event in events_of(platform, job, "step")]
    assert max(curve[-20:]) < min(curve[:5])


def worlds(platform: Platform, job: SubmittedJob, size: int) -> list[Event]:
    return [event for event in events_of(platform, job, "step") if event.fields["world"] == size]


def platform_kill(platform: Platform, node_id: str) -> None:
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    processes.kill_node(embedded.mark(record), node_id)


def test_a_notice_costs_no_step_and_the_node_is_left_before_the_deadline(platform: Platform, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "mine.csv", copies=40)
    arguments = ["--train", str(data), "--test", str(data), "--epochs", "12", "--checkpoint-every", "15"]
    job = platform.jobs.submit(JOB, arguments=arguments)
    wait_for(lambda: len(steps_of(platform, job)) >= 20, limit_s=90, why="the first steps")
    busy = events_of(platform, job, "attempt")[-1].fields["nodes"]
    victim = next(node for node in platform.nodes() if node.ray_node_id in busy)
    noticed_at = time.time()
    reclaim.reclaim(platform.settings, "train", notice_s=30, node_id=victim.node_id)
    platform.jobs.wait(job, limit_s=150)
    steps = steps_of(platform, job)
    assert steps == list(range(1, max(steps) + 1))  # none twice
    (left,) = events_of(platform, job, "train_left")
    assert left.time_s < noticed_at + 30
    assert len(events_of(platform, job, "train_resumed")) == 1
    assert "goodput:" in platform.jobs.logs(job.job_id)
    told = httpx.get(
        f"{platform.settings.dashboard_url}/api/v0/tasks/summarize",
        headers=platform.settings.token_header(), timeout=60, trust_env=False,
    ).text  # fmt: skip
    assert "Keeper.train" in told
    assert "Keeper.progress" not in told, "the head keeps every question of the driver"


@pytest.mark.slow
def test_a_deadline_job_buys_on_demand_when_spot_is_dry_and_goes_back(platform: Platform, tmp_path: Path) -> None:
    """Each move after a checkpoint, so that no step is computed again; what it printed is in the store."""
    state_dir = platform.settings.state_dir
    assert state_dir is not None
    data = write_csv(tmp_path / "mine.csv", copies=30)
    terms = Terms(deadline_s=8.6 * 3600, work_s=8 * 3600, on_demand="train-on-demand", poll_s=60, speed=100)
    arguments = ["--train", str(data), "--test", str(data), "--epochs", "30", "--workers", "1"]
    spec = platform.definition.jobs[JOB]
    set_capacity(state_dir, "train", 0)
    try:
        for node in platform.nodes():
            if node.group == "train":
                platform_kill(platform, node.node_id)
        job = submit(
            platform.settings,
            JOB,
            spec,
            arguments=arguments,
            package=desired.package(platform.settings),
            environment={DEADLINE: json.dumps(asdict(terms))},
        )
        wait_for(lambda: len(steps_of(platform, job)) >= 12, limit_s=90, why="steps on demand")
        assert [e.fields["group"] for e in events_of(platform, job, "attempt")] == ["train-on-demand"]
    finally:
        set_capacity(state_dir, "train", None)
    wait_for(lambda: len(events_of(platform, job, "attempt")) > 1, limit_s=60, why="going back to spot")
    assert events_of(platform, job, "attempt")[-1].fields["group"] == "train"
    platform.jobs.wait(job, limit_s=120)
    steps = steps_of(platform, job)
    assert steps == list(range(1, max(steps) + 1))
    (kept,) = events_of(platform, job, "deadline")
    assert kept.fields["spare_s"] > 0
    assert kept.fields["held_s"]["on-demand"] > 0 < kept.fields["held_s"]["spot"]
    text = read_logs(platform.store, job.job_id)
    assert text is not None
    assert "deadline kept" in text
    known = platform.jobs.progress(job.run)
    assert known is not None
    assert (known.state, known.steps_again) == ("done", 0)
    assert known.curve[-1][0] > 12


@pytest.mark.slow
def test_a_whole_cluster_that_was_killed_resumes_where_its_store_is(tmp_path: Path) -> None:
    """In a process of its own: Ray's client keeps the token of the first cluster that a process has seen."""
    data = write_csv(tmp_path / "mine.csv", copies=20)
    script = Path(__file__).with_name("whole_cluster.py")
    done = subprocess.run(
        [sys.executable, str(script), str(data)],
        env={**os.environ, "HELIOSTAT_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        timeout=270,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["steps"]) == set(range(1, max(found["steps"]) + 1))
    assert len(found["steps"]) - max(found["steps"]) <= 10
    assert found["accuracy"] > 0.9
