"""Rules on models and the GPUs they are put onto. The arithmetic is that of heliostat.plan.vram."""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.plan.catalogue import Accelerator, load
from heliostat.plan.check import cards
from heliostat.plan.check.model import Cluster, Group, ModelUse, Work
from heliostat.plan.check.rule import Hit, Rule
from heliostat.plan.size import size
from heliostat.plan.vram import Fit, fits, need_of
from heliostat.plan.workload import Serving
from heliostat.units import human_bytes

SMALL_SHARE = 0.25
"""A model that needs less of its card than this is on too large a one."""
ROOM_SEQUENCES = 8
"""Sequences at once that a small model is given before its card is called too large."""


def _too_large(cluster: Cluster) -> Iterator[Hit]:
    for work, model, group, card in _placed(cluster):
        fit = _fit(model, _memory(card, group), batch=1)
        if fit.answer == "does not fit":
            yield Hit(
                work.place("model"),
                f"{model.name} does not fit onto {_gpus(card, group, model)}: {human_bytes(-fit.margin)} more is needed"
                f"{' on each' * (model.tensor > 1)}",
                "spread it over more GPUs (tensor_parallel_size), quantise it, or take a larger card; "
                "heliostat plan size shows which",
            )


def _oversized(cluster: Cluster) -> Iterator[Hit]:
    for work, model, group, card in _placed(cluster):
        if group.mig or model.tensor > 1 or work.resources.get("GPU", 0) < 1:
            continue
        need = need_of(model.shape, _workload(model, ROOM_SEQUENCES))
        if need.ceiling > SMALL_SHARE * card.usable_bytes:
            continue
        yield Hit(
            work.place("model"),
            f"{model.name} needs {human_bytes(need.ceiling)} of the {human_bytes(card.usable_bytes)} of a whole "
            f"{card.name}, with {ROOM_SEQUENCES} sequences at once",
            _smaller(model, card),
        )


def _smaller(model: ModelUse, card: Accelerator) -> str:
    rows = size(model.shape, _workload(model, ROOM_SEQUENCES), load(), on=card.name).cards
    part = rows[0].smallest_slice if rows else None
    if part is not None:
        return f"give it a MIG slice {part.profile.profile}, put several replicas onto a GPU, or take a smaller card"
    return "put several replicas onto a GPU (num_gpus or gpus_per_replica below 1), or take a smaller card"


def _placed(cluster: Cluster) -> Iterator[tuple[Work, ModelUse, Group, Accelerator]]:
    """Each model with the group of the least memory that it may land on: that one has to hold it."""
    for work in cluster.works:
        if work.model is None or work.role != "serving":
            continue
        options = [
            (group, card)
            for group in cluster.groups
            if group.gpus and _may_land(work, group) and (card := _card(work, group)) is not None
        ]
        if options:
            group, card = min(options, key=lambda option: _memory(option[1], option[0]))
            yield work, work.model, group, card


def _may_land(work: Work, group: Group) -> bool:
    if work.groups is not None:
        return group.name in work.groups
    wanted = work.labels.get("ray.io/accelerator-type")
    own = group.labels.get("ray.io/accelerator-type") or cards.ray_type_of(group.card)
    return group.role != "training" and (wanted is None or own is None or own == wanted)


def _card(work: Work, group: Group) -> Accelerator | None:
    """The group's; or the one of the type that the work asks for, where the group does not say."""
    name = group.card or cards.by_ray_type(work.labels.get("ray.io/accelerator-type", ""))
    card = load().accelerators.get(name or "")
    return card if card and card.runs_torch else None


def _memory(card: Accelerator, group: Group) -> int:
    for part in load().slices(card.name):
        if part.profile == group.mig:
            return part.usable_bytes(card)
    return card.usable_bytes


def _fit(model: ModelUse, memory: int, *, batch: int) -> Fit:
    return fits(need_of(model.shape, _workload(model, batch)), memory)


def _workload(model: ModelUse, batch: int) -> Serving:
    context = min(model.context or 4096, model.shape.max_context or 4096)
    return Serving(dtype=model.dtype, context=context, batch=batch, tensor=model.tensor)


def _gpus(card: Accelerator, group: Group, model: ModelUse) -> str:
    if group.mig:
        return f"a {group.mig} slice of {card.name}"
    return f"{model.tensor} x {card.name}" if model.tensor > 1 else card.name


RULES = (
    Rule(
        "model-too-large",
        "error",
        "Model larger than the GPU's memory",
        "Weights, one sequence of the context and the runtime's own memory have to fit onto each GPU. Otherwise every "
        "replica fails when it loads, after the machine was started and the weights were fetched.",
        "More GPUs for a replica, fewer bits a weight, a shorter context, or a larger card.",
        _too_large,
    ),
    Rule(
        "gpu-oversized",
        "warning",
        "Oversized GPU for a small model",
        "A model that fills less than a quarter of a card, requests and all, pays for the other three.",
        "A MIG slice, several replicas on one GPU, or a smaller card.",
        _oversized,
    ),
)
