"""Whether a model fits before any of it is read: need against limit, with both numbers in the refusal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from heliostat.errors import AppError
from heliostat.units import human_bytes

if TYPE_CHECKING:
    import torch

    from heliostat.definition import WorkerGroup


def check_fit(need_bytes: int, limit_bytes: int | None, *, what: str) -> None:
    """Raises AppError where `what` needs more than there is; a limit of None (a CPU) refuses nothing."""
    if limit_bytes is None or fits(need_bytes, limit_bytes):
        return
    raise AppError(
        f"{what} needs {human_bytes(need_bytes)} of GPU memory and {human_bytes(limit_bytes)} are free for it",
        do="give the application a larger GPU or share (gpus_per_replica), or publish a smaller or narrower model",
    )


def fits(need_bytes: int, limit_bytes: int | None) -> bool:
    return limit_bytes is None or need_bytes <= limit_bytes


def memory_limit(device: torch.device, *, gpus: float) -> int | None:
    """Bytes that a replica may take now: what is free, and of a shared GPU its share; None on a CPU.

    While a new version is loaded beside the old one, the old one's memory is not free, so both are accounted for.
    """
    import torch

    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    if gpus >= 1:
        return free
    return max(0, min(free, int(total * gpus) - torch.cuda.memory_reserved(device)))


def declared_limit(groups: Iterable[WorkerGroup], *, gpus: float) -> int | None:
    """Bytes that a replica may take on the smallest accelerator that the groups declare; None where one names none.

    It holds where the machine has no such device too: a laptop refuses what the declared group could not hold.
    """
    from heliostat.plan import catalogue

    known = catalogue.load()
    found = []
    for group in groups:
        if group.accelerator is None or gpus == 0:
            return None
        card = known.accelerator(group.accelerator)
        slices = {part.profile: part for part in known.slices(card.name)}
        whole = slices[group.mig].usable_bytes(card) if group.mig in slices else card.usable_bytes
        found.append(int(whole * min(gpus, 1.0)))
    return min(found, default=None)
