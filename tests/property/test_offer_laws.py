"""Laws of offers: no known quota is exceeded, cheaper never ranks below dearer, the rules of markets hold."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.plan.by import plan_by
from heliostat.plan.catalogue import Price, load
from heliostat.plan.choose import Goal, Hold, Known, Offers, Serve, Train, offers
from heliostat.plan.params import shape_of_size
from heliostat.plan.quota import Limit, add_up, demands_of
from heliostat.plan.rates import load_rates
from heliostat.plan.roofline import Calibration, Traffic
from heliostat.plan.workload import Serving, Training

CATALOGUE, RATES, TODAY = load(), load_rates(), dt.date(2026, 11, 25)
REGIONS = sorted({(price.cloud, price.region) for price in CATALOGUE.prices if price.region})

limits = st.lists(
    st.builds(
        lambda quota, place, limit, used: Limit(
            quota.cloud, place[1] if place[0] == quota.cloud else "us-east-1", quota.code, quota.market, limit, used
        ),
        st.sampled_from(CATALOGUE.quotas), st.sampled_from(REGIONS),
        st.sampled_from([0.0, 8.0, 96.0, 192.0, 1000.0]), st.sampled_from([None, 0.0, 4.0, 96.0]),
    ),
    max_size=60,
)  # fmt: skip
holds = st.builds(
    Hold, st.sampled_from([("A100-40GB", "A100-80GB"), ("L4",), ("H100-80GB",), ("T4", "A10G")]), st.integers(1, 64),
    st.sampled_from([1.0, 72.0, 400.0, 8760.0, 26280.0]), st.sampled_from(["serving", "training"]), st.booleans(),
)  # fmt: skip
serves = st.builds(
    lambda size, rate, latency, hours, production, ratio: Serve(
        shape_of_size(size), Serving(), Traffic(rate, 256, 64, latency), hours, production, Calibration(ratio, "drawn")
    ),
    st.sampled_from(["0.5B", "7B", "70B"]), st.floats(0.01, 500), st.sampled_from([None, 1.0, 10.0]),
    st.sampled_from([24.0, 8760.0]), st.booleans(), st.floats(0.2, 3),
)  # fmt: skip
trains = st.builds(
    lambda size, method, tokens, deadline, safe: Train(
        shape_of_size(size), Training(method=method, context=2048), tokens, deadline, safe
    ),
    st.sampled_from(["0.5B", "7B", "70B"]), st.sampled_from(["full", "lora"]), st.floats(1e5, 1e10),
    st.sampled_from([None, 24.0, 300.0]), st.booleans(),
)  # fmt: skip
goals = st.one_of(holds, serves, trains)


def known(of: list[Limit], **changes: object) -> Known:
    return replace(Known(CATALOGUE, RATES, TODAY, tuple(of)), **changes)  # type: ignore[arg-type]  # names of its fields


def least_limit(of: list[Limit], code: str, region: str, market: str, cloud: str) -> Limit | None:
    same = [row for row in of if (row.code, row.region, row.market, row.cloud) == (code, region, market, cloud)]
    return same[-1] if same else None


def demands(made: Offers):  # type: ignore[no-untyped-def]
    for choice in made.choices:
        if choice.sale.purchase == "capacity-block":
            continue
        market = "spot" if choice.sale.purchase == "spot" else "on-demand"
        for demand in add_up(
            demands_of(
                choice.sale.instance, choice.machines, region=choice.sale.region, market=market, catalogue=CATALOGUE
            )
        ):
            yield choice, demand


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(goals, limits)
def test_a_plan_never_exceeds_a_quota_that_it_knows(goal: Goal, of: list[Limit]) -> None:
    made = offers(goal, known(of))
    for choice, demand in demands(made):
        assert (
            demand.quota is None
            or (limit := least_limit(of, demand.quota.code, demand.region, demand.market, demand.cloud)) is None
            or (demand.units + (limit.used or 0) <= limit.limit)
        ), f"{choice.key} takes {demand.units}"
    for choice in made.blocked:
        short = [line for line in choice.lines if line.state == "short"]
        assert short
        assert all(line.limit is not None and line.ask > line.limit.limit for line in short)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(goals, limits)
def test_a_cheaper_offer_never_ranks_below_a_dearer_equal_one(goal: Goal, of: list[Limit]) -> None:
    made = offers(goal, known(of))
    for row in (made.choices, made.blocked):
        for state in ("fits", "unknown", "short"):
            costs = [choice.usd for choice in row if choice.state == state]
            assert costs == sorted(costs)
    states = [("fits", "unknown").index(choice.state) for choice in made.choices]
    assert states == sorted(states)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(goals, st.sampled_from([0.5, 0.9]), st.data())
def test_a_price_that_falls_never_makes_its_offer_rank_lower(goal: Goal, factor: float, data: st.DataObject) -> None:
    before = offers(goal, known([]))
    plain = [choice for choice in before.choices if choice.sale.purchase in ("on-demand", "spot")]
    if not plain:
        return
    picked = data.draw(st.sampled_from(plain))

    def cut(price: Price) -> Price:
        same = (price.instance, price.region, price.market) == (
            picked.sale.instance.name,
            picked.sale.region,
            picked.sale.purchase,
        )
        return replace(price, usd_per_hour=price.usd_per_hour * Decimal(str(factor))) if same else price

    cheaper = replace(CATALOGUE, prices=tuple(map(cut, CATALOGUE.prices)))
    after = offers(goal, known([], catalogue=cheaper))
    keys = [choice.key for choice in after.choices]
    if isinstance(goal, Serve) and picked.key not in keys:
        return  # a training-class card stays refused, at whatever price
    assert keys.index(picked.key) <= [choice.key for choice in before.choices].index(picked.key)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(goals, limits)
def test_the_rules_of_markets_hold(goal: Goal, of: list[Limit]) -> None:
    made = offers(goal, known(of))
    production = goal.production if isinstance(goal, Serve) else goal.role == "serving"
    for choice in (*made.choices, *made.blocked):
        sale = choice.sale
        if sale.purchase == "spot":
            assert goal.checkpoints if goal.role == "training" else not production
        if sale.purchase.startswith("reserved"):
            assert any("break-even" in reason for reason in choice.reasons)
            assert not isinstance(goal, Train)
        if choice.placement != "not needed":
            assert choice.fabric not in ("", "none")
            assert choice.machines > 1
        if isinstance(goal, Train) and goal.deadline_h:
            assert choice.hours <= goal.deadline_h
        if isinstance(goal, Hold):
            assert choice.machines * sale.instance.accelerators >= goal.count
    if isinstance(goal, Serve):
        classes = {
            "inference" in CATALOGUE.accelerators[c.sale.instance.accelerator].use
            for c in (*made.choices, *made.blocked)
        }
        assert len(classes) <= 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(holds, limits, st.integers(0, 90))
def test_a_plan_for_a_day_asks_for_nothing_where_something_is_ready(goal: Hold, of: list[Limit], days: int) -> None:
    made = offers(goal, known(of))
    plan = plan_by(made, TODAY + dt.timedelta(days=days), rates=RATES, today=TODAY)
    assert len(plan.ways) == len(made.choices) + len(made.blocked)
    order = [("ready", "ask", "unknown", "late").index(way.fate) for way in plan.ways]
    assert order == sorted(order)
    for first, second in pairwise(plan.ways):
        assert first.fate != second.fate or first.choice.usd <= second.choice.usd
    if plan.first is not None and plan.first.fate == "ready":
        assert plan.steps[0].what.startswith("take ")
    for way in plan.ways:
        if way.fate == "ask":
            assert way.ask_by is not None
            assert way.ask_by >= TODAY
