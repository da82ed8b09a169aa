"""Where tensors live: the CUDA device this process was given, or the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device() -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def token_budget(device: torch.device) -> int:
    """Tokens of one batch that keep the device busy: more only makes the first of them wait.

    Measured on two CPU cores (docs/batching.md) and on an H100 (docs/gpu.md).
    """
    return 8192 if device.type == "cuda" else 512
