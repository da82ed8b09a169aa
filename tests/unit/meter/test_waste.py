"""Waste is told by useful work alone: what is judged, what is not, and what is done about it, step by step."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.definition import WasteRules
from heliostat.meter.waste import (
    Finding,
    Holder,
    Memory,
    Rank,
    Seen,
    SeenGroup,
    SeenNode,
    Told,
    find,
    is_quiet,
    next_steps,
    remember,
    stalled_rank,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()  # a Wednesday
HOUR = 3600.0


def rules(**fields: object) -> WasteRules:
    return WasteRules.model_validate({"after": "1h", "warn": "30m", "act": "stop", "dry_run": False, **fields})


def holder(kind: str = "app", *, idle: float, **fields: object) -> Holder:
    measure = {"app": "a request", "job": "a step", "actor": "a call"}[kind]
    made = Holder(kind, f"{kind}-one", f"{kind}-id", "serve", 2.0, NOW - 10 * HOUR, NOW - idle, measure)  # type: ignore[arg-type]
    return replace(made, **fields)  # type: ignore[arg-type]


def judged(seen: Seen, with_rules: WasteRules | None = None, memory: Memory | None = None) -> tuple[Finding, ...]:
    return find(seen, remember(seen, memory or Memory()), with_rules or rules())


@pytest.mark.parametrize("kind", ["app", "job", "actor"])
def test_a_holder_is_waste_once_its_last_useful_work_is_too_long_ago(kind: str) -> None:
    assert judged(Seen(NOW, (holder(kind, idle=HOUR - 1),))) == ()
    (found,) = judged(Seen(NOW, (holder(kind, idle=1.5 * HOUR),), groups=(SeenGroup("serve", 0, 2.0),)))
    assert (found.gpu_hours, found.usd, found.since) == (3.0, 6.0, NOW - 1.5 * HOUR)
    assert "1h 30m" in found.evidence


def test_what_has_done_nothing_yet_is_counted_from_its_start() -> None:
    young = holder("app", idle=0, since=NOW - 60, last_useful=NOW - 60)
    assert judged(Seen(NOW, (young,))) == ()
    old = replace(young, since=NOW - 2 * HOUR, last_useful=NOW - 2 * HOUR)
    assert "nor ever" in judged(Seen(NOW, (old,)))[0].evidence


def test_what_nobody_can_measure_is_never_waste() -> None:
    assert judged(Seen(NOW, (holder("job", idle=0, last_useful=None),))) == ()


def test_an_actor_whose_device_works_is_not_idle() -> None:
    silent = holder("actor", idle=5 * HOUR)
    assert judged(Seen(NOW, (replace(silent, duty=0.6),))) == ()
    assert "device busy 1%" in judged(Seen(NOW, (replace(silent, duty=0.01),)))[0].evidence


def test_a_busy_device_does_not_excuse_a_run_without_steps() -> None:
    """A rank that waits in a collective keeps its device at work, and so does a loop that makes nothing."""
    assert judged(Seen(NOW, (holder("job", idle=2 * HOUR, duty=1.0),)))[0].kind == "no-steps"


def ranks(*collectives: int | None) -> tuple[Rank, ...]:
    return tuple(Rank(i, f"node-{i}", count, f"job.py:{i} in step") for i, count in enumerate(collectives))


def test_the_stalled_rank_is_the_one_that_has_not_joined() -> None:
    stuck = holder("job", idle=2 * HOUR, ranks=ranks(9, 8, 9), world=3)
    (found,) = judged(Seen(NOW, (stuck,)))
    assert found.kind == "stalled-rank"
    assert "rank 1 on node-1" in found.evidence
    assert "job.py:1 in step" in found.evidence


@pytest.mark.parametrize(
    ("said", "world"), [((9, 9), 2), ((9,), 3), ((None, None), 2), ((), 2), ((9,), 1), ((8, 8, 9), 3)]
)
def test_no_rank_is_named_where_nothing_tells_it_apart(said: tuple[int | None, ...], world: int) -> None:
    assert stalled_rank(holder("job", idle=HOUR, ranks=ranks(*said), world=world)) is None


def test_a_rank_that_says_nothing_while_the_others_wait_is_named() -> None:
    two = (ranks(9, 9, 9)[0], ranks(9, 9, 9)[2])
    assert "rank 1 says nothing" in (stalled_rank(holder("job", idle=HOUR, ranks=two, world=3)) or "")


PINNED = SeenNode("pin-1", "pin", 4.0, 4.0, NOW - 9 * HOUR, (("actor-id", "cache"),))


def watched(*seen: Seen) -> Memory:
    memory = Memory()
    for one in seen:
        memory = remember(one, memory)
    return memory


def test_a_node_that_an_actor_keeps_is_waste_when_its_gpus_were_free_all_along() -> None:
    looks = [Seen(NOW + minute * 60, nodes=(PINNED,), groups=(SeenGroup("pin", 0, 1.0),)) for minute in range(0, 75, 4)]
    memory = watched(*looks)
    (found,) = find(looks[-1], memory, rules())
    assert (found.kind, found.target, found.gpus, found.since) == ("pinned-node", "actor-id", 4.0, NOW)
    assert "kept by cache" in found.evidence


def test_a_node_that_came_before_its_actor_is_not_told_of_as_a_kept_group() -> None:
    group = (SeenGroup("pin", 0, 1.0),)
    alone = replace(PINNED, keepers=())
    looks = [Seen(NOW + minute * 60, nodes=(PINNED if minute else alone,), groups=group) for minute in range(0, 75, 4)]
    told = [
        [found.kind for found in find(look, watched(*looks[: index + 1]), rules())] for index, look in enumerate(looks)
    ]
    assert {kind for kinds in told for kind in kinds} == {"pinned-node"}


def test_a_node_that_was_in_use_meanwhile_starts_anew() -> None:
    looks = [Seen(NOW + minute * 60, nodes=(PINNED,)) for minute in range(0, 75, 4)]
    looks[10] = replace(looks[10], nodes=(replace(PINNED, free=3.0),))
    assert find(looks[-1], watched(*looks), rules()) == ()


def test_what_was_not_seen_is_not_taken_for_having_lasted() -> None:
    """The controller was away for two hours: what it finds again may have been in use meanwhile."""
    before, after = Seen(NOW, nodes=(PINNED,)), Seen(NOW + 2 * HOUR, nodes=(PINNED,))
    assert find(after, watched(before, after), rules()) == ()


def test_a_group_that_never_reaches_zero_is_told_where_nothing_else_explains_it() -> None:
    node = SeenNode("s-1", "serve", 1.0, 1.0, NOW - HOUR)
    looks = [Seen(NOW + m * 60, nodes=(node,), groups=(SeenGroup("serve", 1),)) for m in range(0, 75, 4)]
    (found,) = find(looks[-1], watched(*looks), rules())
    assert (found.kind, found.act) == ("kept-group", "tell")
    assert "its lower bound is 1" in found.evidence
    busy = replace(looks[5], holders=(holder("app", idle=0, last_useful=looks[5].at),))
    assert find(looks[-1], watched(*looks[:5], busy, *looks[6:]), rules()) == ()


def test_each_gpu_is_in_one_finding_at_most() -> None:
    """The idle application holds the group's node: the group is not told besides."""
    node = SeenNode("s-1", "serve", 2.0, 0.0, NOW - 9 * HOUR, (("x", "x"),))
    looks = [
        Seen(NOW + m * 60, (holder("app", idle=HOUR),), (node,), (SeenGroup("serve", 0),)) for m in range(0, 75, 4)
    ]
    assert [one.kind for one in find(looks[-1], watched(*looks), rules())] == ["idle-app"]


# --- acting

APP = judged(Seen(NOW, (holder("app", idle=2 * HOUR),)))[0]
JOB = judged(Seen(NOW, (holder("job", idle=2 * HOUR),)))[0]


def phases(findings: list[Finding], given: WasteRules, minutes: range) -> list[tuple[int, str, str, bool]]:
    told: dict[str, Told] = {}
    seen = []
    for minute in minutes:
        steps, told = next_steps(findings, told, given, NOW + minute * 60)
        seen += [(minute, step.phase, step.act, step.dry) for step in steps]
    return seen


def test_an_application_goes_to_zero_at_once_and_a_job_is_warned_first() -> None:
    assert phases([APP], rules(), range(3)) == [
        (0, "found", "scale to zero", False),
        (0, "acted", "scale to zero", False),
    ]
    assert phases([JOB], rules(), range(0, 60, 10)) == [
        (0, "found", "stop", False), (0, "warned", "stop", False), (30, "acted", "stop", False),
    ]  # fmt: skip


@pytest.mark.parametrize(("act", "app", "job"), [("tell", "tell", "tell"), ("scale-to-zero", "scale to zero", "tell")])
def test_the_rules_bound_what_is_done(act: str, app: str, job: str) -> None:
    seen = Seen(NOW, (holder("app", idle=2 * HOUR), holder("job", idle=2 * HOUR)))
    assert {one.kind: one.act for one in judged(seen, rules(act=act))} == {"idle-app": app, "no-steps": job}


def test_a_dry_run_says_what_would_be_done() -> None:
    assert phases([JOB], rules(dry_run=True), range(0, 40, 10))[-1] == (30, "acted", "stop", True)


def test_after_a_dry_run_everything_is_warned_of_before_it_is_done() -> None:
    told: dict[str, Told] = {}
    for minute in (0, 30):
        _, told = next_steps([JOB], told, rules(dry_run=True), NOW + minute * 60)
    steps, told = next_steps([JOB], told, rules(), NOW + 3600)
    assert [(step.phase, step.dry) for step in steps] == [("warned", False)]
    steps, _ = next_steps([JOB], told, rules(), NOW + 5400)
    assert [(step.phase, step.dry) for step in steps] == [("acted", False)]


def test_what_comes_back_is_told_and_warned_anew() -> None:
    _, told = next_steps([JOB], {}, rules(), NOW)
    _, told = next_steps([], told, rules(), NOW + 60)
    assert told == {}
    steps, _ = next_steps([JOB], told, rules(), NOW + 120)
    assert [step.phase for step in steps] == ["found", "warned"]


@pytest.mark.parametrize("name", ["job-one", "job-id", "serve", "team:demo", "project:voice"])
def test_what_is_exempt_is_told_and_left_alone_until_its_day_is_over(name: str) -> None:
    seen = Seen(NOW, (holder("job", idle=2 * HOUR, team="demo", project="voice"),))
    (until_today,) = judged(seen, rules(exempt={name: "2026-11-25"}))
    assert until_today.exempt_until == date(2026, 11, 25)
    assert [phase for _, phase, *_ in phases([until_today], rules(), range(0, 90, 10))] == ["found"]
    (over,) = judged(seen, rules(exempt={name: "2026-11-24"}))
    assert over.exempt_until is None


def test_a_tag_of_its_own_exempts_too() -> None:
    tagged = holder("actor", idle=2 * HOUR, keep_until=date(2026, 12, 1))
    assert judged(Seen(NOW, (tagged,)))[0].exempt_until == date(2026, 12, 1)


# --- quiet hours


@pytest.mark.parametrize(
    ("text", "when", "quiet"),
    [
        ("Sat-Sun", "2026-11-28T00:00", True),
        ("Sat-Sun", "2026-11-30T00:00", False),
        ("Mon-Fri 20:00-06:00", "2026-11-25T20:00", True),
        ("Mon-Fri 20:00-06:00", "2026-11-25T19:59", False),
        ("Mon-Fri 20:00-06:00", "2026-11-28T05:59", True),  # Friday's night
        ("Mon-Fri 20:00-06:00", "2026-11-28T20:00", False),
        ("Mon-Fri 20:00-06:00", "2026-11-30T05:00", False),  # Sunday's night
        ("Fri-Mon 12:00-13:00", "2026-11-29T12:30", True),
        ("Fri-Mon 12:00-13:00", "2026-11-25T12:30", False),
        ("Wed 12:00-13:00", "2026-11-25T12:59", True),
    ],
)
def test_quiet_hours(text: str, when: str, quiet: bool) -> None:
    at = datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
    assert is_quiet(rules(quiet=[text]), at) is quiet


def test_in_quiet_hours_ten_minutes_are_long_enough() -> None:
    seen = Seen(NOW, (holder("job", idle=660),))
    always = rules(quiet=["Mon-Sun"])
    assert judged(seen) == ()
    (found,) = judged(seen, always)
    assert phases([found], always, range(0, 30, 5))[-1] == (10, "acted", "stop", False)


@given(st.lists(st.integers(0, 5 * 3600), min_size=1, max_size=12), st.integers(60, 4 * 3600))
def test_nothing_that_worked_within_the_window_is_ever_told(idle: list[int], after: int) -> None:
    given_rules = rules(after=f"{after}s")
    holders = tuple(holder("app", idle=s, name=f"a{i}", target=f"a{i}") for i, s in enumerate(idle))
    found = {one.target for one in judged(Seen(NOW, holders), given_rules)}
    assert found == {f"a{i}" for i, s in enumerate(idle) if s >= given_rules.after.seconds}


@given(st.integers(0, 60 * 24 * 7))
def test_the_two_halves_of_a_week_are_never_both_quiet(minute: int) -> None:
    at = NOW + timedelta(minutes=minute).total_seconds()
    day, night = rules(quiet=["Mon-Sun 06:00-20:00"]), rules(quiet=["Mon-Sun 20:00-06:00"])
    assert is_quiet(day, at) is not is_quiet(night, at)
