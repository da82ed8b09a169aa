"""Two teams, two gangs that each need every node, three priorities: does anything stop, and is each team's share kept?

    python tests/benchmarks/queueing.py --minutes 5        [--simulate-only]

First an hour simulated, by the function that the controller asks (`heliostat.plan.share`); then as many real minutes on
an embedded cluster of three nodes, with jobs that the controller admits and whose steps are asleep. Both teams always
want more than there is. A share is of the GPU-seconds from a job's admission to its end. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.world import this_machine  # noqa: E402

SHARES = {"red": 2.0, "blue": 1.0}
PRIORITIES = (-1, 0, 1)
NODES = 3
PATIENCE_S = 40.0


@dataclass
class Seen:
    """What became of one job. Times in seconds on one clock."""

    job: str
    team: str
    nodes: int
    priority: int
    submitted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    away: list[list[float]] = field(default_factory=list)
    """[from, to] while it had given its nodes back, asked to."""

    def holds(self, at: float, now: float) -> bool:
        return (
            self.started_at is not None
            and self.started_at <= at < (self.ended_at or now)
            and not any(begin <= at < end for begin, end in self.away)
        )

    def held_s(self, now: float) -> float:
        if self.started_at is None:
            return 0.0
        end = self.ended_at or now
        return end - self.started_at - sum(min(end, back) - min(end, left) for left, back in self.away)


@dataclass
class Hour:
    """A simulated cluster, its queue looked at once a second."""

    seed: int
    jobs: dict[str, Seen] = field(default_factory=dict)

    def run(self, seconds: int) -> list[Seen]:
        from heliostat.plan.share import Policy, Request, Running, charge, decide

        chance = random.Random(self.seed)
        policy = Policy(SHARES, patience_s=PATIENCE_S)
        queue: dict[str, Request] = {}
        running: dict[str, tuple[Running, float]] = {}
        usage: dict[str, float] = {}
        number = 0
        for now in range(seconds):
            for job, (one, until) in list(running.items()):
                if until <= now or one.leaving:
                    del running[job]
                    self.jobs[job].ended_at = now
            for team in SHARES:
                while sum(request.team == team for request in queue.values()) < 4:
                    number += 1
                    nodes = NODES if number % 6 == 0 else 1
                    request = Request(f"j{number}", team, "train", nodes, 1.0, float(now), chance.choice(PRIORITIES))
                    queue[request.job] = request
                    self.jobs[request.job] = Seen(request.job, team, nodes, request.priority, now)
            held = [one for one, _ in running.values()]
            usage = charge(usage, held, 1.0, half_life_s=policy.half_life_s)
            made = decide(list(queue.values()), held, {"train": NODES}, usage, policy, now=now)
            for job in made.start:
                request = queue.pop(job)
                running[job] = (Running(request, now), now + chance.randint(20, 90))
                self.jobs[job].started_at = now
            for job in made.leave:
                one, until = running[job]
                running[job] = (Running(one.request, one.started_at, leaving=True), until)
        return list(self.jobs.values())


def summary(jobs: Sequence[Seen], seconds: float, now: float) -> dict[str, Any]:
    """Shares, waits and gangs of one run. `now` is its end, on the jobs' clock."""
    used: dict[str, float] = defaultdict(float)
    for job in jobs:
        used[job.team] += job.nodes * job.held_s(now)
    total = sum(used.values())
    gangs = [job for job in jobs if job.nodes == NODES]
    waits = {
        priority: [j.started_at - j.submitted_at for j in jobs if j.started_at is not None and j.priority == priority]
        for priority in PRIORITIES
    }
    return {
        "seconds": round(seconds),
        "jobs_started": sum(job.started_at is not None for job in jobs),
        "share": {team: round(used[team] / total, 3) for team in SHARES} if total else {},
        "share_wanted": {team: round(share / sum(SHARES.values()), 3) for team, share in SHARES.items()},
        "busy": round(total / (NODES * seconds), 3),
        "gangs_started": {team: sum(g.started_at is not None and g.team == team for g in gangs) for team in SHARES},
        "longest_gang_wait_s": round(
            max((g.started_at - g.submitted_at for g in gangs if g.started_at is not None), default=0.0), 1
        ),
        "median_wait_s_by_priority": {
            str(p): round(sorted(found)[len(found) // 2], 1) for p, found in waits.items() if found
        },
    }


def simulated() -> dict[str, Any]:
    runs = [summary(Hour(seed).run(3600), 3600, 3600) for seed in range(4)]
    off = max(abs(run["share"][team] - run["share_wanted"][team]) for run in runs for team in SHARES)
    return {"runs": len(runs), "worst_share_error": round(off, 3), "first": runs[0]}


def real(minutes: float, folder: Path) -> dict[str, Any]:
    from tests.benchmarks.trusted_cluster import cluster, say, seen

    line = (
        "  {name}: {{entrypoint: python -m train_jobs.steady --workers {n}, group: pool, publishes: steady, "
        "nodes: {n}, team: {team}, priority: {priority}}}\n"
    )
    more = "".join(
        line.format(name=f"{team}-{word}", n=1, team=team, priority=priority)
        for team in SHARES
        for word, priority in zip(("low", "usual", "high"), PRIORITIES, strict=True)
    )
    more += "".join(line.format(name=f"{team}-gang", n=NODES, team=team, priority=0) for team in SHARES)
    shares = json.dumps(SHARES).replace('"', "")
    pool = f"  pool: {{role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..{NODES}, idle_timeout: 60s}}\n"
    jobs: dict[str, Seen] = {}
    looks = 0
    with cluster(folder, "queueing", shares=shares, patience=f"{PATIENCE_S:.0f}s", more=more, groups=pool) as platform:
        chance = random.Random(1)
        begun = time.time()
        number = 0
        while time.time() - begun < minutes * 60:
            for event in seen(platform, "job_admitted"):
                if event.fields["job"] in jobs:
                    jobs[event.fields["job"]].started_at = event.time_s
            for event in seen(platform, "job_asked_to_leave"):
                away = jobs[event.fields["job"]].away if event.fields["job"] in jobs else []
                if event.time_s not in [left for left, _ in away]:
                    away.append([event.time_s, float("inf")])
            for event in seen(platform, "job_returns"):
                for span in jobs[event.fields["job"]].away if event.fields["job"] in jobs else []:
                    if span[0] < event.time_s:
                        span[1] = min(span[1], event.time_s)
            for row in platform.jobs.list():
                if row.job_id in jobs and row.ended_at is not None:
                    jobs[row.job_id].ended_at = row.ended_at
            for team in SHARES:
                while sum(j.team == team and j.started_at is None for j in jobs.values()) < 3:
                    number += 1
                    # A gang of each team among the first, so that both want all nodes at the same time.
                    word = "gang" if number in (2, 5) or number % 9 == 0 else chance.choice(("low", "usual", "high"))
                    spec = platform.definition.jobs[f"{team}-{word}"]
                    steps = str(chance.randint(30, 120))
                    job = platform.jobs.submit(f"{team}-{word}", arguments=["--steps", steps])
                    jobs[job.job_id] = Seen(job.job_id, team, spec.nodes, spec.priority, time.time())
            looks += 1
            if looks % 20 == 1:
                for row in platform.jobs.list():
                    if row.status in ("QUEUED", "RUNNING"):
                        say(f"{row.job_id} {row.status} {row.why}")
            time.sleep(1)
        now = time.time()
        rows = {row.job_id: row for row in platform.jobs.list()}
        failed = [row.job_id for row in rows.values() if row.status == "FAILED"]
        result = summary(list(jobs.values()), now - begun, now)
    return {**result, "failed": failed, "most_nodes_admitted": most_at_once(list(jobs.values()), now)}


def most_at_once(jobs: Sequence[Seen], now: float) -> int:
    """Nodes of the jobs that were admitted and had neither ended nor been sent away, at the worst moment.

    More than there are would mean that one held a part and waited for the rest.
    """
    return max(
        (
            sum(job.nodes for job in jobs if job.holds(at, now))
            for at in [job.started_at for job in jobs if job.started_at is not None]
        ),
        default=0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--simulate-only", action="store_true")
    told = parser.parse_args()
    result: dict[str, Any] = {"hour_simulated": simulated()}
    if not told.simulate_only:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            result["real"] = real(told.minutes, Path(folder))
    print(json.dumps({**result, "machine": this_machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
