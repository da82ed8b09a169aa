"""A plain Ray Train script, as a user has one, for test_training.py. The function travels by value."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ray.train
from ray.train import Checkpoint
from ray.train.torch import TorchTrainer

from heliostat.train import ray_train

STEPS = 6


def train(config: dict[str, int]) -> None:
    import torch

    weight = torch.zeros(1)
    done = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
            weight, done = state["weight"], state["done"]
    for step in range(done, config["steps"]):
        weight = weight + 1
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"weight": weight, "done": step + 1}, Path(folder) / "state.pt")
            saved = Checkpoint.from_directory(folder)
            ray.train.report({"loss": 1 / (step + 1), "weight": float(weight)}, checkpoint=saved)


if __name__ == "__main__":
    result = TorchTrainer(
        train,
        train_loop_config={"steps": STEPS},
        scaling_config=ray_train.scaling_config(workers=1),
        torch_config=ray_train.torch_config(),
        run_config=ray_train.run_config(),
    ).fit()
    if result.metrics is None:
        raise SystemExit("no metrics")
    files = {"weight.txt": str(result.metrics["weight"]).encode()}
    ray_train.hand_in(files=files, metrics=result.metrics, lineage={"code_version": "test"})
