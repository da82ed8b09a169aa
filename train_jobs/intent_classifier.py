"""Fine-tune a sentence encoder to recognise what a voice assistant is asked to do.

    heliostat job submit intent-classifier -- --recipe v2
    ray job submit --working-dir . -- python -m train_jobs.intent_classifier --recipe v1
    python -m train_jobs.intent_classifier --train mine.csv --test mine-test.csv      (inside a cluster)

Without files it draws the intents' own sentences (see intents.py) and holds out whole templates.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from heliostat.errors import HeliostatError, UsageError
from heliostat.promote.evaluation import FILE, evaluation_file
from heliostat.train.context import TrainContext
from heliostat.train.job import run
from train_jobs import intents
from train_jobs.intents import Example
from train_jobs.recipe import V1, V2, Recipe

RECIPES = {"v1": V1, "v2": V2}
EVALUATE_AT_ONCE = 64


@dataclass(frozen=True)
class Config:
    recipe: Recipe
    per_intent: int
    seed: int
    train_file: str | None
    test_file: str | None
    data: tuple[tuple[Example, ...], tuple[Example, ...]] | None = None
    """(training, test), read once by the driver: the nodes have no files of its, and a restart does not read again."""


def train(context: TrainContext, config: Config) -> None:
    """One worker: builds the model, takes its share of every batch, and on rank 0 scores and hands in the result."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from heliostat.inference.encoder import (
        IntentClassifier,
        load_pretrained,
        load_tokenizer,
        pretrained_folder,
    )
    from train_jobs import recipe as pieces

    torch.manual_seed(config.seed)
    training, test = load_data(config)
    labels = intents.labels(training)
    targets = [labels.index(example.label) for example in training]
    tokenizer = load_tokenizer(pretrained_folder())
    tokens = tokenizer([example.text for example in training])
    encoder = load_pretrained(pretrained_folder(), dropout=config.recipe.dropout)
    model = IntentClassifier(encoder, classes=len(labels), dropout=config.recipe.dropout).to(context.device)
    optimizer = pieces.make_optimizer(model, config.recipe)
    done = context.restore(model, optimizer)
    if done == 0 and config.recipe.head_from_centroids:
        _start_head(model, tokens, targets)

    per_epoch = pieces.steps_per_epoch(targets, config.recipe)
    total = per_epoch * config.recipe.epochs
    context.log(f"{len(training)} sentences, {len(labels)} intents, {total} steps from step {done}")
    model.train()
    parallel = DistributedDataParallel(model) if context.world_size > 1 else model
    step = 0
    for epoch in range(config.recipe.epochs):
        for batch in pieces.batches(targets, config.recipe, seed=config.seed, epoch=epoch):
            step += 1
            if step <= done:
                continue
            share = batch[context.rank :: context.world_size]
            # DDP averages over workers; shares of unequal length must weigh by it. An empty one takes part with none.
            weight = len(share) * context.world_size / len(batch)
            share = share or batch[:1]
            pieces.set_rate(optimizer, pieces.learning_rate(step - 1, total, config.recipe))
            loss = _step(
                parallel, optimizer, [tokens[i] for i in share], [targets[i] for i in share], config.recipe, weight
            )
            context.step_done(step, total, loss=loss, tokens=sum(len(tokens[i]) for i in batch))

    metrics, files = {}, {}
    if context.rank == 0:
        predicted = [labels[index] for index in _predict(model, tokenizer([e.text for e in test]))]
        metrics = score(predicted, [e.label for e in test])
        context.log(f"held-out templates: accuracy {metrics['accuracy']:.4f}, macro-F1 {metrics['macro_f1']:.4f}")
        # The gate compares two versions example by example.
        told = evaluation_file([e.text for e in test], [e.label for e in test], predicted)
        files = {**_files(model, labels), FILE: told}
    context.finish(files=files, metrics=metrics, lineage=_lineage(model, training, test, config))


def load_data(config: Config) -> tuple[list[Example], list[Example]]:
    """(training, test), from the user's files or from the intents."""
    if config.data is not None:
        return list(config.data[0]), list(config.data[1])
    if config.train_file and config.test_file:
        return intents.read_file(Path(config.train_file)), intents.read_file(Path(config.test_file))
    return intents.split(intents.sample(per_intent=config.per_intent, seed=config.seed), seed=config.seed)


def score(predicted: list[str], truth: list[str]) -> dict[str, float]:
    """Accuracy and macro-F1 over the labels present in the test set."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)),
        "test_sentences": float(len(truth)),
    }


def _predict(model, tokens) -> list[int]:  # type: ignore[no-untyped-def]
    import torch

    from heliostat.inference.encoder import pack

    model.eval()
    device = next(model.parameters()).device
    found: list[int] = []
    with torch.inference_mode():
        for start in range(0, len(tokens), EVALUATE_AT_ONCE):
            flat, lengths = pack(tokens[start : start + EVALUATE_AT_ONCE])
            found += model(flat.to(device), lengths).argmax(-1).tolist()
    return found


def _step(model, optimizer, tokens, targets, recipe, weight) -> float:  # type: ignore[no-untyped-def]
    import torch

    from heliostat.inference.encoder import pack
    from train_jobs import recipe as pieces

    flat, lengths = pack(tokens)
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    loss = pieces.loss_fn(model(flat.to(device), lengths), torch.tensor(targets, device=device), recipe)
    (loss * weight).backward()
    optimizer.step()
    return float(loss.detach())


def _start_head(model, tokens, targets) -> None:  # type: ignore[no-untyped-def]
    import torch

    from heliostat.inference.encoder import pack
    from train_jobs import recipe as pieces

    model.eval()
    device = next(model.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(tokens), EVALUATE_AT_ONCE):
            flat, lengths = pack(tokens[start : start + EVALUATE_AT_ONCE])
            parts.append(model.encoder(flat.to(device), lengths))
        pieces.start_head(model, torch.cat(parts), torch.tensor(targets, device=device))


def _files(model, labels: tuple[str, ...]) -> dict[str, bytes]:  # type: ignore[no-untyped-def]
    import safetensors.torch

    from heliostat.inference.encoder import pretrained_folder

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {
        "model.safetensors": safetensors.torch.save(weights),
        "tokenizer.json": (pretrained_folder() / "tokenizer.json").read_bytes(),
        "labels.json": json.dumps(list(labels)).encode(),
        "config.json": json.dumps({"encoder": dataclasses.asdict(model.encoder.config)}).encode(),
    }


def _lineage(model, training, test, config: Config) -> dict[str, object]:  # type: ignore[no-untyped-def]
    import torch

    data = hashlib.sha256()
    for example in [*training, *test]:
        data.update(f"{example.label}\t{example.text}\n".encode())
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))))
    return {
        "dataset_digest": f"sha256:{data.hexdigest()}",
        "code_version": f"train_jobs sha256:{code.hexdigest()[:16]}",
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, declared as logical GPUs",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "float32",
        "licence": "Apache-2.0",
        "recipe": dataclasses.asdict(config.recipe),
        "training_sentences": len(training),
    }


def parse(arguments: list[str]) -> tuple[Config, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.intent_classifier", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="v2", help="how hard to train")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--per-intent", type=int, default=120, help="sentences to draw for each intent")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences, the split and the order")
    parser.add_argument("--train", metavar="FILE", help="your own sentences: .csv or .jsonl with text and label")
    parser.add_argument("--test", metavar="FILE", help="your own test sentences")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--min-workers", type=int, help="go on with as few while the group has no more nodes")
    parser.add_argument("--standby", type=int, default=0, help="workers held beside, to replace a lost one at once")
    parser.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="instead of the interval that loses the least time"
    )
    parsed = parser.parse_args(arguments)
    if bool(parsed.train) != bool(parsed.test):
        raise UsageError("--train and --test go together", do="give both files, or neither")
    recipe = RECIPES[parsed.recipe]
    if parsed.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=parsed.epochs)
    return Config(recipe, parsed.per_intent, parsed.seed, parsed.train, parsed.test), parsed


def main(arguments: list[str]) -> int:
    try:
        config, parsed = parse(arguments)
        _check_files(config)
        training, test = load_data(config)
        trained = run(
            train,
            dataclasses.replace(config, data=(tuple(training), tuple(test))),
            name="intent-classifier",
            workers=parsed.workers,
            min_workers=parsed.min_workers,
            standby=parsed.standby,
            checkpoint_every=parsed.checkpoint_every,
        )
    except (HeliostatError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"run": trained.run, "metrics": trained.metrics}))
    return 0


def _check_files(config: Config) -> None:
    """A mistake in the user's file is told before a node is started for it."""
    if config.train_file and config.test_file:
        known = set(intents.labels(intents.read_file(Path(config.train_file))))
        unknown = sorted({e.label for e in intents.read_file(Path(config.test_file))} - known)
        if unknown:
            raise UsageError(
                f"label {unknown[0]!r} is tested but never trained", where=config.test_file, do="add it to --train"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
