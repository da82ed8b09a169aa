"""The artifacts that `faulty.py` serves: good ones that hardly differ, and one for each way to be bad."""

from __future__ import annotations

import json

FAULTS = ("raises-on-load", "raises-every-10th", "nan", "nan-of-long-texts", "slow", "wrong-labels", "too-large")
SECONDS = 0.02
"""What a batch takes; the slow one takes ten times that."""


def faulty_files(seed: int, fault: str = "") -> dict[str, bytes]:
    """A small real classifier. Two seeds share the encoder and nearly all of the head, so they agree on most texts."""
    import safetensors.torch
    import torch

    from tests.tiny_apps import intent_files

    made = intent_files(1)
    weights = safetensors.torch.load(made["model.safetensors"])
    draw = torch.Generator().manual_seed(7)
    weights["head.weight"] = torch.randn(weights["head.weight"].shape, generator=draw)
    noise = torch.Generator().manual_seed(seed)
    weights["head.weight"] += 0.02 * torch.randn(weights["head.weight"].shape, generator=noise)
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
