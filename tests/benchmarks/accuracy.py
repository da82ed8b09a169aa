"""How well each recipe understands wordings it never saw, beside the cheapest thing that could work.

    python tests/benchmarks/accuracy.py [--seeds 3] [--first-seed 0] [--threads 2]

For each seed sentences are drawn and whole templates held out. The baseline leaves the encoder as it is and fits a
logistic regression on its embeddings; v1 and v2 train the encoder by train_jobs/recipe.py in one process. Macro-F1 is
over the intents present in the test set. The interval of the difference comes from drawing the held-out templates
anew with replacement: sentences of one template are no independent witnesses.

The recipes were chosen on seeds 0, 1 and 2; the figures of other seeds owe nothing to that choice.

Prints a table, then one line of JSON. Shapes: S sentences, C intents, T held-out templates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipes are files, not an installed package

from heliostat.inference.encoder import (
    IntentClassifier,
    PackedEncoder,
    load_pretrained,
    load_tokenizer,
    pack,
    pretrained_folder,
)
from train_jobs.intents import Example, labels, sample, split
from train_jobs.recipe import (
    V1,
    V2,
    Recipe,
    batches,
    learning_rate,
    loss_fn,
    make_optimizer,
    set_rate,
    start_head,
    steps_per_epoch,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

PER_INTENT = 120
BATCH = 64
BASELINES = {"baseline": 1.0, "baseline-c10": 10.0}
"""The C of each logistic regression: scikit-learn's default, and the best of those tried here."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Part:
    """One side of a split, ready for a model."""

    tokens: list[list[int]]
    targets: Ints  # [S]
    templates: Ints  # [S], which of the T templates a sentence came from


@dataclass(frozen=True)
class Outcome:
    """What one model did on one split."""

    predicted: Ints  # [S]
    accuracy: float
    macro_f1: float
    train_s: float


@dataclass(frozen=True)
class Trial:
    """All models on the split of one seed."""

    seed: int
    test: Part
    outcomes: dict[str, Outcome]


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3, help="how many splits (default 3)")
    arguments.add_argument(
        "--first-seed", type=int, default=0, help="10 or more: seeds that chose no recipe (default 0)"
    )
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    print("seed  model         accuracy  macro-F1  train s")
    trials = [run_trial(seed) for seed in range(options.first_seed, options.first_seed + options.seeds)]
    print_means(trials)
    print(json.dumps(summary(trials, options.threads)))


def run_trial(seed: int) -> Trial:
    """Draw, split, and judge the three models on the same held-out templates; prints a row for each."""
    train, test = prepare(seed)
    classes = int(train.targets.max()) + 1
    outcomes = {name: run_baseline(train, test, strength) for name, strength in BASELINES.items()}
    for name, outcome in outcomes.items():
        print_row(seed, name, outcome)
    for name, recipe in (("v1", V1), ("v2", V2)):
        outcomes[name] = run_recipe(recipe, train, test, classes=classes, seed=seed)
        print_row(seed, name, outcomes[name])
    return Trial(seed, test, outcomes)


def prepare(seed: int) -> tuple[Part, Part]:
    """The training and the test side of one seed."""
    train, test = split(sample(per_intent=PER_INTENT, seed=seed), seed=seed)
    number = {label: index for index, label in enumerate(labels(train))}
    tokenize = load_tokenizer(pretrained_folder())

    def part(examples: Sequence[Example]) -> Part:
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys((e.label, e.template) for e in examples))}
        return Part(
            tokenize([e.text for e in examples]),
            np.array([number[e.label] for e in examples]),
            np.array([kinds[e.label, e.template] for e in examples]),
        )

    return part(train), part(test)


def run_baseline(train: Part, test: Part, strength: float) -> Outcome:
    """Frozen embeddings and a logistic regression with C = strength."""
    from sklearn.linear_model import LogisticRegression

    began = time.perf_counter()
    encoder = load_pretrained(pretrained_folder()).eval()
    known = torch.nn.functional.normalize(embed(encoder, train.tokens)).numpy()
    model = LogisticRegression(C=strength, max_iter=1000).fit(known, train.targets)
    took_s = time.perf_counter() - began
    asked = torch.nn.functional.normalize(embed(encoder, test.tokens)).numpy()
    return judge(np.asarray(model.predict(asked), dtype=np.int64), test, took_s)


def run_recipe(recipe: Recipe, train: Part, test: Part, *, classes: int, seed: int) -> Outcome:
    """Train by the recipe in this process, then judge."""
    torch.manual_seed(seed)
    encoder = load_pretrained(pretrained_folder(), dropout=recipe.dropout)
    model = IntentClassifier(encoder, classes=classes, dropout=recipe.dropout)
    began = time.perf_counter()
    fit(model, recipe, train, seed=seed)
    took_s = time.perf_counter() - began
    return judge(embed(model.eval(), test.tokens).argmax(1).numpy(), test, took_s)


def fit(model: IntentClassifier, recipe: Recipe, train: Part, *, seed: int) -> None:
    """The plain loop: what the Ray job does, without workers, checkpoints or reclaims."""
    targets = torch.from_numpy(train.targets)
    classes = train.targets.tolist()
    if recipe.head_from_centroids:
        start_head(model, embed(model.encoder.eval(), train.tokens), targets)
    optimizer = make_optimizer(model, recipe)
    total = steps_per_epoch(classes, recipe) * recipe.epochs
    model.train()
    chosen_batches = (b for epoch in range(recipe.epochs) for b in batches(classes, recipe, seed=seed, epoch=epoch))
    for step, chosen in enumerate(chosen_batches):
        set_rate(optimizer, learning_rate(step, total, recipe))
        logits = model(*pack([train.tokens[i] for i in chosen]))
        torch.autograd.backward(loss_fn(logits, targets[chosen], recipe))
        optimizer.step()
        optimizer.zero_grad()


def embed(model: PackedEncoder | IntentClassifier, tokens: Sequence[list[int]]) -> torch.Tensor:
    """[S, hidden] embeddings of an encoder, or [S, C] logits of a classifier."""
    with torch.no_grad():
        parts = [model(*pack(tokens[start : start + BATCH])) for start in range(0, len(tokens), BATCH)]
    return torch.cat(parts)


def judge(predicted: Ints, test: Part, train_s: float) -> Outcome:
    """Accuracy and macro-F1 of predictions."""
    ones = np.ones(len(predicted))
    accuracy = float((predicted == test.targets).mean())
    return Outcome(predicted, accuracy, macro_f1(test.targets, predicted, ones), train_s)


def macro_f1(targets: Ints, predicted: Ints, weights: NDArray[np.float64]) -> float:
    """Mean over the classes present (with any weight) of 2 hits / (asked + answered); all arrays [S]."""
    size = int(max(targets.max(), predicted.max())) + 1
    hits = np.bincount(targets, weights * (targets == predicted), size)
    asked = np.bincount(targets, weights, size)
    answered = np.bincount(predicted, weights, size)
    present = asked > 0
    return float((2 * hits[present] / (asked + answered)[present]).mean())


def gain(trials: Sequence[Trial], baseline: str) -> tuple[float, float, float]:
    """The mean difference v2 - baseline in macro-F1, and its 95 % bootstrap interval (low, high)."""
    chance = np.random.default_rng(0)
    differences = [
        statistics.fmean(resampled_difference(trial, baseline, chance) for trial in trials) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(differences, [0.025, 0.975])
    mean = means(trials, "v2")["macro_f1"] - means(trials, baseline)["macro_f1"]
    return round(mean, 4), round(float(low), 4), round(float(high), 4)


def resampled_difference(trial: Trial, baseline: str, chance: np.random.Generator) -> float:
    """The difference on one split, its T templates drawn anew with replacement."""
    templates = trial.test.templates
    count = int(templates.max()) + 1
    times_drawn = np.bincount(chance.integers(count, size=count), minlength=count).astype(np.float64)
    better, base = (
        macro_f1(trial.test.targets, trial.outcomes[name].predicted, times_drawn[templates])
        for name in ("v2", baseline)
    )
    return better - base


def means(trials: Sequence[Trial], name: str) -> dict[str, float]:
    """Averages over the splits."""
    outcomes = [trial.outcomes[name] for trial in trials]
    return {
        field: round(statistics.fmean(getattr(outcome, field) for outcome in outcomes), 4)
        for field in ("accuracy", "macro_f1", "train_s")
    }


def summary(trials: Sequence[Trial], threads: int) -> dict[str, object]:
    """What the last line says."""
    averages = {name: means(trials, name) for name in trials[0].outcomes}
    return {
        "benchmark": "accuracy",
        "seeds": [trial.seed for trial in trials],
        "threads": threads,
        **averages,
        "v2_gain_macro_f1": {name: gain(trials, name) for name in BASELINES},
    }


def print_row(seed: int, name: str, outcome: Outcome) -> None:
    """One model on one split."""
    print(
        f"{seed:>4}  {name:<12}  {outcome.accuracy:8.3f}  {outcome.macro_f1:8.3f}  {outcome.train_s:7.1f}", flush=True
    )


def print_means(trials: Sequence[Trial]) -> None:
    """The averages, and the differences with their intervals."""
    averages = {name: means(trials, name) for name in trials[0].outcomes}
    for name, mean in averages.items():
        print(f"mean  {name:<12}  {mean['accuracy']:8.3f}  {mean['macro_f1']:8.3f}  {mean['train_s']:7.1f}")
    for name in BASELINES:
        mean, low, high = gain(trials, name)
        print(f"v2 - {name}: macro-F1 {mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")


if __name__ == "__main__":
    main()
