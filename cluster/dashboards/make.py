"""The Grafana dashboards beside this file, from a line or two for each panel.

    python cluster/dashboards/make.py

They load beside Ray's own: each has a uid that starts with heliostat, and asks for a Prometheus data source. A test
starts a real Prometheus on a real cluster and sees that every query's metrics are there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDE, HIGH = 12, 8


@dataclass(frozen=True)
class Panel:
    """`queries`: (PromQL, legend). `kind`: timeseries, stat or bargauge. `about`: what to read from it."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False


DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "fleet": (
        "Heliostat: fleet",
        (
            Panel("Nodes by group", "What the autoscaler has up. A group without work goes to zero.",
                  (("sum by (node_type) (ray_cluster_active_nodes)", "{{node_type}}"),), stacked=True),
            Panel("GPUs in use and free", "Free ones cost as much as those in use.",
                  (('sum by (State) (ray_resources{Name="GPU"})', "{{State}}"),), stacked=True),
            Panel("Nodes asked for and failed", "Waiting for machines, or refused: heliostat why tells the cause.",
                  (("sum by (node_type) (ray_cluster_pending_nodes)", "pending {{node_type}}"),
                   ("sum by (node_type) (ray_cluster_failed_nodes)", "failed {{node_type}}"))),
            Panel("Work that waits", "Tasks and actors that have no node yet.",
                  (('sum(ray_tasks{State=~"PENDING.*"})', "tasks"),
                   ('sum(ray_actors{State=~"PENDING_CREATION|DEPENDENCIES_UNREADY"})', "actors"))),
            Panel("Device utilisation", "As NVML has it. Nothing without GPUs.",
                  (("avg by (RayNodeType, instance) (ray_node_gpus_utilization)", "{{RayNodeType}} {{instance}}"),),
                  unit="percent"),
            Panel("Device memory", "Of all devices of a node.",
                  (("sum by (instance) (ray_node_gram_used)", "{{instance}} used"),), unit="decmbytes"),
            Panel("Memory of nodes", "A node that runs out loses its work.",
                  (("ray_node_mem_used / ray_node_mem_total", "{{instance}}"),), unit="percentunit"),
            Panel("Processor", "A starved head slows everything.",
                  (("ray_node_cpu_utilization", "{{instance}}"),), unit="percent"),
            Panel("Controller's last round", "Seconds ago; above a minute nobody acts.",
                  (("time() - heliostat_controller_round_timestamp_seconds", "seconds ago"),), unit="s", kind="stat"),
            Panel("Waste", "GPUs that are held and do no useful work: heliostat cost idle.",
                  (("sum by (kind, group) (heliostat_waste_gpus)", "{{kind}} {{group}}"),), stacked=True),
        ),
    ),
    "serving": (
        "Heliostat: serving",
        (
            Panel("Requests", "Answered a second.",
                  (("sum by (application) (rate(ray_heliostat_requests_total[1m]))", "{{application}}"),),
                  unit="reqps"),
            Panel("Refused for load", "429 answers: more replicas, or a longer max_queue.",
                  (("sum by (application) (rate(ray_heliostat_sheds_total[1m]))", "{{application}}"),), unit="reqps"),
            Panel("Mean time to answer", "From arrival to answer.",
                  (("sum by (application) (rate(ray_heliostat_request_seconds_total[1m])) / "
                    "sum by (application) (rate(ray_heliostat_requests_total[1m]))", "{{application}}"),), unit="s"),
            Panel("Mean time in the queue", "The part of it that more replicas take away.",
                  (("sum by (application) (rate(ray_heliostat_queue_seconds_total[1m])) / "
                    "sum by (application) (rate(ray_heliostat_items_total[1m]))", "{{application}}"),), unit="s"),
            Panel("Work before a new item", "What admission goes by, in seconds.",
                  (("max by (application) (ray_heliostat_queue_delay_seconds)", "{{application}}"),), unit="s"),
            Panel("Share of time in the model", "Near one: the replicas are full.",
                  (("avg by (application) (ray_heliostat_busy)", "{{application}}"),), unit="percentunit"),
            Panel("Tokens in a batch", "How full batches are.",
                  (("sum by (application) (rate(ray_heliostat_tokens_total[1m])) / "
                    "sum by (application) (rate(ray_heliostat_batches_total[1m]))", "{{application}}"),)),
            Panel("Version that answers", "Two lines for one application: a release is under way.",
                  (("max by (application) (ray_heliostat_model_version)", "{{application}} newest"),
                   ("min by (application) (ray_heliostat_model_version)", "{{application}} oldest"))),
            Panel("Cold starts", "Replicas started an hour.",
                  (("sum by (application) (increase(ray_heliostat_cold_starts_total[1h]))", "{{application}}"),)),
            Panel("Replicas", "Ready ones, as Serve has them.",
                  (("count by (application) (ray_heliostat_model_version)", "{{application}}"),)),
        ),
    ),
    "training": (
        "Heliostat: training",
        (
            Panel("Progress", "Steps done of those that the run is to have.",
                  (("max by (run) (ray_heliostat_train_step / ray_heliostat_train_total_steps)", "{{run}}"),),
                  unit="percentunit"),
            Panel("Steps a second", "Falls to zero when a rank is lost or stalls.",
                  (("sum by (run) (rate(ray_heliostat_train_steps_total[1m]))", "{{run}}"),)),
            Panel("Loss", "Of the last step.", (("max by (run) (ray_heliostat_train_loss)", "{{run}}"),)),
            Panel("Share of time that waits for checkpoints", "Above a few percent: a faster store, or fewer.",
                  (("sum by (run) (rate(ray_heliostat_train_stall_seconds_total[5m]))", "{{run}}"),),
                  unit="percentunit"),
            Panel("Class of training's time this month", "Useful steps, and what was lost around them.",
                  (('sum by (use) (heliostat_month_gpu_hours{use=~"training|recomputed|checkpoint|loading|waiting"})',
                    "{{use}}"),), unit="h", kind="bargauge"),
            Panel("Goodput this month", "Useful share of what training held.",
                  (('sum(heliostat_month_gpu_hours{use="training"}) / '
                    'sum(heliostat_month_gpu_hours{use=~"training|recomputed|checkpoint|waiting"})', "goodput"),),
                  unit="percentunit", kind="stat"),
        ),
    ),
    "cost": (
        "Heliostat: cost",
        (
            Panel("Spent this month", "GPU-hours that have a price.", (("sum(heliostat_month_usd)", "spent"),),
                  unit="currencyUSD", kind="stat"),
            Panel("GPU-hours this month", "All classes.", (("sum(heliostat_month_gpu_hours)", "GPU-hours"),),
                  unit="h", kind="stat"),
            Panel("Useful share this month", "Answering requests, and steps that the result is made of.",
                  (('sum(heliostat_month_gpu_hours{use=~"serving|training"}) / sum(heliostat_month_gpu_hours)',
                    "useful"),), unit="percentunit", kind="stat"),
            Panel("Unexplained share this month", "Above one percent something does not report.",
                  (('sum(heliostat_month_gpu_hours{use="unexplained"}) / sum(heliostat_month_gpu_hours)',
                    "unexplained"),), unit="percentunit", kind="stat"),
            Panel("GPU-hours by class", "This month so far.",
                  (("sum by (use) (heliostat_month_gpu_hours)", "{{use}}"),), unit="h", stacked=True),
            Panel("GPU-hours by group", "This month so far.",
                  (("sum by (group, market) (heliostat_month_gpu_hours)", "{{group}} {{market}}"),), unit="h",
                  stacked=True),
            Panel("Money by team", "This month so far.",
                  (("sum by (team) (heliostat_month_team_usd)", "{{team}}"),), unit="currencyUSD", stacked=True),
            Panel("Money an hour", "Over the last hour, by group.",
                  (("sum by (group) (delta(heliostat_month_usd[1h]))", "{{group}}"),), unit="currencyUSD"),
            Panel("GPU-hours by team", "This month so far.",
                  (("sum by (team, project) (heliostat_month_team_gpu_hours)", "{{team}} {{project}}"),), unit="h",
                  stacked=True),
            Panel("GPU-hours without a price", "Name the group's instance in the definition.",
                  (("sum by (group) (heliostat_month_unpriced_gpu_hours)", "{{group}}"),), unit="h"),
            Panel("Waste so far, in GPU-hours", "Of what is held and does nothing now, since it began.",
                  (("sum by (kind, group) (heliostat_waste_gpu_hours)", "{{kind}} {{group}}"),), unit="h"),
            Panel("Waste so far, in money", "heliostat cost idle has the evidence.",
                  (("sum by (kind, group) (heliostat_waste_usd)", "{{kind}} {{group}}"),), unit="currencyUSD"),
        ),
    ),
}  # fmt: skip


def dashboard(name: str) -> dict[str, Any]:  # Any: Grafana's JSON
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"heliostat-{name}",
        "title": title,
        "tags": ["heliostat"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1}]},
        "links": [{"type": "dashboards", "tags": ["heliostat"], "title": "Heliostat", "asDropdown": True}],
        "panels": [_panel(index, panel) for index, panel in enumerate(panels)],
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:  # Any: Grafana's JSON
    source = {"type": "prometheus", "uid": "${datasource}"}
    custom = {"fillOpacity": 70 if panel.stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    return {
        "id": index + 1,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": source,
        "gridPos": {"x": index % 2 * WIDE, "y": index // 2 * HIGH, "w": WIDE, "h": HIGH},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({"custom": custom} if panel.kind == "timeseries" else {})},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + at), "expr": expr, "legendFormat": legend, "datasource": source}
            for at, (expr, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(json.dumps(dashboard(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
