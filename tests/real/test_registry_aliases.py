"""Aliases on a real S3 server: one winner, a history, the way back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from heliostat.errors import AliasMoved, CorruptArtifact, RegistryError, UnknownVersion, VersionHeld
from heliostat.registry import delete_version, get_alias, lease, must_get_alias, resolve, rollback_alias
from heliostat.registry.holds import hold
from heliostat.store import Store
from tests.real.registry_world import MODEL, point, put

pytestmark = pytest.mark.real
ROUNDS = 3
PROMOTERS = 32


def test_of_32_promoters_one_wins_each_round_and_31_are_told_who(store: Store) -> None:
    for number in range(1, 5):
        put(store, number)
    current = point(store, 1, None).version
    for round_number in range(1, ROUNDS + 1):
        targets = [version for version in range(1, 5) if version != current]

        def promote(n: int, targets: list[int] = targets, current: int = current, r: int = round_number) -> str:
            try:
                point(store, targets[n % 3], current, who=f"promoter-{r}-{n}")
            except AliasMoved as error:
                return str(error)
            return f"won promoter-{r}-{n}"

        with ThreadPoolExecutor(PROMOTERS) as pool:
            told = list(pool.map(promote, range(PROMOTERS)))
        (won,) = [text for text in told if text.startswith("won")]
        winner = won.removeprefix("won ")
        assert sum(f"{winner} moved it to v" in text for text in told) == PROMOTERS - 1
        alias = must_get_alias(store, MODEL, "production")
        assert (alias.generation, len(alias.history)) == (round_number + 1, round_number + 1)
        assert alias.history[-1].who == winner
        current = alias.version
    assert [info.key for info in store.list(f"models/{MODEL}/holds")] == []


def test_a_second_rollback_goes_further_back_and_never_to_what_was_taken_away(store: Store) -> None:
    for n in range(1, 4):
        put(store, n)
        point(store, n, None if n == 1 else n - 1)

    def back() -> int:
        return rollback_alias(store, name=MODEL, alias="production", who="ann", why="bad").version

    assert [back(), back()] == [2, 1]
    with pytest.raises(RegistryError, match="never pointed at an earlier"):
        back()
    point(store, 3, 1)
    assert back() == 1
    assert resolve(store, f"{MODEL}@production").version == 1


def test_a_rollback_may_name_any_earlier_entry_and_no_other(store: Store) -> None:
    for n in range(1, 5):
        put(store, n)
        if n < 4:
            point(store, n, None if n == 1 else n - 1)
    with pytest.raises(RegistryError, match="v4; one of: v2, v1"):
        rollback_alias(store, name=MODEL, alias="production", who="ann", why="bad", to_version=4)
    moved = rollback_alias(store, name=MODEL, alias="production", who="ann", why="bad", to_version=1)
    last = moved.history[-1]
    assert (last.from_version, last.to_version, last.who, last.why, last.back) == (3, 1, "ann", "bad", True)


def test_an_alias_written_before_rollbacks_were_marked_still_reads(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    moves = [
        {"at": datetime.now(UTC).isoformat(), "who": "a", "why": "b", "from_version": before, "to_version": after}
        for before, after in ((None, 1), (1, 2))
    ]
    store.create_json(
        f"models/{MODEL}/aliases/production.json",
        {"name": MODEL, "alias": "production", "version": 2, "generation": 2, "history": moves},
    )
    assert rollback_alias(store, name=MODEL, alias="production", who="ann", why="bad").version == 1


def test_an_alias_points_at_nothing_that_is_not_there(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    with pytest.raises(UnknownVersion, match="no v3"):
        point(store, 3, None)
    delete_version(store, MODEL, 2, who="bob", why="too large")
    with pytest.raises(UnknownVersion, match=r"deleted by bob \(too large\)"):
        point(store, 2, None)
    assert get_alias(store, MODEL, "production") is None


def test_a_version_that_is_being_deleted_cannot_be_promoted_and_the_other_way_round(store: Store) -> None:
    put(store, 1)
    with (
        hold(store, MODEL, 1, "delete", who="bob", why="a sweep"),
        pytest.raises(VersionHeld, match=r"being deleted by bob \(a sweep\)"),
    ):
        point(store, 1, None)
    with (
        lease(store, MODEL, 1, who="job-7", why="fine-tunes it", seconds=60),
        pytest.raises(VersionHeld, match=r"held by job-7 \(fine-tunes it\)"),
    ):
        delete_version(store, MODEL, 1, who="bob", why="x")
    point(store, 1, None)
    with pytest.raises(VersionHeld, match="production points at it"):
        delete_version(store, MODEL, 1, who="bob", why="x")


def test_promoters_and_deleters_of_one_version_never_both_win(store: Store) -> None:
    put(store, 1)
    for number in range(2, 8):
        put(store, number)
        before = get_alias(store, MODEL, "production")

        def promote(n: int, number: int = number, before: int | None = before.version if before else None) -> bool:
            try:
                point(store, number, before, who=f"p{n}")
            except (VersionHeld, UnknownVersion, AliasMoved):
                return False
            return True

        def delete(n: int, number: int = number) -> bool:
            try:
                delete_version(store, MODEL, number, who=f"d{n}", why="race")
            except VersionHeld:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            promoted = [pool.submit(promote, n) for n in range(4)]
            deleted = [pool.submit(delete, n) for n in range(4)]
            won = (sum(each.result() for each in promoted), sum(each.result() for each in deleted))
        assert won[0] <= 1
        assert not (won[0] and won[1]), won
        alias = get_alias(store, MODEL, "production")
        if alias is not None:
            assert resolve(store, f"{MODEL}@production").version == alias.version


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"version": 1}', json.dumps({"name": "other", "alias": "production", "version": 1}).encode()],
)
def test_a_damaged_alias_is_named_and_harms_no_other(store: Store, damage: bytes) -> None:
    put(store, 1)
    point(store, 1, None, alias="staging")
    store.put(f"models/{MODEL}/aliases/production.json", damage)
    with pytest.raises(CorruptArtifact, match=r"production\.json"):
        resolve(store, f"{MODEL}@production")
    assert resolve(store, f"{MODEL}@staging").version == 1
