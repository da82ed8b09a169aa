"""Our own examples, as definitions and as every manifest that they render to, give nothing to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cli.render import as_yaml, chosen
from heliostat.definition import load
from heliostat.plan.check import check_file, check_text

ROOT = Path(__file__).parents[4]
ON_KUBERNETES = ("aws", "gcp", "azure", "onprem")


@pytest.mark.parametrize("name", [*ON_KUBERNETES, "aws-staging", "laptop"])
def test_an_example_is_clean(name: str) -> None:
    report = check_file(ROOT / "cluster" / f"{name}.yaml")
    assert (report.findings, report.exit_code) == ((), 0)


@pytest.mark.parametrize("kind", ["raycluster", "rayservice", "rayjob"])
@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_what_an_example_renders_to_is_clean(name: str, kind: str) -> None:
    report = check_text(as_yaml(chosen(load(ROOT / "cluster" / f"{name}.yaml"), kind)))
    assert report.clusters
    assert report.findings == ()
