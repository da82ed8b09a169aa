"""Train a small network on scikit-learn's handwritten digits (1,797 images of 8 by 8).

    heliostat job submit digits
    ray job submit --working-dir . -- python -m train_jobs.digits --epochs 30

A fifth of the images, drawn by the seed and balanced over the digits, is held out for the score.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from heliostat.errors import HeliostatError
from heliostat.train.context import TrainContext
from heliostat.train.job import run


@dataclass(frozen=True)
class Config:
    """Everything that decides a training besides the images."""

    epochs: int = 30
    batch_size: int = 64
    """Images per optimiser step, over all workers together."""
    rate: float = 3e-3
    seed: int = 0


def train(context: TrainContext, config: Config) -> None:
    """One worker: takes its share of every batch, and on rank 0 scores and hands in the result."""
    import torch
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel

    from train_jobs.digits_model import DigitNet

    torch.manual_seed(config.seed)
    images, targets, test_images, test_targets = load_data(config.seed)
    model = DigitNet().to(context.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate)
    done = context.restore(model, optimizer)
    total = config.epochs * -(-len(images) // config.batch_size)
    context.log(f"{len(images)} images, {total} steps from step {done}")
    model.train()
    parallel = DistributedDataParallel(model) if context.world_size > 1 else model
    step = 0
    for epoch in range(config.epochs):
        for batch in batches(len(images), config, epoch):
            step += 1
            if step <= done:
                continue
            share = batch[context.rank :: context.world_size]
            # DDP averages over workers; shares of unequal length must weigh by it. An empty one takes part with none.
            weight = len(share) * context.world_size / len(batch)
            share = share or batch[:1]
            optimizer.zero_grad(set_to_none=True)
            logits = parallel(images[share].to(context.device))
            loss = functional.cross_entropy(logits, targets[share].to(context.device))
            (loss * weight).backward()
            optimizer.step()
            context.step_done(step, total, loss=float(loss.detach()))

    metrics, files = {}, {}
    if context.rank == 0:
        metrics = score(model, test_images, test_targets)
        context.log(f"held-out images: accuracy {metrics['accuracy']:.4f}, macro-F1 {metrics['macro_f1']:.4f}")
        files = model_files(model)
    context.finish(files=files, metrics=metrics, lineage=_lineage(model, config))


def load_data(seed: int):  # type: ignore[no-untyped-def]
    """(images [N, 1, 8, 8] of 0 to 1, digits [N], test images, test digits); the split depends on the seed alone."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    targets = torch.tensor(digits.target)
    kept, held_out = train_test_split(range(len(targets)), test_size=0.2, stratify=digits.target, random_state=seed)
    return images[kept], targets[kept], images[held_out], targets[held_out]


def batches(count: int, config: Config, epoch: int) -> Iterator[list[int]]:
    """Indices, batch by batch; the order depends on seed and epoch alone, so any number of workers resumes it."""
    order = list(range(count))
    Random(f"{config.seed}/{epoch}").shuffle(order)
    for start in range(0, count, config.batch_size):
        yield order[start : start + config.batch_size]


def score(model, images, targets) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Accuracy and macro-F1 over the images."""
    import torch
    from sklearn.metrics import accuracy_score, f1_score

    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = model(images.to(device)).argmax(-1).cpu()
    return {
        "accuracy": float(accuracy_score(targets, found)),
        "macro_f1": float(f1_score(targets, found, average="macro", zero_division=0)),
        "test_images": float(len(targets)),
    }


def model_files(model) -> dict[str, bytes]:  # type: ignore[no-untyped-def]
    """What is published: the weights alone, since the recipe knows the network."""
    import safetensors.torch

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {"model.safetensors": safetensors.torch.save(weights)}


def _lineage(model, config: Config) -> dict[str, object]:  # type: ignore[no-untyped-def]
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("digits*.py"))))
    return {
        "dataset_digest": f"sha256:{hashlib.sha256(data.images.tobytes() + data.target.tobytes()).hexdigest()}",
        "code_version": f"train_jobs sha256:{code.hexdigest()[:16]}",
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, declared as logical GPUs",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "float32",
        "licence": "Apache-2.0",
        "recipe": dataclasses.asdict(config),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.digits", description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="instead of the interval that loses the least time"
    )
    parsed = parser.parse_args(arguments)
    try:
        trained = run(
            train,
            Config(epochs=parsed.epochs, seed=parsed.seed),
            name="digits",
            workers=parsed.workers,
            checkpoint_every=parsed.checkpoint_every,
        )
    except (HeliostatError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"run": trained.run, "metrics": trained.metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
