"""What a replica tells the meter of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.inference.load import Load
from heliostat.serve.endpoint import Counts, TeamUse
from heliostat.serve.usage import Told, between, sums


def test_seconds_are_parted_by_the_tokens_each_team_asked_for() -> None:
    counts = Counts(requests=4, teams={"red": TeamUse(3, 3, 300), "blue": TeamUse(1, 1, 100)})
    now = sums(Load(tokens=400, forward_s=2.0), counts, 110.0, before=Told(100.0))
    use = between(Told(100.0), now)
    assert use.busy_s == {"red": 1.5, "blue": 0.5}
    assert use.asked["red"] == {"requests": 3, "items": 3, "tokens": 300}


def test_callers_without_a_team_have_their_part() -> None:
    counts = Counts(requests=4, teams={"red": TeamUse(1, 1, 100)})
    use = between(Told(0.0), sums(Load(tokens=400, forward_s=4.0), counts, 10.0, before=Told(0.0)))
    assert use.busy_s == {"red": 1.0, "": 3.0}
    assert use.asked[""]["requests"] == 3


def test_what_ran_for_nobody_answered_yet_is_told_all_the_same() -> None:
    use = between(Told(0.0), sums(Load(forward_s=4.0), Counts(), 10.0, before=Told(0.0)))
    assert use.busy_s == {"": 4.0}
    assert not use.asked


def test_teams_that_are_told_once_are_not_told_again() -> None:
    counts = Counts(requests=1, teams={"red": TeamUse(1, 1, 10)})
    first = sums(Load(tokens=10, forward_s=1.0), counts, 10.0, before=Told(0.0))
    counts.teams["red"].requests = 3  # the sums of a telling are its own
    later = between(first, sums(Load(tokens=10, forward_s=1.0), counts, 20.0, before=first))
    assert (later.busy_s, later.asked) == ({}, {"red": {"requests": 2, "items": 0, "tokens": 0}})


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 12)), max_size=20))
def test_no_more_is_told_than_the_time_there_was_and_nothing_is_lost(steps: list[tuple[float, float]]) -> None:
    """A long batch is counted when it ends: what does not fit into its telling comes in the later ones."""
    told, now, ran, heard = Told(0.0), 0.0, 0.0, 0.0
    for passed, forward in steps:
        now, ran = now + passed, ran + forward
        after = sums(Load(forward_s=ran), Counts(), now, before=told)
        seconds = sum(between(told, after).busy_s.values())
        assert seconds <= passed + 1e-5
        heard, told = heard + seconds, after
    late = sums(Load(forward_s=ran), Counts(), now + ran + 1, before=told)
    assert heard + sum(between(told, late).busy_s.values()) == pytest.approx(ran, abs=1e-4)
