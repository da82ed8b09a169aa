"""A plan against a date: what to ask for today, by when, and what to do if it does not come.

Pure. `parse_day` reads what people say ("friday", "2026-12-04", "10d"), `parse_cards` what they want ("8xA100").
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from heliostat.errors import UsageError
from heliostat.plan.catalogue import Catalogue
from heliostat.plan.choose import Choice, Offers
from heliostat.plan.quota import Request, request_for
from heliostat.plan.rates import BLOCK_AHEAD_DAYS, Rates

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Fate = Literal["ready", "ask", "late", "unknown"]


def parse_day(text: str, today: dt.date) -> dt.date:
    """The next such weekday (today's own name means in a week), a date, or a number of days from today: "10d".

    Raises UsageError for anything else, and for a day that is over.
    """
    word = text.strip().lower()
    if word in ("today", "tomorrow"):
        return today + dt.timedelta(days=word == "tomorrow")
    matching = [index for index, name in enumerate(DAYS) if len(word) >= 3 and name.startswith(word)]
    if matching:
        return today + dt.timedelta(days=(matching[0] - today.weekday() - 1) % 7 + 1)
    if match := re.fullmatch(r"(\d{1,4})d", word):
        return today + dt.timedelta(days=int(match[1]))
    try:
        day = dt.date.fromisoformat(word)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a day", do="write friday, tomorrow, 10d or 2026-12-04") from error
    if day < today:
        raise UsageError(f"{day} is over: today is {today}", do="give a day from today on")
    return day


def parse_cards(text: str, catalogue: Catalogue) -> tuple[int, tuple[str, ...]]:
    """ "8xA100" -> 8 and both A100s: a name of Ray's covers every memory size. Raises UsageError with what there is."""
    match = re.fullmatch(r"(\d{1,5})\s*[x*]\s*(\S+)", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise UsageError(f"{text!r} is not a number of cards", do="write such as 8xA100 or 16xL4")
    name = match[2].lower()
    exact = [card.name for card in catalogue.accelerators.values() if card.name.lower() == name]
    family = [card.name for card in catalogue.accelerators.values() if card.ray_type.lower() == name]
    stem = [card.name for card in catalogue.accelerators.values() if card.name.lower().split("-")[0] == name]
    found = exact or family or stem
    if not found:
        raise UsageError(f"accelerator {match[2]!r} is not known", do=f"one of: {', '.join(catalogue.accelerators)}")
    return int(match[1]), tuple(found)


@dataclass(frozen=True)
class Way:
    """One choice, held against the day. `fate`: *ready* needs nothing; *ask* needs an increase that usually comes in
    time; *late* one that usually does not; *unknown* where the limit is not known. `requests`: what to ask for."""

    choice: Choice
    fate: Fate
    requests: tuple[Request, ...]
    ask_by: dt.date | None


@dataclass(frozen=True)
class Step:
    """Something to do. `by`: the last day for it; None where it waits for an earlier step."""

    by: dt.date | None
    what: str
    command: str | None = None


@dataclass(frozen=True)
class DatePlan:
    """`steps` in order; `ways` best first: certain before likely before unlikely, each by cost."""

    day: dt.date
    days_left: int
    ways: tuple[Way, ...]
    steps: tuple[Step, ...]
    offers: Offers

    @property
    def first(self) -> Way | None:
        return self.ways[0] if self.ways else None


def plan_by(offers: Offers, day: dt.date, *, rates: Rates, today: dt.date, interruptible: bool = True) -> DatePlan:
    """The offers of a goal against the day on which its machines must be there."""
    left = (day - today).days
    every = [_way(choice, day, rates=rates, today=today) for choice in (*offers.choices, *offers.blocked)]
    ways = sorted(every, key=lambda way: (("ready", "ask", "unknown", "late").index(way.fate), way.choice.usd))
    return DatePlan(day, left, tuple(ways), tuple(_steps(ways, day, today)), offers)


def _way(choice: Choice, day: dt.date, *, rates: Rates, today: dt.date) -> Way:
    cloud = choice.sale.instance.cloud
    if choice.sale.purchase == "capacity-block":
        return _block_way(choice, day, today)
    requests = tuple(request_for(line, rates) for line in choice.lines if line.state != "fits")
    if not requests:
        return Way(choice, "ready", (), None)
    lead = rates.lead(cloud, "quota")
    ask_by = day - dt.timedelta(days=lead.high_days) if lead else None
    if choice.state == "unknown":
        return Way(choice, "unknown", requests, ask_by)
    in_time = ask_by is not None and ask_by >= today
    return Way(choice, "ask" if in_time else "late", requests, ask_by)


def _block_way(choice: Choice, day: dt.date, today: dt.date) -> Way:
    """A dated block is on offer for certain; an undated price only says what one cost."""
    sale = choice.sale
    if sale.start:
        suits = dt.date.fromisoformat(sale.start[:10]) <= day
        return Way(choice, "ready" if suits else "late", (), today)
    soon = (day - today).days <= BLOCK_AHEAD_DAYS
    return Way(choice, "unknown" if soon else "late", (), today)


def _steps(ways: Sequence[Way], day: dt.date, today: dt.date) -> Iterator[Step]:
    if not ways:
        yield Step(today, "nothing on offer: change what is asked for (see what was refused)")
        return
    first = ways[0]
    asks = [way for way in ways if way.requests and way.fate != "ready"][:1] if first.fate == "ready" else [first]
    if first.fate == "ready":
        yield Step(day, f"take {words(first.choice)}: {_why_ready(first)}", start_command(first.choice))
    for way in asks:
        yield from _ask_steps(way, today, spare=first.fate == "ready")
    blocks = [way for way in ways if way.choice.sale.purchase == "capacity-block"]
    if first.fate != "ready" and blocks:
        yield Step(
            today, f"look for a block: {words(blocks[0].choice)} needs no quota", block_command(blocks[0].choice, day)
        )
    backup = _other(ways, first)
    if backup is not None and first.fate != "ready":
        yield Step(
            max(backup.ask_by or today, today),
            f"at the same time, for safety: {words(backup.choice)}",
            _first_command(backup),
        )


def _why_ready(way: Way) -> str:
    return "on offer" if way.choice.sale.purchase == "capacity-block" else "within the account's quota"


def _ask_steps(way: Way, today: dt.date, *, spare: bool) -> Iterator[Step]:
    for request in way.requests:
        demand, lead = request.line.demand, request.lead
        name = demand.quota.name if demand.quota else "a quota that the catalogue does not know: read it in the console"
        usual = f"usually {lead.low_days} to {lead.high_days} days ({lead.source})" if lead else "lead time not known"
        usual += ": it may come too late" if way.ask_by is not None and way.ask_by < today else ""
        known = "look at the limit, and if it is lower, ask" if request.line.limit is None else "ask"
        by = way.ask_by if way.ask_by and way.ask_by >= today else today
        more = "for next time, " if spare else ""
        yield Step(
            by,
            f"{more}{known} for {request.line.ask} {demand.quota.unit if demand.quota else 'units'} of {name} "
            f"in {demand.region}; {usual}",
            request.command,
        )
    if not spare:
        yield Step(None, f"take {words(way.choice)}", start_command(way.choice))


def _other(ways: Sequence[Way], first: Way) -> Way | None:
    """The best way that hangs on another quota, and is bought in another way where there is one."""

    def quotas(way: Way) -> frozenset[object]:
        return frozenset(
            (
                line.demand.cloud,
                line.demand.region,
                line.demand.market,
                line.demand.quota.code if line.demand.quota else line.demand.what,
            )
            for line in way.choice.lines
        )

    apart = [way for way in ways[1:] if way.choice.lines and not quotas(way) & quotas(first)]
    bought = first.choice.sale.purchase
    return next((way for way in apart if way.choice.sale.purchase != bought), apart[0] if apart else None)


def _first_command(way: Way) -> str | None:
    return next((request.command for request in way.requests if request.command), None)


def words(choice: Choice) -> str:
    """ "1 x p4d.24xlarge on-demand in us-east-1"."""
    return f"{choice.machines} x {choice.sale.instance.name} {choice.sale.purchase} in {choice.sale.region}"


def start_command(choice: Choice) -> str:
    """What to write into a definition's group."""
    market = {"spot": "spot", "on-demand": "on-demand"}.get(choice.sale.purchase, "reserved")
    name = choice.sale.instance.accelerator.lower()
    group = f"{{instance: {choice.sale.instance.name}, market: {market}, nodes: 0..{choice.machines}}}"
    return f"groups: {{{name}: {group}}}"


def block_command(choice: Choice, day: dt.date) -> str:
    """Which blocks are on offer; asking costs nothing."""
    hours = max(24, round(choice.hours / 24 + 0.4999) * 24)
    end = day + dt.timedelta(days=hours // 24 + 2)
    return (
        f"aws ec2 describe-capacity-block-offerings --instance-type {choice.sale.instance.name} "
        f"--instance-count {choice.machines} --capacity-duration-hours {hours} "
        f"--start-date-range {day - dt.timedelta(days=1)} --end-date-range {end} --region {choice.sale.region}"
    )
