from __future__ import annotations

import csv
import datetime as dt
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from heliostat.errors import UsageError
from heliostat.plan.catalogue import Instance, Price, judge_prices, load, read_price

FACTS = Path(__file__).parents[4] / "shared" / "facts"

HERE = Price("aws", "big", "us-east-1", "on-demand", Decimal(40), "a table", "2026-07-20")


def an_instance(name: str, count: float) -> Instance:
    return Instance("aws", name, "H100-80GB", count, 8, 64, 0, 10, "none", 0, "", "", "", "a table", "2026-07-20", "")


INSTANCES = (an_instance("big", 8), an_instance("small", 1))


def judged(*prices: Price) -> list[tuple[str, str]]:
    return [(price.verdict, price.reason) for price in judge_prices(prices, INSTANCES)]


# --- the rules, each on rows that break it


@pytest.mark.parametrize("amount", ["0", "0.0", "-1", "NaN", "700.0"])
def test_what_is_no_price_is_refused(amount: str) -> None:
    ((verdict, reason),) = judged(replace(HERE, usd_per_hour=Decimal(amount)))
    assert verdict == "refused"
    assert amount.rstrip("0").rstrip(".") in reason or amount in reason


def test_a_price_without_a_region_is_refused() -> None:
    assert judged(replace(HERE, region="")) == [("refused", "its region is not known")]


def test_one_card_cannot_cost_what_eight_cost() -> None:
    verdicts = judged(HERE, replace(HERE, instance="small"))
    assert [verdict for verdict, _ in verdicts] == ["refused", "refused"]
    assert "the same as small, which has 1 cards and not 8" in verdicts[0][1]
    assert [v for v, _ in judged(HERE, replace(HERE, instance="small", region="us-west-2"))] == ["usable", "usable"]
    assert [v for v, _ in judged(HERE, replace(HERE, instance="small", usd_per_hour=Decimal(5)))] == ["usable"] * 2


def test_under_half_of_the_median_of_other_regions_is_another_product() -> None:
    low = replace(HERE, region="us-central1", usd_per_hour=Decimal("33.61"))
    high = [replace(HERE, region=region, usd_per_hour=Decimal("78.37")) for region in ("us-east4", "us-west1")]
    assert judged(low, *high)[0] == ("refused", "under half of 78.37, the median of other regions")
    assert [verdict for verdict, _ in judged(low, *high)[1:]] == ["usable", "usable"]
    assert judged(replace(low, usd_per_hour=Decimal("39.2")), *high)[0][0] == "usable"


def test_a_filler_elsewhere_does_not_make_a_true_price_look_low() -> None:
    filler = [replace(HERE, region=region, usd_per_hour=Decimal(700)) for region in ("a", "b", "c")]
    assert judged(HERE, *filler)[0][0] == "usable"


@pytest.mark.parametrize(
    ("spot", "verdict"), [("39.2", "refused"), ("40", "refused"), ("44", "refused"), ("39.1", "usable")]
)
def test_spot_at_the_price_of_on_demand_means_no_capacity(spot: str, verdict: str) -> None:
    assert judged(replace(HERE, market="spot", usd_per_hour=Decimal(spot)), HERE)[0][0] == verdict


def test_of_two_sources_the_confirmed_one_is_believed_then_the_newer() -> None:
    old = replace(HERE, usd_per_hour=Decimal("98.32"), source="a blog", date="2026-09")
    confirmed = replace(HERE, confirmed_by="another table")
    assert judged(confirmed, old) == [("usable", ""), ("refused", "a table says 40")]
    assert judged(HERE, old) == [("refused", "a blog says 98.32"), ("usable", "")]
    close = replace(old, usd_per_hour=Decimal(41))
    assert [verdict for verdict, _ in judged(HERE, close)] == ["usable", "usable"]


@pytest.mark.parametrize("note", ["spot by the advisor of last year: indicative", "a part of the sum is recalled"])
def test_what_its_own_table_doubts_is_doubtful(note: str) -> None:
    assert judged(replace(HERE, note=note)) == [("doubtful", note)]


# --- age


def test_the_age_of_a_price_is_counted_and_past_90_days_it_is_stale() -> None:
    assert HERE.age_days(dt.date(2026, 10, 18)) == 90
    assert not HERE.is_stale(dt.date(2026, 10, 18))
    assert HERE.is_stale(dt.date(2026, 10, 19))


@pytest.mark.parametrize(
    ("date", "since"), [("2026", (2026, 1, 1)), ("2026-08", (2026, 8, 1)), ("2026-08-09", (2026, 8, 9))]
)
def test_a_date_without_a_day_is_the_earliest_it_may_be(date: str, since: tuple[int, int, int]) -> None:
    assert replace(HERE, date=date).since == dt.date(*since)


# --- the tables


def test_every_row_has_a_source_and_a_date_and_names_what_is_there() -> None:
    catalogue = load()
    quotas = {(quota.cloud, quota.market, quota.name) for quota in catalogue.quotas}
    instances = {(instance.cloud, instance.name) for instance in catalogue.instances}
    tables = (catalogue.instances, catalogue.mig_profiles, catalogue.quotas, catalogue.prices)
    rows = [*catalogue.accelerators.values(), *(row for table in tables for row in table)]
    assert all(row.source and row.date for row in rows)
    for instance in catalogue.instances:
        assert instance.accelerator in catalogue.accelerators
        assert not instance.quota_on_demand or (instance.cloud, "on-demand", instance.quota_on_demand) in quotas
        assert not instance.quota_spot or (instance.cloud, "spot", instance.quota_spot) in quotas
    assert {(price.cloud, price.instance) for price in catalogue.prices} <= instances
    assert {profile.accelerator for profile in catalogue.mig_profiles} <= set(catalogue.accelerators)


def test_refused_prices_are_kept_with_their_reason_and_never_chosen() -> None:
    catalogue = load()
    refused = {(p.instance, str(p.usd_per_hour)): p.reason for p in catalogue.prices if p.verdict == "refused"}
    assert "55.04" in refused["p5.48xlarge", "98.32"]
    assert "no price" in refused["a4-highgpu-8g", "0.0"]
    assert ("tpu-v6e-8", "700.0") in refused
    assert all(refused.values())
    for instance in catalogue.instances:
        for market in ("on-demand", "spot"):
            price = catalogue.price(instance, market)  # type: ignore[arg-type]
            assert price is None or price.verdict != "refused"


def test_an_observed_spot_price_is_preferred_to_an_indicative_one() -> None:
    catalogue = load()
    (p5,) = [instance for instance in catalogue.instances if instance.name == "p5.48xlarge"]
    price = catalogue.price(p5, "spot")
    assert price is not None
    assert (price.usd_per_hour, price.verdict) == (Decimal("23.4532"), "usable")


def test_several_cards_come_in_one_machine_where_one_is_large_enough() -> None:
    offer = load().cheapest("A10G", "on-demand", count=4)
    assert offer is not None
    assert (offer.instance.name, offer.instances) == ("g5.12xlarge", 1)
    many = load().cheapest("A10G", "on-demand", count=16)
    assert many is not None
    assert (many.instance.name, many.instances, many.usd_per_hour) == ("g5.48xlarge", 2, Decimal("32.576"))


def test_a_share_of_a_card_is_not_offered_as_a_card() -> None:
    offer = load().cheapest("A10", "on-demand")
    assert offer is not None
    assert offer.instance.accelerators >= 1


def test_slices_are_no_larger_than_their_share_and_the_whole_is_the_card() -> None:
    catalogue = load()
    for profile in catalogue.mig_profiles:
        card = catalogue.accelerators[profile.accelerator]
        assert profile.usable_bytes(card) <= profile.memory_gb * 1.002 * 2**30
        assert profile.usable_bytes(card) <= card.usable_bytes * profile.memory_slices / profile.gpu_memory_slices
        assert all(start + profile.memory_slices <= profile.gpu_memory_slices for start in profile.starts)


def test_a_card_is_found_by_rays_name_where_that_is_one_card() -> None:
    assert load().accelerator("l4").name == "L4"
    with pytest.raises(UsageError, match="A100-40GB, A100-80GB"):
        load().accelerator("A100")
    with pytest.raises(UsageError, match="not known"):
        load().accelerator("H9000")


# --- the raw tables the product's were made from


def raw_prices() -> list[Price]:
    if not FACTS.is_dir():
        pytest.skip("the raw fact tables are not beside this checkout")
    rows = list(csv.DictReader((FACTS / "spot_zone_prices.csv").open(encoding="utf-8")))
    common = {"source": "zones", "date": "2026"}
    prices = []
    for row in rows:
        name = {"cloud": row["cloud"], "instance": row["instance_type"]}
        place = {"region": row["zone_id"], **common}
        if row["spot_usd_h"]:
            prices.append(read_price({**name, **place, "market": "spot", "usd_per_hour": row["spot_usd_h"]}))
        prices.append(read_price({**name, **place, "market": "on-demand", "usd_per_hour": row["ondemand_usd_h"]}))
    return prices


def test_zones_without_spare_capacity_are_refused_in_the_raw_table_and_no_others() -> None:
    prices = judge_prices(raw_prices(), load().instances)
    refused = {(p.instance, p.region) for p in prices if p.verdict == "refused" and "no spare capacity" in p.reason}
    rows = csv.DictReader((FACTS / "spot_zone_prices.csv").open(encoding="utf-8"))
    flagged = {(r["instance_type"], r["zone_id"]) for r in rows if "no spare capacity" in r["flag"]}
    assert flagged
    assert refused == flagged


def test_the_products_prices_are_those_of_the_raw_table() -> None:
    if not FACTS.is_dir():
        pytest.skip("the raw fact tables are not beside this checkout")
    chosen = {(p.instance, p.market, p.usd_per_hour) for p in load().prices}
    for row in csv.DictReader((FACTS / "instances.csv").open(encoding="utf-8")):
        for column, market in (
            ("ondemand_usd_h", "on-demand"),
            ("spot_usd_h", "spot"),
            ("spot_observed_usd_h", "spot"),
        ):
            if row[column]:
                assert (row["instance_type"], market, Decimal(row[column])) in chosen
