"""The doctor on set-ups that are broken on purpose: each time the right cause, and nothing else called broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from heliostat import doctor
from heliostat.controller.lease import read_lease
from heliostat.sdk import Platform
from heliostat.settings import Settings, StoreSettings, save
from heliostat.store import Store

pytestmark = pytest.mark.real


def broken(found: list[doctor.Check]) -> dict[str, str]:
    return {check.what: check.seen for check in found if check.state == "broken"}


def examined(settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    path = folder / "settings.json"
    save(settings, path)
    monkeypatch.setenv("HELIOSTAT_SETTINGS", str(path))
    found = doctor.examine()
    assert all(check.do for check in found if check.state != "fine")
    return broken(found)


def test_a_healthy_cluster_has_nothing_broken(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    while read_lease(platform.store) is None:  # `up` returns before the controller's first round
        time.sleep(0.2)
    assert examined(platform.settings, monkeypatch, tmp_path) == {}


def test_before_the_first_cluster_nothing_is_broken_and_a_name_that_is_none_is(heliostat_home: Path) -> None:
    found = doctor.examine()
    assert broken(found) == {}
    assert [check.do for check in found if check.what == "cluster"] == ["run `heliostat up cluster/laptop.yaml`"]
    assert list(broken(doctor.examine("typo"))) == ["settings"]


def test_a_cluster_that_was_taken_down_is_not_broken(heliostat_home: Path) -> None:
    folder = heliostat_home / "clusters" / "c"
    folder.mkdir(parents=True)
    record = {"cluster_id": "id", "name": "c", "phase": "down", "definition_path": "cluster/c.yaml", "ports": {},
              "definition_digest": "", "project_root": "", "temp_dir": "", "started_at": 0.0}  # fmt: skip
    (folder / "cluster.json").write_text(json.dumps(record))
    settings = Settings(cluster="c", store=StoreSettings(bucket="b", endpoint="http://127.0.0.1:1"), state_dir=folder,
                        spool=folder, gcs_address="", dashboard_url="http://127.0.0.1:1", serve_url="")  # fmt: skip
    save(settings, folder / "settings.json")
    found = doctor.examine("c")
    assert broken(found) == {}
    assert [(check.seen, check.do) for check in found if check.what == "cluster"] == [
        ("c is down", "`heliostat up cluster/c.yaml` brings it back")
    ]


def test_a_store_that_is_down(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = platform.settings.store.model_copy(update={"endpoint": nowhere})
    found = examined(platform.settings.model_copy(update={"store": store}), monkeypatch, tmp_path)
    assert list(found) == ["store"]
    assert nowhere in found["store"] or "answers" in found["store"]


def test_keys_that_the_store_does_not_take(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = platform.settings.store.model_copy(update={"secret_access_key": SecretStr("another")})
    found = examined(platform.settings.model_copy(update={"store": store}), monkeypatch, tmp_path)
    assert list(found) == ["store"]
    assert "another" not in found["store"]


def test_the_token_of_another_cluster(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("f" * 64)
    found = examined(platform.settings.model_copy(update={"token_path": token}), monkeypatch, tmp_path)
    assert list(found) == ["token"]


def test_a_head_that_is_gone(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = examined(platform.settings.model_copy(update={"dashboard_url": nowhere}), monkeypatch, tmp_path)
    assert list(found) == ["head"]


def test_a_store_that_no_controller_looks_after(
    platform: Platform, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = examined(platform.settings.model_copy(update={"store": store.settings}), monkeypatch, tmp_path)
    assert list(found) == ["controller"]


def test_what_makes_each_ray_process_start_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [check for check in doctor.machine({}) if check.what == "Ray's start"]
    (tmp_path / "rfc3987_syntax.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    [found] = [check for check in doctor.machine({}) if check.what == "Ray's start"]
    assert found.state == "warning"
    assert "pip uninstall" in found.do


def test_a_proxy_that_takes_what_is_meant_for_this_machine() -> None:
    assert list(broken(list(doctor.machine({"http_proxy": "http://proxy:3128"})))) == ["proxy"]
    assert broken(list(doctor.machine({"http_proxy": "http://proxy:3128", "no_proxy": "127.0.0.1"}))) == {}


def test_the_command_ends_with_1_where_something_is_broken(heliostat_home: Path) -> None:
    tool = Path(sys.executable).parent / "heliostat"
    ran = subprocess.run(
        [tool, "doctor", "--json", "--cluster", "typo"], env=dict(os.environ), capture_output=True, check=False
    )
    assert ran.returncode == 1
    assert b'"what": "settings"' in ran.stdout
