"""What to rent for a goal: every machine x count x way of buying x region, ranked, and what was refused, with reasons.

The rules that hold, whatever the prices say:
- serving goes on inference-class cards while one of them can do it;
- serving in production is bought on demand or reserved, never on spot alone;
- spot is for what checkpoints;
- reservations are for steady use: only past their break-even, which is stated;
- several machines that train together stand close together, on a fabric.

Ranking: first what the account's quotas allow, then what they may allow (limit not known), each by cost. What a known
quota does not allow is never among the choices; it is in `blocked`, with the increase to ask for.
Pure: prices, limits and the day are given. Speed comes from roofline.py, memory from vram.py.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from heliostat.errors import UsageError
from heliostat.plan.catalogue import Accelerator, Catalogue, Instance, Price
from heliostat.plan.params import ModelShape
from heliostat.plan.policy.checkpoint import PRIOR_NODE_HOURS, PRIOR_RECLAIMS
from heliostat.plan.quota import Limit, Line, State, demands_of, held_against, worst
from heliostat.plan.rates import (
    BLOCK_INSTANCES,
    TERM_DAYS,
    Commitment,
    Rates,
    break_even,
    move,
)
from heliostat.plan.roofline import Calibration, Replica, Traffic, replica_on, training_pace
from heliostat.plan.vram import fits, need_of
from heliostat.plan.workload import Serving, Training

Purchase = Literal["on-demand", "spot", "reserved-1y", "reserved-3y", "capacity-block"]
Role = Literal["serving", "training"]

RECLAIM_COST_H = 0.25
"""Hours that a reclaim takes from a training: another machine, start, and half a checkpoint interval once more."""
START_H = 0.25
"""Hours that a training holds its machines before the first step: image, weights, compilation. A guess, to be seen."""
MOST_MACHINES = 64
MONTH_H = 730.0


@dataclass(frozen=True)
class Known:
    """What a choice is made from. `limits`: of the account, as far as they are known. `data`: where a dataset lies.

    `offered`: (region, type) of AWS, of the regions that were asked; a region that is not in it was not.
    """

    catalogue: Catalogue
    rates: Rates
    today: dt.date
    limits: tuple[Limit, ...] = ()
    data_gb: float = 0.0
    data_at: tuple[str, str] | None = None
    clouds: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    offered: frozenset[tuple[str, str]] = frozenset()

    def wants(self, cloud: str, region: str) -> bool:
        return (not self.clouds or cloud in self.clouds) and (not self.regions or region in self.regions)

    def has(self, sale: ForSale) -> bool:
        """Whether the region has the type, as far as it was asked."""
        asked = any(region == sale.region for region, _ in self.offered)
        return sale.instance.cloud != "aws" or not asked or (sale.region, sale.instance.name) in self.offered


@dataclass(frozen=True)
class Serve:
    """An endpoint. `hours`: how long it is wanted at least; `production` False lets it go on spot."""

    shape: ModelShape
    workload: Serving
    traffic: Traffic
    hours: float = MONTH_H
    production: bool = True
    calibration: Calibration | None = None

    @property
    def role(self) -> Role:
        return "serving"

    @property
    def checkpoints(self) -> bool:
        return False


@dataclass(frozen=True)
class Train:
    """A training over so many tokens, within `deadline_h` hours if one is given."""

    shape: ModelShape
    workload: Training
    tokens: float
    deadline_h: float | None = None
    checkpoints: bool = True
    calibration: Calibration | None = None

    @property
    def role(self) -> Role:
        return "training"


@dataclass(frozen=True)
class Hold:
    """So many cards of a kind (or of either of several kinds, such as both A100) for so long."""

    accelerators: tuple[str, ...]
    count: int
    hours: float
    role: Role = "training"
    checkpoints: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or not (math.isfinite(self.hours) and self.hours > 0):
            raise UsageError(f"{self.count} cards for {self.hours:g} hours", do="at least one card, for some time")


Goal = Serve | Train | Hold


@dataclass(frozen=True)
class ForSale:
    """One machine's price, bought in one way. `source` and `date` are the price's own."""

    instance: Instance
    purchase: Purchase
    region: str
    usd_per_hour: Decimal
    on_demand: Price | None
    source: str
    date: str
    age_days: int
    doubtful: bool
    note: str
    start: str = ""
    end: str = ""


@dataclass(frozen=True)
class Choice:
    """An offer that serves the goal.

    usd_per_hour: of all machines. usd: until the goal is met, data moved included; of an endpoint or a hold, for its
    hours. usd_per_million: per million requests, of an endpoint. hours: how long the machines are held.
    """

    sale: ForSale
    machines: int
    hours: float
    usd_per_hour: Decimal
    usd: Decimal
    usd_per_million: Decimal | None
    risk: str
    placement: str
    fabric: str
    lines: tuple[Line, ...]
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]
    replica: Replica | None = None

    @property
    def state(self) -> State:
        """A capacity block hangs on no quota, but on being on offer: known of one with dates."""
        if self.sale.purchase == "capacity-block":
            return "fits" if self.sale.start else "unknown"
        return worst(self.lines)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        s = self.sale
        return s.instance.cloud, s.instance.name, s.purchase, s.region, self.machines


@dataclass(frozen=True)
class Refused:
    """What was looked at and is not offered. `usd`: what it would have cost, where that is known."""

    what: str
    reason: str
    usd: Decimal | None = None


@dataclass(frozen=True)
class Offers:
    """`choices` are within every known quota, best first; `blocked` need an increase; `lacks` is what was not known."""

    goal: Goal
    choices: tuple[Choice, ...]
    blocked: tuple[Choice, ...]
    refused: tuple[Refused, ...]
    lacks: tuple[str, ...] = ()

    @property
    def best(self) -> Choice | None:
        return self.choices[0] if self.choices else None


def offers(goal: Goal, known: Known) -> Offers:
    """All of them. Raises UsageError for an accelerator that is not in the catalogue."""
    found: list[Choice] = []
    refused: list[Refused] = []
    for instance in known.catalogue.instances:
        if known.clouds and instance.cloud not in known.clouds:
            continue
        sized = _sized(goal, instance, known)
        if sized is None:
            continue
        if isinstance(sized, str):
            refused.append(Refused(instance.name, sized))
            continue
        sales = [sale for sale in for_sale(instance, known) if known.wants(instance.cloud, sale.region)]
        if not sales:
            refused.append(Refused(instance.name, "no price that can be used"))
        for sale in sales:
            if not known.has(sale):
                refused.append(Refused(f"{instance.name} {sale.purchase} {sale.region}", "AWS has none of it there"))
                continue
            made = _choice(goal, sized, sale, known)
            found.append(made) if isinstance(made, Choice) else refused.append(made)
    if isinstance(goal, Serve):
        found, demoted = _inference_first(found, known)
        refused += demoted
    ranked = sorted(found, key=_rank)
    return Offers(
        goal,
        choices=tuple(choice for choice in ranked if choice.state != "short"),
        blocked=tuple(choice for choice in ranked if choice.state == "short"),
        refused=tuple(refused),
        lacks=(*known.lacks, *_lacks(ranked)),
    )


def _rank(choice: Choice) -> tuple[object, ...]:
    """Cost decides; what follows only breaks ties."""
    sale = choice.sale
    return ("fits", "unknown", "short").index(choice.state), choice.usd, sale.doubtful, sale.age_days, choice.key


def _lacks(choices: Sequence[Choice]) -> list[str]:
    unknown = {line.demand.cloud for choice in choices for line in choice.lines if line.state == "unknown"}
    return [f"quotas of {cloud}: give --limits FILE, or run `heliostat plan refresh`" for cloud in sorted(unknown)]


# --- what is for sale


def for_sale(instance: Instance, known: Known) -> Iterator[ForSale]:
    """Every way to buy the machine, in every region that there is a price for."""
    on_demand = {price.region: price for price in known.catalogue.prices_by_region(instance)}
    for price in on_demand.values():
        yield _listed(instance, "on-demand", price, on_demand, known)
    for price in known.catalogue.prices_by_region(instance, "spot"):
        yield _listed(instance, "spot", price, on_demand, known)
    blocks = {
        row.region for row in known.rates.commitments if (row.cloud, row.instance) == (instance.cloud, instance.name)
    }
    for region in sorted(on_demand.keys() | blocks):
        for row in known.rates.committed(instance.cloud, instance.name, region):
            usd = row.price(on_demand.get(region))
            if usd is not None and (row.kind != "capacity-block" or row.instance):
                yield _committed(instance, row, region, usd, on_demand.get(region), known)


def _listed(instance: Instance, purchase: Purchase, price: Price, on_demand: dict[str, Price], known: Known) -> ForSale:
    return ForSale(
        instance, purchase, price.region, price.usd_per_hour, on_demand.get(price.region), price.source, price.date,
        price.age_days(known.today), price.verdict == "doubtful", price.reason or price.note,
    )  # fmt: skip


def _committed(
    instance: Instance, row: Commitment, region: str, usd: Decimal, on_demand: Price | None, known: Known
) -> ForSale:
    note = row.note
    if row.usd_per_hour is None and row.share_of_on_demand is not None and on_demand is not None:
        note = f"{row.share_of_on_demand:.0%} of {on_demand.usd_per_hour:g} on demand ({on_demand.source}); {row.note}"
    return ForSale(
        instance, row.kind, region, usd, on_demand, row.source, row.date, row.age_days(known.today), row.is_indicative,
        note, row.start, row.end,
    )  # fmt: skip


# --- how many machines, for how long


@dataclass(frozen=True)
class _Sized:
    """What the goal takes of one kind of machine, without reclaims."""

    machines: int
    hours: float
    together: bool
    reasons: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    replica: Replica | None = field(default=None)


def _sized(goal: Goal, instance: Instance, known: Known) -> _Sized | str | None:
    """None: not a machine for this goal at all; a text: refused, and why."""
    card = known.catalogue.accelerators.get(instance.accelerator)
    if card is None:
        return None
    if isinstance(goal, Hold):
        return _hold(goal, instance)
    if not card.runs_torch:
        return f"{card.name} does not run PyTorch on CUDA or ROCm"
    if instance.accelerators < 1:
        return f"a share of a card ({instance.accelerators:.2g})"
    return _serve(goal, instance, card) if isinstance(goal, Serve) else _train(goal, instance, card)


def _hold(goal: Hold, instance: Instance) -> _Sized | str | None:
    if instance.accelerator not in goal.accelerators:
        return None
    if instance.accelerators < 1:
        return f"a share of a card ({instance.accelerators:.2g})"
    machines = math.ceil(goal.count / instance.accelerators)
    over = machines * instance.accelerators - goal.count
    more = (f"{over:g} more cards than asked for",) if over else ()
    return _Sized(machines, goal.hours, goal.role == "training" and machines > 1, more)


def _serve(goal: Serve, instance: Instance, card: Accelerator) -> _Sized | str:
    """The tensor parallel degree that answers most requests a card, of those that hold the model."""
    count = int(instance.accelerators)
    found: list[Replica] = []
    why = ""
    for gpus in (1, 2, 4, 8):
        if gpus > count:
            break
        made = replica_on(goal.shape, goal.workload, goal.traffic, card, gpus=gpus, calibration=goal.calibration)
        if isinstance(made, str):
            why = why or made
        else:
            found.append(made)
    if not found:
        return f"{card.name}: {why}"
    best = max(found, key=lambda replica: (replica.requests_per_s / replica.gpus, -replica.gpus))
    replicas = math.ceil(goal.traffic.requests_per_s / best.planned())
    per_machine = count // best.gpus
    machines = math.ceil(replicas / per_machine)
    over = f" on {best.gpus} cards" if best.gpus > 1 else ""
    alone = (
        ("one machine: losing it is an outage until another has started",) if machines == 1 and goal.production else ()
    )
    reasons = (
        f"{replicas} replicas{over}, {best.planned():.3g} requests/s each at 70 % of {best.requests_per_s:.3g}; "
        f"first token {best.first_token_s * 1000:.0f} ms, whole answer {best.latency_s:.1f} s; bound by {best.bound}",
        *alone,
    )
    return _Sized(machines, goal.hours, False, reasons, best.assumptions, best)


def _train(goal: Train, instance: Instance, card: Accelerator) -> _Sized | str:
    """The fewest machines that hold the training and meet the deadline."""
    each = int(instance.accelerators)
    deadline = goal.deadline_h or math.inf
    holds, hours = False, math.inf
    for machines in _counts(each):
        gpus = machines * each
        workload = replace(goal.workload, gpus=gpus, shard="zero3" if gpus > 1 else goal.workload.shard)
        need = need_of(goal.shape, workload)
        if fits(need, card.usable_bytes).answer != "fits":
            continue
        pace = training_pace(goal.shape, workload, card, gpus=gpus, machines=machines, calibration=goal.calibration)
        if isinstance(pace, str):
            return f"{card.name}: {pace}"
        holds, hours = True, START_H + goal.tokens / pace.tokens_per_s / 3600
        if hours <= deadline:
            reasons = (
                f"{need.ceiling / 2**30:.1f} of {card.usable_gib:g} GiB a card at most",
                f"{pace.tokens_per_s:,.0f} tokens/s after {START_H:g} h to start",
            )
            return _Sized(machines, hours, machines > 1, reasons, pace.assumptions)
    if not holds:
        return f"{card.name}: not held by {MOST_MACHINES} machines"
    return f"takes {hours:,.0f} h on {MOST_MACHINES} machines, and {deadline:g} h is the deadline"


def _counts(each: int) -> Iterator[int]:
    count = 1
    while count <= MOST_MACHINES:
        yield count
        count *= 2


# --- the rules


def _choice(goal: Goal, sized: _Sized, sale: ForSale, known: Known) -> Choice | Refused:
    instance = sale.instance
    what = f"{sized.machines} x {instance.name} {sale.purchase} {sale.region}"
    per_hour = sale.usd_per_hour * sized.machines
    if sized.together and (instance.fabric in ("", "none") or not instance.placement):
        missing = "no fabric for collectives" if instance.fabric in ("", "none") else "no way to place them together"
        return Refused(what, f"{sized.machines} machines that train together, and {missing}", per_hour)
    if sale.purchase == "capacity-block" and sized.machines > BLOCK_INSTANCES:
        return Refused(what, f"a block has {BLOCK_INSTANCES} machines at most", per_hour)
    if isinstance(refusal := _market_rule(goal, sale, what, per_hour), Refused):
        return refusal
    hours, risk, told = _hours_on(goal, sized, sale, known)
    if isinstance(goal, Train) and goal.deadline_h is not None and hours > goal.deadline_h:
        return Refused(what, f"with reclaims about {hours:,.1f} h, and {goal.deadline_h:g} h is the deadline", per_hour)
    paid = _paid_hours(sale, hours)
    if isinstance(paid, str):
        return Refused(what, paid, per_hour)
    usd = per_hour * Decimal(str(paid))
    moved = _moved(sale, hours, known)
    if isinstance(moved, str):
        return Refused(what, moved, per_hour)
    reasons = [*refusal, *sized.reasons, *told]
    if moved is not None:
        usd += moved[0]
        reasons.append(moved[1])
    per_million = None
    if isinstance(goal, Serve):
        per_million = per_hour / Decimal(str(goal.traffic.requests_per_s * 3600)) * 10**6
    return Choice(
        sale, sized.machines, hours, per_hour, usd, per_million, risk,
        instance.placement if sized.together else "not needed", instance.fabric,
        _quota_lines(sale, sized.machines, known), tuple(reasons), sized.assumptions, sized.replica,
    )  # fmt: skip


def _quota_lines(sale: ForSale, machines: int, known: Known) -> tuple[Line, ...]:
    """A capacity block brings its own capacity, outside the on-demand quotas."""
    if sale.purchase == "capacity-block":
        return ()
    market: Literal["spot", "on-demand"] = "spot" if sale.purchase == "spot" else "on-demand"
    demands = demands_of(sale.instance, machines, region=sale.region, market=market, catalogue=known.catalogue)
    return held_against(demands, known.limits)


def _market_rule(goal: Goal, sale: ForSale, what: str, per_hour: Decimal) -> tuple[str, ...] | Refused:
    """Whether the way of buying suits the goal, and what there is to say about it."""
    hours = goal.hours if not isinstance(goal, Train) else 0.0
    match sale.purchase:
        case "spot":
            if goal.role == "serving" and not (isinstance(goal, Serve) and not goal.production):
                return Refused(what, "serving in production is not put on spot alone", per_hour)
            if goal.role == "training" and not goal.checkpoints:
                return Refused(what, "spot is for what checkpoints, and this does not", per_hour)
            return ("on spot: it checkpoints",) if goal.role == "training" else ("on spot: not production",)
        case "capacity-block":
            if goal.role == "serving":
                return Refused(what, "a capacity block ends on its day, and an endpoint does not", per_hour)
            if sale.on_demand is None:
                return ("paid at once, for whole days", "no on-demand price there to compare with")
            share = break_even(sale.usd_per_hour, sale.on_demand.usd_per_hour)
            return (f"paid at once, for whole days; break-even at {share:.0%} of use",)
        case "reserved-1y" | "reserved-3y":
            return _reserved_rule(goal, sale, what, per_hour, hours)
        case _:
            return ()


def _reserved_rule(goal: Goal, sale: ForSale, what: str, per_hour: Decimal, hours: float) -> tuple[str, ...] | Refused:
    if sale.on_demand is None:
        return Refused(what, "no on-demand price there to compare with", per_hour)
    term = TERM_DAYS[sale.purchase]
    share = break_even(sale.usd_per_hour, sale.on_demand.usd_per_hour)
    if share >= 1:
        return Refused(what, f"costs {share:.0%} of on demand", per_hour)
    days = math.ceil(share * term)
    if isinstance(goal, Train) or hours / 24 < days:
        wanted = "a training" if isinstance(goal, Train) else f"{hours / 24:.0f}"
        return Refused(
            what, f"pays off from {days} of {term} days of use on ({share:.0%}), and {wanted} is asked for", per_hour
        )
    return (f"steady use: break-even at {days} of {term} days ({share:.0%} of the term)",)


def _hours_on(goal: Goal, sized: _Sized, sale: ForSale, known: Known) -> tuple[float, str, tuple[str, ...]]:
    """Hours with what reclaims cost, the risk in words, and what was reckoned."""
    if sale.purchase != "spot":
        return sized.hours, "none", ()
    risk = known.rates.risk(sale.instance.cloud, sale.instance.name, sale.region)
    rate = risk.per_hour if risk else PRIOR_RECLAIMS / PRIOR_NODE_HOURS
    words = (
        f"{risk.low:.0%}-{risk.high:.0%} a month each" if risk else f"not known; taken for 1 in {PRIOR_NODE_HOURS:g} h"
    )
    if goal.role == "serving":
        return sized.hours, words, ()
    longer = 1 + rate * sized.machines * RECLAIM_COST_H
    reclaims = rate * sized.machines * sized.hours
    return sized.hours * longer, words, (f"{reclaims:.2g} reclaims expected, {RECLAIM_COST_H:g} h each",)


def _paid_hours(sale: ForSale, hours: float) -> float | str:
    """A term is paid whole; a block in whole days to 14, then in weeks."""
    if sale.purchase in TERM_DAYS:
        term = TERM_DAYS[sale.purchase] * 24.0
        return max(1, math.ceil(hours / term)) * term
    if sale.purchase != "capacity-block":
        return hours
    days = math.ceil(hours / 24)
    days = days if days <= 14 else math.ceil(days / 7) * 7
    return f"capacity blocks are sold for up to 182 days, and {days} are needed" if days > 182 else days * 24.0


def _moved(sale: ForSale, hours: float, known: Known) -> tuple[Decimal, str] | str | None:
    """What the dataset adds: its copy, and a second store for as long."""
    if known.data_at is None or not known.data_gb:
        return None
    cost = move(known.rates, gigabytes=known.data_gb, home=known.data_at, to=(sale.instance.cloud, sale.region))
    if cost is None:
        return f"no price for moving data from {known.data_at[0]} to {sale.instance.cloud}"
    months = Decimal(str(max(1.0, math.ceil(hours / MONTH_H))))
    total = cost.copy + cost.storage_a_month * months
    return total, f"data: {total:,.2f} USD ({cost.how})"


def _inference_first(found: list[Choice], known: Known) -> tuple[list[Choice], list[Refused]]:
    """Training-class cards stay only where no inference-class card can do it."""

    def is_inference(choice: Choice) -> bool:
        return "inference" in known.catalogue.accelerators[choice.sale.instance.accelerator].use

    able = [choice for choice in found if is_inference(choice)]
    if not able:
        return [replace(choice, reasons=("no inference-class card does it", *choice.reasons)) for choice in found], []
    best = min(able, key=_rank)
    refused = [
        Refused(
            f"{choice.machines} x {choice.sale.instance.name} {choice.sale.purchase} {choice.sale.region}",
            f"training-class card ({choice.usd_per_million:.2f} USD a million); {best.sale.instance.name} serves it "
            f"({best.usd_per_million:.2f})",
            choice.usd_per_hour,
        )
        for choice in sorted(found, key=_rank)
        if not is_inference(choice)
    ]
    return able, refused
