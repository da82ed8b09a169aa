"""A release, step by step, by values alone."""

from __future__ import annotations

from typing import Any

import pytest

from heliostat.definition import ReleaseRules
from heliostat.errors import ReleaseConflict
from heliostat.promote.release import LOAD_S, Observed, Release, go_live, propose, roll_back, step, trial
from heliostat.promote.tally import Latencies, Tally, add, bucket_of

RULES = ReleaseRules(requests=20)


def proposed(record: Release | None = None, *, candidate: int = 2, now: float = 0.0, **changes: Any) -> Release:
    asked = {"who": "ann", "why": "better", "forced": None, "stable": 1, **changes}
    return propose(record, app="app", model="m", candidate=candidate, rules=RULES, now=now, **asked)


def seen(record: Release, *tallies: dict[str, Any] | None, idle_s: float = 0.0) -> Observed:
    made = [
        None if tally is None else Tally(release=record.id, version=2, **{"digest": "sha256:2", **tally})
        for tally in tallies
    ]
    return Observed(made, idle_s)


def at(record: Release, *tallies: dict[str, Any] | None, production: int = 1, now: float = 1.0, idle_s: float = 0.0):  # type: ignore[no-untyped-def]
    return step(record, seen(record, *tallies, idle_s=idle_s), production=production, rules=RULES, now=now)


def ms(value: float, count: int = 20) -> Latencies:
    return Latencies(buckets={bucket_of(value): count})


def test_a_good_version_goes_from_proposed_to_proven() -> None:
    record = proposed()
    assert at(record, {}, None) is record  # one of two replicas is still loading
    shadow = at(record, {}, {})
    assert (shadow.state, shadow.share) == ("shadow", 0.0)
    assert at(shadow, {"shadowed": 19}) is shadow
    canary = at(shadow, {"shadowed": 12}, {"shadowed": 8})
    assert (canary.state, canary.share) == ("canary", RULES.canary)
    live = at(canary, {"requests": 20})
    assert (live.state, live.stable, live.candidate, live.previous) == ("live", 2, None, 1)
    assert at(live, {"requests": 99}, production=2) is live
    proven = at(live, {"requests": 100}, production=2)
    assert (proven.state, proven.previous, proven.is_under_way) == ("live", None, False)
    assert at(proven, {"errors": 50}, production=2) is proven
    assert [entry.state for entry in proven.history] == ["proposed", "shadow", "canary", "live", "live"]


def test_replicas_are_asked_for_what_the_state_says() -> None:
    record = proposed()
    first = trial(record)
    assert first is not None
    assert (first.before, first.tried, first.share, first.shadow) == (1, 2, 0.0, RULES.shadow)
    live = trial(go_live(record, who="c", why="w", now=1))
    assert live is not None
    assert (live.before, live.tried, live.share) == (1, 2, 1.0)
    assert trial(roll_back(record, who="c", why="w", now=1)) is None
    assert trial(None) is None


@pytest.mark.parametrize(
    ("tally", "word"),
    [
        ({"digest": "", "error": "ValueError: torn"}, "cannot be loaded: ValueError: torn"),
        ({"errors": 1, "nans": 1, "probed": 9}, "not finite"),
        ({"errors": 1, "shadowed": 30, "last_error": "boom"}, "failed at 1 of 30"),
        ({"before": ms(20), "tried": ms(200), "probed": 20}, "medians"),
        ({"compared": 30, "disagreed": 29, "probed": 30}, "29 of 30"),
    ],
)
@pytest.mark.parametrize("state", ["proposed", "canary", "live"])
def test_every_fault_rolls_back_in_every_state_and_says_why(tally: dict[str, Any], word: str, state: str) -> None:
    record = proposed()
    if state == "canary":
        record = at(at(record, {}), {"shadowed": 20})
    if state == "live":
        record = go_live(record, who="controller", why="w", now=0)
    back = at(record, {}, tally, production=2 if state == "live" else 1)
    assert (back.state, back.stable, back.is_under_way) == ("rolled_back", 1, False)
    assert word in back.last.why
    assert (back.last.from_version, back.last.to_version) == (2, 1)


@pytest.mark.parametrize(
    "tally",
    [
        {"errors": 1, "shadowed": 200},  # half a percent
        {"before": ms(2), "tried": ms(9), "probed": 20},  # within a busy machine's noise
        {"before": ms(20, 9), "tried": ms(200, 9), "probed": 9},  # too few to tell
        {"compared": 5, "disagreed": 5, "probed": 5},  # too few to tell
        {"compared": 100, "disagreed": 55, "probed": 100},  # may be chance
    ],
)
def test_what_may_be_chance_does_not_roll_back(tally: dict[str, Any]) -> None:
    assert at(proposed(), tally).state == "shadow"


def test_without_requests_a_release_still_ends() -> None:
    record = proposed()
    record = at(record, {"probed": 2}, now=1)
    for now, state in ((4, "canary"), (7, "live"), (10, "live")):
        record = at(record, {"probed": 2}, now=now, idle_s=60, production=2 if now > 7 else 1)
        assert record.state == state
    assert not record.is_under_way


def test_a_stage_with_few_requests_ends_with_those_that_came() -> None:
    shadow = at(proposed(), {})
    assert at(shadow, {"shadowed": 3}, now=30) is shadow
    assert at(shadow, {"shadowed": 3}, now=31.5).state == "canary"


def test_a_candidate_that_never_loads_is_rolled_back() -> None:
    record = proposed()
    assert at(record, {}, None, now=LOAD_S - 1) is record
    assert at(record, {}, None, now=LOAD_S).state == "rolled_back"


def test_an_application_without_replicas_takes_the_version_and_keeps_the_one_before() -> None:
    record = proposed()
    assert at(record, now=1) is record
    live = at(record, now=5)
    assert (live.state, live.stable, live.previous) == ("live", 2, 1)


def test_a_version_that_ends_its_replicas_is_rolled_back() -> None:
    record = proposed()
    for replicas, vanished, state in (((), 1, "rolled_back"), (({},), 1, "shadow"), (({},), 2, "rolled_back")):
        found = Observed([*seen(record, *replicas).tallies], 0.0, vanished)
        after = step(record, found, production=1, rules=RULES, now=5.0)
        assert after.state == state


def test_where_both_do_not_fit_one_replica_after_the_other_takes_the_new_one() -> None:
    record = proposed()
    waits = {"digest": "", "alone": True, "hold_s": 7.0}
    first = at(record, {**waits, "replica": "b"}, {**waits, "replica": "a"})
    assert (first.state, first.turn) == ("canary", ("a",))
    assert "a takes the new one alone, and holds its requests for about 7 s" in first.last.why
    assert at(first, {**waits, "replica": "b"}, {**waits, "replica": "a"}) is first  # it is loading
    there = {"alone": True, "requests": 30}
    second = at(first, {**waits, "replica": "b"}, {**there, "replica": "a"})
    assert second.turn == ("a", "b")
    live = at(second, {**there, "replica": "b"}, {**there, "replica": "a"})
    assert (live.state, live.stable, live.turn) == ("live", 2, ())


def test_whoever_was_killed_between_alias_and_record_is_finished() -> None:
    record = at(at(proposed(), {}), {"shadowed": 20})
    live = at(record, {"requests": 3}, production=2)
    assert (live.state, live.stable) == ("live", 2)
    back = at(live, {"requests": 3}, production=1)
    assert (back.state, back.stable) == ("rolled_back", 1)


def test_an_alias_moved_by_hand_ends_the_release() -> None:
    over = at(proposed(), {}, production=7)
    assert (over.state, over.stable, over.is_under_way) == ("rolled_back", 7, False)
    assert "moved to v7" in over.last.why


def test_two_candidates_are_never_on_trial_together() -> None:
    record = proposed()
    with pytest.raises(ReleaseConflict, match="releasing v2 already: ann"):
        proposed(record, candidate=3)
    live = go_live(record, who="controller", why="w", now=1)
    assert proposed(live, candidate=3, stable=2).candidate == 3


def test_a_tally_of_another_release_counts_for_nothing() -> None:
    record = proposed()
    other = Tally(release="other", version=2, digest="d", errors=9)
    assert step(record, Observed([other]), production=1, rules=RULES, now=1) is record


def test_medians_are_known_to_a_twentieth() -> None:
    found = add([Tally(release="r", version=1, tried=ms(50, 10)), Tally(release="r", version=1, tried=ms(51, 10))])
    assert found.tried.count == 20
    assert found.tried.median_ms == pytest.approx(50, rel=0.06)
