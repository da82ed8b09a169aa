"""Who may call what. The store's half is in tests/real/test_keys.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.serve.errors import RequestError
from heliostat.serve.keys import NOBODY, Caller, KeyRing, StoredKey, key_digest

SEARCH = StoredKey(name="search", sha256=key_digest("hs-search"), team="search-team")
ELSEWHERE = StoredKey(name="ads", sha256=key_digest("hs-ads"), team="ads-team", applications=("other",))
RING = KeyRing(
    app="intents", named=(SEARCH, ELSEWHERE), cluster_key_sha256=key_digest("cluster"), team="demo", closed=True
)


def refusal(ring: KeyRing, header: str) -> int:
    with pytest.raises(RequestError) as raised:
        ring.caller(header)
    return raised.value.status


def test_a_key_says_whose_team_asks() -> None:
    assert RING.caller("Bearer hs-search") == Caller("search", "search-team")
    assert RING.caller("bearer  hs-search ") == Caller("search", "search-team")


def test_the_clusters_own_key_opens_every_application() -> None:
    assert RING.caller("Bearer cluster") == Caller("cluster", "demo")


def test_a_key_for_other_applications_is_known_and_forbidden() -> None:
    assert refusal(RING, "Bearer hs-ads") == 403


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "hs-search", "Basic hs-search", "Bearer HS-SEARCH", "Bearer é"]
)
def test_anything_else_is_unknown(header: str) -> None:
    assert refusal(RING, header) == 401


def test_an_application_without_keys_asks_for_none() -> None:
    assert KeyRing(app="intents").caller("") == NOBODY


def test_a_definition_that_names_keys_of_which_none_exists_lets_nobody_in() -> None:
    assert refusal(KeyRing(app="intents", closed=True), "") == 401
    assert refusal(KeyRing(app="intents", closed=True), "Bearer ") == 401


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=80))
def test_no_header_but_the_right_one_opens_and_none_raises_anything_else(header: str) -> None:
    try:
        caller = RING.caller(header)
    except RequestError:
        return
    assert header.partition(" ")[2].strip() in ("hs-search", "cluster")
    assert caller.key


def test_no_key_can_be_read_out_of_what_is_stored() -> None:
    assert "hs-search" not in SEARCH.model_dump_json()
    assert "hs-search" not in repr(RING)
