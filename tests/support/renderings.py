"""A definition as every pure rendering of it, to see what a field changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heliostat.cli.render import service_config
from heliostat.cluster import embedded
from heliostat.cluster.autoscaling import autoscaling_config
from heliostat.cluster.manifests import ray_jobs, ray_service, render
from heliostat.cluster.ray_env import head_environment
from heliostat.controller.queue import policy
from heliostat.definition import ClusterDefinition
from heliostat.promote.evaluation import Evaluation
from heliostat.promote.gate import Facts, judge_facts
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp
from heliostat.train.queued import wanted

_FACTS = Facts(
    {"accuracy": 0.5},
    Evaluation(
        dataset="sha256:d",
        truth=("on", "off") * 10,
        predicted=("on", "on") * 10,
        slices={"night": (0, 1, 2)},
    ),
)
_PORTS = {
    "serve_http_min": 20000,
    "haproxy_metrics": 20001,
    "haproxy_stats": 20002,
    "hold": 20003,
    "proxy": 20004,
    "proxy_grpc": 20005,
    "controller_metrics": 20006,
}


def on_kuberay(definition: ClusterDefinition) -> dict[str, Any]:
    """{kind of object/name: object}."""
    if definition.platform is None:
        return {}
    objects = [*render(definition), ray_service(definition, service_config(definition)), *ray_jobs(definition)]
    return {f"{item['kind']}/{item['metadata']['name'].removeprefix(definition.name)}": item for item in objects}


def on_a_laptop(definition: ClusterDefinition) -> dict[str, Any]:
    """What the embedded cluster's parts are given: {part: value}."""
    here = Path("/state")
    return {
        "autoscaler": autoscaling_config(
            definition,
            cluster_id="id",
            state_dir=here,
            spool=here,
            temp_dir=here,
            gcs_address="127.0.0.1:1",
            cuda_devices=0,
        ),
        "environment": head_environment(
            {},
            cluster_id="id",
            token_path=here,
            settings_path=Path("/home/clusters/name/settings.json"),
            state_dir=here,
            temp_dir=here,
            ports=_PORTS,
            cuda_devices=0,
            tags=definition.tags,
            waste=definition.waste,
        ),
        "Serve's configuration": serve_config(
            [
                DesiredApp(name=name, spec=app, package="zip", groups=definition.serving_groups(app))
                for name, app in definition.applications.items()
            ],
            awake=set(),
            port=8000,
        )
        | {"awake": {name: str(app.idle_timeout) for name, app in definition.applications.items()}},
        "Jobs API": {
            name: wanted(definition, name, run="run", package="zip", now=0.0).request for name in definition.jobs
        },
        "queue": {
            "jobs": {
                name: wanted(definition, name, run="run", package="zip", now=0.0).model_dump(
                    include={"team", "nodes", "gpus_per_node", "node_gpus", "priority", "group"}
                )
                for name in definition.jobs
            },
            "policy": asdict(policy(definition)),
        },
        "gate": {
            name: {
                "rules": [f"{r.rule} {r.limit} {r.text}" for r in judge_facts(app.gate, _FACTS, _FACTS).reasons],
                # Read from the record of the application, while a version is released.
                "release": app.release.model_dump(mode="json"),
                # Read by the controller.
                "retrain": app.retrain.model_dump(mode="json") if app.retrain else None,
            }
            for name, app in definition.applications.items()
        },
        "settings": _settings(definition),
        "budgets": definition.budgets.model_dump(include={"teams", "projects"}),
    }


def _settings(definition: ClusterDefinition) -> dict[str, Any]:
    """As `up` would write them, with the ports that the definition wants."""
    wanted = {key: port for key, port in definition.ports.model_dump().items() if port != "auto"}
    ports = {"dashboard": 1, "serve": 2, "store": 3, "gcs": 4}
    if wanted:
        ports |= embedded._choose_ports(definition, set())
        ports = {key: port for key, port in ports.items() if key in wanted} | {
            key: index for index, key in enumerate(("dashboard", "serve", "store", "gcs")) if key not in wanted
        }
    with tempfile.TemporaryDirectory() as folder:
        record = embedded.ClusterRecord("id", definition.name, "up", "d", "d", folder, ports, folder, 0.0)
        made = embedded._make_settings(definition, record, Path(folder))
        return {**made.model_dump(mode="json", exclude={"token_path", "spool", "state_dir", "project_root"})}


def differences(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Dotted paths of the leaves that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from differences(before.get(key), after.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for left, right in zip(before, after, strict=True):
            yield from differences(left, right, f"{at}[]")
    elif before != after:
        yield at
