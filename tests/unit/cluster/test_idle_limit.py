"""A node is not given up for having been idle while it started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.cluster.autoscaling import LONGEST_GRACE_S, autoscaling_config, idle_limit_s, set_idle_limit
from heliostat.definition import load

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("asked", "took", "limit"),
    [(6.0, 1.6, 6.0), (6.0, 14.0, 28.0), (6.0, 500.0, LONGEST_GRACE_S), (600.0, 14.0, 600.0)],
)
def test_it_may_be_idle_for_as_long_again_as_it_took_to_start(asked: float, took: float, limit: float) -> None:
    assert idle_limit_s(asked, took) == limit


def test_the_limit_of_one_group_changes_in_the_autoscalers_file_and_nothing_else(tmp_path: Path) -> None:
    config = autoscaling_config(
        load(ROOT / "cluster" / "laptop.yaml"), cluster_id="c", state_dir=tmp_path, spool=tmp_path, temp_dir=tmp_path,
        gcs_address="127.0.0.1:1", cuda_devices=0,
    )  # fmt: skip
    path = tmp_path / "autoscaling.json"
    path.write_text(json.dumps(config))
    asked = config["provider"]["groups"]["train"]["idle_timeout_s"]
    assert config["available_node_types"]["train"]["idle_timeout_s"] == asked
    set_idle_limit(path, "train", asked + 20)
    changed = json.loads(path.read_text())
    assert changed["available_node_types"]["train"]["idle_timeout_s"] == asked + 20
    set_idle_limit(path, "train", asked)
    assert json.loads(path.read_text()) == config
    assert [file.name for file in tmp_path.iterdir()] == ["autoscaling.json"]
