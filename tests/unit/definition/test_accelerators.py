"""The names of accelerators against the collected facts, and against Ray's own."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from heliostat.definition import ACCELERATORS

ROOT = Path(__file__).parents[3]
FACTS = next(
    (folder / "shared" / "facts" for folder in ROOT.parents[:2] if (folder / "shared" / "facts").is_dir()), None
)
needs_facts = pytest.mark.skipif(FACTS is None, reason="the facts are not beside this checkout")
# A card that no field of a definition needs yet.
LEFT_OUT = {"RTX-PRO-4500-BSE"}


def rows(name: str) -> list[dict[str, Any]]:
    assert FACTS is not None
    return list(csv.DictReader((FACTS / name).open()))


@needs_facts
def test_every_accelerator_of_the_facts_is_there_under_its_names() -> None:
    found = {row["name"]: row for row in rows("gpus.csv") if row["name"] not in LEFT_OUT}
    assert set(found) == set(ACCELERATORS)
    for name, row in found.items():
        device = ACCELERATORS[name]
        assert (device.ray_type or "") == row["ray_accelerator_type"], name
        seen = {word for word in re.split(r"[ ;()]+", row["k8s_gpu_product"]) if re.match(r"(NVIDIA|Tesla)-", word)}
        assert seen <= set(device.products), name


@needs_facts
def test_mig_profiles_are_those_of_the_facts() -> None:
    found: dict[str, set[str]] = {}
    for row in rows("mig_profiles.csv"):
        if "+" not in row["profile"]:
            found.setdefault(row["gpu"], set()).add(row["profile"])
    for name, profiles in found.items():
        assert set(ACCELERATORS[name].mig) == profiles, name


def test_no_product_stands_for_two_accelerators() -> None:
    products = [product for device in ACCELERATORS.values() for product in device.products]
    assert len(products) == len(set(products))


def test_ray_knows_the_types() -> None:
    known = pytest.importorskip("ray.util.accelerators.accelerators", reason="ray is not installed")
    names = {value for value in vars(known).values() if isinstance(value, str)}
    assert {device.ray_type for device in ACCELERATORS.values() if device.ray_type} <= names
