"""Nobody comes in without a credential, and no credential lies about. tests/benchmarks/doors.py does it at length."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heliostat.sdk import Platform
from tests.benchmarks import doors
from tests.faults import planted

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tried(running_platform: Platform) -> doors.Found:
    folder = running_platform.settings.state_dir
    assert folder is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(folder.parents[1]))
        return doors.look(running_platform, doors.made_up(), app="intent-classifier")


def test_every_port_and_route_is_closed_or_is_named(tried: doors.Found) -> None:
    assert [(one.name, one.door, one.credential, one.told) for one in tried.violations] == []


def test_what_is_tried_is_what_there_is(tried: doors.Found) -> None:
    """Closed doors prove nothing where nobody is behind them: the right key opens them."""
    names = {one.name for one in tried.tries}
    assert {"dashboard", "gcs", "raylet", "store"} <= names
    assert len(tried.of("refused")) > 150
    right = [one for one in tried.tries if one.credential == doors.RIGHT]
    assert {one.name for one in right} == {"dashboard", "gcs", "store"}
    assert {one.outcome for one in right} == {"open"}


def test_the_secrets_are_in_their_own_files_alone(platform: Platform) -> None:
    said = {}
    for command in (
        ["status", "--json"],
        ["job", "list"],
        ["app", "list"],
        ["job", "logs", "nothing"],
        ["key", "list"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "heliostat.cli", "--debug", *command, "--cluster", platform.settings.cluster],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        said[" ".join(command)] = done.stdout + done.stderr
    found = planted.look(platform, commands=said)
    assert found.hits == []
    assert found.open_files == []
    assert {"manifests", "logs", "files", "objects", "Ray", "metrics", "ps", "environ", "output"} <= set(found.looked)


def test_a_secret_that_lay_about_would_be_found(platform: Platform) -> None:
    assert platform.settings.state_dir is not None
    [token, *_] = planted.secrets_of(platform).values()
    leak = platform.settings.state_dir / "logs" / "leak.log"
    leak.write_bytes(b"said: " + token)
    try:
        hits = planted.look(platform).hits
    finally:
        leak.unlink()
    assert [(hit.secret, hit.place) for hit in hits] == [("Ray's token", "logs: logs/leak.log")]
