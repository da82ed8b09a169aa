"""A search over recipes on spot nodes, two of which are taken away meanwhile."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from heliostat.cluster import embedded, processes
from heliostat.definition import JobSpec
from heliostat.events import read_spool
from heliostat.sdk import Platform
from heliostat.serve import desired
from heliostat.train import submit
from tests.faults.test_training import write_csv

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.real,
    pytest.mark.timeout(700),
    pytest.mark.slow,
]
TRIALS = 8


def test_eight_trials_survive_two_reclaims_and_the_best_is_published(platform: Platform, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "mine.csv", copies=12)
    spec = JobSpec(entrypoint="python -m train_jobs.sweep", group="train", publishes="intent-classifier")
    arguments = ["--trials", str(TRIALS), "--at-once", "2", "--steps", "40", "--epochs", "6"]
    arguments += ["--train", str(data), "--test", str(data), "--checkpoint-every", "15"]
    package = desired.package(platform.settings)
    job = submit.submit(platform.settings, "sweep", spec, arguments=arguments, package=package)
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    rng, killed, next_at = random.Random(0), 0, 10
    for _ in submit.wait(platform.settings, job, limit_s=600):
        events = [e for e in read_spool(platform.settings.spool) if str(e.fields.get("run", "")).startswith(job.run)]
        steps = [event for event in events if event.kind == "step"]
        if killed < 2 and len(steps) >= next_at:
            busy = {n for event in events if event.kind == "attempt" for n in event.fields["nodes"]}
            victims = [node for node in platform.nodes() if node.ray_node_id in busy]
            if victims:
                processes.kill_node(embedded.mark(record), rng.choice(victims).node_id)
                killed, next_at = killed + 1, len(steps) + 30
        time.sleep(0.2)
    assert killed == 2
    trained = platform.jobs.result(job.run)
    trials = trained.lineage["sweep"]["trials"]
    scores = {row["run"]: row["score"] for row in trials if row["score"] is not None}
    assert len(trials) == TRIALS
    assert scores
    assert trained.metrics["macro_f1"] == pytest.approx(max(scores.values()))
    artifact = platform.models.publish(trained, name="swept")
    assert artifact.version
