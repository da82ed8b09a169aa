"""What the processes of an embedded cluster are given of the environment of whoever starts it."""

from __future__ import annotations

from pathlib import Path

from heliostat.cluster import ray_env
from heliostat.definition import load
from tests.support.renderings import _PORTS

LAPTOP = Path(__file__).parents[3] / "cluster" / "laptop.yaml"
MINE = {"PATH": "/bin", "HELIOSTAT_ALERT_WEBHOOK": "http://127.0.0.1:9/secret", "HELIOSTAT_ALERTMANAGER": ""}


def test_where_alerts_go_is_for_the_controller_alone() -> None:
    definition = load(LAPTOP)
    here = Path("/home/clusters/name")
    everybody = ray_env.head_environment(
        MINE, cluster_id="id", token_path=here, settings_path=here / "settings.json", state_dir=here, temp_dir=here,
        ports=_PORTS, cuda_devices=0, tags=definition.tags, waste=definition.waste,
    )  # fmt: skip
    assert "secret" not in "".join(everybody.values())
    assert everybody["HELIOSTAT_HOME"] == "/home"
    assert ray_env.alert_targets(MINE) == {"HELIOSTAT_ALERT_WEBHOOK": "http://127.0.0.1:9/secret"}
