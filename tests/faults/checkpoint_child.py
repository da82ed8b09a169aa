"""What test_checkpoint.py kills: a process that writes checkpoints, as two ranks of one attempt would."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

STEPS = (10, 20, 30)
KEEP_GENERATION = 1


def tensors_of(step: int, rank: int) -> dict[str, Any]:
    """A state that tells its step in every element."""
    import torch

    piece = torch.full((3, 4), float(step * 10 + rank))
    return {"sharded": piece} if rank else {"sharded": piece, "whole": torch.full((1000,), float(step))}


def main(channel: Any, payload: bytes) -> None:
    from pydantic import SecretStr

    from heliostat.settings import StoreSettings
    from heliostat.store import Store
    from heliostat.train.checkpoint import CheckpointWriter, Part, Place

    about = json.loads(payload)
    about["store"]["secret_access_key"] = SecretStr(about["store"]["secret_access_key"])
    store = Store.connect(StoreSettings(**about["store"]))
    channel.send({"pid": os.getpid()})
    writers = [
        CheckpointWriter(store, about["run"], generation=KEEP_GENERATION, attempt="a", rank=rank, ranks=2)
        for rank in range(2)
    ]

    def save(rank: int, step: int) -> None:
        places = {"sharded": Place((6, 4), (3 * rank, 0))}
        writers[rank].save(step, Part(tensors_of(step, rank), places), {"world_size": 2}, sharded=True)
        writers[rank].wait()

    for step in STEPS:
        ranks = [threading.Thread(target=save, args=(rank, step)) for rank in range(2)]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join()
        channel.send({"committed": step})
