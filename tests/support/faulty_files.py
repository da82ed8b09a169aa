"""The artifacts that `faulty.py` serves: good ones that hardly differ, and one for each way to be bad."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FAULTS = ("raises-on-load", "raises-every-10th", "nan", "nan-of-long-texts", "slow", "wrong-labels", "too-large")
SECONDS = 0.02
"""What a batch takes; the slow one takes ten times that."""


PROBES = ("switch off the fan in the hall", "dim the lamp", "open the blinds in the attic", "play some music")


def _middle(files: dict[str, bytes]) -> torch.Tensor:
    """[C] the mean logits of some texts."""
    import torch

    from serve_apps.intent_classifier import IntentClassifierApp

    app = IntentClassifierApp.load(files, torch.device("cpu"))
    return app.vectors([app.tokenise(text) for text in PROBES]).mean(0).clone()


def faulty_files(seed: int, fault: str = "") -> dict[str, bytes]:
    """A small real classifier. Two seeds share the encoder and most of the head: they agree on all but a few texts."""
    import safetensors.torch
    import torch

    from tests.tiny_apps import intent_files

    made = intent_files(1)
    weights = safetensors.torch.load(made["model.safetensors"])
    draw = torch.Generator().manual_seed(7)
    weights["head.weight"] = torch.randn(weights["head.weight"].shape, generator=draw)
    noise = torch.Generator().manual_seed(seed)
    weights["head.weight"] += 0.2 * torch.randn(weights["head.weight"].shape, generator=noise)
    # An encoder that was never trained puts all texts near one point: seen from there they have different labels.
    weights["head.bias"] = weights["head.bias"] - _middle(
        {**made, "model.safetensors": safetensors.torch.save(weights)}
    )
    labels = ["off", "on", "dim"]
    if fault == "wrong-labels":
        labels = ["on", "dim", "off"]
    if fault == "too-large":
        made["more.safetensors"] = safetensors.torch.save({"more": torch.zeros(60 * 2**20, dtype=torch.uint8)})
    about = {"fault": fault, "seconds": SECONDS * (10 if fault == "slow" else 1), "seed": seed}
    return {
        **made,
        "model.safetensors": safetensors.torch.save(weights),
        "labels.json": json.dumps(labels).encode(),
        "about.json": json.dumps(about).encode(),
    }
