"""The applications on one embedded cluster, asked by the official openai client and by plain HTTP."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from heliostat import sdk
from heliostat.cluster import embedded, processes
from heliostat.registry import Artifact, ArtifactMetadata, Lineage, move_alias, publish
from heliostat.sdk import Platform
from heliostat.serve.keys import create_key
from tests.tiny_apps import embeddings_files, language_files

pytestmark = [pytest.mark.cluster, pytest.mark.real, pytest.mark.timeout(300)]
DEFINITION = Path(__file__).parents[2] / "cluster" / "laptop-apps.yaml"
NAME = "test-apps"
META = ArtifactMetadata(
    framework="torch",
    lineage=Lineage(job="test", code_version="test", dataset_digest="none"),
    parameters=1,
    dtype="float32",
    licence="Apache-2.0",
)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One cluster for this file. Afterwards nothing of it may be left."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(home))
        made = sdk.up(DEFINITION, name=NAME)
        yield made
        embedded.down(NAME)
        record = embedded.read_record(NAME)
        assert record is not None
        assert processes.owned(embedded.mark(record)) == []


@pytest.fixture(autouse=True)
def _home(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.settings.state_dir is not None
    monkeypatch.setenv("HELIOSTAT_HOME", str(platform.settings.state_dir.parents[1]))


def make_production(platform: Platform, artifact: Artifact) -> None:
    move_alias(
        platform.store,
        name=artifact.name,
        alias="production",
        to_version=artifact.version,
        expected_version=None,
        who="test",
        why="first",
    )


def cluster_key(platform: Platform) -> str:
    assert platform.settings.api_key is not None
    return platform.settings.api_key.get_secret_value()


def headers(platform: Platform) -> dict[str, str]:
    return {"Authorization": f"Bearer {cluster_key(platform)}"}


def until_answered(ask: Callable[[], httpx.Response], *, limit_s: float = 120) -> httpx.Response:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            answer = ask()
        except httpx.TransportError:
            answer = httpx.Response(599)
        if answer.status_code == 200:
            return answer
        assert time.monotonic() < deadline, f"{answer.status_code}: {answer.text[:300]}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def apps(platform: Platform) -> dict[str, Artifact]:
    """All three applications, awake; digits went the whole way by itself, the others are tiny models."""
    with ThreadPoolExecutor() as pool:
        flow = pool.submit(platform.apps.flow, "digits", arguments=["--epochs", "12"], limit_s=150)
        found = _others(platform)
        assert [line.step for line in flow.result().done] == ["train", "publish", "judge", "release", "live"]
    found["digits"] = platform.models.get("digits@production")
    for name in ("embeddings", "generate"):
        url = f"{platform.apps.url(name)}/v1/models"
        until_answered(lambda url=url: httpx.get(url, headers=headers(platform), timeout=60))
    until_answered(lambda: ask_digits(platform, Image.new("L", (8, 8))))
    return found


def _others(platform: Platform) -> dict[str, Artifact]:
    found = {
        "embeddings": publish(platform.store, name="embeddings", files=embeddings_files(), metadata=META),
        "generate": publish(platform.store, name="language", files=language_files(), metadata=META),
    }
    for name, artifact in found.items():
        make_production(platform, artifact)
        platform.apps.deploy(name)
    return found


def ask_digits(platform: Platform, image: Image.Image) -> httpx.Response:
    out = io.BytesIO()
    image.save(out, "PNG")
    sent = {**headers(platform), "Content-Type": "image/png"}
    return httpx.post(platform.apps.url("digits"), content=out.getvalue(), headers=sent, timeout=60)


def client(platform: Platform, app: str, *, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{platform.apps.url(app)}/v1", api_key=key or cluster_key(platform), max_retries=0, timeout=60
    )


def test_digits_trained_as_a_job_read_what_they_never_saw_as_png(platform: Platform, apps: dict[str, Artifact]) -> None:
    from train_jobs.digits import load_data

    _, _, images, targets = load_data(0)
    right = 0
    for image, target in zip(images[:40], targets[:40], strict=True):
        picture = Image.fromarray((image[0].numpy() * 255).astype(np.uint8))
        answer = ask_digits(platform, picture)
        right += answer.json()["digit"] == int(target)
    assert answer.json()["digest"] == apps["digits"].digest == answer.headers["x-model-digest"]
    assert right >= 36
    rows = (images[0][0] * 16).tolist()
    listed = httpx.post(
        platform.apps.url("digits"), json={"images": [rows, None]}, headers=headers(platform), timeout=60
    ).json()
    assert listed["results"][0]["digit"] == int(targets[0])
    assert (listed["failed"], listed["results"][1]["error"]["param"]) == (1, "images[1]")


def test_the_openai_client_gets_embeddings(platform: Platform, apps: dict[str, Artifact]) -> None:
    with client(platform, "embeddings") as ai:
        one = ai.embeddings.create(model="embeddings", input="turn on the light")
        two = ai.embeddings.create(
            model="embeddings", input=["turn on the light", "good night"], encoding_format="float"
        )
    assert np.allclose(one.data[0].embedding, two.data[0].embedding, atol=1e-6)
    assert np.linalg.norm(two.data[1].embedding) == pytest.approx(1, abs=1e-5)
    assert (one.usage.prompt_tokens, len(two.data)) == (6, 2)
    assert one.model_extra is not None
    assert one.model_extra["digest"] == apps["embeddings"].digest


def test_the_openai_client_completes_and_chats_whole_and_streamed(
    platform: Platform, apps: dict[str, Artifact]
) -> None:
    with client(platform, "generate") as ai:
        whole = ai.completions.create(model="language", prompt="Once", max_tokens=24, temperature=0)
        pieces = list(ai.completions.create(model="language", prompt="Once", max_tokens=24, temperature=0, stream=True))
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        asked = {"model": "language", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 7}
        chat = ai.chat.completions.create(**asked)
        stream = ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat.choices[0].message.content
    assert chunks[-1].usage == chat.usage


def test_the_client_raises_its_own_errors(platform: Platform, apps: dict[str, Artifact]) -> None:
    with client(platform, "generate") as ai:
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            ai.completions.create(model="gpt-4", prompt="x")
        with pytest.raises(openai.BadRequestError, match="256"):
            ai.completions.create(model="language", prompt="x" * 400)
    with client(platform, "generate", key="wrong") as ai, pytest.raises(openai.AuthenticationError):
        ai.completions.create(model="language", prompt="x")


def test_a_key_of_a_team_opens_its_application_alone_and_is_reported(
    platform: Platform, apps: dict[str, Artifact]
) -> None:
    key = create_key(platform.store, "search", team="search-team")
    deadline = time.monotonic() + 30
    with client(platform, "embeddings", key=key) as ai:
        while True:
            try:
                ai.embeddings.create(model="embeddings", input=["a", "b"])
                break
            except openai.AuthenticationError:  # the replica has not read the new key yet
                assert time.monotonic() < deadline
                time.sleep(0.2)
    with client(platform, "generate", key=key) as ai, pytest.raises(openai.AuthenticationError):
        ai.completions.create(model="language", prompt="x")
    while not any(report.teams.get("search-team") for report in platform.apps.replicas("embeddings")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (report,) = platform.apps.replicas("embeddings")
    assert report.teams["search-team"] == {"requests": 1, "items": 2, "tokens": 6}


def test_a_client_that_leaves_a_stream_frees_the_replica(platform: Platform, apps: dict[str, Artifact]) -> None:
    def queued() -> int:
        return max(report.queued_tokens for report in platform.apps.replicas("generate"))

    url, body = f"{platform.apps.url('generate')}/v1/completions", {"model": "language", "prompt": "a", "stream": True}
    for _ in range(4):
        with httpx.stream(
            "POST", url, json={**body, "max_tokens": 200}, headers=headers(platform), timeout=60
        ) as answer:
            next(answer.iter_lines())
    deadline = time.monotonic() + 30
    while queued():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_request_ids_come_back_once_through_the_front(platform: Platform, apps: dict[str, Artifact]) -> None:
    url = f"{platform.apps.url('embeddings')}/v1/models"
    answer = httpx.get(url, headers={**headers(platform), "X-Request-Id": "mine-42"}, timeout=60)
    assert answer.headers.get_list("x-request-id") == ["mine-42"]
    made = httpx.get(url, headers=headers(platform), timeout=60).headers.get_list("x-request-id")
    assert len(made) == 1
    assert made[0]


def test_the_access_log_is_in_the_replicas_own_file(platform: Platform, apps: dict[str, Artifact]) -> None:
    record = embedded.read_record(NAME)
    assert record is not None
    url = f"{platform.apps.url('embeddings')}/v1/models"

    def lines() -> list[str]:
        # Serve writes its log in blocks, so more requests push out the first one.
        httpx.get(url, headers={**headers(platform), "X-Request-Id": "look-for-me"}, timeout=60)
        files = Path(record.temp_dir).rglob("session_*/logs/serve/*.log")
        return [
            line for file in files for line in file.read_text(errors="replace").splitlines() if "look-for-me" in line
        ]

    deadline = time.monotonic() + 60
    while not any("GET /embeddings/v1/models 200 ms=" in line for line in lines()):
        assert time.monotonic() < deadline
