"""A deadline job rehearsed for real: the user's own job on the embedded cluster, and spot as a trace has it.

The trace's clock runs `Terms.speed` times faster than the wall's, for the market that is played here and for the policy
in the job's driver alike. What is played: while spot is down the group can have no nodes, and those that it had are
killed without notice; while it is up they can be had. All else is the job as it always is.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from heliostat.cluster import reclaim
from heliostat.cluster.nodes import read_nodes, set_capacity
from heliostat.definition import JobSpec
from heliostat.errors import ClusterError, ClusterNotUp, JobFailed, ObjectMissing
from heliostat.events import read_spool
from heliostat.plan.policy.forecast import Forecast
from heliostat.plan.policy.rehearse import Outcome, rehearse
from heliostat.plan.policy.traces import Window
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train import submit
from heliostat.train.job import DEADLINE
from heliostat.train.market import Terms
from heliostat.train.progress import read_progress

LOOK_S = 0.2
BEGIN_LIMIT_S = 120.0


@dataclass(frozen=True)
class RealOutcome:
    """How it went; all seconds are of the trace's clock."""

    run: str
    speed: float
    missed: bool
    spare_s: float
    """From the end of the work to the deadline; below 0 where it was missed."""
    cost_s: float
    """In seconds of on-demand, as all costs here."""
    on_demand_cost_s: float
    """Of on-demand alone, for the work that was declared."""
    spot_s: float
    on_demand_s: float
    moves: int
    reclaims: int
    """Workers that were lost."""
    steps_again: int
    simulated: Outcome
    """The same window on the simulated clock, with the work that was declared."""


def rehearse_for_real(
    settings: Settings,
    name: str,
    spec: JobSpec,
    terms: Terms,
    window: Window,
    *,
    arguments: list[str],
    package: str,
    progress: Callable[[str], None] = lambda _: None,
) -> RealOutcome:
    """Run the job once. Raises ClusterNotUp off an embedded cluster, JobFailed where the job itself is wrong."""
    if settings.state_dir is None:
        raise ClusterNotUp("a trace can be played on an embedded cluster only", do="heliostat up cluster/laptop.yaml")
    store = Store.connect(settings.store)
    stop = threading.Event()
    set_capacity(settings.state_dir, spec.group, None if window.up[0] else 0)
    market = None
    try:
        environment = {DEADLINE: json.dumps(asdict(terms))}
        job = submit.submit(settings, name, spec, arguments=arguments, package=package, environment=environment)
        progress(f"submitted {job.job_id}: {terms.speed:g} times faster than the trace")
        began_at = _began(store, job, stop)
        market = threading.Thread(
            target=_play, args=(settings, spec.group, window, began_at, terms.speed, stop, progress), daemon=True
        )
        market.start()
        limit_s = 3 * terms.deadline_s / terms.speed + 300
        told = 0.0
        for _ in submit.wait(settings, job, limit_s=limit_s):
            known = read_progress(store, job.run)
            if known is not None and time.monotonic() - told > 10:
                told = time.monotonic()
                progress(known.line())
    finally:
        stop.set()
        if market is not None:
            market.join(10)
        set_capacity(settings.state_dir, spec.group, None)
    return _outcome(settings, store, job.run, terms, window)


def _began(store: Store, job: submit.SubmittedJob, stop: threading.Event) -> float:
    """When the driver began to count."""
    deadline = time.monotonic() + BEGIN_LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ObjectMissing):
            return float(json.loads(store.get(f"runs/{job.run}/deadline.json").data)["began_at"])
        time.sleep(LOOK_S)
    raise JobFailed(f"job {job.job_id} did not begin", do=f"heliostat job logs {job.job_id}")


def _play(
    settings: Settings,
    group: str,
    window: Window,
    began_at: float,
    speed: float,
    stop: threading.Event,
    progress: Callable[[str], None],
) -> None:
    was: bool | None = None
    while not stop.wait(LOOK_S):
        tick = int((time.time() - began_at) * speed / window.tick_s)
        up = window.up[min(max(tick, 0), len(window.up) - 1)]
        if up != was:
            set_capacity(settings.state_dir, group, None if up else 0)  # type: ignore[arg-type]  # checked above
            progress(f"{tick * window.tick_s / 3600:.1f} h: spot {'can be had' if up else 'is gone'}")
            was = up
        if not up:
            _take_all(settings, group)


def _take_all(settings: Settings, group: str) -> None:
    for node in read_nodes(settings.state_dir):  # type: ignore[arg-type]  # checked above
        if node.group == group and node.ended_at is None and node.ray_node_id is not None:
            with contextlib.suppress(ClusterError):  # gone meanwhile
                reclaim.reclaim(settings, group, notice_s=0, node_id=node.node_id)


def _outcome(settings: Settings, store: Store, run: str, terms: Terms, window: Window) -> RealOutcome:
    told: list[dict[str, Any]] = [
        event.fields
        for event in read_spool(settings.spool)
        if event.kind == "deadline" and event.fields.get("run") == run
    ]
    if not told:
        raise JobFailed(f"run {run} said nothing of its deadline", do="submit it through heliostat.train.job.run")
    made, known = told[-1], read_progress(store, run)
    question = terms.question
    return RealOutcome(
        run=run,
        speed=terms.speed,
        missed=made["spare_s"] < 0,
        spare_s=made["spare_s"] * terms.speed,
        cost_s=made["cost_s"],
        on_demand_cost_s=made["on_demand_cost_s"],
        spot_s=made["held_s"]["spot"],
        on_demand_s=made["held_s"]["on-demand"],
        moves=made["moves"],
        reclaims=0 if known is None else known.losses,
        steps_again=0 if known is None else known.steps_again,
        simulated=rehearse(Forecast(question), question, window.forgotten()),
    )
