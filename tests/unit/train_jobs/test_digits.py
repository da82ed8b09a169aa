"""The digits' training over a context that keeps nothing; the real one is in tests/real/test_apps.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_apps.digits import DigitsApp
from train_jobs.digits import Config, batches, load_data, main, train


class Recording:
    """One worker's view of a run, as TrainContext gives it."""

    rank, world_size = 0, 1
    device = torch.device("cpu")

    def __init__(self, start: int = 0, state: dict[str, Any] | None = None) -> None:
        self.start, self.state = start, state
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.finished: dict[str, Any] = {}

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        self.model = model
        if self.state is not None:
            model.load_state_dict(self.state)
        return self.start

    def step_done(self, step: int, total: int, *, loss: float) -> None:
        assert step <= total
        self.steps.append(step)
        self.losses.append(loss)

    def finish(self, **what: Any) -> None:
        self.finished = what

    def log(self, message: str) -> None:
        assert message


@pytest.fixture(scope="module")
def trained() -> Recording:
    context = Recording()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a Ray worker with one CPU; a network this small gains nothing from more
    try:
        train(context, Config(epochs=12))  # type: ignore[arg-type]  # it keeps the same promises
    finally:
        torch.set_num_threads(threads)
    return context


def test_twelve_passes_read_nearly_every_digit_that_was_held_out(trained: Recording) -> None:
    metrics = trained.finished["metrics"]
    assert metrics["accuracy"] > 0.95
    assert metrics["macro_f1"] > 0.95
    assert metrics["test_images"] == 360
    assert trained.losses[-1] < trained.losses[0] / 5


def test_what_it_publishes_is_what_the_recipe_serves(trained: Recording) -> None:
    app = DigitsApp.load(trained.finished["files"], torch.device("cpu"))
    _, _, images, targets = load_data(0)
    found = app.forward([app.prepare((image[0] * 16).tolist()) for image in images])
    right = sum(digit.digit == int(target) for digit, target in zip(found, targets, strict=True))
    assert right / len(targets) == pytest.approx(trained.finished["metrics"]["accuracy"])
    lineage = trained.finished["lineage"]
    assert lineage["parameters"] == sum(parameter.numel() for parameter in trained.model.parameters())
    assert lineage["dataset_digest"].startswith("sha256:")


def test_a_resumed_training_takes_the_steps_that_are_left(trained: Recording) -> None:
    total = trained.steps[-1]
    context = Recording(start=total - 3, state=trained.model.state_dict())
    train(context, Config(epochs=12))  # type: ignore[arg-type]  # as above
    assert context.steps == [total - 2, total - 1, total]


def test_no_image_is_both_trained_and_tested_and_the_order_depends_on_the_seed_alone() -> None:
    images, targets, test_images, test_targets = load_data(0)
    assert len(images) + len(test_images) == 1797
    assert set(targets.tolist()) == set(test_targets.tolist()) == set(range(10))
    one = list(batches(100, Config(), 3))
    assert one == list(batches(100, Config(), 3))
    assert sorted(index for batch in one for index in batch) == list(range(100))
    assert one != list(batches(100, Config(seed=1), 3))


def test_a_wrong_option_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--epochs", "many"])
    assert "--epochs" in capsys.readouterr().err
