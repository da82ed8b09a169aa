"""Demand against limits, and the request that is made of what is short."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.definition.load import load as load_definition
from heliostat.errors import UsageError
from heliostat.plan.catalogue import Market, load
from heliostat.plan.quota import (
    Limit,
    demands_of,
    held_against,
    of_definition,
    read_limits,
    region_of,
    request_for,
    worst,
)
from heliostat.plan.rates import load_rates

ROOT = Path(__file__).parents[3]
CATALOGUE, RATES = load(), load_rates()


def instance(name: str):  # type: ignore[no-untyped-def]
    return next(row for row in CATALOGUE.instances if row.name == name)


def command(name: str, machines: int, region: str, *limits: Limit, market: Market = "on-demand") -> list[str | None]:
    demands = demands_of(instance(name), machines, region=region, market=market, catalogue=CATALOGUE)
    return [request_for(line, RATES).command for line in held_against(demands, limits)]


def test_aws_is_asked_for_what_is_used_and_what_is_wanted() -> None:
    limit = Limit("aws", "us-east-1", "L-417A185B", "on-demand", 64, 32)
    assert command("p4d.24xlarge", 2, "us-east-1", limit) == [
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-417A185B "
        "--desired-value 224 --region us-east-1"
    ]


def test_gcp_is_asked_twice_and_a_family_is_a_dimension() -> None:
    regional, everywhere = command("a3-highgpu-8g", 1, "us-east4")
    assert regional is not None
    assert everywhere is not None
    assert "--quota-id=GPUS-PER-GPU-FAMILY-per-project-region --preferred-value=8" in regional
    assert "--dimensions=region=us-east4,gpu_family=NVIDIA_H100" in regional
    assert "--quota-id=GPUS-ALL-REGIONS-per-project --preferred-value=8" in everywhere
    assert "--dimensions" not in everywhere


def test_azure_is_asked_for_the_family_in_the_region() -> None:
    (line,) = command("Standard_ND96asr_v4", 1, "eastus")
    assert line is not None
    assert "--resource-name StandardNDASv4_A100Family" in line
    assert "/locations/eastus" in line
    assert "value=96" in line


def test_azure_spells_a_family_in_several_letter_cases() -> None:
    limit = Limit("azure", "eastus", "standardndasv4_a100family", "on-demand", 96, 0)
    demands = demands_of(instance("Standard_ND96asr_v4"), 1, region="eastus", market="on-demand", catalogue=CATALOGUE)
    assert worst(held_against(demands, [limit])) == "fits"


def test_groups_of_one_family_count_together_and_spot_apart() -> None:
    one = demands_of(instance("g6.xlarge"), 2, region="us-east-1", market="on-demand", catalogue=CATALOGUE)
    two = demands_of(instance("g5.xlarge"), 3, region="us-east-1", market="on-demand", catalogue=CATALOGUE)
    spot = demands_of(instance("g5.xlarge"), 3, region="us-east-1", market="spot", catalogue=CATALOGUE)
    lines = held_against([*one, *two, *spot], [Limit("aws", "us-east-1", "L-DB2E81BA", "on-demand", 16, 0)])
    assert [(line.demand.units, line.state) for line in lines] == [(20, "short"), (12, "unknown")]


def test_a_quota_that_the_catalogue_does_not_know_has_no_command() -> None:
    assert command("p6-b200.48xlarge", 1, "us-east-1", market="spot") == [None]


def test_the_demand_of_a_definition_is_that_of_its_upper_bounds() -> None:
    definition = load_definition(ROOT / "cluster" / "aws.yaml")
    groups = of_definition(definition, CATALOGUE)
    assert {group.group for group in groups} == {name for name, group in definition.groups.items() if group.gpus}
    for group in groups:
        nodes = definition.groups[group.group].nodes.high * definition.groups[group.group].hosts
        assert group.demands[0].units == nodes * (group.instance.vcpus or 0)


def test_a_definition_for_a_laptop_has_no_quotas() -> None:
    with pytest.raises(UsageError, match="has no quotas"):
        of_definition(load_definition(ROOT / "cluster" / "laptop.yaml"), CATALOGUE)


@pytest.mark.parametrize(
    ("zone", "cloud", "region"),
    [("us-east-1a", "aws", "us-east-1"), ("us-central1-a", "gcp", "us-central1"), ("eastus-2", "azure", "eastus")],
)
def test_a_zone_lies_in_its_region(zone: str, cloud: str, region: str) -> None:
    assert region_of(zone, cloud) == region


def test_limits_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    good = tmp_path / "good.csv"
    good.write_text("cloud,region,code,market,limit,used\naws,us-east-1,L-417A185B,spot,96,\n")
    assert read_limits(good)[0].used is None
    bad = tmp_path / "bad.csv"
    bad.write_text("cloud,region,code,market,limit,used\naws,us-east-1,L-1,spot,nan,\n")
    with pytest.raises(UsageError) as caught:
        read_limits(bad)
    assert "line 2" in caught.value.where


def test_every_lead_time_has_a_source_and_low_comes_before_high() -> None:
    for row in RATES.lead_times:
        assert row.source
        assert 0 <= row.low_days <= row.high_days
