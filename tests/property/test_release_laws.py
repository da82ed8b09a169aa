"""Laws of a release: whatever replicas report and whoever moves the alias, it ends, and with a version that exists."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.definition import ReleaseRules
from heliostat.promote.release import LOAD_S, Observed, propose, step, trial
from heliostat.promote.tally import Tally, least_share

RULES = ReleaseRules()
counts = st.integers(0, 200)


@st.composite
def tallies(draw: st.DrawFn) -> dict[str, object]:
    compared, tries = draw(counts), draw(counts)
    return {
        "digest": draw(st.sampled_from(["", "d", "d", "d"])),
        "error": draw(st.sampled_from([None, None, None, "ValueError: no"])),
        "probed": tries, "shadowed": draw(counts), "requests": draw(counts), "compared": compared,
        "disagreed": draw(st.integers(0, compared)), "errors": draw(st.sampled_from([0, 0, 0, 5])),
    }  # fmt: skip


rounds = st.lists(st.tuples(st.lists(st.none() | tallies(), max_size=3), st.booleans()), max_size=12)


@settings(max_examples=300)
@given(rounds=rounds, killed=st.lists(st.booleans(), min_size=30, max_size=30))
def test_a_release_always_ends_and_production_is_always_one_of_two(
    rounds: list[tuple[list[dict[str, object] | None], bool]], killed: list[bool]
) -> None:
    """`killed`: the controller dies after it has moved the alias and before it writes the record."""
    record = propose(
        None, app="a", model="m", stable=1, candidate=2, who="w", why="y", forced=None, rules=RULES, now=0.0
    )
    production, now, kills = 1, 0.0, iter(killed)
    quiet: list[tuple[list[dict[str, object] | None], bool]] = [([{"digest": "d"}], True)] * 10
    for reported, idle in [*rounds, *quiet]:
        now += 5.0
        made = [None if one is None else Tally(release=record.id, version=2, **one) for one in reported]  # type: ignore[arg-type]
        after = step(record, Observed(made, 60.0 if idle else 0.0), production=production, rules=RULES, now=now)
        if after.stable != production and after is not record and after.stable is not None:
            production = after.stable
            if next(kills):
                continue
        assert after.generation in (record.generation, record.generation + 1)
        record = after
        assert production in (1, 2)
        plan = trial(record)
        assert plan is None or {plan.before, plan.tried} == {1, 2}
        assert record.is_under_way or record.stable == production
    assert not record.is_under_way
    assert (record.state, record.stable) in {("live", 2), ("rolled_back", 1), ("rolled_back", 2), ("live", 1)}
    assert now < LOAD_S + 1000


@given(of=st.integers(1, 500), hits=st.integers(0, 500), z=st.floats(0.1, 5))
def test_the_least_share_is_below_the_share_and_grows_with_the_evidence(of: int, hits: int, z: float) -> None:
    hits = min(hits, of)
    low = least_share(hits, of, z)
    assert 0 <= low <= hits / of + 1e-12
    assert least_share(10 * hits, 10 * of, z) >= low - 1e-12
