"""Live sources against the real clients: moto where it serves the call, botocore's Stubber with answers of the API's
shape elsewhere (it refuses any other shape), and a loopback server for what happens on the wire."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from heliostat.errors import UsageError
from heliostat.plan.catalogue import load
from heliostat.plan.choose import Hold, Known, offers
from heliostat.plan.live import (
    BlockWish,
    Lack,
    Region,
    Snapshot,
    ZonePrice,
    ask_aws,
    keep,
    read,
    spot_prices,
    with_snapshot,
)
from heliostat.plan.rates import load_rates

NOW = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
WISH = BlockWish("p5.48xlarge", 1, 72, dt.date(2026, 11, 26), dt.date(2026, 12, 2))
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}

TYPES = {
    "InstanceTypes": [
        {"InstanceType": "g6.xlarge", "VCpuInfo": {"DefaultVCpus": 4}},
        {"InstanceType": "p4d.24xlarge", "VCpuInfo": {"DefaultVCpus": 96}},
        {"InstanceType": "g6.unheard-of", "VCpuInfo": {"DefaultVCpus": 4}},
    ]
}
SPOT = {
    "SpotPriceHistory": [
        {
            "InstanceType": "g6.xlarge",
            "AvailabilityZone": "us-east-1a",
            "SpotPrice": "0.3000",
            "ProductDescription": "Linux/UNIX",
            "Timestamp": NOW - dt.timedelta(hours=3),
        },
        {
            "InstanceType": "g6.xlarge",
            "AvailabilityZone": "us-east-1a",
            "SpotPrice": "0.3500",
            "ProductDescription": "Linux/UNIX",
            "Timestamp": NOW - dt.timedelta(hours=1),
        },
        {
            "InstanceType": "g6.xlarge",
            "AvailabilityZone": "us-east-1b",
            "SpotPrice": "0.3300",
            "ProductDescription": "Linux/UNIX",
            "Timestamp": NOW - dt.timedelta(hours=2),
        },
        {
            "InstanceType": "p5.48xlarge",
            "AvailabilityZone": "us-east-1c",
            "SpotPrice": "55.0400",
            "ProductDescription": "Linux/UNIX",
            "Timestamp": NOW - dt.timedelta(hours=2),
        },
    ]
}
DEFAULTS = {
    "Quotas": [
        {"QuotaCode": "L-417A185B", "QuotaName": "Running On-Demand P instances", "Value": 0.0},
        {"QuotaCode": "L-DB2E81BA", "QuotaName": "Running On-Demand G and VT instances", "Value": 0.0},
    ]
}
OWN = {
    "Quotas": [
        {"QuotaCode": "L-417A185B", "QuotaName": "Running On-Demand P instances", "Value": 192.0, "Adjustable": True}
    ]
}
MACHINES = {
    "Reservations": [
        {
            "Instances": [
                {"InstanceType": "p4d.24xlarge"},
                {"InstanceType": "g6.xlarge", "InstanceLifecycle": "spot"},
                {"InstanceType": "p5.48xlarge", "InstanceLifecycle": "capacity-block"},
                {"InstanceType": "m5.large"},
            ]
        }
    ]
}
RESERVED = {
    "ReservedInstancesOfferings": [
        {
            "ReservedInstancesOfferingId": "one",
            "InstanceType": "g6.xlarge",
            "Duration": 31536000,
            "FixedPrice": 0.0,
            "RecurringCharges": [{"Amount": 0.52, "Frequency": "Hourly"}],
        },
        {
            "ReservedInstancesOfferingId": "three",
            "InstanceType": "g6.xlarge",
            "Duration": 94608000,
            "FixedPrice": 0.0,
            "RecurringCharges": [{"Amount": 0.36, "Frequency": "Hourly"}],
        },
    ]
}
BLOCKS = {
    "CapacityBlockOfferings": [
        {
            "CapacityBlockOfferingId": "cb-1",
            "InstanceType": "p5.48xlarge",
            "AvailabilityZone": "us-east-1a",
            "InstanceCount": 1,
            "StartDate": dt.datetime(2026, 11, 27, 11, 30, tzinfo=dt.UTC),
            "EndDate": dt.datetime(2026, 11, 30, 11, 30, tzinfo=dt.UTC),
            "CapacityBlockDurationHours": 72,
            "UpfrontFee": "2265.41",
            "CurrencyCode": "USD",
        }
    ]
}

ANSWERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "ec2": [
        ("describe_instance_types", TYPES),
        ("describe_spot_price_history", SPOT),
        ("describe_instances", MACHINES),
        ("describe_reserved_instances_offerings", RESERVED),
        ("describe_capacity_block_offerings", BLOCKS),
    ],
    "service-quotas": [("list_aws_default_service_quotas", DEFAULTS), ("list_service_quotas", OWN)],
}


class Recorded:
    """Makes real clients that answer from ANSWERS, or refuse: `refusing` maps an operation to an error code."""

    def __init__(self, refusing: dict[str, str] | None = None) -> None:
        self.refusing = refusing or {}
        self.asked: dict[str, list[str]] = {"ec2": [], "service-quotas": []}

    def client(self, service_name: str, region_name: str | None = None, config: Any = None) -> Any:
        client = boto3.client(service_name, region_name=region_name, config=config, **KEYS)  # type: ignore[call-overload]  # a name from the caller
        stubber = Stubber(client)
        done = self.asked[service_name]
        if "list_service_quotas" in self.refusing:
            done.append("describe_instances")  # not asked without limits
        left = [entry for entry in ANSWERS[service_name] if entry[0] not in done]
        expected = left if service_name == "service-quotas" else left[:1]
        for operation, answer in expected:
            done.append(operation)
            if operation in self.refusing:
                stubber.add_client_error(operation, self.refusing[operation])
            else:
                stubber.add_response(operation, answer)
        stubber.activate()
        return client


def known(snapshot: Snapshot) -> Known:
    catalogue, rates = with_snapshot(load(), load_rates(), snapshot)
    lacks = tuple(map(str, snapshot.lacks))
    offered = frozenset(snapshot.offered)
    return Known(catalogue, rates, NOW.date(), snapshot.limits, clouds=("aws",), lacks=lacks, offered=offered)


def test_everything_that_aws_tells_comes_into_the_plan() -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded(), blocks=[WISH])
    assert told.lacks == ()
    limits = {limit.code: (limit.limit, limit.used) for limit in told.limits}
    assert limits["L-417A185B"] == (192.0, 96.0)  # the account's own beats the default; the block does not count
    assert limits["L-DB2E81BA"] == (0.0, 0.0)
    assert told.offered == (("us-east-1", "g6.xlarge"), ("us-east-1", "p4d.24xlarge"))
    made = offers(Hold(("H100-80GB",), 8, 72.0), replace(known(told), offered=frozenset()))
    block = next(choice for choice in made.choices if choice.sale.purchase == "capacity-block" and choice.sale.start)
    assert block.usd == Decimal("31.4640") * 72
    assert block.sale.source == "AWS capacity block offerings"
    assert not block.lines
    p5 = [choice for choice in made.blocked if choice.sale.instance.name == "p5.48xlarge"]
    assert p5, "192 vCPUs more do not fit into what is left of 192"


def test_a_type_that_the_region_does_not_have_is_refused() -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded(), blocks=[WISH])
    made = offers(Hold(("H100-80GB", "A100-40GB"), 8, 72.0), known(told))
    assert {row.what for row in made.refused if row.reason == "AWS has none of it there"} >= {
        "p5.48xlarge on-demand us-east-1"
    }
    assert any(choice.sale.instance.name == "p4d.24xlarge" for choice in (*made.choices, *made.blocked))


def test_the_newest_price_of_each_zone_counts_and_the_cheapest_zone_is_taken() -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded(), blocks=[WISH])
    prices = {price.instance: price for price in spot_prices(told.zones)}
    assert prices["g6.xlarge"].usd_per_hour == Decimal("0.3300")
    assert prices["g6.xlarge"].note == "by zone: us-east-1b 0.33, us-east-1a 0.35"
    catalogue, _ = with_snapshot(load(), load_rates(), told)
    p5 = next(p for p in catalogue.prices if p.instance == "p5.48xlarge" and p.source == "AWS spot price history")
    assert p5.verdict == "refused"  # the on-demand price: no spare capacity


def test_reservations_of_the_account_take_the_place_of_the_table() -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded(), blocks=[WISH])
    _, rates = with_snapshot(load(), load_rates(), told)
    rows = {row.kind: row for row in rates.committed("aws", "g6.xlarge", "us-east-1")}
    assert rows["reserved-1y"].usd_per_hour == Decimal("0.52")
    assert rows["reserved-3y"].usd_per_hour == Decimal("0.36")


@pytest.mark.parametrize(
    ("operation", "code", "lost", "words"),
    [
        ("describe_spot_price_history", "UnauthorizedOperation", "zones", "no permission for DescribeSpotPriceHistory"),
        ("list_service_quotas", "AccessDeniedException", "limits", "no permission for ListServiceQuotas"),
        ("describe_reserved_instances_offerings", "RequestLimitExceeded", "commitments", "throttled after 4 tries"),
        ("describe_instance_types", "ExpiredToken", "offered", "credentials are not valid"),
    ],
)
def test_what_is_refused_is_lacking_and_the_plan_goes_on(operation: str, code: str, lost: str, words: str) -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded({operation: code}))
    assert [words in lack.why for lack in told.lacks] == [True]
    assert getattr(told, lost) == ()
    others = {"zones", "limits", "commitments", "offered"} - {lost}
    assert all(getattr(told, name) for name in others)
    made = offers(Hold(("A100-40GB",), 8, 72.0), known(told))
    assert made.choices
    assert any(words in lack for lack in made.lacks)


def test_limits_without_permission_to_see_what_runs_are_worth_having() -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded({"describe_instances": "UnauthorizedOperation"}))
    assert {limit.used for limit in told.limits} == {None}
    assert [lack.what for lack in told.lacks] == ["quota in use in us-east-1"]


class AtPort:
    """Real clients of a port on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def client(self, service_name: str, region_name: str | None = None, config: Any = None) -> Any:
        return boto3.client(  # type: ignore[call-overload]  # a name from the caller
            service_name, region_name=region_name, config=config, endpoint_url=f"http://127.0.0.1:{self.port}", **KEYS
        )


@pytest.fixture
def server() -> Iterator[tuple[HTTPServer, list[int]]]:
    """Answers the first call with 503 and Throttling, the others with an empty list."""
    calls: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            calls.append(1)
            if len(calls) == 1:
                status, body = (
                    503,
                    "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow</Message></Error></Errors></Response>",
                )
            elif "quotas" in self.headers.get("X-Amz-Target", "").lower():
                status, body = 200, '{"Quotas": []}'
            else:
                status, body = 200, "<Response></Response>"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made, calls
    made.shutdown()
    made.server_close()


def test_a_throttled_call_is_made_again(server: tuple[HTTPServer, list[int]]) -> None:
    made, calls = server
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=AtPort(made.server_port))
    assert told.lacks == ()
    assert len(calls) == 7  # six questions' calls, and the first one twice


def test_without_a_network_one_question_is_asked_and_the_tables_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.plan.live.TRIES", 1)  # the waits between tries are botocore's own
    closed = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_port
    closed.server_close()
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=AtPort(port))
    assert [lack.why.split(" (")[0] for lack in told.lacks] == ["no network"]
    made = offers(Hold(("A100-40GB",), 8, 72.0), known(told))
    assert made.best is not None
    assert any("no network" in lack for lack in made.lacks)


def test_without_credentials_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    told = ask_aws(["us-east-1"], load(), now=NOW)
    assert told.lacks == (Lack("AWS", "no credentials: run `aws configure`, or set AWS_PROFILE"),)


@mock_aws
def test_moto_serves_types_and_machines() -> None:
    """moto knows instance types and running machines as EC2 has them; of quotas and reservations it knows little."""
    ec2 = boto3.client("ec2", region_name="us-east-1", **KEYS)
    image = ec2.describe_images(Owners=["amazon"], MaxResults=5)["Images"][0]["ImageId"]
    ec2.run_instances(ImageId=image, InstanceType="g5.xlarge", MinCount=3, MaxCount=3)
    instances = {i.name: i for i in load().instances if i.name in ("g5.xlarge", "p4d.24xlarge")}
    region = Region(boto3.Session(**KEYS), "us-east-1", instances, load(), NOW)
    told = region.types()
    assert set(told["offered"]) == {("us-east-1", "g5.xlarge"), ("us-east-1", "p4d.24xlarge")}
    assert told["lacks"] == ()  # its vCPUs are the catalogue's
    assert region.in_use() == ({"L-DB2E81BA": 12.0}, ())


# --- the cache


def test_a_snapshot_is_read_as_it_was_kept(tmp_path: Path) -> None:
    told = ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded(), blocks=[WISH])
    assert keep(told, tmp_path / "plan" / "aws.json") == told
    back = read(tmp_path / "plan" / "aws.json")
    assert back == told
    assert back.age_hours(NOW + dt.timedelta(hours=5)) == 5.0


def test_what_a_later_answer_lacks_is_kept_with_its_own_date(tmp_path: Path) -> None:
    path = tmp_path / "aws.json"
    keep(ask_aws(["us-east-1"], load(), now=NOW, clients=Recorded()), path)
    later = NOW + dt.timedelta(days=2)
    refused = Recorded({"describe_spot_price_history": "UnauthorizedOperation"})
    kept = keep(ask_aws(["us-east-1"], load(), now=later, clients=refused), path)
    assert {zone.date for zone in kept.zones} == {"2026-11-25"}
    assert {limit.date for limit in kept.limits} == {"2026-11-27"}


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    (tmp_path / "aws.json").write_text('{"taken": 3}')
    with pytest.raises(UsageError, match="not a snapshot") as caught:
        read(tmp_path / "aws.json")
    assert "aws.json" in caught.value.where
    assert read(tmp_path / "nothing.json") is None


def test_zones_are_ranked_by_price() -> None:
    zones = [
        ZonePrice("g6.xlarge", "r", name, Decimal(usd), "2026-11-25") for name, usd in (("b", "0.5"), ("a", "0.4"))
    ]
    assert spot_prices(zones)[0].note == "by zone: a 0.4, b 0.5"
