"""A training of steps that take a fixed time asleep, for tests of what happens around it. Put into `train_jobs`.

    python -m train_jobs.steady --workers 2 --steps 200 --pause 0.1

Its rank's step takes `pause`, times what stands in `--slow-file` on the nodes whose id stands there.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from heliostat.train.context import TrainContext
from heliostat.train.job import run


def train(context: TrainContext, config: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done = context.restore(model, optimizer)
    slow = Path(config["slow_file"]) if config["slow_file"] else None
    for step in range(done, config["steps"]):
        pause = config["pause"]
        if slow is not None and slow.exists() and os.environ.get("HELIOSTAT_NODE_ID", "") in slow.read_text().split():
            pause *= 5
        time.sleep(pause)
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        context.step_done(step + 1, config["steps"], loss=0.0)
    context.finish(files={"done": b"yes"}, metrics={"steps": float(config["steps"])}, lineage={})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--min-workers", type=int)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--slow-file", default="")
    told = parser.parse_args()
    run(
        train,
        {"steps": told.steps, "pause": told.pause, "slow_file": told.slow_file},
        name="steady",
        workers=told.workers,
        min_workers=told.min_workers,
        checkpoint_every=20,
    )
