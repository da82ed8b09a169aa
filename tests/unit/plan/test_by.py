"""Days in words, cards in words, and what is to be done before a day."""

from __future__ import annotations

import datetime as dt

import pytest

from heliostat.errors import UsageError
from heliostat.plan.by import parse_cards, parse_day, plan_by
from heliostat.plan.catalogue import load
from heliostat.plan.choose import Hold, Known, offers
from heliostat.plan.quota import Limit
from heliostat.plan.rates import load_rates

WEDNESDAY = dt.date(2026, 11, 25)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("friday", 27), ("Fri", 27), ("wednesday", 32), ("tuesday", 31), ("tomorrow", 26),
        ("10d", 35), ("2026-11-30", 30), ("today", 25),
    ],
)  # fmt: skip
def test_a_day_is_read_as_people_say_it(text: str, day: int) -> None:
    assert parse_day(text, WEDNESDAY) == dt.date(2026, 11, 1) + dt.timedelta(days=day - 1)


@pytest.mark.parametrize("text", ["soon", "2026-13-01", "2025-01-01", "fr", "-3d", ""])
def test_other_words_and_days_that_are_over_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_day(text, WEDNESDAY)


def test_a_name_of_rays_means_every_memory_size() -> None:
    assert parse_cards("8xA100", load()) == (8, ("A100-40GB", "A100-80GB"))
    assert parse_cards("2xA100-80GB", load()) == (2, ("A100-80GB",))
    assert parse_cards("16 x l4", load()) == (16, ("L4",))
    for text in ("A100", "0xL4", "8xK80", "x"):
        with pytest.raises(UsageError):
            parse_cards(text, load())


def plan(day: dt.date, *limits: Limit):  # type: ignore[no-untyped-def]
    rates = load_rates()
    made = offers(Hold(("A100-40GB", "A100-80GB"), 8, 72), Known(load(), rates, WEDNESDAY, limits, clouds=("aws",)))
    return plan_by(made, day, rates=rates, today=WEDNESDAY)


def test_what_is_within_the_quota_is_simply_taken() -> None:
    made = plan(dt.date(2026, 11, 27), Limit("aws", "us-east-1", "L-417A185B", "on-demand", 96, 0))
    assert made.first.fate == "ready"
    assert made.steps[0].what.startswith("take 1 x p4d.24xlarge on-demand")


def test_an_increase_that_comes_in_time_is_asked_for_by_its_day() -> None:
    limits = [
        Limit("aws", "us-east-1", code, market, 0, 0)
        for code, market in (("L-417A185B", "on-demand"), ("L-7212CCBC", "spot"))
    ]  # type: ignore[arg-type]  # the two words
    made = plan(dt.date(2026, 12, 4), *limits)
    way = next(way for way in made.ways if way.requests)
    assert (way.fate, way.ask_by) == ("ask", dt.date(2026, 12, 1))


def test_two_days_are_too_few_for_an_increase_and_a_block_is_looked_for() -> None:
    limits = [
        Limit("aws", "us-east-1", code, market, 0, 0)
        for code, market in (("L-417A185B", "on-demand"), ("L-7212CCBC", "spot"))
    ]  # type: ignore[arg-type]  # the two words
    made = plan(dt.date(2026, 11, 27), *limits)
    assert {way.fate for way in made.ways if way.requests} == {"late"}
    assert any("describe-capacity-block-offerings" in (step.command or "") for step in made.steps)
