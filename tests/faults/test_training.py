"""Training on the embedded cluster while its spot nodes are taken away, and with the user's own data and mistakes."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path

import pytest

from heliostat.errors import JobFailed
from heliostat.events import Event, read_spool
from heliostat.sdk import Platform
from heliostat.train.submit import SubmittedJob

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]
JOB = "intent-classifier"
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


def test_a_node_killed_without_notice_costs_an_interval_and_the_checkpoint_under_way_at_most(
    platform: Platform, tmp_path: Path
) -> None:
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
    assert 0 <= len(steps) - total <= 2 * 15
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
    job = platform.jobs.submit(JOB, arguments=["--per-intent", "0"])
    with pytest.raises(JobFailed, match="per_intent is 0"):
        platform.jobs.wait(job, limit_s=120)
    assert len(events_of(platform, job, "worker_started")) == 2  # one try of two workers
