"""Running a training function on a spot worker group, from inside a job.

    if __name__ == "__main__":
        run(train, config, name="intent-classifier", workers=2, checkpoint_every=20)

The driver keeps the workers (`gang.py`); the checkpoints are ours (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from heliostat.allowance import pause_reason
from heliostat.commit import Manifest, read_file, read_manifest
from heliostat.errors import JobFailed, UsageError
from heliostat.events import Spool
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train.checkpoint import patiently
from heliostat.train.context import OUTPUT_META, RunSpec, TrainContext
from heliostat.train.gang import Gang, GangSpec
from heliostat.train.market import Chooser, Terms, agree, read_terms
from heliostat.train.progress import Board, curve_of
from heliostat.train.reclaims import Reclaims, count, lives_of

RUN = "HELIOSTAT_RUN"
GROUP = "HELIOSTAT_GROUP"
FALLBACK = "HELIOSTAT_FALLBACK"  # the group to go to while that one has no nodes to be had
NODE_WORKERS = "HELIOSTAT_NODE_WORKERS"  # how many of its workers a node of each group takes, as JSON
GPUS = "HELIOSTAT_GPUS"  # of one node, where the job shares it
MOST_WORKERS = "HELIOSTAT_MOST_WORKERS"  # how many find room on all nodes of each group that it may be on, as JSON
QUIET = {"RAY_SCHEDULER_EVENTS": "0"}
"""Else Ray's autoscaler repeats itself in the log of a job that waits, five times a second."""
JOB = "HELIOSTAT_JOB"
JOB_ID = "HELIOSTAT_JOB_ID"
USER = "HELIOSTAT_USER"
DEADLINE = "HELIOSTAT_DEADLINE"
Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainedModel:
    """What a finished run left in the store: the files to publish, and what to say about them."""

    run: str
    manifest: Manifest
    metrics: dict[str, float]
    lineage: dict[str, Any]  # Any: JSON

    def read(self, store: Store) -> dict[str, bytes]:
        """Every file to publish, verified."""
        return {name: read_file(store, self.manifest, name) for name in self.manifest.files if name != OUTPUT_META}


def trained_model(store: Store, run: str) -> TrainedModel | None:
    """The output of a run, or None while it has none."""
    manifest = read_manifest(store, f"runs/{run}/output/manifest.json")
    if manifest is None:
        return None
    about = json.loads(read_file(store, manifest, OUTPUT_META))
    return TrainedModel(run, manifest, about["metrics"], about["lineage"])


def run(
    train: Callable[[TrainContext, Config], None],
    config: Config,
    *,
    name: str,
    group: str | None = None,
    workers: int = 2,
    min_workers: int | None = None,
    standby: int = 0,
    checkpoint_every: int | None = None,
    run_name: str | None = None,
    on_progress: Callable[[dict[str, float]], None] = lambda _: None,
) -> TrainedModel:
    """Train with `workers`, one GPU each, on the spot group, through reclaims, until the function is done.

    `min_workers` below `workers` makes it elastic: while the group has no more nodes it goes on with as few, and grows
    back without recomputing a step. `standby` workers more are held, each with its GPU, so that a lost one is replaced
    without placing another first. `checkpoint_every` is what a loss without notice may cost, in steps; None finds the
    interval that loses the least time, from what a checkpoint costs here and how often the group's nodes are taken.
    The run's name is `run_name`, or comes from HELIOSTAT_RUN, which `heliostat job submit` sets; by hand it is `name`
    and a random part. The group, where none is given, comes from HELIOSTAT_GROUP in the same way. The same name again
    resumes from the last checkpoint, and returns at once if it had finished.
    With HELIOSTAT_DEADLINE, which a job with `deadline` has set, it moves between its group and an on-demand one.
    `on_progress` is called about three times a second with rank 0's last step and loss.
    Raises JobFailed with the cause and where its log is; UsageError where the group never has so many nodes.
    """
    low = workers if min_workers is None else min_workers
    if not 1 <= low <= workers:
        raise UsageError(f"min_workers is {low}; it must lie in 1..{workers}", where="run(...)")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"checkpoint_every is {checkpoint_every}; it counts steps from 1", where="run(...)")
    settings = load()
    run_name = run_name or os.environ.get(RUN) or f"{name}-{uuid.uuid4().hex[:8]}"
    store = Store.connect(settings.store)
    done = patiently(lambda: trained_model(store, run_name), what="looking for the run", warn=_say)
    if done is not None:
        return done
    group = group or os.environ.get(GROUP) or "train"
    _check_part(workers + standby)
    _check_room(low, group)
    spec = RunSpec(run_name, checkpoint_every, workers, group, _tags("team", "project", "job", "user"))
    a_node = json.loads(os.environ.get(NODE_WORKERS, "{}"))
    if run_name == os.environ.get(RUN):  # not one trial of many
        _tell_of_a_node_half_used(workers + standby, a_node.get(group, 1))
    gang = GangSpec(
        low, workers, group, standby, fallback=os.environ.get(FALLBACK, ""), a_node=a_node,
        part=_part(run_name, workers + standby), job_id=os.environ.get(JOB_ID, ""),
    )  # fmt: skip
    terms = read_terms(os.environ[DEADLINE]) if os.environ.get(DEADLINE) else None
    failure = _train(train, config, spec, gang, terms, settings, store, on_progress)
    if failure:
        raise JobFailed(
            f"the training function raised\n{failure}",
            where=f"run {run_name}",
            do="mend it; the same run name resumes from the last checkpoint",
        )
    made = patiently(lambda: trained_model(store, run_name), what="reading the output", warn=_say)
    if made is None:
        raise JobFailed(f"run {run_name} ended without calling context.finish(...)", do="call it on every rank")
    return made


def _train(
    train: Callable[[TrainContext, Config], None],
    config: Config,
    spec: RunSpec,
    gang_spec: GangSpec,
    terms: Terms | None,
    settings: Settings,
    store: Store,
    on_progress: Callable[[dict[str, float]], None],
) -> str:
    """ "" or, where the training function is wrong, its traceback."""
    for name, value in QUIET.items():  # read when Ray is imported
        os.environ.setdefault(name, value)
    import ray
    from ray import cloudpickle

    from heliostat.train.child import Order

    if not ray.is_initialized():
        ray.init(logging_level="warning")
    spec = _with_reclaims(spec)
    chooser = None
    if terms is not None:
        agreed = terms  # for the closure
        chooser = Chooser(
            *patiently(lambda: agree(store, spec.run, agreed, now=time.time()), what="the deadline", warn=_say)
        )
    payload = cloudpickle.dumps(Order(spec, train, config))
    spool = Spool(settings.spool, f"gang-{spec.run}-{uuid.uuid4().hex[:6]}")
    gang = Gang(
        spec,
        gang_spec,
        payload,
        store,
        spool,
        on_progress,
        chooser,
        curve_of(store, spec.run),
        pause_reason(store, spec.tags),
    )
    board = Board(store, spec.run, gang.progress)
    board.start()
    _end_in_order()
    try:
        return gang.run()
    finally:
        board.close()
        made = gang.goodput()
        if chooser is not None:
            _tell_deadline(chooser, spool, spec)
        with contextlib.suppress(OSError):  # a full disk ends no training
            print(f"goodput: {made.line()}", flush=True)  # noqa: T201  # the job's log is its standard output
        spool.emit("goodput", run=spec.run, **spec.tags, **asdict(made), held=made.held, share=made.share)
        spool.close()


def _check_room(workers: int, group: str) -> None:
    """A gang that never finds room would hold all nodes that there are, and wait for ever. Raises UsageError."""
    most: dict[str, int] = json.loads(os.environ.get(MOST_WORKERS, "{}"))
    if group in most and workers > max(most.values()):
        told = ", ".join(f"{name} {count}" for name, count in sorted(most.items()))
        raise UsageError(
            f"{workers} workers at once never find room; at most fit on {told}",
            where="run(...)",
            do="ask for fewer workers, or raise the group's nodes in the definition",
        )


def _check_part(workers: int) -> None:
    """Others share the node of a job that asked for a part of one. Raises UsageError."""
    part = os.environ.get(GPUS)
    if part and workers > int(part):
        raise UsageError(
            f"{workers} workers, standby included, need a GPU each, and the job asks for {part} of one node",
            where="run(...)",
            do=f"submit it with `-- --workers {part}`, or raise the job's gpus in the definition",
        )


def _part(run_name: str, workers: int) -> int:
    """GPUs of one node that the gang holds together; 0 for whole nodes. A sweep's trials share what the sweep has."""
    part = int(os.environ.get(GPUS) or 0)
    return part if part == 0 or run_name == os.environ.get(RUN) else workers


def _tell_of_a_node_half_used(workers: int, gpus: int) -> None:
    if JOB_ID in os.environ and GPUS not in os.environ and workers < gpus:  # of the queue
        _say(
            f"uses {workers} of a node's {gpus} GPUs, and no other job is given the rest: "
            f"with `gpus: {workers}` in its definition, others share the node"
        )


def _with_reclaims(spec: RunSpec) -> RunSpec:
    """With the rate at which the group's nodes are taken, where the checkpoint interval is to follow from it."""
    if spec.checkpoint_every is not None:
        return spec
    counted: Reclaims = count(lives_of(spec.group, now=time.time()))
    _say(f"group {spec.group}: {counted.line()}")
    return replace(spec, reclaims=counted)


def _tell_deadline(chooser: Chooser, spool: Spool, spec: RunSpec) -> None:
    terms, spare_s = chooser.terms, chooser.ends_at - time.time()
    alone_s = terms.question.on_demand_cost_s
    held = {market.value: round(seconds, 1) for market, seconds in chooser.held_s.items()}
    kept = f"kept with {spare_s:.0f} s to spare" if spare_s >= 0 else f"missed by {-spare_s:.0f} s"
    _say(f"deadline {kept}; {chooser.cost_s / alone_s:.2f} of what on-demand alone costs; seconds held: {held}")
    spool.emit(
        "deadline", run=spec.run, **spec.tags, spare_s=spare_s, cost_s=chooser.cost_s, on_demand_cost_s=alone_s,
        held_s=held, moves=chooser.moves,
    )  # fmt: skip


def _end_in_order() -> None:
    """A driver that is told to stop still says what its workers held."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a full disk ends no training
        print(f"heliostat: {message}", flush=True)  # noqa: T201  # the job's log is its standard output


def _tags(*names: str) -> dict[str, str]:
    """Whose the run is: by the metadata of `ray job submit`, else by the queue's or the cluster's environment.

    Metadata is what somebody declared; whoever has the token may write any team there.
    """
    declared = _metadata()
    given = {name: declared.get(name) or os.environ.get(f"HELIOSTAT_{name.upper()}") for name in names}
    return {key: value for key, value in given.items() if value}


def _metadata() -> dict[str, str]:
    """Of the job that this driver belongs to; Ray tells it there."""
    try:
        found = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    except (ValueError, AttributeError):
        return {}
    return {str(key): str(value)[:63] for key, value in found.items()}
