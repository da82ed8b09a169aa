"""Release records in a real store: two at once, by hand against the platform, back and forth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from heliostat.errors import AliasMoved, GateRefused, RegistryError, ReleaseConflict, ReleaseRolledBack
from heliostat.flow import steps
from heliostat.promote.gate import Reason, Verdict
from heliostat.promote.records import PRODUCTION, read_release
from heliostat.registry import get_alias, move_alias, publish, resolve
from heliostat.store import Store
from tests.faults.kill_points import META, small
from tests.faults.release_points import PASSED, RULES, deploy, play, report

pytestmark = pytest.mark.real
APP = "app"
REFUSED = Verdict(passed=False, reasons=(Reason(rule="r", passed=False, value=0, limit=1, text="r 0 < 1"),))


@pytest.fixture
def app(store: Store) -> Store:
    """Version 1 in production with a living replica, and two more versions."""
    for number in (1, 2, 3):
        publish(store, name=APP, files=small(number), metadata=META)
    move_alias(store, name=APP, alias=PRODUCTION, to_version=1, expected_version=None, who="a", why="first")
    deploy(store, APP)
    return store


def release(
    store: Store, version: int, *, who: str = "ann", verdict: Verdict = PASSED, force: str | None = None
) -> Any:
    artifact = resolve(store, f"{APP}:v{version}")
    return steps.release(store, APP, artifact, verdict, rules=RULES, who=who, why="better", force=force)


def production(store: Store) -> int:
    alias = get_alias(store, APP, PRODUCTION)
    assert alias is not None
    return alias.version


def test_of_two_releases_at_once_one_wins_and_the_other_is_told_who(app: Store) -> None:
    barrier, outcomes = threading.Barrier(8), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            outcomes.append(release(app, 2 + number % 2, who=f"user-{number}").candidate)
        except ReleaseConflict as lost:
            outcomes.append("told" if "user-" in str(lost) else str(lost))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_release(app, APP)
    assert found is not None
    assert len(outcomes) == 8
    assert {outcome for outcome in outcomes if outcome != "told"} == {found[0].candidate}
    assert outcomes.count("told") >= 4
    assert [entry.state for entry in found[0].history] == ["proposed"]
    assert production(app) == 1


def test_a_refused_version_needs_a_reason_and_the_history_keeps_it(app: Store) -> None:
    with pytest.raises(GateRefused, match="r 0 < 1"):
        release(app, 2, verdict=REFUSED)
    record = release(app, 2, verdict=REFUSED, force="the data is wrong, not the model")
    assert record.last.forced == "the data is wrong, not the model"
    play(app, APP, fault_when_live=False)
    assert production(app) == 2


def test_a_release_that_is_rolled_back_tells_who_waits_why(app: Store) -> None:
    record = release(app, 2)
    play(app, APP, fault_when_live=True)
    with pytest.raises(ReleaseRolledBack, match="boom"):
        steps.wait_released(app, APP, record.id, resolve(app, f"{APP}:v2"), limit_s=1)
    assert production(app) == 1
    again = release(app, 2)
    assert again.id != record.id


def test_the_good_version_may_be_released_again_after_a_rollback(app: Store) -> None:
    release(app, 2)
    play(app, APP, fault_when_live=True)
    again = release(app, 1)
    assert (again.state, again.stable, again.is_under_way) == ("live", 1, False)
    assert production(app) == 1


def test_a_rollback_by_hand_ends_a_release_before_and_after_it_is_live(app: Store) -> None:
    release(app, 2)
    assert steps.roll_back(app, APP, APP, who="bob", why="no").version == 1
    record = steps.must_read_release(app, APP)
    assert (record.state, record.last.who, record.last.why) == ("rolled_back", "bob", "no")
    with pytest.raises(RegistryError, match="never pointed at an earlier"):
        steps.roll_back(app, APP, APP, who="bob", why="no")
    release(app, 2)
    play(app, APP, fault_when_live=False)
    assert steps.roll_back(app, APP, APP, who="bob", why="worse").version == 1
    assert steps.must_read_release(app, APP).stable == 1


def test_asleep_it_is_live_at_once_and_the_version_before_is_kept_until_it_has_answered(store: Store) -> None:
    for number in (1, 2):
        publish(store, name=APP, files=small(number), metadata=META)
    first = release(store, 1)
    assert (first.state, first.stable, first.is_under_way) == ("live", 1, False)
    second = release(store, 2)
    assert (second.state, second.stable, second.previous) == ("live", 2, 1)
    assert production(store) == 2
    assert release(store, 2) == second  # repeated, it changes nothing
    deploy(store, APP)
    report(store, APP, digest="", error="ValueError: torn")
    play_once(store)
    assert production(store) == 1
    assert "cannot be loaded: ValueError: torn" in steps.must_read_release(store, APP).last.why


def play_once(store: Store, before: Callable[[], None] = lambda: None) -> None:
    import tempfile
    import time
    from pathlib import Path

    from heliostat.controller.duty import World
    from heliostat.controller.releases import Releases
    from heliostat.events import Spool

    with tempfile.TemporaryDirectory() as folder:
        nobody: Any = None  # the duty asks for neither
        world = World(settings=nobody, store=store, serve=nobody, spool=Spool(Path(folder), "c"))
        before()
        Releases().act(world, time.time())


def test_an_alias_moved_by_hand_wins_over_the_release(app: Store) -> None:
    release(app, 2)
    move_alias(app, name=APP, alias=PRODUCTION, to_version=3, expected_version=1, who="eve", why="by hand")
    report(app, APP)
    play_once(app)
    record = steps.must_read_release(app, APP)
    assert (record.state, record.stable, production(app)) == ("rolled_back", 3, 3)


def test_a_record_from_before_a_hand_moved_alias_does_not_move_it_back(app: Store) -> None:
    from heliostat.promote.records import move_production
    from heliostat.promote.release import go_live

    record = release(app, 2)
    live = go_live(record, who="controller", why="w", now=1.0)
    move_alias(app, name=APP, alias=PRODUCTION, to_version=3, expected_version=1, who="eve", why="by hand")
    with pytest.raises(AliasMoved, match="eve"):
        move_production(app, record, live)
    assert production(app) == 3
