"""Loading and the node cache where things die: killed downloaders, ten at once, a full disk, a store that falters."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from heliostat.commit import PART_BYTES
from heliostat.errors import StoreError
from heliostat.registry import Artifact, ArtifactMetadata, Lineage, NodeCache, download, load_files, publish
from heliostat.store import Store
from tests.relay import Fault, Relay, relay

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]
PARTS = 6
FILE = "weights.txt"  # text, so that no process has to import torch
META = ArtifactMetadata(
    framework="none",
    lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
    parameters=0,
    dtype="uint8",
    licence="CC0-1.0",
)
LOADER = """
import hashlib, os, signal, sys
from collections.abc import Iterator
from pathlib import Path
from pydantic import SecretStr
from heliostat.registry import NodeCache, load_files, resolve
from heliostat.settings import StoreSettings
from heliostat.store import Store

endpoint, bucket, folder, kill_at = sys.argv[1:]

def progress(done, total):
    if int(kill_at) and done >= int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)

store = Store.connect(StoreSettings(
    endpoint=endpoint, bucket=bucket, access_key_id="test-key", secret_access_key=SecretStr("test-secret")))
files = load_files(store, resolve(store, "m:v1"), cache=NodeCache(Path(folder)), progress=progress)
print(hashlib.sha256(files.view("weights.txt")).hexdigest(), files.phases.bytes_from_cache)
"""


@pytest.fixture
def between(store: Store) -> Iterator[Relay]:
    """A relay in front of the store."""
    with relay(urlsplit(store.settings.endpoint or "").port or 0) as made:
        yield made


@pytest.fixture
def artifact(store: Store) -> Artifact:
    size = PARTS * PART_BYTES - 77
    text = random.Random(0).randbytes(size // 2 + 1).hex().encode()[:size]
    return publish(store, name="m", files={FILE: text}, metadata=META)


def through(between: Relay, store: Store) -> Store:
    return Store.connect(store.settings.model_copy(update={"endpoint": f"http://127.0.0.1:{between.port}"}))


def start(between: Relay, store: Store, folder: Path, *, kill_at: int = 0) -> subprocess.Popen[str]:
    """A process that loads through the cache, and kills itself with SIGKILL once so many bytes have arrived."""
    return subprocess.Popen(
        [
            *(sys.executable, "-c", LOADER),
            *(f"http://127.0.0.1:{between.port}", store.settings.bucket, str(folder), str(kill_at)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The sha256 of what it loaded, and how much of it came from the disk."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    digest, from_cache = out.split()
    return digest, int(from_cache)


def test_ten_processes_at_once_download_a_file_once(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    entry = artifact.manifest.files[FILE]
    loaded = [finish(process) for process in [start(between, store, tmp_path / "cache") for _ in range(10)]]
    assert {digest for digest, _ in loaded} == {entry.sha256}
    assert between.gets(FILE) == PARTS
    assert between.sent_bytes < 1.01 * entry.size


def test_after_a_killed_downloader_the_next_fetches_only_what_is_missing(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    entry, folder = artifact.manifest.files[FILE], tmp_path / "cache"
    killed = start(between, store, folder, kill_at=2 * PART_BYTES)
    killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [f"{entry.sha256}.half"]
    between.reset()
    digest, from_disk = finish(start(between, store, folder))
    assert digest == entry.sha256
    assert 0 < between.gets(FILE) <= PARTS - 2
    assert from_disk >= 2 * PART_BYTES
    assert [path.name for path in folder.iterdir()] == [entry.sha256]


def test_those_who_wait_for_a_downloader_that_is_killed_go_on_without_it(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    killed = start(between, store, folder, kill_at=3 * PART_BYTES)
    deadline_s = time.monotonic() + 60
    while not list(folder.glob("*.half")):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    others = [start(between, store, folder) for _ in range(3)]
    killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert {finish(other)[0] for other in others} == {artifact.manifest.files[FILE].sha256}
    assert between.gets(FILE) < 2 * PARTS


def test_rubbish_in_a_half_file_is_not_believed(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    entry = artifact.manifest.files[FILE]
    (tmp_path / f"{entry.sha256}.half").write_bytes(random.Random(1).randbytes(entry.size + 5))
    assert finish(start(between, store, tmp_path))[0] == entry.sha256
    assert (tmp_path / entry.sha256).stat().st_size == entry.size


def test_on_a_full_disk_the_load_goes_on_without_the_cache(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    """A file system of 32 MiB, mounted for one process alone."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system of their own")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=32m none "{disk}" && "$@" && ls -A "{disk}" >&2'
    done = subprocess.run(
        [
            *("unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", LOADER),
            *(f"http://127.0.0.1:{between.port}", store.settings.bucket, str(disk), "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [artifact.manifest.files[FILE].sha256, "0"]
    assert "the node cache is not used" in done.stderr
    assert "no room" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("the node cache"), "something was left on the disk"


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_store_that_falters_is_asked_again_until_everything_is_there(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path, cached: bool
) -> None:
    """A fifth of the requests is refused as too many, more are reset before or in the middle of their answer."""
    chance = random.Random(5)

    def decide(number: int) -> Fault:
        return chance.choices(("pass", "slow-down", "reset", "cut"), (50, 20, 15, 15))[0]

    between.decide = decide
    files = load_files(through(between, store), artifact, cache=NodeCache(tmp_path) if cached else None)
    assert hashlib.sha256(files.view(FILE)).hexdigest() == artifact.manifest.files[FILE].sha256
    assert between.faults.total() > between.faults["pass"]


def test_what_arrived_before_a_connection_broke_is_not_asked_for_again(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    between.decide = lambda number: "cut" if number % 2 else "pass"
    download(through(between, store), artifact, tmp_path)
    assert hashlib.sha256((tmp_path / FILE).read_bytes()).hexdigest() == artifact.manifest.files[FILE].sha256
    assert between.faults["cut"] > 2
    assert between.sent_bytes < 1.2 * artifact.manifest.files[FILE].size


def test_a_store_that_only_refuses_is_given_up_and_leaves_nothing_half(
    store: Store, artifact: Artifact, between: Relay, tmp_path: Path
) -> None:
    between.decide = lambda number: "slow-down"
    with pytest.raises(StoreError, match="503"):
        download(through(between, store), artifact, tmp_path)
    assert list(tmp_path.iterdir()) == []
