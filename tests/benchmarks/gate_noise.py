"""What the gate makes of noise: pairs of linear heads on frozen sentence embeddings that differ in their seeds.

    python tests/benchmarks/gate_noise.py [--pairs 2000] [--held-out 400] [--heads 48]

Heads are trained on different draws of few or many sentences of each intent, so that some pairs differ in quality and
most in nothing but their seed. How good a head is, is known from a large pool that none was trained on; the gate sees a
small held-out part of it, drawn anew for each pair, and has to say whether the one head may replace the other.
Printed are the shares of pairs that were passed though the new head is no better (at most 1 - confidence is promised),
and that were refused though it is better, by how much better; beside them what the comparison of two numbers does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
import world

from heliostat.definition import GateRules
from heliostat.promote.evaluation import Evaluation
from heliostat.promote.gate import Facts, judge_facts

Ints = np.ndarray[Any, np.dtype[np.int64]]
SIZES = (2, 3, 4, 6)
"""Sentences of each intent that a head sees: what makes one truly better than another."""


def embed(per_intent: int) -> tuple[torch.Tensor, Ints]:
    """[N, 384] embeddings of the intents' sentences, and their labels."""
    from heliostat.inference.encoder import load_pretrained, load_tokenizer, pack, pretrained_folder
    from train_jobs import intents

    examples = intents.sample(per_intent=per_intent, seed=0)
    names = intents.labels(examples)
    encoder = load_pretrained(pretrained_folder()).eval()
    tokens = load_tokenizer(pretrained_folder())([example.text for example in examples])
    with torch.inference_mode():
        parts = [encoder(*pack(tokens[start : start + 64])) for start in range(0, len(tokens), 64)]
    return torch.cat(parts).clone(), np.array([names.index(example.label) for example in examples])


def train_head(vectors: torch.Tensor, targets: torch.Tensor, classes: int, seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    head = torch.nn.Linear(vectors.shape[1], classes)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(vectors), targets).backward()
        optimizer.step()
    return head


def make_heads(vectors: torch.Tensor, labels: Ints, training: Ints, pool: Ints, count: int) -> Ints:
    """[heads, pool] what each head says to every sentence of the pool."""
    classes, said = int(labels.max()) + 1, []
    for index in range(count):
        draw = np.random.default_rng(index)
        order = draw.permutation(training)
        size = SIZES[index % len(SIZES)]
        taken = np.concatenate([order[labels[order] == c][:size] for c in range(classes)])
        head = train_head(vectors[taken], torch.from_numpy(labels[taken]), classes, index)
        with torch.inference_mode():
            said.append(head(vectors[pool]).argmax(-1).numpy())
    return np.stack(said)


def facts(labels: Ints, said: Ints) -> Facts:
    from sklearn.metrics import f1_score

    names, told = tuple(map(str, labels)), tuple(map(str, said))
    macro_f1 = float(f1_score(labels, said, labels=np.unique(labels), average="macro", zero_division=0))
    metrics = {"accuracy": float((labels == said).mean()), "macro_f1": macro_f1}
    return Facts(metrics, Evaluation(dataset="d", truth=names, predicted=told))


def run(options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    vectors, labels = embed(options.per_intent)
    order = np.random.default_rng(0).permutation(len(labels))
    training, pool = order[: len(order) // 3], order[len(order) // 3 :]
    said = make_heads(vectors, labels, training, pool, options.heads)
    truth = labels[pool]
    quality = (said == truth).mean(1)
    print(
        f"  {len(pool)} sentences in the pool, {options.heads} heads of accuracy {quality.min():.3f} to "
        f"{quality.max():.3f} after {time.monotonic() - begun:.0f} s",
        file=sys.stderr,
    )
    rows = []
    draw = np.random.default_rng(1)
    strict = GateRules(confidence=options.confidence)
    lenient = GateRules(confidence=options.confidence, max_drop=options.margin)
    for number in range(options.pairs):
        new, old = draw.choice(options.heads, 2, replace=False)
        held = draw.choice(len(pool), options.held_out, replace=False)
        candidate, production = facts(truth[held], said[new][held]), facts(truth[held], said[old][held])
        first = judge_facts(strict, candidate, production)
        second = judge_facts(lenient, candidate, production)
        naive = candidate.metrics["accuracy"] >= production.metrics["accuracy"]
        alone = {r.rule: r.passed for r in first.reasons}["accuracy against production"]
        rows.append((quality[new] - quality[old], first.passed, alone, second.passed, naive))
        if number % 200 == 199:
            print(f"  {number + 1} pairs, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return report(np.array(rows, dtype=float), options) | {"seconds": round(time.monotonic() - begun)}


def report(rows: Any, options: argparse.Namespace) -> dict[str, Any]:  # Any: [pairs, 5]
    true = rows[:, 0]

    def share(which: Any, column: int, *, passed: bool) -> dict[str, float]:
        chosen = rows[which, column] == passed
        return {"pairs": int(which.sum()), "share": round(float(chosen.mean()), 4) if which.any() else float("nan")}

    steps = ((0.0, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 1.0))
    margin = options.margin
    return {
        "pairs": len(rows), "held_out": options.held_out, "confidence": options.confidence,
        "promised": round(1 - options.confidence, 4), "machine": world.this_machine(),
        "no_better_passed": {
            "gate": share(true <= 0, 1, passed=True),
            "gate, accuracy alone": share(true <= 0, 2, passed=True),
            "two numbers": share(true <= 0, 4, passed=True),
        },
        "hardly_different_passed": {  # the hardest: no better, and worse by at most a hundredth
            "gate": share((true <= 0) & (true > -0.01), 1, passed=True),
            "two numbers": share((true <= 0) & (true > -0.01), 4, passed=True),
        },
        f"worse_by_{margin}_passed_with_that_margin": share(true <= -margin, 3, passed=True),
        "better_refused": {
            f"by {low} to {high}": {
                "gate": share((true > low) & (true <= high), 1, passed=False),
                "gate, accuracy alone": share((true > low) & (true <= high), 2, passed=False),
                "two numbers": share((true > low) & (true <= high), 4, passed=False),
                f"gate, max_drop {margin}": share((true > low) & (true <= high), 3, passed=False),
            }
            for low, high in steps
        },
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--heads", type=int, default=48)
    parser.add_argument("--per-intent", type=int, default=60)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--margin", type=float, default=0.02)
    print(json.dumps(run(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
