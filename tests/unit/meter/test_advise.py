"""Advice follows from what was measured: it names the figures, and is silent where a measure or a price is missing."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from heliostat.events import Event
from heliostat.meter.advise import Devices, GroupMeasure, advise, devices, measure
from heliostat.meter.ledger import empty_table
from heliostat.plan.catalogue import GIB, load

CATALOGUE = load()
BIG = "p4de.24xlarge"  # eight A100 of 80 GB


def price(instance: str, market: str = "on-demand") -> float:
    found = next(one for one in CATALOGUE.instances if one.name == instance)
    return float(CATALOGUE.price(found, market).usd_per_hour) / found.accelerators  # type: ignore[arg-type, union-attr]


def group(**fields: object) -> GroupMeasure:
    made = GroupMeasure(
        "train", "on-demand", BIG, 100, {"training": 3600.0 * 700, "unallocated": 3600.0 * 100}, (8.0,) * 100
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def kinds(*groups: GroupMeasure, serving: tuple[str, ...] = ()) -> list[str]:
    return [one.kind for one in advise(groups, CATALOGUE, serving=frozenset(serving))]


def test_a_group_that_is_mostly_idle_is_too_large() -> None:
    idle = group(gpu_seconds={"training": 3600.0 * 300, "unallocated": 3600.0 * 500}, held=())
    (found,) = [one for one in advise([idle], CATALOGUE, serving=frozenset(["train"])) if one.kind == "idle-group"]
    assert found.usd_per_month == pytest.approx(500 * price(BIG) * 7.3)
    assert "62%" in found.what
    assert "idle_timeout" in found.do
    assert "idle-group" not in kinds(group())


def test_an_idle_group_without_a_price_is_told_all_the_same() -> None:
    idle = group(instance="", gpu_seconds={"reserved": 3600.0 * 50})
    (found,) = advise([idle], CATALOGUE)
    assert (found.kind, found.usd_per_month) == ("idle-group", None)
    assert "gpus_per_replica" in found.do


def test_a_large_card_that_does_little_is_oversized() -> None:
    light = group(duty=0.1, memory_bytes=8 * GIB)
    (found,) = [one for one in advise([light], CATALOGUE) if one.kind == "oversized"]
    assert "work 10% of the time and use 8.0 of" in found.what
    instance = found.do.split(" to ")[1].split(" ")[0]
    card = CATALOGUE.accelerator(next(one.accelerator for one in CATALOGUE.instances if one.name == instance))
    assert card.usable_bytes >= 10 * GIB
    assert price(instance) < price(BIG)
    assert found.usd_per_month == pytest.approx((price(BIG) - price(instance)) * 800 * 7.3)


@pytest.mark.parametrize(
    "fields",
    [
        {"duty": 0.9, "memory_bytes": 8 * GIB},
        {"duty": 0.1},
        {"memory_bytes": 8 * GIB},
        {"duty": 0.1, "memory_bytes": 78 * GIB},
    ],
)
def test_no_smaller_card_is_advised_where_it_would_not_do_or_nothing_was_measured(fields: dict[str, float]) -> None:
    assert not {"oversized", "mig"} & set(kinds(group(**fields)))


def test_a_slice_is_advised_where_one_holds_what_was_used() -> None:
    (found,) = [one for one in advise([group(duty=0.1, memory_bytes=7 * GIB)], CATALOGUE) if one.kind == "mig"]
    assert "1g.10gb" in found.do
    assert found.usd_per_month == pytest.approx(price(BIG) * 800 * 6 / 7 * 7.3)


def test_training_on_demand_could_be_on_spot_and_serving_not() -> None:
    assert "to-spot" in kinds(group())
    assert "to-spot" not in kinds(group(), serving=("train",))
    assert "to-spot" not in kinds(group(market="reserved"))


def test_spot_that_loses_most_of_its_time_is_dearer_than_on_demand() -> None:
    lossy = group(market="spot", gpu_seconds={"training": 3600.0 * 20, "recomputed": 3600.0 * 90})
    assert "to-on-demand" in kinds(lossy)
    assert "to-on-demand" not in kinds(group(market="spot"))


def test_what_is_held_around_the_clock_is_worth_reserving() -> None:
    half_day = group(hours=240, held=(8.0,) * 120 + (2.0,) * 120)
    (found,) = [one for one in advise([half_day], CATALOGUE) if one.kind == "reserve"]
    assert "2 GPUs of it held 100%" in found.what
    # Two GPUs for all hours at 40 % off; the other six are held half of them, which does not break even.
    assert found.usd_per_month == pytest.approx(2 * 0.4 * 730 * price(BIG))
    assert "reserve" not in kinds(group(hours=240, held=(8.0,) * 120))


def test_little_is_not_advised_on() -> None:
    assert kinds(group(gpu_seconds={"unallocated": 1800.0})) == []


def test_the_measures_come_from_the_ledger_s_rows_and_the_nodes_samples() -> None:
    row = dict.fromkeys(empty_table().column_names, "") | {
        "group": "train", "market": "spot", "instance": BIG, "use": "training",
    }  # fmt: skip
    rows = pa.Table.from_pylist(
        [
            row | {"hour": 5, "gpu_seconds": 3600.0},
            row | {"hour": 5, "gpu_seconds": 1800.0, "use": "reserved"},
            row | {"hour": 7, "gpu_seconds": 3600.0},
            row | {"hour": 7, "gpu_seconds": 99.0, "use": "overlap"},
        ],
        schema=empty_table().schema,
    )
    (found,) = measure(rows, {"train": Devices(0.2, 4.0)}, hours=3)
    assert found.gpu_seconds == {"training": 7200.0, "reserved": 1800.0}
    assert sorted(found.held) == [1.0, 1.5]
    assert (found.duty, found.memory_bytes, found.hours) == (0.2, 4.0, 3)


def test_devices_are_averaged_over_gpus_and_the_most_memory_counts() -> None:
    def sample(duty: float | None, gpus: float, memory: float) -> Event:
        given = {"group": "train", "duty": duty, "gpus": gpus, "memory_bytes": memory}
        return Event("0", "node_sample", "test", 0.0, 0.0, given)

    seen = devices([sample(1.0, 1, 10.0), sample(0.0, 3, 90.0), sample(None, 1, 500.0)])
    assert seen == {"train": Devices(0.25, 30.0)}
