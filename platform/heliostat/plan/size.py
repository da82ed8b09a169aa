"""One model against every accelerator of the catalogue: what holds it, what is left, what it costs, what would help.

Pure: shape, workload, catalogue in, rows out. The command line prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.plan.catalogue import Accelerator, Catalogue, MigProfile, Offer
from heliostat.plan.params import ModelShape
from heliostat.plan.vram import Answer, Change, Fit, Need, cheapest_change, fits, kv_tokens, need_of
from heliostat.plan.workload import Serving, Training

_ORDER: tuple[Answer, ...] = ("fits", "too close to call", "does not fit")


@dataclass(frozen=True)
class SliceRow:
    """A MIG slice against the need."""

    profile: MigProfile
    fit: Fit
    kv_tokens: int | None


@dataclass(frozen=True)
class CardRow:
    """A card against the need. `slices` are empty where more than one GPU is asked for: MIG slices do not talk.

    `change` makes it fit where it does not; None where it fits, or nothing known helps.
    """

    card: Accelerator
    fit: Fit
    kv_tokens: int | None
    slices: tuple[SliceRow, ...]
    on_demand: Offer | None
    spot: Offer | None
    change: Change | None

    @property
    def smallest_slice(self) -> SliceRow | None:
        """The least part of the card that holds the model beyond doubt; None where it takes the whole card."""
        parts = (row for row in self.slices if row.profile.memory_slices < row.profile.gpu_memory_slices)
        return next((row for row in parts if row.fit.answer == "fits"), None)


@dataclass(frozen=True)
class Sizing:
    """The need of one GPU, and every card: those that fit first, the cheapest first."""

    shape: ModelShape
    workload: Serving | Training
    need: Need
    cards: tuple[CardRow, ...]


def gpus_of(workload: Serving | Training) -> int:
    """How many cards the workload takes."""
    if isinstance(workload, Serving):
        return workload.tensor
    return workload.gpus * workload.tensor * workload.pipeline


def wants_bf16(workload: Serving | Training) -> bool:
    """Whether it computes in bf16, as far as its words say."""
    if isinstance(workload, Serving):
        return workload.dtype == "bf16"
    return workload.precision != "fp32" if workload.method == "full" else workload.dtype == "bf16"


def size(shape: ModelShape, workload: Serving | Training, catalogue: Catalogue, *, on: str | None = None) -> Sizing:
    """Against every accelerator that runs PyTorch, or the one named. Raises UsageError for an unknown one."""
    cards = [catalogue.accelerator(on)] if on else [c for c in catalogue.accelerators.values() if c.runs_torch]
    need = need_of(shape, workload)
    rows = [_card_row(shape, workload, need, catalogue, card) for card in cards]
    return Sizing(shape, workload, need, tuple(sorted(rows, key=_rank)))


def _rank(row: CardRow) -> tuple[int, bool, float, str]:
    price = row.on_demand.usd_per_hour if row.on_demand else 0
    return _ORDER.index(row.fit.answer), row.on_demand is None, float(price), row.card.name


def _card_row(
    shape: ModelShape, workload: Serving | Training, need: Need, catalogue: Catalogue, card: Accelerator
) -> CardRow:
    fit = fits(need, card.usable_bytes)
    gpus = gpus_of(workload)
    slices = catalogue.slices(card.name) if gpus == 1 else ()
    return CardRow(
        card=card,
        fit=fit,
        kv_tokens=_kv_tokens(shape, workload, card.usable_bytes),
        slices=tuple(_slice_row(shape, workload, need, profile, card) for profile in slices),
        on_demand=catalogue.cheapest(card.name, "on-demand", count=gpus),
        spot=catalogue.cheapest(card.name, "spot", count=gpus),
        change=cheapest_change(shape, workload, card.usable_bytes) if fit.answer != "fits" else None,
    )


def _slice_row(
    shape: ModelShape, workload: Serving | Training, need: Need, profile: MigProfile, card: Accelerator
) -> SliceRow:
    memory = profile.usable_bytes(card)
    return SliceRow(profile, fits(need, memory), _kv_tokens(shape, workload, memory))


def _kv_tokens(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> int | None:
    return kv_tokens(shape, workload, memory_bytes) if isinstance(workload, Serving) else None
