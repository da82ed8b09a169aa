"""Recipes for test_processes.py: small models that use every kind of chance and state there is."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Config:
    total: int
    folder: str  # where each rank writes its losses and its final weights' digest
    stop_after: int | None = None  # leave as if told to, after this step
    freeze_rank: int | None = None
    pause_s: float = 0.0  # of each step
    mode: str = "ddp"  # ddp | fsdp


class Sampler:
    """A data order with a state of its own, that follows from no step."""

    def __init__(self) -> None:
        self._random, self.seen = random.Random(7), []  # type: ignore[var-annotated]

    def draw(self) -> int:
        number = self._random.randrange(1_000_000)
        self.seen.append(number)
        return number

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._random.getstate()
        return {"random": [version, list(words), gauss], "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["random"]
        self._random.setstate((version, tuple(words), gauss))
        self.seen = list(state["seen"])


def train(context: Any, config: Config) -> None:
    """Dropout, Adam, a scheduler, Python's and numpy's chance, and a sampler: all must come back."""
    import hashlib

    import numpy as np
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(3 + (context.rank if config.mode == "ddp" else 0))
    random.seed(context.rank)
    np.random.seed(context.rank)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 33), torch.nn.ReLU(), torch.nn.Dropout(0.3 if config.mode == "ddp" else 0.0)
    )
    model.append(torch.nn.Linear(33, 1))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape) * (index + 1))
    model.to(context.device)
    if config.mode == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.total)
    sampler = Sampler()
    done = context.restore(model, optimizer, scheduler=scheduler, sampler=sampler)
    parallel = DistributedDataParallel(model) if context.world_size > 1 and config.mode == "ddp" else model
    losses = Path(config.folder) / f"losses-{context.rank}.jsonl"
    for step in range(done, config.total):
        if config.freeze_rank == context.rank and step == 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGSTOP)
        generator = torch.Generator().manual_seed(sampler.draw() + 100 * step)
        whole = torch.randn(12, 8, generator=generator)
        share = whole[context.rank :: context.world_size].to(context.device)
        noise = random.random() + float(np.random.rand()) if config.mode == "ddp" else 0.0
        loss = (parallel(share).squeeze(-1) - share.sum(-1) - 0.01 * noise).square().mean()
        time.sleep(config.pause_s)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with losses.open("a") as file:
            file.write(json.dumps([step + 1, float(loss.detach())]) + "\n")
        if config.stop_after == step + 1:
            context._wishes._wish = 2.0  # as the keeper's "leave" would
        context.step_done(step + 1, config.total, loss=float(loss.detach()))
    digest, values = hashlib.sha256(), []
    for parameter in model.parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        digest.update(full.detach().cpu().numpy().tobytes())
        values += full.detach().flatten().tolist()
    (Path(config.folder) / f"values-{context.rank}.json").write_text(json.dumps(values))
    (Path(config.folder) / f"weights-{context.rank}.txt").write_text(digest.hexdigest())
    context.finish(files={"weights.txt": digest.hexdigest().encode()}, metrics={}, lineage={})


def slow(context: Any, config: Config) -> None:
    """Says that it is there, and stays."""
    (Path(config.folder) / f"here-{context.rank}").write_text("")
    time.sleep(60)


def broken(context: Any, config: Config) -> None:
    raise KeyError("no such column")
