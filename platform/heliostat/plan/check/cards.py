"""Which card the words of a file mean: product labels, clouds' names, Ray's types, instance types."""

from __future__ import annotations

from functools import cache

from heliostat.definition import ACCELERATORS
from heliostat.plan.catalogue import Instance, load

GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "aws.amazon.com/neuron", "gpu.intel.com/i915")


def is_device(resource: str) -> bool:
    """Whether an extended resource is an accelerator or a slice of one."""
    return resource in GPU_RESOURCES or resource.startswith(("nvidia.com/mig-", "nvidia.com/gpu."))


@cache
def instance(name: str) -> Instance | None:
    """By its name, with or without "ml." before it."""
    return next((row for row in load().instances if row.name.lower() == name.lower().removeprefix("ml.")), None)


@cache
def by_product(product: str) -> str | None:
    """From a value of nvidia.com/gpu.product, shared and MIG spellings too."""
    whole = product.split("-MIG-")[0].removesuffix("-SHARED")
    return next((name for name, card in ACCELERATORS.items() if whole in card.products), None)


@cache
def by_cloud_name(name: str) -> str | None:
    """From Karpenter's instance-gpu-name or GKE's gke-accelerator; None where the name covers two memory sizes."""
    found = [card.name for card in ACCELERATORS.values() if name in (card.gke, card.karpenter)]
    return found[0] if len(found) == 1 else None


@cache
def by_ray_type(ray_type: str) -> str | None:
    """From a value of ray.io/accelerator-type; None where several sizes share it."""
    found = [card.name for card in ACCELERATORS.values() if card.ray_type == ray_type]
    return found[0] if len(found) == 1 else None


def ray_type_of(card: str | None) -> str | None:
    return ACCELERATORS[card].ray_type if card in ACCELERATORS else None
