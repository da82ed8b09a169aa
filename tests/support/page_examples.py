"""Values for the pages: a busy platform, an empty one, and one whose names try to break out of the HTML."""

from __future__ import annotations

import math
import random
from datetime import UTC, date, datetime

import pyarrow as pa

from heliostat.meter.advise import Advice
from heliostat.meter.ledger import empty_table
from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import Report, report
from heliostat.meter.waste import Finding
from heliostat.pages.cost import cost_page
from heliostat.pages.status import AppView, GroupView, JobView, ReleaseView, StatusView, status_page
from heliostat.plan.why import Answer, Cause

NOW = datetime(2026, 11, 25, 14, 32, tzinfo=UTC).timestamp()
HOSTILE = '<script>alert("x")</script>&\'"'
PRICES = (
    GpuPrice("g6e.2xlarge", "on-demand", 2.24, "AWS price list", "2026-07-20"),
    GpuPrice("p4de.24xlarge", "spot", 1.62, "AWS Spot Advisor", "2025-07-28"),
)
WASTE = (
    Finding(
        "idle-actor", "embedding-notebook", "a1", "train-a100", 2, NOW - 26 * 3600,
        "no call for 26h 00m; class Encoder of a notebook or script on train-a100-7f3c; device busy 0%",
        52.0, 84.24, "stop", "research", "search",
    ),
    Finding("pinned-node", "serve-l40s-91be", "a2", "serve-l40s", 1, NOW - 7 * 3600,
            "its GPU free for 7h 00m; kept by feature-cache", 7.0, 15.68, "tell", "search", "ranking"),
)  # fmt: skip
ADVICE = (
    Advice("idle-group", "serve-l40s", "serve-l40s: 61% of 1,204.0 GPU-hours did nothing",
           "12% free, 49% held by somebody who did nothing with it, in 14 days",
           "lower the applications' replicas, shorten their idle_timeout, or put two on a GPU (gpus_per_replica: 0.5)",
           3520.0),
    Advice("reserve", "serve-l40s", "serve-l40s: 2 GPUs of it held 94% of 336 hours or more",
           "a year's reservation pays from 60% on, if it costs 40% less than on demand",
           "ask for a price for 2 GPUs of g6e.2xlarge, as a group of market reserved; the rest stays on demand",
           1180.0),
)  # fmt: skip


def busy(name: str = "voice") -> StatusView:
    hours = []
    for hour in range(24):
        wave = 0.5 + 0.5 * math.sin((hour - 5) / 24 * 2 * math.pi)
        hours.append((NOW - (23 - hour) * 3600, {
            "serving": 3600 * 3 * wave, "training": 3600 * 8 * (hour > 6), "loading": 3600 * 0.5 * (hour in (6, 7, 15)),
            "recomputed": 900.0 * (hour == 15), "reserved": 3600 * (1.6 - wave), "unallocated": 3600 * 0.5,
            "unexplained": 12.0,
        }))  # fmt: skip
    losses = tuple(2.2 * math.exp(-i / 18) + 0.35 + 0.05 * random.Random(i).random() for i in range(60))
    return StatusView(
        name, True, NOW, "http://127.0.0.1:8265", "http://127.0.0.1:8000",
        groups=(
            GroupView("serve-l40s", "serving", "on-demand", 1, 6, 3, 1, 1, 2.5, "g6e.2xlarge L40S"),
            GroupView("train-a100", "training", "spot", 0, 4, 1, 0, 8, 8, "p4de.24xlarge A100-80GB"),
            GroupView("train-h100", "training", "reserved", 0, 16, 0, 0, 8, 0, "p5.48xlarge H100"),
        ),
        waiting=(
            Answer("nightly-20261125-140102-9c1e", "job", Cause("no-capacity",
                   "train-h100 was refused 14 nodes in 11m 20s: insufficient capacity in us-east-1b",
                   "wait, name another zone, or let the job fall back to train-a100")),
            Answer("rerank", "app", Cause("loading", "1 actor on a node, loading", "nothing to do")),
        ),
        apps=(
            AppView("intent-classifier", "RUNNING", "", 2, "intent-classifier@production", 14, 182_340, NOW - 2,
                    "/intent-classifier", "serve-l40s"),
            AppView("rerank", "DEPLOYING", "starting 1 of 2 replicas", 1, "rerank@production", 3, 12_004, NOW - 75,
                    "/rerank", "serve-l40s"),
            AppView("digits", "RUNNING", "", 0, "digits@production", None, 0, None, "/digits", "serve-l40s"),
        ),
        jobs=(
            JobView("intent-classifier-20261125-091500-1f2a", "intent-classifier", "RUNNING", 4210, 6000, losses,
                    NOW - 5 * 3600),
            JobView("nightly-20261125-140102-9c1e", "nightly", "PENDING", started_at=NOW - 700),
            JobView("digits-20261124-181000-77aa", "digits", "SUCCEEDED", 900, 900, losses[:40], NOW - 21 * 3600,
                    NOW - 20 * 3600),
            JobView("embeddings-20261124-120000-30bd", "embeddings", "FAILED", 120, 2000, losses[:9], NOW - 27 * 3600,
                    NOW - 26.5 * 3600),
        ),
        releases=(
            ReleaseView("intent-classifier", "production", 14, NOW - 3 * 3600, "anna", "accuracy 0.912, limit 0.900"),
            ReleaseView("rerank", "production", 3, NOW - 30 * 3600, "ben", "rolled back: v4 answered 2% slower"),
        ),
        waste=WASTE, hours=hours, usd=412.6,
    )  # fmt: skip


def empty() -> StatusView:
    return StatusView("laptop", True, NOW, "http://127.0.0.1:8265", "http://127.0.0.1:8000")


def hostile() -> StatusView:
    cause = Cause("unknown", HOSTILE, HOSTILE)
    return StatusView(
        HOSTILE, True, NOW, HOSTILE, HOSTILE,
        groups=(GroupView(HOSTILE, HOSTILE, HOSTILE, 0, 1, 1, 0, 1, 1, HOSTILE),),
        waiting=(Answer(HOSTILE, "job", cause),),
        apps=(AppView(HOSTILE, HOSTILE, HOSTILE, 1, HOSTILE, 1, 1, NOW, HOSTILE, HOSTILE),),
        jobs=(JobView(HOSTILE, HOSTILE, HOSTILE, 1, 2, (1.0, 2.0), NOW),),
        releases=(ReleaseView(HOSTILE, HOSTILE, 1, NOW, HOSTILE, HOSTILE),),
        waste=(Finding("idle-app", HOSTILE, HOSTILE, HOSTILE, 1, NOW, HOSTILE, 1, 1, "tell"),),
        hours=((NOW, {"serving": 10.0}),),
    )  # fmt: skip


def rows(teams: tuple[str, ...] = ("voice", "search", "research"), days: int = 14) -> pa.Table:
    """Some weeks of a platform, as the ledger has them."""
    draw = random.Random(7)
    found = []
    shares = {
        "voice": {"serving": 30, "loading": 1, "reserved": 14},
        "search": {"serving": 12, "training": 20, "recomputed": 1.5, "loading": 2, "reserved": 16},
        "research": {"training": 60, "checkpoint": 1, "waiting": 3, "loading": 4, "starting": 2, "reserved": 6},
    }
    last = int(NOW // 86_400)
    for day in range(last - days + 1, last + 1):
        weekday = datetime.fromtimestamp(day * 86_400, UTC).weekday()
        for team in teams:
            spot = team == "research"
            for use, hours in shares.get(team, shares["voice"]).items():
                factor = (0.35 if weekday > 4 else 1.0) * (0.75 + 0.5 * draw.random())
                found.append({
                    "hour": day * 24 + 9, "group": "train-a100" if spot else "serve-l40s",
                    "market": "spot" if spot else "on-demand",
                    "instance": "p4de.24xlarge" if spot else "g6e.2xlarge", "zone": "us-east-1b",
                    "kind": "job" if spot else "app", "name": team, "team": team, "project": "main", "version": "",
                    "user": "", "use": use, "gpu_seconds": 3600.0 * hours * factor,
                })  # fmt: skip
        found.append({**found[-1], "team": "", "project": "", "kind": "", "name": "", "use": "unallocated",
                      "gpu_seconds": 3600.0 * 8})  # fmt: skip
        found.append({**found[-1], "use": "unexplained", "gpu_seconds": 600.0})
    return pa.Table.from_pylist(found, schema=empty_table().schema) if found else empty_table()


def reports(by: tuple[str, ...] = ("team", "project"), **given: object) -> tuple[Report, Report]:
    table = rows(**given)  # type: ignore[arg-type]
    return report(table, by=by, prices=PRICES), report(table, by=("day",), prices=PRICES)


def pages() -> dict[str, str]:
    """Every page that is looked at."""
    nothing = report(empty_table(), by=("team",)), report(empty_table(), by=("day",))
    return {
        "status": status_page(busy()),
        "status-empty": status_page(empty()),
        "cost": cost_page(*reports(), cluster="voice", waste=WASTE, advice=ADVICE),
        "cost-empty": cost_page(*nothing, cluster="laptop", since=date(2026, 11, 1), until=date(2026, 11, 25)),
    }
