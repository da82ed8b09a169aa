"""Keys in the store: made once, shown once, revoked."""

from __future__ import annotations

import pytest

from heliostat.errors import UsageError
from heliostat.serve.keys import Caller, KeyRing, create_key, list_keys, read_keys, revoke_key
from heliostat.store import Store

pytestmark = pytest.mark.real


def ring(store: Store, *names: str) -> KeyRing:
    return KeyRing(app="intents", named=read_keys(store, names), closed=True)


def test_a_key_opens_until_it_is_revoked_and_is_stored_as_a_digest_alone(store: Store) -> None:
    key = create_key(store, "search", team="search-team")
    assert ring(store, "search", "unknown").caller(f"Bearer {key}") == Caller("search", "search-team")
    assert [info.key for info in store.list("keys/")] == ["keys/search.json"]
    assert key.encode() not in store.get("keys/search.json").data
    assert [stored.team for stored in list_keys(store)] == ["search-team"]
    revoke_key(store, "search")
    revoke_key(store, "search")
    assert read_keys(store, ["search"]) == ()


def test_a_name_is_taken_once(store: Store) -> None:
    create_key(store, "search", team="a")
    with pytest.raises(UsageError, match="revoke it first"):
        create_key(store, "search", team="b")
