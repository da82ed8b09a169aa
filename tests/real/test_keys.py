"""Keys in the store: made once, shown once, revoked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError
from heliostat.serve.keys import Caller, KeyRing, create_key, list_keys, read_keys, revoke_key
from heliostat.settings import Settings, save
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


def test_the_command_line_makes_lists_and_revokes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        cluster="test", dashboard_url="", gcs_address="", serve_url="", store=store.settings, spool=tmp_path / "spool"
    )
    save(settings, tmp_path / "settings.json")
    monkeypatch.setenv("HELIOSTAT_SETTINGS", str(tmp_path / "settings.json"))
    run = CliRunner().invoke
    made = run(app, ["key", "create", "search", "--team", "search-team", "--application", "intents"])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert ring(store, "search").caller(f"Bearer {key}") == Caller("search", "search-team")
    listed = run(app, ["key", "list", "--json"])
    assert [(one["name"], one["applications"]) for one in json.loads(listed.stdout)] == [("search", ["intents"])]
    assert key not in listed.stdout
    assert run(app, ["key", "revoke", "search"]).exit_code == 0
    assert list_keys(store) == []
