"""The ledger against what others saw: training, serving, reclaims, scale to zero and a release on an embedded cluster.

    python tests/benchmarks/metered_run.py [--minutes 10] [--faults] [--seed 0]

A job of two workers trains on spot through two reclaims (one with notice, one without); an application answers two
teams, gets a new version under load, goes to zero nodes and wakes again. With `--faults` the sampler, the controller,
the store, and the head (with every node) are killed with SIGKILL on the way and started again; the run is submitted
again by its name.

Nothing that is compared comes from Heliostat's events: the job writes the times of its own steps, waits and
checkpoints, the recipe those of its own forwards, the harness watches the nodes' processes in /proc ten times a second
and counts the answers it got. Exit 1 where more than 1 % of the nodes' lifetimes is unexplained, classes overlap, or
the classes do not add up to the lifetimes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from heliostat import sdk
from heliostat.cluster import embedded, processes
from heliostat.errors import HeliostatError
from heliostat.meter import ledger
from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish
from heliostat.serve.keys import create_key
from heliostat.show import print_report, print_table
from heliostat.train.submit import FINISHED

ROOT = Path(__file__).parents[2]
NAME, APP, JOB = "metered", "answers", "steps"
TEAMS = {"red": 3, "blue": 1}  # requests of each, in proportion
FORWARD_S, STEP_S, DATA_S = 0.12, 0.4, 0.06
RATE_PER_S = 3.0
WORKERS, EVERY = 2, 10

DEFINITION = f"""
name: {NAME}
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: 0..1, idle_timeout: 6s, instance: g6.xlarge}}
  train: {{role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 6s, instance: g5.xlarge}}
store: {{kind: embedded, bucket: heliostat}}
applications:
  {APP}:
    recipe: serve_apps.metered:Answers
    model: {APP}@production
    group: serve
    route: /{APP}
    replicas: 1..1
    idle_timeout: 8s
    max_queue: 60s
    keys: [red-key, blue-key]
jobs:
  {JOB}: {{entrypoint: python -m train_jobs.metered, group: train, publishes: {JOB}, team: violet, project: words}}
tags: {{team: bench, project: metered}}
"""
RECIPE = f'''
"""Answers after a fixed time, and writes down when it did so."""
import json
import os
import time

from heliostat.serve.recipe import TextModel


def note(**fields):
    with open(os.environ["METERED_LOG"] + "/serving.jsonl", "a") as file:
        file.write(json.dumps({{"pid": os.getpid(), **fields}}) + "\\n")


class Answers(TextModel):
    @classmethod
    def load(cls, files, device):
        made = cls()
        made.warm = False
        note(what="loaded", at=time.time())
        return made

    def tokenise(self, text):
        return [1] * len(text.split())

    def forward(self, batch):
        begun = time.time()
        time.sleep({FORWARD_S:f})
        note(what="forward" if self.warm else "warm_up", begun=begun, ended=time.time(), items=len(batch))
        self.warm = True
        return [len(item) for item in batch]

    def present(self, result):
        return {{"tokens": result}}
'''  # the text is full of braces
TRAINING = '''
"""Steps of a fixed length, and a log of its own of when each began and ended."""
import json
import os
import time

from heliostat.train.job import run


class Waits:
    """A source of data that makes the training wait, and says how long."""

    def __init__(self):
        self.waited_s = self.told_s = 0.0

    def next(self):
        begun = time.monotonic()
        time.sleep(%(data)f)
        self.waited_s += time.monotonic() - begun

    def take_waited(self):
        waited, self.told_s = self.waited_s - self.told_s, self.waited_s
        return waited

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def process_began():
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return time.time() - float(open("/proc/uptime").read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def train(context, config):
    import torch

    def note(what, **fields):
        with open(config["log"] + "/training.jsonl", "a") as file:
            file.write(json.dumps({"what": what, "rank": context.rank, "pid": os.getpid(), "at": time.time(), **fields})
                       + "\\n")

    note("began", began=process_began(), node=os.environ.get("HELIOSTAT_NODE_ID"))
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    data = Waits()
    start = context.restore(model, optimizer, data=data)
    note("restored", step=start)
    for step in range(start, config["steps"]):
        data.next()
        time.sleep(%(step)f)
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        note("step", step=step + 1, waited=data.waited_s)
        context.step_done(step + 1, config["steps"], loss=0.0, tokens=100)
        note("done", step=step + 1)
    context.finish(files={"model": b"x"}, metrics={}, lineage={})
    note("finished")


if __name__ == "__main__":
    import sys

    run(train, {"steps": int(sys.argv[1]), "log": sys.argv[2]}, name="steps", workers=%(workers)d,
        checkpoint_every=%(every)d)
''' % {"data": DATA_S, "step": STEP_S, "workers": WORKERS, "every": EVERY}  # noqa: UP031


@dataclass
class Watch:
    """What the harness sees of the nodes' processes, and of the answers."""

    lives: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each node: (first seen, last seen)
    statuses: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)  # by team
    notes: list[tuple[float, str]] = field(default_factory=list)
    begun: float = field(default_factory=time.time)
    ended: threading.Event = field(default_factory=threading.Event)
    loaded: threading.Event = field(default_factory=threading.Event)

    def note(self, what: str) -> None:
        self.notes.append((round(time.time() - self.begun, 1), what))
        print(f"{self.notes[-1][0]:7.1f}  {what}", file=sys.stderr, flush=True)

    def nodes(self, home: Path) -> None:
        """The processes of the nodes of this cluster, by their command lines."""
        while not self.ended.is_set():
            now = time.time()
            for entry in os.scandir("/proc"):
                if not entry.name.isdigit():
                    continue
                try:
                    command = Path(entry.path, "cmdline").read_bytes()
                except OSError:
                    continue
                if b"heliostat.cluster.node\0" in command and str(home).encode() in command:
                    name = json.loads(command.rstrip(b"\0").rpartition(b"\0")[2])["node_id"]
                    first = self.lives.get(name, (now, now))[0]
                    self.lives[name] = (first, now)
            time.sleep(0.1)

    def load(self, url: Callable[[], str], keys: dict[str, str], seed: int) -> None:
        """Requests at a steady rate while `loaded` is set. A cluster that was started again may have other ports."""
        chance = random.Random(seed)
        teams = [team for team, weight in TEAMS.items() for _ in range(weight)]

        async def one(client: httpx.AsyncClient, team: str) -> None:
            try:
                headers = {"Authorization": f"Bearer {keys[team]}"}
                answer = await client.post(url(), json={"text": "a b"}, headers=headers)
                self.statuses[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    self.answered[team] += 1
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1

        async def all_of_them() -> None:
            async with httpx.AsyncClient(timeout=60) as client, asyncio.TaskGroup() as group:
                while not self.ended.is_set():
                    if self.loaded.is_set():
                        group.create_task(one(client, chance.choice(teams)))
                    await asyncio.sleep(1 / RATE_PER_S)

        asyncio.run(all_of_them())


class Play:
    """The run itself."""

    def __init__(self, folder: Path, minutes: float, *, faults: bool, seed: int) -> None:
        self.folder, self.whole_s, self.faults, self.seed = folder, minutes * 60, faults, seed
        self.watch = Watch()
        self.definition = self._project()
        self.platform = sdk.up(self.definition)
        self.begun = time.time()  # of the plan: set again once the first step is done
        self.steps = int(0.66 * self.whole_s / (STEP_S + DATA_S + 0.05))

    def _project(self) -> Path:
        project = self.folder / "project"
        for part in ("serve_apps", "train_jobs"):
            shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        (project / "serve_apps" / "metered.py").write_text(RECIPE)
        (project / "train_jobs" / "metered.py").write_text(TRAINING)
        (project / "metered.yaml").write_text(DEFINITION)
        return project / "metered.yaml"

    def run(self) -> None:
        keys = {team: create_key(self.platform.store, f"{team}-key", team=team) for team in TEAMS}
        self._release(None)
        self.platform.apps.deploy(APP)
        threads = [
            threading.Thread(target=self.watch.nodes, args=(self.folder,), daemon=True),
            threading.Thread(
                target=self.watch.load, args=(lambda: self.platform.apps.url(APP), keys, self.seed), daemon=True
            ),
        ]
        for thread in threads:
            thread.start()
        self.watch.loaded.set()
        self.job = self._submit(None)
        plan: list[tuple[float, str, Callable[[], None]]] = [
            (0.25, "reclaim with notice", lambda: self._reclaim(8.0)),
            (0.36, "release v2", lambda: self._release(1)),
            (0.42, "no requests", self.watch.loaded.clear),
            (0.55, "reclaim without notice", lambda: self._reclaim(0.0)),
            (0.74, "requests again", self.watch.loaded.set),
            (0.86, "no requests", self.watch.loaded.clear),
        ]
        if self.faults:
            plan += [
                (0.16, "sampler killed", lambda: self._kill("heliostat.meter.sampler")),
                (0.31, "controller killed", lambda: self._kill("heliostat.controller", up=True)),
                (0.48, "store killed", lambda: self._kill(" mini ", up=True)),
                (0.63, "head killed", lambda: self._kill("gcs_server", up=True, again=True)),
            ]
        self._until(lambda: self._steps() > 0, "the first step", limit_s=150)
        self.watch.note("first step")
        self.begun = time.time()
        for share, what, act in sorted(plan, key=lambda step: step[0]):
            time.sleep(max(0.0, self.begun + share * self.whole_s - time.time()))
            self.watch.note(what)
            try:
                act()
            except HeliostatError as error:
                self.watch.note(f"  {what}: {error}")
        self._until(lambda: self._status() in FINISHED, "the training", limit_s=0.3 * self.whole_s + 60)
        self._until(lambda: not self.platform.nodes(), "zero nodes", limit_s=90)
        self.watch.ended.set()
        for thread in threads:
            thread.join(70)
        time.sleep(4)  # the controller ships the last events

    def _submit(self, run: str | None) -> Any:
        log = self.folder / "logs"
        log.mkdir(exist_ok=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.platform.jobs.submit(JOB, arguments=[str(self.steps), str(log)], run=run)
            except RuntimeError:  # Ray's agent on the head is not there yet, on a busy machine
                if time.monotonic() > deadline:
                    raise
                time.sleep(2)

    def _status(self) -> str:
        return next((row.status for row in self.platform.jobs.list() if row.job_id == self.job.job_id), "")

    def _release(self, before: int | None) -> None:
        weights = self.folder / "weights.txt"
        weights.write_text(str(before))
        lineage = Lineage(job="bench", code_version="bench", dataset_digest="sha256:bench")
        metadata = ArtifactMetadata(
            framework="torch", lineage=lineage, parameters=1, dtype="float32", licence="Apache-2.0"
        )
        made = publish(self.platform.store, name=APP, files={"weights.txt": weights}, metadata=metadata)
        move_alias(
            self.platform.store, name=APP, alias="production", to_version=made.version, expected_version=before,
            who="bench", why="bench",
        )  # fmt: skip

    def _reclaim(self, notice_s: float) -> None:
        """Of a node that trains: on a busy machine they come late."""
        before = self._steps()
        self._until(lambda: self._steps() >= before + 5, "steps of the training", limit_s=150)
        node = self.platform.reclaim("train", notice_s=notice_s)
        self.watch.note(f"  {node.node_id} is gone")

    def _steps(self) -> int:
        """Completed ones, by the job's own log."""
        lines = read_log(self.folder / "logs" / "training.jsonl")
        return sum(line["what"] == "step" and line["rank"] == 0 for line in lines)

    def _kill(self, what: str, *, up: bool = False, again: bool = False) -> None:
        record = embedded.read_record(NAME)
        assert record is not None
        mine = [process for process in processes.owned(embedded.mark(record)) if what in process.command]
        processes.kill(mine, signal.SIGKILL)
        self.watch.note(f"  {len(mine)} killed")
        time.sleep(2)
        if up:
            self.platform = sdk.up(self.definition)
            self.watch.note("  up again")
        if again:
            self.job = self._submit(self.job.run)

    def _until(self, true: Callable[[], bool], what: str, *, limit_s: float) -> None:
        begun = time.monotonic()
        while not true():
            if time.monotonic() - begun > limit_s:
                raise SystemExit(f"not within {limit_s:.0f} s: {what}")
            time.sleep(1)


# --- the outside sources ----------------------------------------------------------------------------------------------


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def training_seen(lines: list[dict[str, Any]]) -> dict[str, float]:
    """GPU-seconds of both workers by rank 0's own log: steps done first, steps done again, data waits, stalls, starts.

    A step lasts from the end of the one before to its own end; what of it the job slept for data is told apart. The
    time in `step_done` beyond the usual is what a checkpoint took of it.
    """
    sums: Counter[str] = Counter()
    reached = 0
    first = [line for line in lines if line["rank"] == 0]
    usual = sorted(done["at"] - step["at"] for step, done in itertools.pairwise(first) if done["what"] == "done")
    typical = usual[len(usual) // 2] if usual else 0.0
    before, waited = 0.0, 0.0
    for line in first:
        match line["what"]:
            case "began":
                waited = 0.0
            case "restored":
                before = line["at"]
            case "step":
                data = line["waited"] - waited
                waited = line["waited"]
                sums["steps again" if line["step"] <= reached else "steps"] += line["at"] - before - data
                sums["data"] += data
                reached, before = max(reached, line["step"]), line["at"]
            case "done":
                stall = line["at"] - before - typical
                if stall > typical:
                    sums["stall"] += stall
                    sums["steps"] -= stall
    for began in (line for line in lines if line["what"] == "began"):
        ready = next((r["at"] for r in lines if r["what"] == "restored" and r["pid"] == began["pid"]), None)
        if ready is not None:
            sums["starts"] += ready - began["began"]
    return {key: value * (1 if key == "starts" else WORKERS) for key, value in sums.items()}


def serving_seen(lines: list[dict[str, Any]]) -> float:
    return sum(line["ended"] - line["begun"] for line in lines if line["what"] == "forward")


def compare(play: Play) -> dict[str, Any]:
    platform, watch = play.platform, play.watch
    ledger.update(platform.store, now=time.time(), full=True)
    by_class = platform.cost_report(["job", "app"])
    print_report(by_class)
    print_report(platform.cost_report(["team"]))
    print_report(platform.cost_report(["group", "market"]))
    job = next(line for line in by_class.lines if line.keys[0] == JOB).gpu_seconds
    app = next(line for line in by_class.lines if line.keys[1] == APP).gpu_seconds
    train = training_seen(read_log(play.folder / "logs" / "training.jsonl"))
    total = by_class.total
    lives = sum(last - first for first, last in watch.lives.values())
    rows = [
        ("node lifetimes", total.held, lives, "the nodes' processes in /proc"),
        ("training", job.get("training", 0.0), train.get("steps", 0.0), "the job's own step log"),
        ("recomputed", job.get("recomputed", 0.0), train.get("steps again", 0.0), "steps again; less what was cut off"),
        ("checkpoint", job.get("checkpoint", 0.0), train.get("stall", 0.0), "its log: step_done beyond the usual"),
        ("waiting", job.get("waiting", 0.0), train.get("data", 0.0), "the job's sleeps for data; less keepers' waits"),
        ("loading (job)", job.get("loading", 0.0), train.get("starts", 0.0), "process starts in /proc to restored"),
        ("serving", app.get("serving", 0.0), serving_seen(read_log(play.folder / "logs" / "serving.jsonl")),
         "the recipe's own clock"),
    ]  # fmt: skip
    print_table(("class", "ledger, GPU-s", "outside, GPU-s", "outside source"), rows, title="Against outside sources")
    asked = ledger.read_counts(platform.store).to_pylist()
    counted = Counter[str]()
    for row in asked:
        if row["what"] == "requests":
            counted[row["team"]] += int(row["amount"])
    entries = ledger.newest_entries(platform.store).values()
    unexplained = total.gpu_seconds.get("unexplained", 0.0)
    return {
        "minutes": play.whole_s / 60,
        "faults": play.faults,
        "held_gpu_s": round(total.held, 1),
        "unexplained": round(unexplained / total.held, 5),
        "overlap_gpu_s": round(total.overlap_gpu_seconds, 3),
        "sum_error": abs(sum(entry.total for entry in entries) / sum(entry.lifetime for entry in entries) - 1),
        "lifetimes_vs_proc": round(total.held / lives - 1, 4),
        "classes": {use: round(seconds, 1) for use, seconds in total.gpu_seconds.items()},
        "outside": {row[0]: [round(row[1], 1), round(row[2], 1)] for row in rows},
        "requests": {"ledger": dict(counted), "answered": dict(watch.answered)},
        "statuses": dict(watch.statuses),
        "job": play._status(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for events and logs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HELIOSTAT_HOME"] = str(folder / "home")
        os.environ["METERED_LOG"] = str(folder / "logs")
        (folder / "logs").mkdir()
        play = Play(folder, given.minutes, faults=given.faults, seed=given.seed)
        try:
            play.run()
            found = compare(play)
        finally:
            if given.keep:
                for part in ("spool", "logs"):
                    shutil.copytree(folder / "home" / "clusters" / NAME / part, given.keep / part, dirs_exist_ok=True)
                shutil.copytree(folder / "logs", given.keep / "own", dirs_exist_ok=True)
            play.platform.down()
    print_table(("seconds", "what"), play.watch.notes)
    fine = found["unexplained"] <= 0.01 and found["overlap_gpu_s"] == 0 and found["sum_error"] < 1e-9
    print(json.dumps({**found, "ok": fine}))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
