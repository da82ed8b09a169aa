"""What the example definition becomes, word for word. After a wanted change: python tests/golden/test_renderings.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heliostat.cluster.autoscaling import autoscaling_config
from heliostat.definition import load
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp

ROOT = Path(__file__).parents[2]
LAPTOP = load(ROOT / "cluster" / "laptop.yaml")


def autoscaling() -> dict[str, Any]:
    return autoscaling_config(
        LAPTOP,
        cluster_id="cluster-id",
        state_dir=Path("state"),
        spool=Path("state/spool"),
        temp_dir=Path("temp"),
        gcs_address="127.0.0.1:6379",
        cuda_devices=0,
    )


def serving() -> dict[str, Any]:
    apps = [
        DesiredApp(name=name, spec=spec, package="file:///recipes.zip") for name, spec in LAPTOP.applications.items()
    ]
    return serve_config(apps, awake=set(LAPTOP.applications), port=8000)


RENDERINGS = {"laptop-autoscaling.json": autoscaling, "laptop-serve.json": serving}


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_example_renders_as_before(name: str) -> None:
    assert RENDERINGS[name]() == json.loads((Path(__file__).parent / name).read_text())


def test_serve_takes_the_configuration() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    schema.ServeDeploySchema.model_validate(serving())


if __name__ == "__main__":
    for file, render in RENDERINGS.items():
        (Path(__file__).parent / file).write_text(json.dumps(render(), indent=1) + "\n")
