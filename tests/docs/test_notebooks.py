"""The notebooks run from first to last cell in a kernel of their own, in order, against the fixture cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heliostat.cluster import embedded, processes
from heliostat.sdk import Platform

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITHOUT_A_CLUSTER = "02_plan_and_rehearse.ipynb"
LIMIT_S = 180


def test_there_are_four() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    cells = read(notebook).cells
    assert cells[0].cell_type == "markdown"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.real
@pytest.mark.timeout(2 * LIMIT_S)
def test_one_runs_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images(execute(ROOT / "notebooks" / WITHOUT_A_CLUSTER, tmp_path, monkeypatch)) == 3


@pytest.mark.real
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(
    "notebook", [path for path in NOTEBOOKS if path.name != WITHOUT_A_CLUSTER], ids=lambda path: path.name
)
def test_a_notebook_runs(platform: Platform, cleared: None, notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = platform.settings.state_dir
    assert folder is not None
    assert images(execute(notebook, folder.parents[1], monkeypatch, platform.settings.cluster)) >= 1


@pytest.fixture(scope="module")
def cleared(running_platform: Platform) -> Iterator[None]:
    """Each notebook builds on the one before; the tests after these find no models and no applications."""
    yield
    folder = running_platform.settings.state_dir
    assert folder is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOSTAT_HOME", str(folder.parents[1]))
        for name in [app.name for app in running_platform.apps.list()]:
            running_platform.apps.remove(name)
        _wait_without_replicas(running_platform)
        store = running_platform.store
        for prefix in ("models/", "apps/"):
            for info in store.list(prefix):
                store.delete(info.key)


def _wait_without_replicas(platform: Platform) -> None:
    """One that is on its way out answers nobody, which is not what the next tests look for."""
    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    until = time.monotonic() + 60
    while any("ServeReplica" in process.command for process in processes.owned(embedded.mark(record))):
        assert time.monotonic() < until, "replicas of removed applications do not end"
        time.sleep(0.3)


def read(path: Path) -> Any:  # Any: nbformat has no types
    return nbformat.read(path, as_version=4)


def execute(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, cluster: str | None = None) -> Any:
    """The notebook with its outputs; its kernel is this Python, and finds clusters under `home` alone."""
    monkeypatch.setenv("HELIOSTAT_HOME", str(home))
    if cluster is not None:
        monkeypatch.setenv("HELIOSTAT_CLUSTER", cluster)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    try:
        client.execute()
    finally:
        if folder := os.environ.get("NOTEBOOKS_OUT"):  # for whoever wants to look at what was drawn
            nbformat.write(notebook, Path(folder) / path.name)
    return notebook


def images(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)
