"""`heliostat model ...` and `platform.models` on a real S3 server, as people use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import AliasMoved, UnknownAlias, UnknownModel, UsageError, VersionHeld
from heliostat.sdk import Platform
from heliostat.serve.reports import ReplicaReport, write_report
from heliostat.settings import Settings, save
from heliostat.store import Store
from tests.real.registry_world import MODEL, flip, hugging_face_folder, point, put, weights

pytestmark = pytest.mark.real
Run = Callable[..., Result]


@pytest.fixture
def platform(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform that is a store alone: no cluster is asked for."""
    settings = Settings(
        cluster="test",
        dashboard_url="http://127.0.0.1:1",
        gcs_address="127.0.0.1:1",
        serve_url="http://127.0.0.1:1",
        store=store.settings,
        spool=tmp_path / "spool",
    )
    save(settings, tmp_path / "settings.json")
    monkeypatch.setenv("HELIOSTAT_SETTINGS", str(tmp_path / "settings.json"))
    return Platform(settings)


@pytest.fixture
def run(platform: Platform) -> Run:
    def invoke(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["model", *words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


def printed(result: Result) -> Any:  # Any: JSON
    return json.loads(result.stdout)


def test_a_model_goes_from_a_folder_to_production_and_out_again(run: Run, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model", files=12)
    push = ("push", "encoder", str(folder), "--licence", "Apache-2.0", "--metric", "accuracy=0.91", "--tag", "team=nlp")
    first = run(*push, "--json")
    assert printed(first)["version"] == "v1"
    assert "left out: .gitattributes (hidden)" in first.stderr
    assert "/s" in first.stderr  # the rate
    assert printed(run(*push, "--json"))["version"] == "v1"  # safe to run twice

    (folder / "config.json").write_text('{"architectures": ["Other"]}')
    assert printed(run(*push, "--json"))["version"] == "v2"

    moved = printed(run("alias", "encoder", "production", "--to", "v1", "--expect", "none", "--why", "first", "--json"))
    assert moved[0]["version"] == 1
    run("alias", "encoder", "production", "--to", "v2", "--why", "better")
    assert printed(run("alias", "encoder", "--json"))[0]["version"] == 2
    assert "better" in run("alias", "encoder").stdout
    with pytest.raises(AliasMoved, match="moved it to v2"):
        run("alias", "encoder", "production", "--to", "v1", "--expect", "v1")
    run("alias", "encoder", "production", "--back", "--why", "worse")
    history = printed(run("history", "encoder", "--json"))["history"]
    assert [(move["to_version"], move["why"], move["back"]) for move in history] == [
        (1, "first", False),
        (2, "better", False),
        (1, "worse", True),
    ]
    assert "worse" in run("history", "encoder").stdout

    rows = printed(run("list", "--json"))
    assert [(row["version"], row["alias"], row["state"], row["dtype"]) for row in rows] == [
        ("v1", "production", "whole", "bfloat16"),
        ("v2", "", "whole", "bfloat16"),
    ]
    assert "encoder" in run("list").stdout

    card = run("show", "encoder@production").stdout
    for words in ("# encoder v1", "| Aliases | production |", "license: apache-2.0", "| accuracy | 0.91 |", "team"):
        assert words in card
    assert printed(run("show", "encoder:v1", "--json"))["metadata"]["tags"] == {"team": "nlp"}

    difference = printed(run("diff", "encoder:v1", "encoder:v2", "--json"))
    assert [change["name"] for change in difference["files"]] == ["config.json"]
    assert difference["tensors"] == []
    assert "config.json" in run("diff", "encoder:v1", "encoder:v2").stdout

    pulled = printed(run("pull", "encoder@production", str(tmp_path / "back"), "--json"))
    assert len(pulled["files"]) == 12
    assert (tmp_path / "back" / "config.json").read_text() == '{"architectures": ["BertModel"]}'


def test_verify_names_the_file_and_the_range_and_exits_with_1(run: Run, store: Store) -> None:
    made = put(store, 1, **{"model.safetensors": weights(1)})
    assert "is whole: 2 files" in run("verify", f"{MODEL}:v1").stderr
    flip(store, made.manifest.key("model.safetensors"), 40)
    report = printed(run("verify", f"{MODEL}:v1", "--json", code=1))
    assert not report["whole"]
    assert report["findings"][0]["path"] == "model.safetensors"
    assert report["findings"][0]["start"] <= 40 < report["findings"][0]["end"]
    assert "model.safetensors" in run("verify", f"{MODEL}:v1", code=1).stdout


def test_a_sweep_is_shown_first_and_done_with_yes(run: Run, store: Store) -> None:
    for number in (1, 2, 3):
        put(store, number)
    point(store, 2, None)
    words = ("sweep", MODEL, "--keep-newest", "0", "--keep-for", "0s")
    shown = run(*words)
    assert "production points at it" in shown.stdout
    assert "--yes does it" in shown.stderr
    assert len(printed(run("list", "--json"))) == 3
    plan = printed(run(*words, "--json"))["plan"]["decisions"]
    assert {row["version"]: row["delete"] for row in plan} == {1: True, 2: False, 3: True}
    assert len(printed(run(*words, "--yes", "--json"))["deleted"]) == 2
    assert [row["version"] for row in printed(run("list", "--json"))] == ["v2"]
    gone = printed(run("list", "--deleted", "--json"))
    assert [row["state"].split(" by ")[0] for row in gone] == ["deleted", "whole", "deleted"]
    assert "deleted 0 versions" in run(*words, "--yes").stderr


def test_a_version_is_deleted_by_its_number_with_a_reason_and_never_while_it_is_in_use(run: Run, store: Store) -> None:
    put(store, 1)
    put(store, 2)
    point(store, 1, None)
    assert "would be deleted" in run("delete", f"{MODEL}:v2", "--why", "too large").stderr
    assert len(printed(run("list", "--json"))) == 2
    assert printed(run("delete", f"{MODEL}:v2", "--why", "too large", "--yes", "--json"))["why"] == "too large"
    run("delete", f"{MODEL}:v2", "--why", "too large", "--yes")
    with pytest.raises(VersionHeld, match="production points at it"):
        run("delete", f"{MODEL}:v1", "--why", "x", "--yes")
    with pytest.raises(UsageError, match="an alias is no version"):
        run("delete", f"{MODEL}@production", "--why", "x", "--yes")


def test_what_a_running_application_serves_is_not_deleted(run: Run, store: Store) -> None:
    put(store, 1)
    put(store, 2)
    point(store, 2, None)
    spec = {"recipe": "a:B", "model": f"{MODEL}@production", "group": "serve", "route": "/x", "replicas": "0..1"}
    store.put("apps/intents/desired.json", json.dumps({"name": "intents", "spec": spec, "package": "x"}).encode())
    report = ReplicaReport(
        app="intents",
        replica="r",
        node="n",
        version=1,
        digest="d",
        loaded_at=0,
        requests=0,
        last_request_at=0,
        queued_tokens=0,
    )
    write_report(store, report)  # it has not taken over v2 yet
    with pytest.raises(VersionHeld, match="application intents runs it"):
        run("delete", f"{MODEL}:v1", "--why", "x", "--yes")


def test_a_damaged_version_is_listed_as_such(run: Run, store: Store) -> None:
    put(store, 1)
    put(store, 2)
    store.put(f"models/{MODEL}/v1/manifest.json", b"{")
    states = {row["version"]: row["state"] for row in printed(run("list", "--json"))}
    assert states["v1"].startswith("DAMAGED: its manifest cannot be read")
    assert states["v2"] == "whole"
    store.put(f"models/{MODEL}/aliases/production.json", b"{")
    shown = run("list", "--json")
    assert len(printed(shown)) == 2
    assert "production.json" in shown.stderr


@pytest.mark.parametrize(
    "words", [("--metric", "accuracy"), ("--metric", "accuracy=high"), ("--tag", "=x")], ids=lambda words: words[1]
)
def test_a_wrong_option_is_told_before_anything_is_read(run: Run, tmp_path: Path, words: tuple[str, str]) -> None:
    folder = hugging_face_folder(tmp_path / "model", files=12)
    with pytest.raises(UsageError, match="--"):
        run("push", "encoder", str(folder), "--licence", "MIT", *words)


def test_python_uses_the_same_words(platform: Platform, store: Store) -> None:
    made = put(store, 1, **{"model.safetensors": weights(1)})
    point(store, 1, None)
    model = platform.models[MODEL]
    assert model["production"] == model["v1"] == model[1] == made
    assert list(model) == [made]
    assert model.aliases == {"production": 1}
    assert repr(model) == f"Model('{MODEL}', 1 versions, production=v1)"
    assert ">production</td>" in model._repr_html_()
    assert [each.name for each in platform.models] == [MODEL]
    with pytest.raises(UnknownModel, match=f"one of: {MODEL}"):
        platform.models["other"]
    with pytest.raises(UnknownAlias, match="one of: production"):
        model["staging"]
