"""heliostat plan need | serve | train | pack | quota | refresh: what to rent, where, how, and what to ask for first."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from heliostat.cli.options import Json
from heliostat.plan.workload import Dtype, Method
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.plan.by import DatePlan
    from heliostat.plan.choose import Choice, Known, Offers, Refused
    from heliostat.plan.mig import Packing
    from heliostat.plan.quota import Limit
    from heliostat.plan.roofline import Calibration

Clouds = Annotated[list[str] | None, typer.Option("--cloud", help="aws, gcp or azure alone. May be repeated.")]
Regions = Annotated[list[str] | None, typer.Option("--region", help="This region alone. May be repeated.")]
LimitsFile = Annotated[
    Path | None, typer.Option("--limits", help="A CSV of the account's quotas: cloud,region,code,market,limit,used.")
]
Data = Annotated[str | None, typer.Option("--data", help="Where the data lies, such as 500GB@aws/us-east-1.")]
Why = Annotated[bool, typer.Option("--why", help="Also where each number comes from.")]
Top = Annotated[int, typer.Option("--top", min=1, max=200, help="How many offers to show.")]
Today = Annotated[
    dt.datetime | None, typer.Option("--today", formats=["%Y-%m-%d"], help="Plan as if it were this day.")
]
Live = Annotated[bool, typer.Option("--live/--no-live", help="Use what `heliostat plan refresh` was told.")]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", help="Measured / estimated, or a JSON file with what you measured.")
]

CARDS = re.compile(r"\d+\s*[x*]\S+")


class PlanGroup(TyperGroup):
    """`heliostat plan --by friday 8xA100` means `heliostat plan need --by friday 8xA100`."""

    default_command = "need"  # Any below: typer carries a click of its own

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and any(CARDS.fullmatch(word) for word in args):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


# --- what is known


def known_from(
    *,
    clouds: list[str] | None,
    regions: list[str] | None,
    limits: Path | None,
    data: str | None,
    today: dt.datetime | None,
    live: bool,
) -> Known:
    """The package's tables, what the account said last, and what the caller gave, in growing order of trust."""
    from heliostat.errors import UsageError
    from heliostat.plan.catalogue import load
    from heliostat.plan.choose import Known
    from heliostat.plan.live import read, with_snapshot
    from heliostat.plan.quota import read_limits
    from heliostat.plan.rates import load_rates

    for cloud in clouds or ():
        if cloud not in ("aws", "gcp", "azure"):
            raise UsageError(f"cloud {cloud!r} is not known", do="one of: aws, gcp, azure")
    now = dt.datetime.now(dt.UTC)
    catalogue, rates = load(), load_rates()
    found: tuple[Limit, ...] = ()
    lacks: list[str] = []
    offered: frozenset[tuple[str, str]] = frozenset()
    snapshot = read(snapshot_path()) if live else None
    if snapshot is not None:
        catalogue, rates = with_snapshot(catalogue, rates, snapshot)
        found, offered = snapshot.limits, frozenset(snapshot.offered)
        lacks += [str(lack) for lack in snapshot.lacks]
        print_progress(f"AWS as asked {snapshot.age_hours(now):.0f} h ago ({snapshot.taken})")
    given = read_limits(limits) if limits else ()
    gb, at = parse_data(data) if data else (0.0, None)
    day = today.date() if today else now.date()
    return Known(
        catalogue,
        rates,
        day,
        (*found, *given),
        gb,
        at,
        tuple(clouds or ()),
        tuple(regions or ()),
        tuple(lacks),
        offered,
    )


def snapshot_path() -> Path:
    from heliostat.settings import home

    return home() / "plan" / "aws.json"


def parse_data(text: str) -> tuple[float, tuple[str, str]]:
    """ "500GB@aws/us-east-1" -> (500.0, ("aws", "us-east-1"))."""
    from heliostat.errors import UsageError
    from heliostat.units import Bytes

    size, at, place = text.partition("@")
    cloud, slash, region = place.partition("/")
    if not (at and slash and region):
        raise UsageError(f"{text!r} does not say where the data lies", do="write such as 500GB@aws/us-east-1")
    return Bytes.parse(size).bytes / 1e9, (cloud, region)


# --- commands


def plan_need(
    cards: Annotated[str, typer.Argument(help="How many of which card, such as 8xA100.")],
    by: Annotated[str | None, typer.Option("--by", help="The day they must be there: friday, 10d, 2026-12-04.")] = None,
    long: Annotated[str, typer.Option("--for", help="How long they are held, such as 3d.")] = "1d",
    role: Annotated[
        str, typer.Option(help="training, or serving: never on spot, and reserved if steady.")
    ] = "training",
    checkpoints: Annotated[bool, typer.Option(help="Whether the work survives a reclaim.")] = True,
    then: Annotated[str | None, typer.Option("--then", help="A model to be served after, such as 7B.")] = None,
    requests: Annotated[float, typer.Option(help="Of the model after: requests a second.")] = 1.0,
    clouds: Clouds = None,
    regions: Regions = None,
    limits: LimitsFile = None,
    data: Data = None,
    today: Today = None,
    live: Live = True,
    top: Top = 6,
    why: Why = False,
    json: Json = False,
) -> None:
    """Cards for a time, by a day: offers, quotas, what to ask for by when, and what to do first."""
    from heliostat.errors import UsageError
    from heliostat.plan.by import parse_cards, parse_day, plan_by
    from heliostat.plan.choose import Hold, Serve, offers
    from heliostat.plan.params import shape_of_size
    from heliostat.plan.roofline import Traffic
    from heliostat.plan.workload import Serving
    from heliostat.units import Duration

    if role not in ("training", "serving"):
        raise UsageError(f"role {role!r} is not known", do="training or serving")
    known = known_from(clouds=clouds, regions=regions, limits=limits, data=data, today=today, live=live)
    count, names = parse_cards(cards, known.catalogue)
    hours = Duration.parse(long).seconds / 3600
    goal = Hold(names, count, hours, "serving" if role == "serving" else "training", checkpoints)
    made = offers(goal, known)
    day = parse_day(by, known.today) if by else None
    plan = plan_by(made, day, rates=known.rates, today=known.today) if day else None
    after = None
    if then:
        endpoint = Serve(shape_of_size(then), Serving(), Traffic(requests))
        after = offers(endpoint, known)
    if json:
        print_json(
            {
                "offers": offers_json(made, top),
                "plan": plan and plan_json(plan, top),
                "then": after and offers_json(after, top),
            }
        )
        return
    title = f"{count} x {' or '.join(names)} for {long}" + (
        f", by {day:%A} {day} ({(left := (day - known.today).days)} day{'s' * (left != 1)})" if day else ""
    )
    print_offers(made, known, title=title, top=top, why=why, unit=None)
    if plan:
        print_plan(plan)
    if after:
        print_offers(
            after, known, title=f"after that: {then} at {requests:g} requests/s", top=3, why=why, unit="request"
        )


def plan_serve(
    model: Annotated[str, typer.Argument(help="A size (7B), a folder or file of Hugging Face, or name@alias.")],
    requests: Annotated[float, typer.Option(help="Requests a second at the peak.")],
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a request.")] = 512,
    output: Annotated[int, typer.Option(min=0, help="Tokens of an answer; 0 for an encoder.")] = 128,
    latency: Annotated[str | None, typer.Option(help="Of a whole answer, such as 5s.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = "bf16",
    long: Annotated[str, typer.Option("--for", help="How long it is wanted, such as 365d.")] = "30d",
    production: Annotated[bool, typer.Option(help="Not on spot alone.")] = True,
    calibrate: Calibrate = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Whose registry.")] = None,
    clouds: Clouds = None,
    regions: Regions = None,
    limits: LimitsFile = None,
    data: Data = None,
    today: Today = None,
    live: Live = True,
    top: Top = 6,
    why: Why = False,
    json: Json = False,
) -> None:
    """An endpoint: machines, count, market and region, with cost an hour and per million requests."""
    from heliostat.cli.plan import find_shape
    from heliostat.plan.choose import Serve, offers
    from heliostat.plan.roofline import Traffic
    from heliostat.plan.workload import Serving
    from heliostat.units import Duration

    known = known_from(clouds=clouds, regions=regions, limits=limits, data=data, today=today, live=live)
    shape = find_shape(model, cluster)
    traffic = Traffic(requests, prompt, output, Duration.parse(latency).seconds if latency else None)
    hours = Duration.parse(long).seconds / 3600
    goal = Serve(shape, Serving(dtype=dtype), traffic, hours, production)
    goal = Serve(shape, Serving(dtype=dtype), traffic, hours, production, _serving_calibration(calibrate, goal, known))
    made = offers(goal, known)
    if json:
        print_json(offers_json(made, top))
        return
    target = f", answers within {latency}" if latency else ""
    title = f"{shape.name} in {dtype}: {requests:g} requests/s of {prompt} + {output} tokens{target}, for {long}"
    print_offers(made, known, title=title, top=top, why=why, unit="request")


def plan_train(
    model: Annotated[str, typer.Argument(help="A size (70B), a folder or file of Hugging Face, or name@alias.")],
    tokens: Annotated[str, typer.Option(help="Tokens to train on in all, such as 50M; samples x their tokens.")],
    method: Annotated[Method, typer.Option(help="full, lora or qlora.")] = "full",
    context: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Micro batch of one card.")] = 1,
    deadline: Annotated[str | None, typer.Option(help="Time from start to end at most, such as 3d.")] = None,
    checkpoints: Annotated[bool, typer.Option(help="Whether it survives a reclaim.")] = True,
    calibrate: Calibrate = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Whose registry.")] = None,
    clouds: Clouds = None,
    regions: Regions = None,
    limits: LimitsFile = None,
    data: Data = None,
    today: Today = None,
    live: Live = True,
    top: Top = 6,
    why: Why = False,
    json: Json = False,
) -> None:
    """A training: the fewest machines that hold it and meet the deadline, with the cost to finish."""
    from heliostat.cli.plan import find_shape, make_training
    from heliostat.plan.choose import Train, offers
    from heliostat.plan.params import parse_params
    from heliostat.units import Duration

    known = known_from(clouds=clouds, regions=regions, limits=limits, data=data, today=today, live=live)
    shape = find_shape(model, cluster)
    options = {"context": context, "batch": batch, "dtype": None}
    workload = make_training(method, 1, None, options)
    hours = Duration.parse(deadline).seconds / 3600 if deadline else None
    goal = Train(
        shape,
        workload,
        float(parse_params(tokens)),
        hours,
        checkpoints,
        _training_calibration(calibrate, shape, workload, known),
    )
    made = offers(goal, known)
    if json:
        print_json(offers_json(made, top))
        return
    until = f", within {deadline}" if deadline else ""
    print_offers(made, known, title=f"{shape.name}, {method}: {tokens} tokens{until}", top=top, why=why, unit=None)


def plan_pack(
    models: Annotated[
        str,
        typer.Argument(
            help="COUNTxSIZE of process memory, such as 20x100MB, or a CSV file: name,memory,compute,isolation."
        ),
    ],
    on: Annotated[
        list[str] | None, typer.Option("--on", help="Cards: 4xA100-80GB. May be repeated; else every kind is tried.")
    ] = None,
    isolation: Annotated[
        str, typer.Option(help="Of COUNTxSIZE: shared, or slice for a MIG slice of its own.")
    ] = "shared",
    compute: Annotated[
        float, typer.Option(min=0, max=1, help="Of COUNTxSIZE: share of a whole card that each uses.")
    ] = 0.0,
    weights: Annotated[bool, typer.Option(help="The size is of the weights: what a process adds is added.")] = True,
    clouds: Clouds = None,
    regions: Regions = None,
    limits: LimitsFile = None,
    today: Today = None,
    live: Live = True,
    json: Json = False,
) -> None:
    """Many small models on few cards: MIG slices with their places, or shares of a card."""
    from heliostat.plan.by import parse_cards
    from heliostat.plan.mig import Card, pack

    known = known_from(clouds=clouds, regions=regions, limits=limits, data=None, today=today, live=live)
    tenants = read_tenants(models, isolation=isolation, compute=compute, weights=weights)
    if not on:
        from heliostat.plan.fleet import cheapest_packing

        rows = cheapest_packing(tenants, known)
        if json:
            print_json([row.as_json() for row in rows])
        else:
            _print_fleets(rows, len(tenants))
        return
    cards = []
    for text in on:
        count, names = parse_cards(text, known.catalogue)
        cards += [Card(names[0]) for _ in range(count)]
    made = pack(tenants, cards, known.catalogue)
    if json:
        from heliostat.plan.mig import groups_of

        print_json({"packing": made, "groups": groups_of(made, known.catalogue)})
    else:
        print_packing(made, known)


def plan_quota(
    definition: Annotated[Path, typer.Argument(help="A cluster definition, such as cluster/aws.yaml")],
    limits: LimitsFile = None,
    live: Live = True,
    today: Today = None,
    json: Json = False,
) -> None:
    """What a definition asks of the account's quotas at its upper bounds. Exit 1 where one is short."""
    from heliostat.definition.load import load as load_definition
    from heliostat.plan.quota import held_against, of_definition, request_for, worst

    known = known_from(clouds=None, regions=None, limits=limits, data=None, today=today, live=live)
    groups = of_definition(load_definition(definition), known.catalogue)
    lines = held_against([demand for group in groups for demand in group.demands], known.limits)
    requests = [request_for(line, known.rates) for line in lines if line.state != "fits"]
    if json:
        print_json({"lines": lines, "requests": requests, "guessed": [g.group for g in groups if g.guessed]})
    else:
        print_table(
            ("quota", "code", "region", "market", "for", "wants", ""),
            [
                (
                    line.demand.quota.name if line.demand.quota else "not known",
                    line.demand.quota.code if line.demand.quota else None,
                    line.demand.region,
                    line.demand.market,
                    line.demand.what,
                    line.words,
                    line.state,
                )
                for line in lines
            ],
        )
        for group in groups:
            if group.guessed:
                print_progress(f"{group.group}: no instance is named; {group.instance.name} was taken")
        for request in requests:
            _print_request(request.line.state == "short", request.command, request.lead)
    if worst(lines) == "short":
        raise typer.Exit(1)


def _print_request(short: bool, command: str | None, lead: Any) -> None:  # Any: LeadTime | None
    head = "ask now" if short else "if the limit is lower, ask"
    usual = f" (usually {lead.low_days} to {lead.high_days} days: {lead.source})" if lead else ""
    typer.echo(f"{head}{usual}:\n  {command or 'the catalogue does not know the quota: read it in the console'}")


def plan_refresh(
    regions: Annotated[list[str] | None, typer.Option("--region", help="A region to ask. May be repeated.")] = None,
    block: Annotated[str | None, typer.Option("--block", help="Also ask for capacity blocks: 1xp5.48xlarge.")] = None,
    by: Annotated[str, typer.Option("--by", help="Of the block: the day it must start by.")] = "7d",
    long: Annotated[str, typer.Option("--for", help="Of the block: how long.")] = "1d",
    json: Json = False,
) -> None:
    """Ask AWS for spot prices by zone, quotas and use, reservations, capacity blocks; keeps what it was told."""
    from heliostat.plan.by import parse_day
    from heliostat.plan.catalogue import load
    from heliostat.plan.live import BlockWish, as_json, ask_aws, keep
    from heliostat.units import Duration

    now = dt.datetime.now(dt.UTC)
    wishes = []
    if block:
        count, _, name = block.partition("x")
        day = parse_day(by, now.date())
        wishes = [
            BlockWish(
                name,
                int(count),
                max(24, round(Duration.parse(long).seconds / 3600)),
                now.date(),
                day + dt.timedelta(days=1),
            )
        ]
    told = ask_aws(regions or ["us-east-1"], load(), now=now, blocks=wishes, progress=print_progress)
    kept = keep(told, snapshot_path())
    if json:
        print_json(as_json(kept))
        return
    print_table(
        ("what", "answers"),
        [
            ("spot prices of zones", len(told.zones)),
            ("limits", len(told.limits)),
            ("reservations and blocks", len(told.commitments)),
            ("types in the regions", len(told.offered)),
        ],
    )
    for lack in told.lacks:
        print_progress(f"lacks {lack}")


# --- calibration


def _serving_calibration(text: str | None, goal: Any, known: Known) -> Calibration | None:  # Any: Serve
    from heliostat.errors import UsageError
    from heliostat.plan.roofline import Calibration, ratio_of, read_calibration, replica_on

    if text is None:
        return None
    ratio, values, where = read_calibration(text)
    if ratio is not None:
        return Calibration(ratio, where)
    card = known.catalogue.accelerator(str(values["accelerator"]))
    gpus = values.get("gpus", 1)
    made = replica_on(goal.shape, goal.workload, goal.traffic, card, gpus=gpus if isinstance(gpus, int) else 1)
    if isinstance(made, str):
        raise UsageError(f"{card.name}: {made}, so the measurement was of something else", where=where)
    return ratio_of(values, estimated=made.requests_per_s, key="requests_per_s", where=where)


def _training_calibration(
    text: str | None, shape: Any, workload: Any, known: Known
) -> Calibration | None:  # Any: plan's
    from heliostat.errors import UsageError
    from heliostat.plan.roofline import Calibration, ratio_of, read_calibration, training_pace

    if text is None:
        return None
    ratio, values, where = read_calibration(text)
    if ratio is not None:
        return Calibration(ratio, where)
    card = known.catalogue.accelerator(str(values["accelerator"]))
    gpus, machines = values.get("gpus", 1), values.get("machines", 1)
    made = training_pace(
        shape,
        workload,
        card,
        gpus=gpus if isinstance(gpus, int) else 1,
        machines=machines if isinstance(machines, int) else 1,
    )
    if isinstance(made, str):
        raise UsageError(f"{card.name}: {made}", where=where)
    return ratio_of(values, estimated=made.tokens_per_s, key="tokens_per_s", where=where)


# --- printing


def print_offers(made: Offers, known: Known, *, title: str, top: int, why: bool, unit: str | None) -> None:
    """The table, the first one's reasons, what was refused and what is not known."""
    shown = [*made.choices[:top], *made.blocked[: max(0, top - len(made.choices))]]
    if not shown:
        typer.echo(title)
        typer.echo("  nothing on offer")
    else:
        columns = [
            "",
            "machines",
            "bought",
            "region",
            "$/h",
            "$ in all",
            *(["$/M requests"] if unit else []),
            "reclaims",
            "fabric",
            "quota",
            "price of",
        ]
        print_table(columns, [_cells(rank, choice, unit) for rank, choice in enumerate(shown, start=1)], title=title)
        best = shown[0]
        typer.echo(f"1: {'; '.join(best.reasons) or 'the cheapest'}")
    _print_refused(made.refused, all_of_them=why)
    if why:
        for rank, choice in enumerate(shown, start=1):
            _print_why(rank, choice)
    if any(choice.sale.doubtful for choice in shown):
        print_progress("prices with ~ are doubtful; --why tells why")
    for lack in made.lacks:
        print_progress(f"not known: {lack}")


def _cells(rank: int, choice: Choice, unit: str | None) -> tuple[object, ...]:
    sale = choice.sale
    doubt = "~" if sale.doubtful else ""
    per = (f"{choice.usd_per_million:,.2f}",) if unit and choice.usd_per_million is not None else ()
    short = {"fits": "fits", "short": "short", "unknown": "?"}[choice.state]
    wants = ", ".join(
        f"{line.demand.units:g} {line.demand.quota.unit if line.demand.quota else ''}".strip()
        for line in choice.lines[:1]
    )
    quota = f"{short}: {wants}" if choice.lines else "none needed"
    together = f"{choice.fabric}, {choice.placement}" if choice.placement != "not needed" else choice.fabric
    return (
        str(rank),
        f"{choice.machines} x {sale.instance.name}",
        sale.purchase,
        sale.region,
        f"{doubt}{choice.usd_per_hour:,.2f}",
        f"{doubt}{choice.usd:,.2f}",
        *per,
        choice.risk,
        together,
        quota,
        sale.date,
    )


def _print_refused(refused: Sequence[Refused], *, all_of_them: bool) -> None:
    """Alike reasons in one line: what differs is the machine."""
    if not refused:
        return
    if all_of_them:
        for row in refused:
            typer.echo(f"refused: {row.what}: {row.reason}")
        return
    reasons = Counter(re.sub(r"\(.*?\)|[\d,.]+", "", row.reason).split(";")[0] for row in refused)
    for shape, count in reasons.most_common(6):
        row = next(row for row in refused if re.sub(r"\(.*?\)|[\d,.]+", "", row.reason).split(";")[0] == shape)
        more = f" and {count - 1} more like it" if count > 1 else ""
        typer.echo(f"refused: {row.what}{more}: {row.reason}")
    if len(reasons) > 6:
        typer.echo(f"refused: {len(refused)} in all; --why lists them")


def _print_why(rank: int, choice: Choice) -> None:
    sale = choice.sale
    base = f"{sale.usd_per_hour:g} USD/h x {choice.machines}: {sale.source}, {sale.date} ({sale.age_days} d)"
    typer.echo(f"why {rank}: {base}{f' [{sale.note}]' if sale.note else ''}")
    for word in (*choice.reasons, *choice.assumptions, *(line.words for line in choice.lines)):
        typer.echo(f"       {word}")


def print_plan(plan: DatePlan) -> None:
    """What to do, in order."""
    typer.echo(f"\nto do, {plan.days_left} days before {plan.day}:")
    for number, step in enumerate(plan.steps, start=1):
        when = f"by {step.by:%a %d %b}" if step.by else "after that"
        typer.echo(f" {number}. {when}: {step.what}")
        if step.command:
            typer.echo(f"      {step.command}")


def _print_fleets(rows: Sequence[Any], count: int) -> None:  # Any: fleet.Fleet
    print_table(
        ("cards", "machines", "bought", "region", "$/h", "how", "optimal"),
        [
            (
                f"{row.cards} x {row.accelerator}",
                f"{row.machines} x {row.instance}",
                "on-demand",
                row.region,
                f"{row.usd_per_hour:,.2f}",
                row.how,
                "yes" if row.optimal else f"at least {row.bound}",
            )
            for row in rows[:8]
        ],
        title=f"{count} models on as few cards of one kind as there can be",
    )
    if rows:
        typer.echo(rows[0].definition)


def print_packing(made: Packing, known: Known) -> None:
    """Card by card, in the order in which slices are to be made."""
    from heliostat.plan.mig import groups_of, share_of

    rows = [
        (
            card.index,
            card.card.accelerator,
            place.profile,
            place.start,
            ", ".join(place.tenants[:4]) + (f" and {len(place.tenants) - 4} more" if len(place.tenants) > 4 else ""),
        )
        for card in made.cards[:16]
        for place in card.places
    ]
    best = "the fewest there can be" if made.optimal else f"at least {made.bound} are needed"
    print_table(("card", "kind", "slice", "start", "models"), rows, title=f"{made.used} cards ({best})")
    for card in made.cards[:4]:
        for command in card.commands:
            typer.echo(command)
    typer.echo("groups:")
    for name, group in groups_of(made, known.catalogue).items():
        typer.echo(f"  {name}: {group}")
    shares = sorted(set(share_of(made).values()))
    typer.echo(f"gpus_per_replica of the applications: {', '.join(f'{share:g}' for share in shares)}")
    for name, reason in made.refused:
        typer.echo(f"refused: {name}: {reason}")
    if made.unplaced:
        typer.echo(f"no place for {len(made.unplaced)} of them: {', '.join(made.unplaced[:8])}")


# --- JSON


def offers_json(made: Offers, top: int) -> dict[str, Any]:  # Any: JSON
    """Every number with where it comes from."""
    return {
        "choices": [choice_json(choice) for choice in made.choices[:top]],
        "blocked": [choice_json(choice) for choice in made.blocked[:top]],
        "refused": [
            {"what": row.what, "reason": row.reason, "usd_per_hour": row.usd and float(row.usd)} for row in made.refused
        ],
        "lacks": list(made.lacks),
    }


def choice_json(choice: Choice) -> dict[str, Any]:  # Any: JSON
    sale = choice.sale
    return {
        "cloud": sale.instance.cloud,
        "instance": sale.instance.name,
        "machines": choice.machines,
        "purchase": sale.purchase,
        "region": sale.region,
        "hours": choice.hours,
        "usd_per_hour": float(choice.usd_per_hour),
        "usd": float(choice.usd),
        "usd_per_million_requests": choice.usd_per_million and float(choice.usd_per_million),
        "price": {
            "usd_per_machine_hour": float(sale.usd_per_hour),
            "source": sale.source,
            "date": sale.date,
            "age_days": sale.age_days,
            "doubtful": sale.doubtful,
            "note": sale.note,
        },
        "risk": choice.risk,
        "placement": choice.placement,
        "fabric": choice.fabric,
        "quota": choice.state,
        "quotas": [
            {
                "name": line.demand.quota and line.demand.quota.name,
                "code": line.demand.quota and line.demand.quota.code,
                "region": line.demand.region,
                "units": line.demand.units,
                "limit": line.limit and line.limit.limit,
                "used": line.limit and line.limit.used,
                "source": line.limit and line.limit.source,
                "state": line.state,
            }
            for line in choice.lines
        ],
        "reasons": list(choice.reasons),
        "assumptions": list(choice.assumptions),
    }


def plan_json(plan: DatePlan, top: int) -> dict[str, Any]:  # Any: JSON
    return {
        "day": plan.day.isoformat(),
        "days_left": plan.days_left,
        "steps": [
            {"by": step.by and step.by.isoformat(), "what": step.what, "command": step.command} for step in plan.steps
        ],
        "ways": [
            {"fate": way.fate, "ask_by": way.ask_by and way.ask_by.isoformat(), "choice": choice_json(way.choice)}
            for way in plan.ways[:top]
        ],
    }


def read_tenants(text: str, *, isolation: str, compute: float, weights: bool) -> list[Any]:  # Any: mig.Tenant
    """COUNTxSIZE, or a CSV file. Weights take the context and buffers of a process with them (vram.py)."""
    import csv

    from heliostat.errors import UsageError
    from heliostat.plan.mig import Tenant
    from heliostat.plan.vram import OVERHEADS
    from heliostat.units import Bytes

    extra = OVERHEADS.context_bytes if weights else 0
    match = re.fullmatch(r"(\d+)x(\S+)", text)
    if isolation not in ("shared", "slice"):
        raise UsageError(f"isolation {isolation!r} is not known", do="shared or slice")
    if match and not Path(text).exists():
        size = Bytes.parse(match[2]).bytes + extra
        kind: Any = isolation  # one of the two words, checked above
        return [Tenant(f"model-{number}", size, compute, kind) for number in range(1, int(match[1]) + 1)]
    try:
        rows = list(csv.DictReader(Path(text).read_text(encoding="utf-8").splitlines()))
        return [
            Tenant(
                row["name"], Bytes.parse(row["memory"]).bytes + extra, float(row.get("compute") or 0), _isolation(row)
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{text!r} cannot be read: {error}", do="write 20x100MB, or a CSV file: name,memory,compute,isolation"
        ) from error


def _isolation(row: dict[str, str]) -> Any:  # Any: one of the two words
    word = row.get("isolation") or "slice"
    if word not in ("shared", "slice"):
        raise ValueError(f"isolation {word!r} is neither shared nor slice")
    return word
