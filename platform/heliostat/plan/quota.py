"""What a plan asks of an account's quotas: units in each region and family, against limits and what is in use.

AWS and Azure count the vCPUs of whole machines, GCP counts GPUs, in each region and once more over all regions; spot
and on-demand are apart everywhere. A limit that nobody told us is *unknown*: never taken for enough, never for too
little. Pure: who reads the limits of an account is live.py, or a file (`read_limits`).
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heliostat.definition.model import ClusterDefinition, WorkerGroup
from heliostat.errors import UsageError
from heliostat.plan.catalogue import Catalogue, Instance, Market, Quota
from heliostat.plan.rates import LeadTime, Rates

State = Literal["fits", "short", "unknown"]

CLOUDS: Mapping[str, str] = {"eks-karpenter": "aws", "eks": "aws", "gke": "gcp", "aks": "azure"}
"""Of a definition's platform."""

ALL_REGIONS = Quota(
    cloud="gcp",
    market="on-demand",
    name="GPUS_ALL_REGIONS",
    code="GPUS-ALL-REGIONS-per-project",
    unit="GPU",
    source="public infrastructure code; the quota id is recalled",
    date="2026-11-24",
    note="on-demand and spot together",
)
"""GCP counts every GPU of a project once more."""


@dataclass(frozen=True)
class Limit:
    """What an account may hold of a quota in a region, and holds already; `used` None: not known, and taken for 0."""

    cloud: str
    region: str
    code: str
    market: Market
    limit: float
    used: float | None = None
    source: str = ""
    date: str = ""

    @property
    def free(self) -> float:
        return max(0.0, self.limit - (self.used or 0.0))


@dataclass(frozen=True)
class Demand:
    """Units of one quota that so many machines take. `quota` None: the catalogue does not know which one counts."""

    cloud: str
    region: str
    market: Market
    quota: Quota | None
    units: float
    what: str


@dataclass(frozen=True)
class Line:
    """A demand against its limit. `ask` is the limit to ask for: what is used and what is wanted."""

    demand: Demand
    limit: Limit | None
    state: State
    ask: int

    @property
    def words(self) -> str:
        """For a table: "192 of 64 vCPU (32 used)"."""
        unit = self.demand.quota.unit if self.demand.quota else "units"
        wanted = f"{self.demand.units:g} {unit}"
        if self.limit is None:
            return f"{wanted}, limit not known"
        used = "use not known" if self.limit.used is None else f"{self.limit.used:g} used"
        return f"{wanted} of {self.limit.limit:g} ({used})"


def demands_of(
    instance: Instance, machines: int, *, region: str, market: Market, catalogue: Catalogue
) -> tuple[Demand, ...]:
    """Of so many machines in a region: one quota, or on GCP two."""
    quota = catalogue.quota(instance, market)
    each = instance.vcpus if instance.cloud in ("aws", "azure") else math.ceil(instance.accelerators)
    units = float((each or 0) * machines)
    what = f"{machines} x {instance.name}"
    found = [Demand(instance.cloud, region, market, quota if each else None, units, what)]
    if instance.cloud == "gcp" and quota is not None and quota.unit == "GPU":
        found.append(Demand("gcp", "global", "on-demand", ALL_REGIONS, units, what))
    return tuple(found)


def add_up(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    """One demand a quota and region: groups of one family count together."""
    sums: dict[tuple[str, str, str, str], Demand] = {}
    for demand in demands:
        key = (demand.cloud, demand.region, demand.market, demand.quota.code if demand.quota else demand.what)
        known = sums.get(key)
        sums[key] = (
            demand
            if known is None
            else Demand(
                demand.cloud,
                demand.region,
                demand.market,
                demand.quota,
                known.units + demand.units,
                f"{known.what}, {demand.what}",
            )
        )
    return tuple(sums.values())


def held_against(demands: Iterable[Demand], limits: Sequence[Limit]) -> tuple[Line, ...]:
    """Each quota's demand, added up, against the limit of the account; a later limit wins over an earlier one."""
    return tuple(_line(demand, limits) for demand in add_up(demands))


def _line(demand: Demand, limits: Sequence[Limit]) -> Line:
    limit = next((row for row in reversed(limits) if _is_of(row, demand)), None)
    if limit is None:
        return Line(demand, None, "unknown", math.ceil(demand.units))
    state: State = "fits" if demand.units <= limit.free else "short"
    return Line(demand, limit, state, math.ceil((limit.used or 0.0) + demand.units))


def _is_of(limit: Limit, demand: Demand) -> bool:
    """Azure spells one family in several letter cases."""
    quota = demand.quota
    place = (limit.cloud, limit.region) == (demand.cloud, demand.region)
    return quota is not None and place and limit.code.lower() == quota.code.lower() and limit.market == demand.market


def worst(lines: Iterable[Line]) -> State:
    """Of several that must all suffice."""
    states = {line.state for line in lines}
    return "short" if "short" in states else "unknown" if "unknown" in states else "fits"


# --- what to ask for


@dataclass(frozen=True)
class Request:
    """An increase to ask for: the command to run, and how long it usually takes. `command` is None where the quota
    is not known to the catalogue."""

    line: Line
    command: str | None
    lead: LeadTime | None

    def latest(self, by: dt.date) -> dt.date | None:
        """The last day to ask, for the usual slow answer to be there in time."""
        return by - dt.timedelta(days=self.lead.high_days) if self.lead else None


def request_for(line: Line, rates: Rates) -> Request:
    """Prefilled; safe to paste. <PLACEHOLDERS> are what only the account's owner knows."""
    return Request(line, _command(line), rates.lead(line.demand.cloud, "quota"))


def _command(line: Line) -> str | None:
    demand, quota = line.demand, line.demand.quota
    if quota is None:
        return None
    words = {"aws": _aws_words, "gcp": _gcp_words, "azure": _azure_words}.get(demand.cloud)
    return None if words is None else " ".join(words(demand, quota, line.ask))


def _aws_words(demand: Demand, quota: Quota, ask: int) -> list[str]:
    return [
        "aws service-quotas request-service-quota-increase --service-code ec2",
        f"--quota-code {quota.code} --desired-value {ask} --region {shlex.quote(demand.region)}",
    ]


def _gcp_words(demand: Demand, quota: Quota, ask: int) -> list[str]:
    family = re.search(r"gpu_family=(\w+)", quota.name)
    dimensions = [] if demand.region == "global" else [f"region={demand.region}"]
    dimensions += [f"gpu_family={family[1]}"] if family else []
    name = quota.code if "-" in quota.code else f"{quota.code.replace('_', '-')}-per-project-region"
    return [
        f"gcloud beta quotas preferences create --service=compute.googleapis.com --project=<PROJECT> --quota-id={name}",
        f"--preferred-value={ask}",
        *([f"--dimensions={shlex.quote(','.join(dimensions))}"] if dimensions else []),
        "--justification=<WHY>",
    ]


def _azure_words(demand: Demand, quota: Quota, ask: int) -> list[str]:
    region = shlex.quote(demand.region)
    scope = f"/subscriptions/<SUBSCRIPTION>/providers/Microsoft.Compute/locations/{region}"
    return [
        f"az quota update --resource-name {quota.code} --scope {scope}",
        f"--limit-object value={ask} limit-object-type=LimitValue --resource-type dedicated"
        if demand.market == "on-demand"
        else f"--limit-object value={ask} limit-object-type=LimitValue --resource-type lowPriority",
    ]


# --- the demand of a definition


@dataclass(frozen=True)
class GroupDemand:
    """Of one worker group at its upper bound. `guessed`: the definition names no instance, and the cheapest that
    holds its accelerators was taken."""

    group: str
    instance: Instance
    guessed: bool
    demands: tuple[Demand, ...]


def of_definition(definition: ClusterDefinition, catalogue: Catalogue) -> tuple[GroupDemand, ...]:
    """Each group with accelerators, in the region of its zone or else of the store.

    Raises UsageError for a platform without quotas, and for a group whose machine is not in the catalogue.
    """
    cloud = CLOUDS.get(definition.platform or "")
    if cloud is None:
        raise UsageError(
            f"platform {definition.platform or 'embedded'} has no quotas",
            do=f"set platform to one of: {', '.join(CLOUDS)}",
        )
    groups = [(name, group) for name, group in definition.groups.items() if group.gpus]
    return tuple(_group_demand(name, group, cloud, definition, catalogue) for name, group in groups)


def _group_demand(
    name: str, group: WorkerGroup, cloud: str, definition: ClusterDefinition, catalogue: Catalogue
) -> GroupDemand:
    instance = _instance_of(group, cloud, catalogue)
    if instance is None:
        raise UsageError(
            f"no machine of {cloud} in the catalogue suits the group",
            where=f"groups.{name}",
            do=f"name an instance of the catalogue; {group.instance or group.accelerator or 'nothing'} is not one",
        )
    market: Market = "spot" if group.market == "spot" else "on-demand"
    region = region_of(group.zone, cloud) if group.zone else definition.store.region
    machines = group.nodes.high * group.hosts
    demands = demands_of(instance, machines, region=region, market=market, catalogue=catalogue)
    return GroupDemand(name, instance, group.instance is None, demands)


def _instance_of(group: WorkerGroup, cloud: str, catalogue: Catalogue) -> Instance | None:
    if group.instance:
        return next((i for i in catalogue.instances if (i.cloud, i.name) == (cloud, group.instance)), None)
    suits = [
        (price.usd_per_hour, instance.name, instance)
        for instance in catalogue.instances
        if instance.cloud == cloud
        and instance.accelerator == group.accelerator
        and instance.accelerators >= (1 if group.mig else group.gpus)
        and (price := catalogue.price(instance)) is not None
    ]
    return min(suits)[2] if suits else None


def region_of(zone: str, cloud: str) -> str:
    """us-east-1a -> us-east-1, us-central1-a -> us-central1; Azure's zones are numbers after a dash."""
    match cloud:
        case "aws":
            return re.sub(r"(?<=\d)[a-z]$", "", zone)
        case "gcp":
            return re.sub(r"-[a-z]$", "", zone)
        case _:
            return re.sub(r"-\d$", "", zone)


# --- limits from a file


COLUMNS = ("cloud", "region", "code", "market", "limit", "used")


def read_limits(path: Path) -> tuple[Limit, ...]:
    """From a CSV file with the columns of `COLUMNS` (`used` may be empty). Raises UsageError that names the line."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", do="give a CSV file of limits") from error
    return tuple(_read_limit(row, f"{path}, line {number}") for number, row in enumerate(rows, start=2))


def _read_limit(row: Mapping[str, str | None], where: str) -> Limit:
    try:
        market: Market = {"on-demand": "on-demand", "spot": "spot"}[row["market"] or ""]  # type: ignore[assignment]  # the two words
        limit, used = float(row["limit"] or ""), float(text) if (text := row.get("used")) else None
        if not (math.isfinite(limit) and limit >= 0 and (used is None or (math.isfinite(used) and used >= 0))):
            raise ValueError("limit and used are numbers from 0")
        return Limit(row["cloud"] or "", row["region"] or "", row["code"] or "", market, limit, used, where)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"a row that cannot be read: {error}", where=where, do=f"columns: {', '.join(COLUMNS)}"
        ) from error
