"""What the account's own cloud says now: machines, spot prices by zone, quotas and use, reservations, capacity blocks.

The one part of the planner that asks the outside world. It asks AWS through boto3, where credentials are; each
question may fail alone (no permission, throttled, no network), and then the snapshot says what it lacks, and the plan
goes on with the tables of the package. Snapshots are kept as JSON, with the time they were taken; a fresh one that
lacks an answer keeps the older answer, with its own date.

boto3 is imported when a question is asked. Secrets are never read, kept or printed.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from heliostat.errors import UsageError
from heliostat.files import put_file
from heliostat.plan.catalogue import Catalogue, Instance, Market, Price, judge_prices
from heliostat.plan.quota import Limit
from heliostat.plan.rates import Commitment, Kind, Rates

PLATFORM = "Linux/UNIX"
TRIES = 4
"""Of one request, with growing waits between (botocore's standard mode): throttling is answered by patience first."""


class Clients(Protocol):
    """Makes boto3 clients: `boto3.Session` is one."""

    def client(self, service_name: str, region_name: str | None = ..., config: Any = ...) -> Any: ...


@dataclass(frozen=True)
class Lack:
    """A question that was not answered, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class ZonePrice:
    """Spot, in one zone, USD an hour of one machine."""

    instance: str
    region: str
    zone: str
    usd_per_hour: Decimal
    date: str


@dataclass(frozen=True)
class Snapshot:
    """What was answered. `taken`: when, in UTC. `offered`: instance types that the region has, by region."""

    taken: str
    zones: tuple[ZonePrice, ...] = ()
    on_demand: tuple[Price, ...] = ()
    limits: tuple[Limit, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    offered: tuple[tuple[str, str], ...] = ()
    lacks: tuple[Lack, ...] = ()

    def age_hours(self, now: dt.datetime) -> float:
        return max(0.0, (now - dt.datetime.fromisoformat(self.taken)).total_seconds() / 3600)


@dataclass(frozen=True)
class BlockWish:
    """A capacity block to ask for: so many machines for so many hours, between two days."""

    instance: str
    machines: int
    hours: int
    start: dt.date
    end: dt.date


def ask_aws(
    regions: Sequence[str],
    catalogue: Catalogue,
    *,
    now: dt.datetime,
    clients: Clients | None = None,
    blocks: Sequence[BlockWish] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Snapshot:
    """One snapshot of some regions. Never raises for what the cloud says: that is in `lacks`."""
    made = clients if clients is not None else _session()
    if isinstance(made, Lack):
        return Snapshot(now.isoformat(timespec="seconds"), lacks=(made,))
    taken = Snapshot(now.isoformat(timespec="seconds"))
    instances = {i.name: i for i in catalogue.instances if i.cloud == "aws"}
    for region in regions:
        progress(f"asking AWS about {region}")
        taken = Region(made, region, instances, catalogue, now).ask(taken, blocks)
    return taken


def _session() -> Clients | Lack:
    try:
        import boto3
    except ImportError:
        return Lack("AWS", "boto3 is not installed")
    session: Any = boto3.Session()  # Any: boto3-stubs gives a client for each service's name, we any of them
    if session.get_credentials() is None:
        return Lack("AWS", "no credentials: run `aws configure`, or set AWS_PROFILE")
    made: Clients = session
    return made


class Region:
    """The questions to one region. Each is a method that gives a snapshot with the answer added."""

    def __init__(
        self, clients: Clients, region: str, instances: Mapping[str, Instance], catalogue: Catalogue, now: dt.datetime
    ) -> None:
        self.region, self.instances, self.catalogue, self.now = region, instances, catalogue, now
        self.clients = clients
        self.day = now.date().isoformat()

    def ask(self, so_far: Snapshot, blocks: Sequence[BlockWish]) -> Snapshot:
        questions: list[tuple[str, Callable[[], dict[str, tuple[Any, ...]]]]] = [
            ("instance types", self.types),
            ("spot prices", self.spot),
            ("quotas", self.quotas),
            ("reservations", self.reservations),
            *((f"capacity blocks of {wish.instance}", _later(self.blocks, wish)) for wish in blocks),
        ]
        for what, question in questions:
            try:
                answer = question()
            except Exception as error:  # noqa: BLE001  # botocore's errors share no useful root; each becomes a lack
                answer = {"lacks": (Lack(f"{what} in {self.region}", why(error)),)}
            # Any: rows of the field that each is named for
            added: dict[str, Any] = {name: (*getattr(so_far, name), *rows) for name, rows in answer.items()}
            so_far = replace(so_far, **added)
            if any(lack.why.startswith("no network") for lack in so_far.lacks[-1:]):
                break  # the other questions would wait as long, for the same answer
        return so_far

    def client(self, service: str) -> Any:  # Any: boto3's clients are made at run time
        from botocore.config import Config

        config = Config(retries={"total_max_attempts": TRIES, "mode": "standard"}, connect_timeout=5, read_timeout=20)
        return self.clients.client(service, region_name=self.region, config=config)

    def types(self) -> dict[str, tuple[Any, ...]]:
        """Which of the catalogue's types the region offers; the number of vCPUs must agree."""
        names, lacks = [], []
        pages = (
            self.client("ec2")
            .get_paginator("describe_instance_types")
            .paginate(
                Filters=[
                    {"Name": "instance-type", "Values": sorted({name.split(".")[0] + ".*" for name in self.instances})}
                ]
            )
        )
        for page in pages:
            for row in page.get("InstanceTypes", ()):
                known = self.instances.get(row["InstanceType"])
                if known is None:
                    continue
                names.append((self.region, row["InstanceType"]))
                vcpus = row.get("VCpuInfo", {}).get("DefaultVCpus")
                if vcpus and known.vcpus and vcpus != known.vcpus:
                    lacks.append(Lack(f"{known.name}", f"AWS says {vcpus} vCPUs, the catalogue {known.vcpus}"))
        return {"offered": tuple(names), "lacks": tuple(lacks)}

    def spot(self) -> dict[str, tuple[Any, ...]]:
        """The newest price of each type and zone."""
        pages = (
            self.client("ec2")
            .get_paginator("describe_spot_price_history")
            .paginate(InstanceTypes=sorted(self.instances), ProductDescriptions=[PLATFORM], StartTime=self.now)
        )
        newest: dict[tuple[str, str], tuple[dt.datetime, ZonePrice]] = {}
        for page in pages:
            for row in page.get("SpotPriceHistory", ()):
                stamp, key = row["Timestamp"], (row["InstanceType"], row["AvailabilityZone"])
                if key[0] in self.instances and (key not in newest or stamp > newest[key][0]):
                    price = ZonePrice(key[0], self.region, key[1], Decimal(row["SpotPrice"]), self.day)
                    newest[key] = (stamp, price)
        return {"zones": tuple(price for _, price in newest.values())}

    def quotas(self) -> dict[str, tuple[Any, ...]]:
        """Limits from Service Quotas, use from the instances that run: AWS tells the two apart."""
        client = self.client("service-quotas")
        values: dict[str, float] = {}
        for operation in ("list_aws_default_service_quotas", "list_service_quotas"):  # the account's own come last
            for page in client.get_paginator(operation).paginate(ServiceCode="ec2"):
                values.update({row["QuotaCode"]: float(row["Value"]) for row in page.get("Quotas", ())})
        used, lacks = self.in_use()
        limits = [
            Limit(
                "aws",
                self.region,
                q.code,
                q.market,
                values[q.code],
                used.get(q.code, 0.0) if used is not None else None,
                "AWS Service Quotas",
                self.day,
            )
            for q in self.catalogue.quotas
            if q.cloud == "aws" and q.code in values
        ]
        return {"limits": tuple(limits), "lacks": lacks}

    def in_use(self) -> tuple[dict[str, float] | None, tuple[Lack, ...]]:
        """vCPUs in use by quota code; None where it may not be asked."""
        used: dict[str, float] = {}
        try:
            pages = (
                self.client("ec2")
                .get_paginator("describe_instances")
                .paginate(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
            )
            for page in pages:
                for machine in (
                    m for reservation in page.get("Reservations", ()) for m in reservation.get("Instances", ())
                ):
                    known = self.instances.get(machine["InstanceType"])
                    market: Market = "spot" if machine.get("InstanceLifecycle") == "spot" else "on-demand"
                    quota = self.catalogue.quota(known, market) if known else None
                    if quota is not None and known is not None and machine.get("InstanceLifecycle") != "capacity-block":
                        used[quota.code] = used.get(quota.code, 0.0) + (known.vcpus or 0)
        except Exception as error:  # noqa: BLE001  # the limits are worth having without it
            return None, (Lack(f"quota in use in {self.region}", why(error)),)
        return used, ()

    def reservations(self) -> dict[str, tuple[Any, ...]]:
        """Reserved instances without upfront payment, for one and for three years, as AWS sells them."""
        found = []
        pages = (
            self.client("ec2")
            .get_paginator("describe_reserved_instances_offerings")
            .paginate(
                ProductDescription=PLATFORM,
                OfferingClass="standard",
                OfferingType="No Upfront",
                IncludeMarketplace=False,
                Filters=[
                    {"Name": "instance-type", "Values": sorted(self.instances)},
                    {"Name": "scope", "Values": ["Region"]},
                ],
            )
        )
        kinds: dict[int, Kind] = {31_536_000: "reserved-1y", 94_608_000: "reserved-3y"}
        for page in pages:
            for row in page.get("ReservedInstancesOfferings", ()):
                kind = kinds.get(int(row["Duration"]))
                hourly = [
                    Decimal(str(charge["Amount"]))
                    for charge in row.get("RecurringCharges", [])
                    if charge["Frequency"] == "Hourly"
                ]
                if kind and hourly and row["InstanceType"] in self.instances:
                    found.append(
                        Commitment(
                            "aws",
                            kind,
                            row["InstanceType"],
                            self.region,
                            sum(hourly, Decimal(0)),
                            None,
                            "AWS reserved instances offerings, no upfront",
                            self.day,
                            offering=row["ReservedInstancesOfferingId"],
                        )
                    )
        return {"commitments": tuple(found)}

    def blocks(self, wish: BlockWish) -> dict[str, tuple[Any, ...]]:
        """What is on offer for the wish. The fee is of the whole block."""
        answer = self.client("ec2").describe_capacity_block_offerings(
            InstanceType=wish.instance,
            InstanceCount=wish.machines,
            CapacityDurationHours=wish.hours,
            StartDateRange=dt.datetime.combine(wish.start, dt.time(), dt.UTC),
            EndDateRange=dt.datetime.combine(wish.end, dt.time(), dt.UTC),
        )
        return {"commitments": tuple(self._block(row) for row in answer.get("CapacityBlockOfferings", ()))}

    def _block(self, row: Mapping[str, Any]) -> Commitment:  # Any: botocore's answer
        machine_hours = Decimal(row["CapacityBlockDurationHours"]) * row["InstanceCount"]
        return Commitment(
            "aws",
            "capacity-block",
            row["InstanceType"],
            self.region,
            (Decimal(row["UpfrontFee"]) / machine_hours).quantize(Decimal("0.0001")),
            None,
            "AWS capacity block offerings",
            self.day,
            zone=row.get("AvailabilityZone", ""),
            note=f"{row['CapacityBlockDurationHours']} h from {row['StartDate']:%Y-%m-%d %H:%M} UTC, "
            f"{row['UpfrontFee']} USD at once",
            start=row["StartDate"].isoformat(),
            end=row["EndDate"].isoformat(),
            offering=row["CapacityBlockOfferingId"],
        )


def _later(
    question: Callable[[BlockWish], dict[str, tuple[Any, ...]]], wish: BlockWish
) -> Callable[[], dict[str, tuple[Any, ...]]]:
    return lambda: question(wish)


_DENIED = ("AccessDenied", "UnauthorizedOperation", "AccessDeniedException", "AuthFailure", "OptInRequired")
_THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException")
_EXPIRED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
)


def why(error: Exception) -> str:
    """A cloud's error in a few words, and what to do. Never the whole message: those carry account numbers."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if code in _DENIED:
        operation = getattr(error, "operation_name", "the call")
        return f"no permission for {operation} ({code}); add it to the policy"
    if code in _THROTTLED:
        return f"throttled after {TRIES} tries ({code}); ask again in a minute"
    if code in _EXPIRED:
        return f"the credentials are not valid ({code}); log in again"
    name = type(error).__name__
    if name in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "ProxyConnectionError",
    ):
        return f"no network ({name})"
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "SSOTokenLoadError"):
        return f"no credentials ({name}); run `aws configure` or log in"
    return code or name


# --- into the plan


def with_snapshot(catalogue: Catalogue, rates: Rates, snapshot: Snapshot) -> tuple[Catalogue, Rates]:
    """Both with the account's answers in front. Prices are judged anew, by the same rules."""
    fresh = (*snapshot.on_demand, *spot_prices(snapshot.zones))
    replaced = {(p.cloud, p.instance, p.region, p.market) for p in fresh}
    kept = [
        replace(price, verdict="usable", reason="")
        for price in catalogue.prices
        if (price.cloud, price.instance, price.region, price.market) not in replaced
    ]
    prices = judge_prices((*kept, *fresh), catalogue.instances) if fresh else catalogue.prices
    return replace(catalogue, prices=prices), rates.with_commitments(snapshot.commitments)


def spot_prices(zones: Iterable[ZonePrice]) -> tuple[Price, ...]:
    """Of each region its cheapest zone; the note ranks the zones."""
    by_place: dict[tuple[str, str], list[ZonePrice]] = {}
    for zone in zones:
        by_place.setdefault((zone.instance, zone.region), []).append(zone)
    found = []
    for (instance, region), group in by_place.items():
        ranked = sorted(group, key=lambda zone: (zone.usd_per_hour, zone.zone))
        note = "by zone: " + ", ".join(f"{zone.zone} {float(zone.usd_per_hour):g}" for zone in ranked)
        best = ranked[0]
        found.append(
            Price("aws", instance, region, "spot", best.usd_per_hour, "AWS spot price history", best.date, note=note)
        )
    return tuple(found)


# --- the cache


def keep(snapshot: Snapshot, path: Path) -> Snapshot:
    """Writes it, whole or not at all, beside what an older one knew and this one was not told. Gives what was kept."""
    older = read(path)
    merged = _merged(older, snapshot) if older else snapshot
    path.parent.mkdir(parents=True, exist_ok=True)
    put_file(path, json.dumps(as_json(merged), indent=1))
    return merged


def as_json(snapshot: Snapshot) -> dict[str, Any]:  # Any: JSON
    """As it is kept: amounts of money as text, which loses nothing."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(snapshot), default=str))
    return values


def _merged(older: Snapshot, newer: Snapshot) -> Snapshot:
    def rows(name: str, key: Callable[[Any], object]) -> tuple[Any, ...]:
        fresh = getattr(newer, name)
        known = {key(row) for row in fresh}
        return (*fresh, *(row for row in getattr(older, name) if key(row) not in known))

    return replace(
        newer,
        zones=rows("zones", lambda z: (z.instance, z.zone)),
        on_demand=rows("on_demand", lambda p: (p.instance, p.region)),
        limits=rows("limits", lambda limit: (limit.region, limit.code)),
        commitments=rows("commitments", lambda c: (c.kind, c.instance, c.region, c.offering)),
        offered=rows("offered", lambda pair: pair),
    )


def read(path: Path) -> Snapshot | None:
    """The kept one; None where there is none. Raises UsageError for a file that is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(
            taken=dt.datetime.fromisoformat(values["taken"]).isoformat(),
            zones=tuple(ZonePrice(**_decimal(row, "usd_per_hour")) for row in values["zones"]),
            on_demand=tuple(Price(**_decimal(row, "usd_per_hour")) for row in values["on_demand"]),
            limits=tuple(Limit(**row) for row in values["limits"]),
            commitments=tuple(
                Commitment(**_decimal(row, "usd_per_hour", "share_of_on_demand")) for row in values["commitments"]
            ),
            offered=tuple((region, name) for region, name in values["offered"]),
            lacks=tuple(Lack(**row) for row in values["lacks"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"not a snapshot: {error}", where=str(path), do="delete it, and run `heliostat plan refresh`"
        ) from error


def _decimal(row: Mapping[str, Any], *names: str) -> dict[str, Any]:  # Any: JSON
    return {key: Decimal(value) if key in names and value is not None else value for key, value in row.items()}
