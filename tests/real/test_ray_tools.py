"""Ray's own tools, from a virtual environment that has Ray and nothing of Heliostat, against a cluster with a token."""

from __future__ import annotations

import json
import os
import subprocess
import time
import venv
from pathlib import Path

import pytest
import ray

from heliostat.errors import SettingsError
from heliostat.sdk import Platform

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
JOBS_OF_A_USER = ("train_jobs/__init__.py", "train_jobs/digits.py", "train_jobs/digits_model.py")
TEAM = "speech"


@pytest.fixture(scope="module")
def ray_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that finds Ray and what Ray needs, and cannot import heliostat."""
    folder = tmp_path_factory.mktemp("ray-alone")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    installed = Path(ray.__file__).parents[1]
    for entry in installed.iterdir():
        # An editable install is a .pth file here, and would let Heliostat in.
        if entry.suffix != ".pth" and "heliostat" not in entry.name and entry.name not in ("tests", "__pycache__"):
            (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.fixture
def their_folder(tmp_path: Path) -> Path:
    """What a user would have: a training script."""
    for name in JOBS_OF_A_USER:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def client(python: Path, *arguments: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HELIOSTAT_", "PYTHON"))}
    command = [str(python), "-I", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**kept, **environment}, timeout=200, check=False
    )


def ray_environment(platform: Platform, home: Path, *, token: Path | None) -> dict[str, str]:
    found = {
        "HOME": str(home), "RAY_ADDRESS": platform.settings.dashboard_url, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    return found if token is None else {**found, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


RAY = ("-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())")


def test_the_client_has_no_heliostat(ray_alone: Path, tmp_path: Path) -> None:
    tried = client(ray_alone, "-c", "import ray; import heliostat", cwd=tmp_path, environment={})
    assert "No module named 'heliostat'" in tried.stderr


def test_a_training_by_ray_job_submit_runs_and_is_metered_under_its_team(
    platform: Platform, ray_alone: Path, their_folder: Path
) -> None:
    environment = ray_environment(platform, their_folder, token=platform.settings.token_path)
    words = (
        "job", "submit", "--working-dir", ".", "--submission-id", "digits-of-speech",
        "--metadata-json", json.dumps({"team": TEAM, "project": "digits"}),
        "--", "python", "-m", "train_jobs.digits", "--epochs", "2",
    )  # fmt: skip
    done = client(ray_alone, *RAY, *words, cwd=their_folder, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"accuracy"' in done.stdout
    listed = client(ray_alone, *RAY, "job", "list", cwd=their_folder, environment=environment)
    assert "digits-of-speech" in listed.stdout
    assert TEAM in listed.stdout  # the dashboard shows it too

    def trained() -> float:
        lines = platform.cost_report(["team", "project"]).lines
        return sum(line.gpu_seconds.get("training", 0.0) for line in lines if line.keys == (TEAM, "digits"))

    deadline = time.monotonic() + 20  # the spool is shipped each second
    while not trained() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert trained() > 0


@pytest.mark.parametrize(
    "words", [("submit", "--", "python", "-c", "print()"), ("list",), ("stop", "digits-of-speech")]
)
def test_without_the_token_every_one_is_refused(
    platform: Platform, ray_alone: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    environment = ray_environment(platform, tmp_path, token=None)
    refused = client(ray_alone, *RAY, "job", *words, cwd=tmp_path, environment=environment)
    assert refused.returncode != 0
    assert "401" in refused.stderr + refused.stdout or "token" in (refused.stderr + refused.stdout).lower()


def test_with_another_token_it_is_refused(platform: Platform, ray_alone: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    environment = ray_environment(platform, tmp_path, token=wrong)
    refused = client(ray_alone, *RAY, "job", "list", cwd=tmp_path, environment=environment)
    assert refused.returncode != 0
    assert "digits-of-speech" not in refused.stdout


def test_python_finds_the_cluster_by_its_address_and_token(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = platform.settings
    assert settings.token_path is not None
    token = settings.token_path.read_text().strip()
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path))  # no settings are known here
    monkeypatch.setenv("RAY_ADDRESS", settings.dashboard_url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    for found in (Platform.connect(), Platform.connect(address=settings.dashboard_url, token=token)):
        assert found.status().up
        assert repr(found) == f"Platform(address={settings.dashboard_url!r})"
        assert {row.job_id for row in found.jobs.list()} == {row.job_id for row in platform.jobs.list() if not row.why}
        with pytest.raises(SettingsError, match="HELIOSTAT_SETTINGS"):
            found.models.list()
        with pytest.raises(SettingsError, match="ray job submit"):
            found.jobs.submit("intent-classifier")
    with pytest.raises(SettingsError, match="refuses the token"):
        Platform.connect(address=settings.dashboard_url, token="0" * 64).jobs.list()


def test_python_finds_the_cluster_within_a_job(platform: Platform, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    (tmp_path / "inside.py").write_text(
        "from heliostat import Platform\nprint('found', Platform.connect().status().up)\n"
    )
    jobs = JobSubmissionClient(platform.settings.dashboard_url, headers=platform.settings.token_header())
    name = jobs.submit_job(entrypoint="python inside.py", runtime_env={"working_dir": str(tmp_path)})
    deadline = time.monotonic() + 60
    while jobs.get_job_status(name).value not in ("SUCCEEDED", "FAILED") and time.monotonic() < deadline:
        time.sleep(0.3)
    assert "found True" in jobs.get_job_logs(name)
