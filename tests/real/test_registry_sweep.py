"""What a sweep takes and what it leaves, on a real S3 server."""

from __future__ import annotations

from datetime import timedelta

import pytest

from heliostat.errors import UnknownModel, UnknownVersion, VersionHeld
from heliostat.registry import (
    Deleted,
    Retention,
    delete_version,
    lease,
    list_versions,
    load_files,
    plan_sweep,
    resolve,
    scan,
    sweep,
)
from heliostat.store import ObjectInfo, Store
from tests.real.registry_world import MODEL, point, put

pytestmark = pytest.mark.real
NONE = Retention(newest=0, age=timedelta(0), rollbacks=0)
ALL_AGES = timedelta(0)


def kept(store: Store, **more: object) -> dict[int, str]:
    plan = plan_sweep(store, **{"retention": NONE, **more})  # type: ignore[arg-type]
    return {each.version: each.why for each in plan.decisions if not each.delete}


def test_what_is_in_use_or_within_a_rule_stays_with_the_reason(store: Store) -> None:
    for number in range(1, 9):
        put(store, number)
    for number in (2, 3, 4):
        point(store, number, None if number == 2 else number - 1)
    point(store, 5, None, alias="staging")
    assert kept(store) == {4: "production points at it", 5: "staging points at it"}
    assert kept(store, users=lambda name: {6: f"app intents runs {name}"})[6] == f"app intents runs {MODEL}"
    assert set(kept(store, retention=Retention(newest=2, age=timedelta(0), rollbacks=1))) == {3, 4, 5, 7, 8}
    assert len(kept(store, retention=Retention(newest=0, rollbacks=0))) == 8  # all are younger than 30 days
    with lease(store, MODEL, 1, who="job-7", why="parent", seconds=60):
        assert kept(store)[1] == "held by job-7 (parent)"
    assert 1 not in kept(store)


def test_a_plan_changes_nothing_and_the_sweep_does_what_it_said(store: Store) -> None:
    for number in range(1, 5):
        put(store, number)
    point(store, 2, None)
    before = [(info.key, info.etag) for info in store.list("")]
    plan = plan_sweep(store, retention=NONE)
    assert [(info.key, info.etag) for info in store.list("")] == before
    done = sweep(store, who="ann", retention=NONE)
    assert done.deleted == plan.doomed
    assert [artifact.version for artifact in list_versions(store, MODEL)] == [2]
    assert load_files(store, resolve(store, f"{MODEL}@production")) == {"config.json": b"2"}
    assert len(store.list(f"models/{MODEL}/files")) == 1
    again = sweep(store, who="ann", retention=NONE)
    assert (again.deleted, again.objects) == ((), 0)


def test_a_deleted_number_is_never_used_again_and_says_who_deleted_it(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    delete_version(store, MODEL, 2, who="bob", why="too large")
    assert isinstance(scan(store, MODEL)[2], Deleted)
    with pytest.raises(UnknownVersion, match=r"v2 was deleted by bob on .*\(too large\); one of: v1"):
        resolve(store, f"{MODEL}:v2")
    assert put(store, 2).version == 3
    stone = delete_version(store, MODEL, 2, who="eve", why="again")
    assert stone.who == "bob"


def test_files_of_the_dead_go_once_they_are_old_and_those_of_the_living_stay(store: Store) -> None:
    put(store, 1)
    store.put(f"models/{MODEL}/files/dead/config.json", b"{}")
    assert plan_sweep(store).parts == ()  # a publisher may be at work
    plan = plan_sweep(store, grace=ALL_AGES)
    assert [info.key for info in plan.parts] == [f"models/{MODEL}/files/dead/config.json"]
    assert sweep(store, who="ann", grace=ALL_AGES).objects == 1
    assert load_files(store, resolve(store, f"{MODEL}:v1"))


def test_what_a_publisher_killed_before_its_first_version_left_is_swept_too(store: Store) -> None:
    store.put("models/never/files/dead/config.json", b"{}")
    assert sweep(store, who="ann").objects == 0
    assert sweep(store, who="ann", grace=ALL_AGES).objects == 1
    assert store.list("") == []


def test_a_version_published_while_a_plan_is_made_stays(store: Store) -> None:
    put(store, 1)

    class Busy(Store):
        def list(self, prefix: str) -> list[ObjectInfo]:
            found = super().list(prefix)
            if prefix == f"models/{MODEL}":
                put(store, 2)  # the same content again is the same version
            return found

    plan = plan_sweep(Busy(store.settings, store._client), models=[MODEL], retention=NONE, grace=ALL_AGES)
    assert [(each.version, each.delete) for each in plan.decisions] == [(1, True), (2, False)]
    assert plan.parts == ()


def test_unfinished_uploads_are_aborted_once_they_are_old(store: Store) -> None:
    put(store, 1)
    store._boto.create_multipart_upload(Bucket=store.settings.bucket, Key=f"models/{MODEL}/files/dead/w.safetensors")
    assert plan_sweep(store).uploads == 0
    assert plan_sweep(store, grace=ALL_AGES).uploads == 1
    assert sweep(store, who="ann", grace=ALL_AGES).uploads == 1
    assert plan_sweep(store, grace=ALL_AGES).uploads == 0


def test_while_a_manifest_cannot_be_read_no_unnamed_file_of_the_model_is_touched(store: Store) -> None:
    made = put(store, 1)
    put(store, 2)
    whole = store.get(f"models/{MODEL}/v1/manifest.json").data
    store.put(f"models/{MODEL}/v1/manifest.json", b"{")
    plan = plan_sweep(store, grace=ALL_AGES)
    assert plan.parts == ()
    assert "v1 cannot be read" in plan.left[MODEL]
    sweep(store, who="ann", grace=ALL_AGES, retention=NONE)
    store.put(f"models/{MODEL}/v1/manifest.json", whole)
    assert load_files(store, made) == {"config.json": b"1"}
    store.put(f"models/{MODEL}/v1/manifest.json", b"{")
    delete_version(store, MODEL, 1, who="ann", why="damaged")
    assert sweep(store, who="ann", grace=ALL_AGES).objects == 2  # v2's were left too: v1 might have named them
    assert store.list(f"models/{MODEL}/files") == []


def test_a_model_whose_alias_cannot_be_read_is_left_alone_and_the_others_are_swept(store: Store) -> None:
    put(store, 1)
    store.put(f"models/{MODEL}/aliases/production.json", b"{")
    plan = plan_sweep(store, retention=NONE)
    assert plan.doomed == ()
    assert "production.json" in plan.left[MODEL]


def test_what_comes_into_use_after_the_plan_is_spared(store: Store) -> None:
    put(store, 1)
    asked: list[str] = []

    def users(name: str) -> dict[int, str]:
        asked.append(name)
        return {1: "an app started"} if len(asked) > 1 else {}  # the plan asks once

    done = sweep(store, who="ann", retention=NONE, users=users)
    assert done.deleted == ()
    assert done.spared == {f"{MODEL} v1": f"{MODEL} v1 is in use: an app started"}
    assert load_files(store, resolve(store, f"{MODEL}:v1"))


def test_a_version_whose_files_a_copied_manifest_names_keeps_them_when_the_copy_is_deleted(store: Store) -> None:
    """An attacker's v2 names v1's files; deleting v2 must not take them."""
    made = put(store, 1)
    body = made.manifest.body.replace('"version":1', '"version":2')
    copied = made.manifest.model_copy(update={"body": body})
    store.put(f"models/{MODEL}/v2/manifest.json", copied.model_dump_json().encode())
    delete_version(store, MODEL, 2, who="ann", why="copied")
    sweep(store, who="ann", grace=ALL_AGES)
    assert load_files(store, made) == {"config.json": b"1"}


def test_deleting_what_was_never_there_is_told(store: Store) -> None:
    put(store, 1)
    with pytest.raises(UnknownModel, match=f"one of: {MODEL}"):
        plan_sweep(store, models=["modle"])
    with pytest.raises(UnknownVersion, match="no v9; one of: v1"):
        delete_version(store, MODEL, 9, who="ann", why="x")
    with pytest.raises(VersionHeld):
        delete_version(store, MODEL, 1, who="ann", why="x", users=lambda _: {1: "an app runs it"})
