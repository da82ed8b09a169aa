"""Laws of the registry, whatever is done in whatever order and wherever it is killed.

The store here is the real `Store` over obstore's store in memory, which has the same conditional writes; the laws are
tried on hundreds of histories. `tests/real` and `tests/faults` have the S3 server.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heliostat.commit import FileEntry, describe
from heliostat.errors import AliasMoved, HeliostatError, RegistryError, UnknownModel, UnknownVersion, VersionHeld
from heliostat.names import check_path
from heliostat.registry import (
    Artifact,
    ArtifactMetadata,
    Damaged,
    Deleted,
    Lineage,
    Retention,
    artifact_digest,
    delete_version,
    list_aliases,
    load_files,
    move_alias,
    publish,
    rollback_alias,
    scan,
    sweep,
)
from heliostat.settings import StoreSettings
from heliostat.store import Store, Upload

MODEL = "model"
META = ArtifactMetadata(
    framework="torch", lineage=Lineage(job="j", code_version="c", dataset_digest="d"), licence="MIT"
)
NOW = timedelta(0)


class _Killed(BaseException):
    """As a kill: nothing of ours catches it."""


class _Memory(Store):
    """Counts requests, and is killed before or after the one that it is told."""

    def __init__(self) -> None:
        from obstore.store import MemoryStore

        client: Any = MemoryStore()  # Any: it does all that is asked of an S3Store here
        super().__init__(StoreSettings(bucket="memory"), client)
        self.die_at: int | None = None
        self.after = False
        self.requests = 0

    def _ask(self, verb: str, key: str, request: Any) -> Any:  # Any: as in Store
        self.requests += 1
        dies = self.die_at is not None and self.requests >= self.die_at
        if dies and not self.after:
            raise _Killed
        done = super()._ask(verb, key, request)
        if dies:
            raise _Killed
        return done

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        return self._ask("get", key, lambda: self._read_through_proxy(key, start, into))  # memory has no URLs to sign

    def unfinished_uploads(self, prefix: str = "", *, older_than: timedelta) -> tuple[Upload, ...]:
        return ()  # there is no such thing in memory


def content(number: int) -> dict[str, Path | bytes]:
    return {"config.json": b"%d" % number, "a/b.txt": b"text"}


class Registry(RuleBasedStateMachine):
    """Whatever one does, at every moment: what can be seen is whole, and nothing changes behind its number."""

    @initialize()
    def begin(self) -> None:
        self.store = _Memory()
        self.seen: dict[int, str] = {}  # digest by version, of all that was ever to be seen

    def _do(self, act: Any, kill: tuple[int, bool] | None) -> None:  # Any: a call without arguments
        if kill is not None:
            self.store.requests, (self.store.die_at, self.store.after) = 0, kill
        try:
            act()
        except (_Killed, AliasMoved, VersionHeld, UnknownVersion, UnknownModel, RegistryError):
            pass
        finally:
            self.store.die_at = None

    kills = st.one_of(st.none(), st.tuples(st.integers(1, 25), st.booleans()))
    versions = st.integers(1, 6)

    @rule(number=st.integers(1, 5), kill=kills)
    def publishes(self, number: int, kill: tuple[int, bool] | None) -> None:
        self._do(lambda: publish(self.store, name=MODEL, files=content(number), metadata=META), kill)

    @rule(alias=st.sampled_from(["production", "staging"]), to=versions, informed=st.booleans(), kill=kills)
    def moves(self, alias: str, to: int, informed: bool, kill: tuple[int, bool] | None) -> None:
        now = {each.alias: each.version for each in list_aliases(self.store, MODEL)}
        expected = now.get(alias) if informed else to
        won = False

        def act() -> None:
            nonlocal won
            move_alias(self.store, name=MODEL, alias=alias, to_version=to, expected_version=expected, who="w", why="y")
            won = True

        self._do(act, kill)
        assert not won or now.get(alias) == expected

    @rule(alias=st.sampled_from(["production", "staging"]), kill=kills)
    def rolls_back(self, alias: str, kill: tuple[int, bool] | None) -> None:
        self._do(lambda: rollback_alias(self.store, name=MODEL, alias=alias, who="w", why="y"), kill)

    @rule(version=versions, kill=kills)
    def deletes(self, version: int, kill: tuple[int, bool] | None) -> None:
        self._do(lambda: delete_version(self.store, MODEL, version, who="w", why="y"), kill)

    @rule(newest=st.integers(0, 3), rollbacks=st.integers(0, 2), kill=kills)
    def sweeps(self, newest: int, rollbacks: int, kill: tuple[int, bool] | None) -> None:
        retention = Retention(newest, NOW, rollbacks)
        self._do(lambda: sweep(self.store, who="w", retention=retention, grace=NOW), kill)
        if kill is None:
            self._check_no_litter()

    def _check_no_litter(self) -> None:
        living = [each for each in scan(self.store, MODEL).values() if isinstance(each, Artifact)]
        named = {each.manifest.key(path) for each in living for path in each.manifest.files}
        assert {info.key for info in self.store.list(f"models/{MODEL}/files")} == named

    @invariant()
    def numbers_have_no_gap_and_never_change(self) -> None:
        versions = scan(self.store, MODEL)
        assert sorted(versions) == list(range(1, len(versions) + 1))
        for number, version in versions.items():
            assert not isinstance(version, Damaged)
            digest = version.tombstone.digest if isinstance(version, Deleted) else version.digest
            assert self.seen.setdefault(number, digest) == digest
        assert set(self.seen) <= set(versions)

    @invariant()
    def equal_content_is_one_version_and_all_that_can_be_seen_is_whole(self) -> None:
        living = [each for each in scan(self.store, MODEL).values() if isinstance(each, Artifact)]
        assert len({each.digest for each in living}) == len(living)
        for artifact in living:
            assert set(load_files(self.store, artifact)) == {"config.json", "a/b.txt"}

    @invariant()
    def aliases_point_at_what_is_there_and_their_history_leads_to_it(self) -> None:
        versions = scan(self.store, MODEL)
        for alias in list_aliases(self.store, MODEL):
            assert isinstance(versions[alias.version], Artifact)
            assert alias.history[-1].to_version == alias.version
            assert alias.generation == len(alias.history)
            for before, after in zip(alias.history, alias.history[1:], strict=False):
                assert after.from_version == before.to_version


TestRegistry = Registry.TestCase
TestRegistry.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

paths = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,5}(/[a-z0-9][a-z0-9._-]{0,5}){0,2}", fullmatch=True)
trees = st.dictionaries(paths, st.binary(max_size=20), min_size=1, max_size=4)


def digest(tree: dict[str, bytes]) -> str:
    return artifact_digest({path: describe(data) for path, data in tree.items()})


@given(trees, trees)
def test_equal_trees_and_no_others_have_an_equal_digest(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    assert (digest(one) == digest(two)) == (one == two)
    assert digest(dict(reversed(one.items()))) == digest(one)


@given(trees)
def test_a_digest_does_not_depend_on_the_length_of_parts(tree: dict[str, bytes]) -> None:
    bare = {path: describe(data).model_copy(update={"parts": None}) for path, data in tree.items()}
    assert artifact_digest(bare) == digest(tree)
    assert all(FileEntry.model_validate_json(entry.model_dump_json()) == entry for entry in bare.values())


@given(st.text(max_size=300))
def test_a_path_that_is_taken_leads_nowhere_else(text: str) -> None:
    try:
        check_path(text)
    except HeliostatError:
        return
    resolved = (Path("/root-of-all") / text).resolve()
    assert resolved.is_relative_to("/root-of-all")
    assert str(resolved) == f"/root-of-all/{text}"
    assert text.isascii()


def test_a_kill_is_not_caught_by_anything_of_ours() -> None:
    store = _Memory()
    store.die_at = 1
    with pytest.raises(_Killed):
        publish(store, name=MODEL, files=content(1), metadata=META)
