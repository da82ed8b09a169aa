"""How `Platform.connect` finds a cluster, short of asking one."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.errors import SettingsError, UsageError
from heliostat.sdk import Platform, Remote
from heliostat.settings import by_address

DASHBOARD = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def _nothing_is_set(heliostat_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_settings_and_address_it_says_how_to_get_one() -> None:
    with pytest.raises(SettingsError, match="heliostat up"):
        Platform.connect()


def test_ray_s_address_is_taken_where_there_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", DASHBOARD)
    assert repr(Platform.connect()) == f"Platform(address={DASHBOARD!r})"
    with pytest.raises(SettingsError):
        Platform.connect("laptop")  # a name is never answered by another cluster


def test_an_address_of_ray_s_other_port_is_none_of_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(SettingsError):
        Platform.connect()
    with pytest.raises(UsageError, match="http://HOST:8265"):
        Platform.connect(address="127.0.0.1:6379")


@pytest.mark.parametrize(
    "given", [{"cluster": "a", "address": DASHBOARD}, {"token": "t"}, {"cluster": "a", "token": "t"}]
)
def test_what_does_not_go_together_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Platform.connect(**given)


def test_settings_whose_token_is_elsewhere_say_so(tmp_path: Path) -> None:
    """As those of a cluster on Kubernetes, copied here."""
    found = by_address(DASHBOARD).model_copy(update={"token_path": tmp_path / "none"})
    with pytest.raises(SettingsError, match="token cannot be read"):
        found.token_header()


def test_the_token_is_found_as_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert by_address(DASHBOARD).token_header() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert by_address(DASHBOARD).token_header() == {"Authorization": "Bearer of-home"}
    (tmp_path / "named").write_text("of-path\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert by_address(DASHBOARD).token_header() == {"Authorization": "Bearer of-path"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-environment")
    assert by_address(DASHBOARD).token_header() == {"Authorization": "Bearer of-environment"}
    assert by_address(DASHBOARD, "given").token_header() == {"Authorization": "Bearer given"}


def test_a_token_file_that_is_named_and_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="there is no token"):
        by_address(DASHBOARD)


def test_the_token_is_in_no_repr() -> None:
    found = Platform.connect(address=DASHBOARD, token="very-secret")
    assert isinstance(found, Remote)
    assert "very-secret" not in repr(found) + found._repr_html_() + repr(found.settings)


def test_what_needs_the_store_says_what_to_do() -> None:
    found = Platform.connect(address=DASHBOARD)
    for ask in (lambda: found.models.list(), lambda: found.jobs.submit("x"), lambda: found.cost_report()):
        with pytest.raises(SettingsError, match="HELIOSTAT_SETTINGS"):
            ask()
