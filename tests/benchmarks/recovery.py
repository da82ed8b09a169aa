"""What a lost spot node costs a training: Heliostat beside plain Ray Train, in one harness.

    python tests/benchmarks/recovery.py [--kills 4] [--notices 1] [--every 10] [--seed 0] [--keep FILE]

The real intent job (recipe v1, two workers) runs on an embedded cluster with one warm spare node. At random moments
every process of a node that trains is killed with SIGKILL: without a word, and then once more with a notice of 30 s.
The other side is tests/benchmarks/plain_ray_train.py, the same model, data and step under Ray Train's own defaults, on
a cluster with Ray's own defaults for finding dead nodes, with the same spare node and the same kind of moments.

Printed for each kill: seconds from the kill to the next completed step, steps computed again, and for ours where the
time went. Ours is also run once undisturbed: the final loss and the sha256 of the final weights of every disturbed run
must be the same. With --keep the blows of earlier runs, under other seeds, are counted as well: twenty kills take
longer than a machine can be kept quiet.

The last line is JSON. `vs_plain_ray`: our median seconds over plain's. Exit 1 where a weight differs or a loss cost
more than the interval.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform as machine
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heliostat import sdk
from heliostat.cluster import embedded, processes, ray_env, reclaim
from heliostat.cluster.nodes import NodeRecord
from heliostat.events import Event, read_spool
from heliostat.sdk import Platform
from heliostat.train.submit import SubmittedJob

ROOT = Path(__file__).parents[2]
JOB = "intent-classifier"
STEPS_PER_EPOCH = 30  # recipe v1
STEPS_PER_BLOW = 45
NOTICE_S = 30.0
NODES = 3
PHASES = ("seen", "found", "placed", "claimed", "process", "joined", "set up", "restored", "first step")
# What Heliostat sets and plain Ray does not: taken out of the plain cluster's environment.
OURS = ("RAY_health_check_", "RAY_TRAIN_", "RAY_worker_niceness")


@dataclass
class Blow:
    """One node taken away. `lost` and `seconds` come from the steps around it."""

    at: float  # of the kill, or of the notice
    step: int  # the last completed before
    attempt: str
    notice_s: float
    seconds: float = 0.0  # from the kill to the next completed step; with notice: the longest gap between steps
    lost: int = 0  # steps computed again
    phases: dict[str, float] = field(default_factory=dict)
    before_deadline: bool = True


class Side:
    """One of the two: how its run is submitted, and how its events are read."""

    def __init__(self, platform: Platform, *, plain: bool, every: int, epochs: int, standby: int = 0) -> None:
        self.platform, self.plain, self.every, self.epochs, self.standby = platform, plain, every, epochs, standby
        self._mark = _mark(platform)

    def submit(self) -> SubmittedJob:
        if not self.plain:
            arguments = ["--recipe", "v1", "--epochs", str(self.epochs), "--checkpoint-every", str(self.every)]
            arguments += ["--standby", str(self.standby)] if self.standby else []
            return self.platform.jobs.submit(JOB, arguments=arguments)
        from heliostat.train.submit import _client

        run = f"plain-{int(time.time() * 1000)}"
        script = Path(__file__).with_name("plain_ray_train.py")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        _client(self.platform.settings).submit_job(
            entrypoint=f"{sys.executable} {script} {run} {self.epochs * STEPS_PER_EPOCH} {self.every}",
            submission_id=run,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
        return SubmittedJob(run, run)

    def events(self, job: SubmittedJob) -> list[Event]:
        return [event for event in read_spool(self.platform.settings.spool) if event.fields.get("run") == job.run]

    def busy_nodes(self, job: SubmittedJob) -> set[str]:
        """Ray's ids of the nodes that train now."""
        events = self.events(job)
        if self.plain:
            starts = [event for event in events if event.kind == "worker_started"]
            return {event.fields["node"] for event in starts[-2:]}
        return set([event for event in events if event.kind == "attempt"][-1].fields["nodes"])

    def victim(self, job: SubmittedJob, rng: random.Random) -> NodeRecord | None:
        """A node that trains, where all nodes are there and have settled."""
        nodes = [node for node in self.platform.nodes() if node.group == "train" and node.ready_at]
        if len(nodes) < NODES or any(time.time() - (node.ready_at or 0) < 4 for node in nodes):
            return None
        busy = self.busy_nodes(job)
        victims = sorted((node for node in nodes if node.ray_node_id in busy), key=lambda node: node.node_id)
        return rng.choice(victims) if victims else None

    def kill(self, node: NodeRecord) -> None:
        processes.kill_node(self._mark, node.node_id)


def run_side(side: Side, *, blows: int, notice_s: float, rng: random.Random) -> tuple[list[Blow], list[str]]:
    """(what each blow cost, the final weights' sha256 and loss of every run) over as many runs as the blows take."""
    found: list[Blow] = []
    weights: list[str] = []
    while True:
        job = side.submit()
        mine: list[Blow] = []
        threads: list[threading.Thread] = []
        at_least = 12 + rng.randrange(15)
        for _ in _until_done(side, job):
            if len(found) + len(mine) >= blows:
                continue
            steps = [event for event in side.events(job) if event.kind == "step"]
            if not steps or _of_last_attempt(steps) < at_least or _is_ending(steps, notice_s):
                continue
            if mine and steps[-1].fields["attempt"] == mine[-1].attempt:
                continue  # it has not recovered from the last one yet
            victim = side.victim(job, rng)
            if victim is None:
                continue
            time.sleep(rng.random() * 0.5)
            mine.append(_strike(side, job, victim, notice_s, threads))
            at_least = 12 + rng.randrange(15)
        for thread in threads:
            thread.join()
        _measure(side.events(job), mine, plain=side.plain)
        for blow in mine:
            _tell(side, blow)
        found += mine
        if not side.plain:
            weights.append(_result(side, job))
        if len(found) >= blows:
            return found, weights


def _until_done(side: Side, job: SubmittedJob) -> Iterator[None]:
    from heliostat.train import queued, submit

    while (waits := queued.read_job(side.platform.store, job.job_id)) is not None and waits.started_at is None:
        time.sleep(0.2)
    for _ in submit.wait(side.platform.settings, job, limit_s=1200):
        yield


def _strike(
    side: Side, job: SubmittedJob, victim: NodeRecord, notice_s: float, threads: list[threading.Thread]
) -> Blow:
    at = time.time()
    if notice_s:
        thread = threading.Thread(
            target=reclaim.reclaim,
            args=(side.platform.settings, "train"),
            kwargs={"notice_s": notice_s, "node_id": victim.node_id},
        )
        thread.start()
        threads.append(thread)
    else:
        side.kill(victim)
    steps = [event for event in side.events(job) if event.kind == "step" and event.time_s <= at]
    print(
        f"  {'notice to' if notice_s else 'killed'} {victim.node_id} after step {steps[-1].fields['step']}", flush=True
    )
    return Blow(at, int(steps[-1].fields["step"]), str(steps[-1].fields["attempt"]), notice_s)


def _of_last_attempt(steps: list[Event]) -> int:
    return sum(event.fields["attempt"] == steps[-1].fields["attempt"] for event in steps)


def _is_ending(steps: list[Event], notice_s: float) -> bool:
    """Too late for a blow whose cost could still be seen."""
    left = int(steps[-1].fields["total"]) - int(steps[-1].fields["step"])
    return left < (15 if not notice_s else 60)


def _result(side: Side, job: SubmittedJob) -> str:
    """The sha256 of the final weights, and the loss of the last step."""
    digest = side.platform.jobs.result(job.run).manifest.files["model.safetensors"].sha256
    last = [event for event in side.events(job) if event.kind == "step"][-1]
    return f"{digest} {last.fields['loss']}"


def _measure(events: list[Event], blows: list[Blow], *, plain: bool) -> None:
    steps = [event for event in events if event.kind == "step"]
    for blow in blows:
        before = [event for event in steps if event.time_s <= blow.at]
        attempt = before[-1].fields["attempt"]
        later = [event for event in steps if event.time_s > blow.at and event.fields["attempt"] != attempt]
        if not later:
            raise SystemExit("the training did not go on after a blow")
        first = later[0]
        reached = max(int(e.fields["step"]) for e in steps if e.fields["attempt"] == attempt)
        blow.lost = reached - (int(first.fields["step"]) - 1)
        if blow.notice_s:
            window = [
                e.time_s for e in steps if blow.at - 2 <= e.time_s <= max(first.time_s, blow.at + blow.notice_s) + 30
            ]
            blow.seconds = max(b - a for a, b in itertools.pairwise(window))
            blow.before_deadline = first.time_s < blow.at + blow.notice_s
        else:
            blow.seconds = first.time_s - blow.at
            blow.phases = {} if plain else _phases(events, blow.at, first)


def _phases(events: list[Event], at: float, first: Event) -> dict[str, float]:
    """Seconds of each phase between the kill and the first step after it."""
    span = [event for event in events if at <= event.time_s <= first.time_s]
    marks: list[tuple[str, float]] = []

    def note(phase: str, kind: str, key: str | None = None) -> None:
        of_kind = [event for event in span if event.kind == kind]
        if of_kind:
            marks.append((phase, float(of_kind[-1].fields[key]) if key else of_kind[-1].time_s))

    note("seen", "attempt_ended")
    note("found", "keeper_lost")
    note("placed", "keeper_ready")
    note("claimed", "attempt")
    note("process", "worker_started", "began_at")
    note("joined", "worker_started")
    note("set up", "train_resumed", "restore_at")
    note("restored", "train_resumed")
    marks.append(("first step", first.time_s))
    times = [at, *(time_s for _, time_s in marks)]
    return {name: round(times[i + 1] - times[i], 3) for i, (name, _) in enumerate(marks)}


def _tell(side: Side, blow: Blow) -> None:
    who = "plain Ray Train" if side.plain else "heliostat"
    what = "longest gap" if blow.notice_s else "to the next step"
    where = ", ".join(f"{name} {seconds:.2f}" for name, seconds in blow.phases.items()) if not side.plain else ""
    print(f"{who}: step {blow.step}: {blow.seconds:.2f} s {what}, {blow.lost} steps again  {where}", flush=True)


def _mark(platform: Platform) -> processes.Mark:
    record = embedded.read_record(platform.settings.cluster)
    if record is None:
        raise SystemExit("the cluster is gone")
    return embedded.mark(record)


@contextlib.contextmanager
def _cluster(name: str, *, plain: bool) -> Iterator[Platform]:
    """An embedded cluster with two nodes for the training and one to spare."""
    home = Path(tempfile.mkdtemp(prefix="heliostat-recovery-"))
    definition = ROOT / "cluster" / "laptop.yaml"
    text = definition.read_text()
    place = text.index("  train:")
    text = text[:place] + text[place:].replace("nodes: 0..3", f"nodes: {NODES}..{NODES}", 1)
    project = home / "project"
    project.mkdir()
    for folder in ("train_jobs", "serve_apps", "platform"):
        (project / folder).symlink_to(ROOT / folder)
    (project / "spot.yaml").write_text(text)
    os.environ["HELIOSTAT_HOME"] = str(home)
    original = ray_env.head_environment

    def without_ours(*args: object, **kwargs: object) -> dict[str, str]:
        env = original(*args, **kwargs)  # type: ignore[arg-type]
        return {key: value for key, value in env.items() if not key.startswith(OURS)}

    if plain:
        ray_env.head_environment = without_ours  # type: ignore[assignment]
    try:
        platform = sdk.up(project / "spot.yaml", name=name)
        try:
            deadline = time.monotonic() + 120
            while sum(node.ready_at is not None for node in platform.nodes()) < NODES:
                if time.monotonic() > deadline:
                    raise SystemExit("the nodes did not come")
                time.sleep(0.2)
            yield platform
        finally:
            platform.down()
    finally:
        ray_env.head_environment = original
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=4, help="without notice, on each side")
    parser.add_argument("--plain-kills", type=int, help="instead of --kills, for plain Ray Train")
    parser.add_argument("--notices", type=int, default=1, help="with a notice of 30 s, on each side")
    parser.add_argument("--every", type=int, default=10, help="checkpoint interval in steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--standby", type=int, default=0, help="workers that ours holds on the spare node")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--keep", type=Path, help="a file of the blows so far: they are counted, and this run's added")
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a time limit leaves no cluster behind
    for name in [name for name in os.environ if name.startswith(("HELIOSTAT_", "AWS_"))]:
        del os.environ[name]
    at_once = min(max(options.kills, 1), 5)
    epochs = 2 + -(-at_once * STEPS_PER_BLOW // STEPS_PER_EPOCH)

    if options.side:
        found = _measure_side(options, plain=options.side == "plain", epochs=epochs)
        Path(options.into).write_text(json.dumps(found))
        return 0
    ours = _in_process(options, "ours")
    plain = {"kills": [], "notices": []} if options.ours_only else _in_process(options, "plain")
    found = _with_earlier(options.keep, {"ours": ours, "plain": plain})
    ours, plain = found["ours"], found["plain"]
    kills, notices = _blows(ours["kills"]), _blows(ours["notices"])
    equal = set(ours["weights"]) == {ours["undisturbed"]}
    result = {
        "vs_plain_ray": _ratio(kills, _blows(plain["kills"])),
        "lost_steps_with_notice": max((blow.lost for blow in notices), default=0),
        "max_lost_over_interval": round(max((blow.lost for blow in kills), default=0) / options.every, 3),
        "weights_equal": equal,
        "interval": options.every,
        "standby": options.standby,
        "ours": _summary(kills),
        "plain": _summary(_blows(plain["kills"])),
        "ours_notice": _summary(notices),
        "plain_notice": _summary(_blows(plain["notices"])),
        "before_deadline": all(blow.before_deadline for blow in notices),
        "phases": _median_phases(kills),
        "machine": f"{os.cpu_count()} cores, {machine.machine()}",
    }
    _print_table(result)
    print(json.dumps(result))
    return 0 if equal and result["max_lost_over_interval"] <= 1 and not result["lost_steps_with_notice"] else 1


def _measure_side(options: argparse.Namespace, *, plain: bool, epochs: int) -> dict[str, Any]:
    kills = options.plain_kills if plain and options.plain_kills is not None else options.kills
    seed = options.seed
    with _cluster(f"recovery-{'plain' if plain else 'ours'}", plain=plain) as platform:
        side = Side(platform, plain=plain, every=options.every, epochs=epochs, standby=0 if plain else options.standby)
        undisturbed: list[str] = []
        if not plain:
            _, undisturbed = run_side(side, blows=0, notice_s=0, rng=random.Random(seed))
            print(f"undisturbed: weights {undisturbed[0][:16]}", flush=True)
        killed, weights = run_side(side, blows=kills, notice_s=0, rng=random.Random(seed)) if kills else ([], [])
        noticed, more = (
            run_side(side, blows=options.notices, notice_s=NOTICE_S, rng=random.Random(seed + 1))
            if options.notices
            else ([], [])
        )
    return {
        "kills": [asdict(blow) for blow in killed],
        "notices": [asdict(blow) for blow in noticed],
        "weights": weights + more,
        "undisturbed": undisturbed[0] if undisturbed else "",
    }


def _in_process(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """A side in a process of its own: Ray's client keeps the token of the first cluster that it has seen."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--side", side, "--into", str(into)]
        for name in ("kills", "notices", "every", "seed", "standby"):
            command += [f"--{name}", str(getattr(options, name))]
        command += [] if options.plain_kills is None else ["--plain-kills", str(options.plain_kills)]
        process = subprocess.Popen(command)
        try:
            if process.wait():
                raise SystemExit(f"the side of {side} failed")
        finally:
            process.terminate()
            process.wait()
        return dict(json.loads(into.read_text()))


def _with_earlier(keep: Path | None, found: dict[str, Any]) -> dict[str, Any]:
    if keep is None:
        return found
    if keep.exists():
        earlier = json.loads(keep.read_text())
        for side, parts in found.items():
            for name in ("kills", "notices", "weights"):
                parts[name] = earlier[side].get(name, []) + parts.get(name, [])
        if earlier["ours"]["undisturbed"] != found["ours"]["undisturbed"]:
            raise SystemExit(f"{keep} holds runs of another length or of other data")
    keep.write_text(json.dumps(found))
    return found


def _blows(rows: list[dict[str, Any]]) -> list[Blow]:
    return [Blow(**row) for row in rows]


def _ratio(ours: list[Blow], plain: list[Blow]) -> float | None:
    if not ours or not plain:
        return None
    return round(statistics.median(b.seconds for b in ours) / statistics.median(b.seconds for b in plain), 3)


def _summary(blows: list[Blow]) -> dict[str, float] | None:
    if not blows:
        return None
    seconds = sorted(blow.seconds for blow in blows)
    return {
        "count": len(blows),
        "median_s": round(statistics.median(seconds), 2),
        "best_s": round(seconds[0], 2),
        "worst_s": round(seconds[-1], 2),
        "most_steps_again": max(blow.lost for blow in blows),
    }


def _median_phases(blows: list[Blow]) -> dict[str, float]:
    return {
        name: round(statistics.median(b.phases[name] for b in blows if name in b.phases), 3)
        for name in PHASES
        if any(name in blow.phases for blow in blows)
    }


def _print_table(result: dict[str, object]) -> None:
    print(f"{'':24}{'count':>6}{'median s':>10}{'best':>8}{'worst':>8}{'steps again':>13}")
    for name in ("ours", "plain", "ours_notice", "plain_notice"):
        row = result[name]
        if isinstance(row, dict):
            print(
                f"{name:24}{row['count']:6}{row['median_s']:10}{row['best_s']:8}{row['worst_s']:8}"
                f"{row['most_steps_again']:13}"
            )


if __name__ == "__main__":
    sys.exit(main())
