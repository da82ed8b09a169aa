"""Kills every process of a cluster in the middle of a training, starts it again, and resumes the run by its name."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from heliostat import sdk
from heliostat.cluster import embedded, processes
from heliostat.events import read_spool
from heliostat.sdk import Platform

NAME = "killed-whole"
LAPTOP = Path(__file__).parents[2] / "cluster" / "laptop.yaml"


def steps_of(platform: Platform, run: str) -> list[int]:
    events = read_spool(platform.settings.spool)
    return [int(e.fields["step"]) for e in events if e.kind == "step" and e.fields["run"] == run]


def main(data: str) -> None:
    arguments = ["--train", data, "--test", data, "--epochs", "6", "--checkpoint-every", "10"]
    platform = sdk.up(LAPTOP, name=NAME)
    try:
        job = platform.jobs.submit("intent-classifier", arguments=arguments)
        deadline = time.monotonic() + 120
        while len(steps_of(platform, job.run)) < 25:
            if time.monotonic() > deadline:
                raise SystemExit("the first steps did not come")
            time.sleep(0.1)
        record = embedded.read_record(NAME)
        if record is None:
            raise SystemExit("the cluster is gone")
        processes.kill(processes.owned(embedded.mark(record)), signal.SIGKILL)
        platform = sdk.up(LAPTOP, name=NAME)
        trained = platform.jobs.wait(platform.jobs.submit("intent-classifier", arguments=arguments, run=job.run))
        steps = steps_of(platform, job.run)
        print(json.dumps({"steps": steps, "accuracy": trained.metrics["accuracy"]}))  # noqa: T201  # for the test
    finally:
        platform.down()


if __name__ == "__main__":
    main(sys.argv[1])
