"""Offers on small worlds whose answers are worked out by hand."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal

import pytest

from heliostat.errors import UsageError
from heliostat.plan.catalogue import load
from heliostat.plan.choose import Choice, Hold, Known, Serve, Train, offers
from heliostat.plan.params import shape_of_size
from heliostat.plan.quota import Limit
from heliostat.plan.rates import load_rates
from heliostat.plan.roofline import Traffic
from heliostat.plan.workload import Serving, Training

TODAY = dt.date(2026, 11, 25)
A100 = ("A100-40GB", "A100-80GB")


def known(*limits: Limit, **changes: object) -> Known:
    return replace(Known(load(), load_rates(), TODAY, limits), **changes)  # type: ignore[arg-type]  # names of its fields


def find(choices: tuple[Choice, ...], name: str, purchase: str = "on-demand") -> Choice:
    return next(c for c in choices if c.sale.instance.name == name and c.sale.purchase == purchase)


def test_a_hold_costs_price_times_machines_times_hours() -> None:
    made = offers(Hold(A100, 8, 72), known())
    p4d = find(made.choices, "p4d.24xlarge")
    assert p4d.usd_per_hour == Decimal("21.957642")
    assert p4d.usd == Decimal("21.957642") * 72
    assert p4d.state == "unknown"
    assert p4d.lines[0].demand.units == 96


def test_a_known_quota_moves_an_offer_among_those_that_need_an_increase() -> None:
    limit = Limit("aws", "us-east-1", "L-417A185B", "on-demand", 96, 32)
    made = offers(Hold(A100, 8, 72), known(limit))
    assert all(c.sale.instance.name != "p4d.24xlarge" or c.sale.purchase != "on-demand" for c in made.choices)
    assert find(made.blocked, "p4d.24xlarge").lines[0].ask == 128


def test_gcp_counts_cards_in_the_region_and_over_all_regions() -> None:
    limits = (
        Limit("gcp", "us-central1", "NVIDIA_A100_GPUS", "on-demand", 16, 0),
        Limit("gcp", "global", "GPUS-ALL-REGIONS-per-project", "on-demand", 4, 0),
    )
    made = offers(Hold(A100, 8, 72), known(*limits, clouds=("gcp",)))
    blocked = find(made.blocked, "a2-highgpu-8g")
    assert [line.state for line in blocked.lines] == ["fits", "short"]


def test_machines_that_train_together_need_a_fabric_and_those_that_serve_do_not() -> None:
    training, serving = offers(Hold(A100, 8, 72), known()), offers(Hold(A100, 8, 72, role="serving"), known())
    assert any("no fabric" in row.reason and "a2-highgpu-1g" in row.what for row in training.refused)
    assert find(serving.choices, "a2-highgpu-1g").machines == 8


def test_spot_is_for_what_checkpoints() -> None:
    assert find(offers(Hold(A100, 8, 72), known()).choices, "p4d.24xlarge", "spot")
    made = offers(Hold(A100, 8, 72, checkpoints=False), known())
    assert all(choice.sale.purchase != "spot" for choice in made.choices)


def test_a_year_is_reserved_and_a_month_is_not_with_the_break_even_told() -> None:
    year, month = (offers(Hold(("L4",), 16, hours, "serving"), known(clouds=("aws",))) for hours in (8760, 720))
    assert year.best is not None
    assert year.best.sale.purchase == "reserved-1y"
    assert "break-even at 249 of 365 days (68% of the term)" in year.best.reasons[0]
    assert month.best is not None
    assert month.best.sale.purchase == "on-demand"
    assert any("pays off from 249 of 365 days" in row.reason for row in month.refused)
    assert year.best.usd == year.best.usd_per_hour * 8760


def test_a_capacity_block_is_paid_in_whole_days_and_needs_no_quota() -> None:
    made = offers(Hold(A100, 8, 60), known(clouds=("aws",)))
    block = find(made.choices, "p4d.24xlarge", "capacity-block")
    assert block.usd == Decimal("14.75") * 72
    assert block.lines == ()
    long = offers(Hold(A100, 8, 24 * 15), known(clouds=("aws",)))
    assert find(long.choices, "p4d.24xlarge", "capacity-block").usd == Decimal("14.75") * 24 * 21


def serve(rate: float = 50, **changes: object) -> Serve:
    goal = Serve(shape_of_size("7B"), Serving(), Traffic(rate, 512, 128, 10))
    return replace(goal, **changes)  # type: ignore[arg-type]  # names of its fields


def test_serving_goes_on_inference_cards_and_training_cards_are_refused_with_both_prices() -> None:
    made = offers(serve(), known())
    assert all("inference" in load().accelerators[c.sale.instance.accelerator].use for c in made.choices)
    refused = [row for row in made.refused if row.reason.startswith("training-class")]
    assert refused
    assert all("USD a million" in row.reason for row in refused)


def test_what_no_inference_card_serves_goes_on_a_training_card() -> None:
    goal = Serve(shape_of_size("405B"), Serving(dtype="fp8"), Traffic(1, 512, 128))
    made = offers(goal, known(clouds=("gcp",)))
    assert made.best is not None
    assert made.best.reasons[0] == "no inference-class card does it"


def test_production_is_never_on_spot_alone() -> None:
    assert all(c.sale.purchase != "spot" for c in offers(serve(), known()).choices)
    assert any(c.sale.purchase == "spot" for c in offers(serve(production=False), known()).choices)


def test_twice_the_requests_need_about_twice_the_machines() -> None:
    one, two = (find(offers(serve(rate), known()).choices, "g6e.xlarge").machines for rate in (50, 100))
    assert abs(two - 2 * one) <= 1


def test_a_deadline_takes_more_machines_and_never_more_time() -> None:
    def train(deadline: float | None) -> Train:
        return Train(shape_of_size("70B"), Training(method="lora", context=2048), 3e8, deadline)

    slow = find(offers(train(None), known(clouds=("aws",))).choices, "p4d.24xlarge")
    fast = find(offers(train(slow.hours / 3), known(clouds=("aws",))).choices, "p4d.24xlarge")
    assert fast.machines > slow.machines
    assert fast.hours <= slow.hours / 3
    assert fast.placement == "cluster placement group"


def test_reclaims_lengthen_a_training_on_spot() -> None:
    goal = Train(shape_of_size("7B"), Training(method="lora"), 1e9)
    made = offers(goal, known(clouds=("aws",)))
    spot, plain = find(made.choices, "p4d.24xlarge", "spot"), find(made.choices, "p4d.24xlarge")
    assert spot.hours > plain.hours
    assert "reclaims expected" in " ".join(spot.reasons)


def test_data_that_lies_elsewhere_costs_its_copy_and_its_storage() -> None:
    there = known(data_gb=1000.0, data_at=("aws", "us-east-1"))
    here, moved = offers(Hold(A100, 8, 72), known()), offers(Hold(A100, 8, 72), there)
    same = find(moved.choices, "p4d.24xlarge").usd - find(here.choices, "p4d.24xlarge").usd
    other = find(moved.choices, "a2-highgpu-8g").usd - find(here.choices, "a2-highgpu-8g").usd
    assert same == 0
    assert other == Decimal("90") + Decimal("20")  # 1,000 GB out of AWS at 0.09, a month's storage at 0.02


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError):
        Hold(A100, 0, 1)
    with pytest.raises(UsageError):
        Traffic(0)
    with pytest.raises(UsageError):
        Traffic(1, latency_s=-1)
