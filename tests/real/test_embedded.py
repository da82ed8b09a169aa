"""The embedded cluster, for real: head, autoscaler, nodes, Serve, store. Started once for this file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import torch

from heliostat import sdk
from heliostat.cluster import embedded, processes
from heliostat.cluster.listeners import listeners
from heliostat.errors import ClusterBusy, JobError, PortInUse, ReleaseRolledBack
from heliostat.inference.encoder import EncoderConfig, IntentClassifier, PackedEncoder, pretrained_folder
from heliostat.registry import Artifact, ArtifactMetadata, Lineage, move_alias, publish
from heliostat.sdk import Platform
from heliostat.settings import make_current

pytestmark = [pytest.mark.cluster, pytest.mark.real, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
LAPTOP = ROOT / "cluster" / "laptop.yaml"
APP = "intent-classifier"
NAME = "test-platform"
TINY = EncoderConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
META = ArtifactMetadata(
    framework="torch",
    metrics={"accuracy": 0.9, "macro_f1": 0.9},
    lineage=Lineage(job="test", code_version="test", dataset_digest="none"),
    parameters=1,
    dtype="float32",
    licence="Apache-2.0",
)


def left_over(platform: Platform) -> list[str]:
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    return [process.command for process in processes.owned(embedded.mark(record))]


def until(condition: Callable[[], bool], what: str, *, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


def make_version(platform: Platform, seed: int, *, labels: str = '["off", "on"]') -> Artifact:
    """A model of random weights that fits the recipe: small, real, and different for each seed."""
    torch.manual_seed(seed)
    model = IntentClassifier(PackedEncoder(TINY), classes=2)
    files = {
        "model.safetensors": safetensors.torch.save(model.state_dict()),
        "labels.json": labels.encode(),
        "config.json": json.dumps({"encoder": asdict(TINY)}).encode(),
        "tokenizer.json": (pretrained_folder() / "tokenizer.json").read_bytes(),
    }
    return publish(platform.store, name=APP, files=files, metadata=META)


def ask(platform: Platform, body: object, *, key: str | None = None) -> httpx.Response:
    settings = platform.settings
    assert settings.api_key is not None
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value() if key is None else key}"}
    return httpx.post(platform.apps.url(APP), content=content, headers=headers, timeout=60)


@pytest.fixture
def app(platform: Platform) -> Artifact:
    """The application, deployed and awake, from a first version on."""
    artifact = make_version(platform, 1)
    if platform.models.alias(APP) is not None:
        return artifact
    move_alias(
        platform.store, name=APP, alias="production", to_version=1, expected_version=None, who="test", why="first"
    )
    platform.apps.deploy(APP)

    def answers() -> bool:
        try:
            return ask(platform, {"text": "hi"}).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, "a first answer", limit_s=90)
    return artifact


def test_up_again_finds_the_cluster_up(platform: Platform) -> None:
    before = left_over(platform)
    again = sdk.up(LAPTOP, name=NAME)
    assert again.settings == platform.settings
    assert len(left_over(platform)) >= len(before) - 2  # idle workers come and go; the cluster is the same


def test_up_again_revives_a_store_and_a_controller_that_were_killed(platform: Platform) -> None:
    record = embedded.read_record(NAME)
    assert record is not None
    platform.store.put("kept", b"through the kill")
    before = processes.owned(embedded.mark(record))
    killed = [process for process in before if " mini " in process.command or "heliostat.controller" in process.command]
    assert len(killed) == 2
    processes.kill(killed, signal.SIGKILL)
    until(
        lambda: not {p.pid for p in killed} & {p.pid for p in processes.owned(embedded.mark(record))}, "they are gone"
    )
    sdk.up(LAPTOP, name=NAME)
    assert platform.store.get("kept").data == b"through the kill"
    heads = [process.pid for process in before if "gcs_server" in process.command]
    assert heads[0] in {process.pid for process in processes.owned(embedded.mark(record))}


def test_up_with_another_definition_is_refused(platform: Platform, tmp_path: Path) -> None:
    other = tmp_path / "laptop.yaml"
    other.write_text(LAPTOP.read_text() + "\n# changed\n")
    with pytest.raises(ClusterBusy, match="is up with another definition"):
        sdk.up(other, name=NAME)


def test_a_taken_port_is_told_before_anything_is_started(platform: Platform, tmp_path: Path) -> None:
    port = int(platform.settings.dashboard_url.rsplit(":", 1)[1])
    other = tmp_path / "other.yaml"
    other.write_text(LAPTOP.read_text() + f"\nports:\n  dashboard: {port}\n")
    with pytest.raises(PortInUse, match=r"ports\.dashboard"):
        sdk.up(other, name="second")
    assert embedded.read_record("second") is None


def test_the_dashboard_wants_the_token(platform: Platform) -> None:
    url = f"{platform.settings.dashboard_url}/api/jobs/"
    assert httpx.get(url, timeout=10).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer wrong"}, timeout=10).status_code == 403


def test_secrets_are_readable_by_their_owner_alone(platform: Platform) -> None:
    folder = platform.settings.state_dir
    assert folder is not None
    for name in ("token", "api-key", "store-key", "settings.json"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    logs = "".join(path.read_text(errors="replace") for path in (folder / "logs").glob("*.log"))
    for name in ("token", "api-key", "store-key"):
        assert (folder / name).read_text().strip() not in logs, name


def test_an_unknown_job_is_told_with_the_known_ones(platform: Platform) -> None:
    with pytest.raises(JobError, match="there is no job 'nothing'"):
        platform.jobs.logs("nothing")


def test_the_application_answers_with_the_identity_of_its_model(platform: Platform, app: Artifact) -> None:
    answer = ask(platform, {"text": "turn on the light"})
    body = answer.json()
    assert body["label"] in ("off", "on")
    assert (body["version"], body["digest"]) == ("v1", app.digest)
    assert answer.headers["x-model-digest"] == app.digest
    many = ask(platform, {"texts": ["a", "b", "c"]}).json()
    assert len(many["results"]) == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": ""}, 422),
        ({"text": 5}, 422),
        ({"text": "x" * 100_000}, 413),
        (b"not json", 400),
        ({"texts": []}, 422),
    ],
)
def test_bad_input_gets_one_clear_error(platform: Platform, app: Artifact, body: object, status: int) -> None:
    answer = ask(platform, body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"type", "code", "message", "param", "request_id"}
    assert ask(platform, {"text": "still fine"}).status_code == 200


def test_without_the_api_key_nobody_is_answered(platform: Platform, app: Artifact) -> None:
    assert ask(platform, {"text": "hi"}, key="wrong").status_code == 401
    assert httpx.post(platform.apps.url(APP), json={"text": "hi"}, timeout=30).status_code == 401


def test_every_listener_is_on_loopback_while_serving(platform: Platform, app: Artifact) -> None:
    record = embedded.read_record(NAME)
    assert record is not None
    found = listeners(embedded.mark(record))
    assert len(found) > 10
    assert [f"{entry.address}:{entry.port} {entry.command}" for entry in found if not entry.on_loopback] == []


def test_a_new_version_is_taken_over_while_it_answers(platform: Platform, app: Artifact) -> None:
    second = make_version(platform, 2)
    released = platform.apps.release(APP, second, why="test")
    assert [report.digest for report in released.replicas] == [second.digest] * len(released.replicas)
    assert ask(platform, {"text": "hi"}).json()["digest"] == second.digest


def test_a_version_that_cannot_be_loaded_is_rolled_back_by_itself_and_says_why(
    platform: Platform, app: Artifact
) -> None:
    before = ask(platform, {"text": "hi"}).json()["version"]
    bad = make_version(platform, 2, labels='["off"]')  # the head has two rows
    with pytest.raises(ReleaseRolledBack, match="it cannot be loaded: RuntimeError"):
        platform.apps.release(APP, bad, why="test")
    assert ask(platform, {"text": "hi"}).json()["version"] == before
    status = platform.apps.status(APP)
    assert status.release is not None
    assert (status.release.state, f"v{status.release.stable}") == ("rolled_back", before)
    assert [entry.state for entry in platform.apps.history(APP)][-2:] == ["proposed", "rolled_back"]


def test_one_flipped_byte_of_a_new_version_is_never_served_and_the_old_one_goes_on(
    platform: Platform, app: Artifact
) -> None:
    before = ask(platform, {"text": "hi"}).json()["version"]
    third = make_version(platform, 3)
    key = third.manifest.key("model.safetensors")
    data = bytearray(platform.store.get(key).data)
    data[-1] ^= 1
    platform.store.put(key, bytes(data))
    current = platform.models.alias(APP)
    assert current is not None
    move_alias(
        platform.store,
        name=APP,
        alias="production",
        to_version=third.version,
        expected_version=current.version,
        who="test",
        why="corrupt",
    )

    answers: list[tuple[int, int | None]] = []

    def told() -> bool:
        answer = ask(platform, {"text": "hi"})
        answers.append((answer.status_code, answer.json().get("version")))
        return any("model.safetensors" in (report.error or "") for report in platform.apps.replicas(APP))

    until(told, "the replica says why it did not take the version over")
    report = next(report for report in platform.apps.replicas(APP) if report.error)
    assert f"bytes 0..{len(data) - 1} differs" in (report.error or "")  # the file has one part
    assert f"v{report.version}" == before
    for _ in range(10):  # it is tried again every half a second
        told()
        time.sleep(0.1)
    assert set(answers) == {(200, before)}
    platform.apps.rollback(APP, why="it was torn")


def test_an_idle_serving_group_goes_to_zero_and_wakes_for_a_request(platform: Platform, app: Artifact) -> None:
    until(lambda: platform.nodes() == [], "no nodes", limit_s=90)
    assert ask(platform, {"text": "good morning"}).status_code == 200
    assert [node.group for node in platform.nodes()] == ["serve"]


def test_a_killed_up_leaves_nothing_that_down_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path / "home"))
    command, log = [sys.executable, "-m", "heliostat.cli"], tmp_path / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen([*command, "up", str(LAPTOP)], stdout=output, stderr=output, cwd=ROOT)
    until(lambda: "starting the Ray head" in log.read_text(), "up has come to the head")
    record = embedded.read_record("laptop")
    assert record is not None
    until(lambda: len(processes.owned(embedded.mark(record))) >= 2, "store and head are running")
    up.send_signal(signal.SIGKILL)
    up.wait()
    assert record.phase == "starting"
    down = subprocess.run([*command, "down"], capture_output=True, text=True, timeout=60, check=False)
    assert down.returncode == 0, down.stderr
    assert "none left" in down.stderr
    assert processes.owned(embedded.mark(record)) == []


def test_two_clusters_stand_side_by_side(platform: Platform) -> None:
    other = sdk.up(LAPTOP, name="beside")
    try:
        assert other.settings.dashboard_url != platform.settings.dashboard_url
        assert other.models.list() == []  # a store of its own
        assert APP in platform.models.list()
    finally:
        embedded.down("beside")
        make_current(platform.settings.cluster)
    assert platform.status().up
