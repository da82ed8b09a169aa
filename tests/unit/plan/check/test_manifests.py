"""Manifests as people write them: which rules fire on the bad ones, and that none fires on the good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.plan.check import RULES, check_file

FOLDER = Path(__file__).parents[3] / "manifests"

# Every finding, with the line that it points at.
EXPECTED: dict[str, set[tuple[str, int]]] = {
    "bad-first-cluster": {
        ("dashboard-without-auth", 9),
        ("head-takes-gpu-work", 18),
        ("autoscaler-off", 6),
        ("moving-image-tag", 16),
        ("gpu-group-untainted", 26),
        ("missing-tags", 4),
    },
    "bad-70b-on-l4": {
        ("model-too-large", 14),
        ("spot-serving-alone", 42),
        ("no-gcs-fault-tolerance", 21),
        ("small-shared-memory", 52),
    },
    "bad-training-nodes": {
        ("idle-gpus", 23),
        ("on-demand-training", 28),
        ("training-across-zones", 28),
        ("training-without-fabric", 39),
        ("small-shared-memory", 40),
        ("training-without-nvlink", 59),
    },
    "bad-never-fits": {("request-never-fits", line) for line in (14, 16, 20, 22, 24)},
    "bad-scaled-by-cpu": {("cpu-autoscaling", 55), ("gpu-oversized", 14), ("weights-in-image", 14)},
    "bad-job-left-behind": {
        ("idle-gpus", 7),
        ("pod-not-on-instance", 38),
        ("dashboard-without-auth", 10),
        ("moving-image-tag", 19),
        ("missing-tags", 4),
    },
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_manifest_gets_its_findings_and_no_other(path: Path) -> None:
    found = {(finding.rule, finding.line) for finding in check_file(path).findings}
    assert found == EXPECTED.get(path.stem, set())


def test_there_are_twelve_and_six_of_them_are_good() -> None:
    names = [path.stem for path in FOLDER.glob("*.yaml")]
    assert len(names) == 12
    assert {name for name in names if name.startswith("bad-")} == set(EXPECTED)


def test_the_bad_ones_meet_every_rule() -> None:
    met = {rule for found in EXPECTED.values() for rule, _ in found}
    assert met == {rule.id for rule in RULES}
