"""`make demo`: the whole loop on this machine, from an empty cluster to a hot swap under load and back to zero nodes.

Every figure it prints was measured in this run; it exits 0 only if every step did what it says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from heliostat import sdk
from heliostat.cluster import embedded
from heliostat.cluster.listeners import listeners
from heliostat.cluster.processes import owned
from heliostat.errors import HeliostatError
from heliostat.events import Event, read_spool
from heliostat.meter.report import Line
from heliostat.plan.why import explain_all
from heliostat.registry import Artifact
from heliostat.sdk import Platform
from heliostat.show import print_report, print_table
from heliostat.train.submit import SubmittedJob

NAME = "demo"
APP = "intent-classifier"
TEXTS = (
    "turn on the kitchen light",
    "set the living room to twenty degrees",
    "what time is it",
    "add milk to my shopping list",
    "open the garage door",
    "start a timer for ten minutes please",
)
NOTICE_S = 8.0
RECLAIM_AT = 0.35  # of v2's steps
RATE_PER_S = 50
LOAD_S = 14.0
SWAP_AT_S = 4.0
ANSWER_LIMIT_S = 240.0
"""From zero: a node and a replica have to start, on a machine that may have much else to do."""


class Failed(Exception):
    """A step of the demo did not do what it says."""


@dataclass
class Timeline:
    """Seconds from start, what happened, and its figures; `facts` are the same figures for machines."""

    begun: float = field(default_factory=time.time)
    rows: list[tuple[float, str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # Any: JSON

    def note(self, what: str, detail: str = "", *, at: float | None = None) -> None:
        self.rows.append(((at or time.time()) - self.begun, what, detail))


@dataclass(frozen=True)
class LoadResult:
    sent: int
    failed: int
    versions: dict[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float
    reasons: dict[str, int]


class View:
    """Progress bars while it works; a plain line for each step where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Callable[..., None]]:
        task: TaskID = self._progress.add_task(title, total=None, note="")
        begun = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{title} ...")

        def update(note: str = "", *, done: float | None = None, total: float | None = None) -> None:
            self._progress.update(task, note=note, completed=done, total=total)

        with self._progress:
            yield update
            self._progress.update(task, total=1, completed=1)
        if not self._console.is_terminal:
            self._console.print(f"{title}: {time.monotonic() - begun:.1f} s")


def run(definition: Path, *, keep: bool, report: Path | None = None) -> int:
    """The demo. Returns the exit code. `report` is a file for its figures as JSON."""
    view, timeline = View(), Timeline()
    _start_fresh()
    platform: Platform | None = None
    try:
        with view.step("cluster and store up") as update:
            platform = sdk.up(definition, name=NAME, progress=update)
        timeline.note("cluster up", "head, S3 store, controller; 0 worker nodes")
        _play(platform, view, timeline)
        _show(platform, timeline, keep=keep)
    except (HeliostatError, Failed) as error:
        print_table(("seconds", "step", "figures"), timeline.rows, title="Timeline until the failure")
        _tell_failure(error, platform)
        return 1
    finally:
        if platform is not None and not keep:
            record = embedded.read_record(NAME)
            ended = embedded.down(NAME)
            left = owned(embedded.mark(record)) if record else []
            print(f"down: {len(ended)} processes ended, {len(left)} left")  # noqa: T201
            timeline.facts["processes"] = {"ended": len(ended), "left": [process.command for process in left]}
    if report is not None:
        _write_report(report, timeline)
    return 0 if not timeline.facts.get("processes", {}).get("left") else 1


def _tell_failure(error: Exception, platform: Platform | None) -> None:
    """What went wrong, what the platform waits for, and where to look."""
    told = [f"demo failed: {error}"]
    if platform is not None:
        with contextlib.suppress(HeliostatError):
            told += [f"{each.work}: {each.cause.what}; {each.cause.do}" for each in explain_all(platform.snapshot())]
        told.append(f"logs: {platform.settings.state_dir}/logs")
    cores, busy = os.cpu_count() or 1, os.getloadavg()[0]
    if busy > 2 * cores:
        told.append(f"this machine is busy: {busy:.0f} processes for {cores} cores; try again when it is quieter")
    print("\n  ".join(told), file=sys.stderr)  # noqa: T201


def _play(platform: Platform, view: View, timeline: Timeline) -> None:
    platform.apps.deploy(APP)
    first = _train(platform, view, timeline, "v1", reclaim=False)
    v1 = _publish(platform, timeline, first, "v1")
    _release(platform, timeline, v1)
    _first_answer(platform, view, timeline, v1)
    second = _train(platform, view, timeline, "v2", reclaim=True)
    v2 = _publish(platform, timeline, second, "v2")
    _hot_swap(platform, view, timeline, v1, v2)
    _only_loopback(timeline)
    _back_to_zero(platform, view, timeline)


def _train(platform: Platform, view: View, timeline: Timeline, recipe: str, *, reclaim: bool) -> SubmittedJob:
    """Submit the job and follow its steps; with `reclaim`, take one of its spot nodes on the way."""
    job = platform.jobs.submit(APP, arguments=["--recipe", recipe])
    timeline.note(f"train {recipe}: submitted", job.run)
    taking: threading.Thread | None = None
    with view.step(f"train {recipe}" + (" (one node is reclaimed)" if reclaim else "")) as update:
        follow = _Follow(platform, job)

        def on_status(status: str) -> None:
            nonlocal taking
            done, total = follow.look()
            update(f"{status.lower()} step {done}/{total or '?'}", done=done, total=total or None)
            if reclaim and taking is None and total and done >= RECLAIM_AT * total:
                taking = threading.Thread(target=platform.reclaim, args=("train",), kwargs={"notice_s": NOTICE_S})
                taking.start()

        platform.jobs.wait(job, limit_s=400, on_status=on_status)
    if taking is not None:
        taking.join()
    _note_training(timeline, follow.events(), recipe, reclaim=reclaim)
    return job


class _Follow:
    """The events of one run, as they are written."""

    def __init__(self, platform: Platform, job: SubmittedJob) -> None:
        self._spool = platform.settings.spool
        self._run = job.run

    def events(self) -> list[Event]:
        return [
            event
            for event in read_spool(self._spool)
            if event.fields.get("run") == self._run or event.kind in ("reclaim_notice", "reclaimed", "node_ready")
        ]

    def look(self) -> tuple[int, int]:
        steps = [event for event in self.events() if event.kind == "step"]
        return (int(steps[-1].fields["step"]), int(steps[-1].fields["total"])) if steps else (0, 0)


def _note_training(timeline: Timeline, events: list[Event], recipe: str, *, reclaim: bool) -> None:
    steps = [event for event in events if event.kind == "step"]
    if not steps:
        raise Failed(f"train {recipe} reported no step")
    timeline.note(f"train {recipe}: first step", f"loss {steps[0].fields['loss']}", at=steps[0].time_s)
    if reclaim:
        _note_reclaim(timeline, events, steps)
    timeline.note(f"train {recipe}: last step", f"loss {steps[-1].fields['loss']}", at=steps[-1].time_s)


def _note_reclaim(timeline: Timeline, events: list[Event], steps: list[Event]) -> None:
    notice = next((event for event in events if event.kind == "reclaim_notice"), None)
    killed = next((event for event in events if event.kind == "reclaimed"), None)
    resumed = next((event for event in events if event.kind == "train_resumed"), None)
    if notice is None or killed is None:
        raise Failed("no spot node was reclaimed: the training ended too soon")
    if resumed is None:
        raise Failed("the training did not resume after the reclaim")
    recomputed = len(steps) - len({event.fields["step"] for event in steps})
    before = max(event.time_s for event in steps if event.time_s < resumed.time_s)
    after = min(event.time_s for event in steps if event.time_s > resumed.time_s)
    timeline.note("reclaim: notice", f"{notice.fields['node']}, {NOTICE_S:g} s", at=notice.time_s)
    timeline.note("reclaim: node killed", str(killed.fields["node"]), at=killed.time_s)
    timeline.note(
        "resumed from checkpoint",
        f"at step {resumed.fields['step']}, {recomputed} steps recomputed, {after - before:.1f} s without a step",
        at=after,
    )


def _publish(platform: Platform, timeline: Timeline, job: SubmittedJob, expected: str) -> Artifact:
    from heliostat.train.job import trained_model

    trained = trained_model(platform.store, job.run)
    if trained is None:
        raise Failed(f"run {job.run} left no model")
    artifact = platform.models.publish(trained, name=APP)
    if f"v{artifact.version}" != expected:
        raise Failed(f"published as v{artifact.version}, expected {expected}")
    timeline.note(f"published {expected}", artifact.digest[:19])
    return artifact


def _release(platform: Platform, timeline: Timeline, artifact: Artifact) -> None:
    released = platform.apps.release(APP, artifact, why="demo")
    # The last two are the strictest: against the version in production, or the thresholds where there is none.
    last = released.verdict.reasons[-2:]
    figures = ", ".join(f"{reason.rule} {reason.value:.3f} (limit {reason.limit:.3f})" for reason in last)
    timeline.note(f"gate passed, v{artifact.version} in production", figures)


def _first_answer(platform: Platform, view: View, timeline: Timeline, artifact: Artifact) -> None:
    with view.step("first answer, from zero nodes") as update, _meanwhile(lambda: update(_on_the_way(platform))):
        answer, took_s = _ask_until_answered(platform)
    if answer["digest"] != artifact.digest:
        raise Failed(f"the answer came from {answer['digest']}, not from {artifact.digest}")
    timeline.note("first answer from zero", f"{took_s:.1f} s, {answer['label']} by {answer['version']}")


@contextlib.contextmanager
def _meanwhile(tell: Callable[[], None]) -> Iterator[None]:
    """Call it twice a second while the block waits."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.5):
            tell()

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _on_the_way(platform: Platform) -> str:
    """What a held request waits for."""
    nodes = [node for node in platform.nodes() if node.role == "serving"]
    return "a replica loads" if any(n.ready_at for n in nodes) else "a node starts" if nodes else "no node yet"


def _ask_until_answered(platform: Platform, *, limit_s: float = ANSWER_LIMIT_S) -> tuple[dict[str, Any], float]:
    """One request, held by the platform while it wakes; asked again while Serve is still being set up (404)."""
    begun = time.monotonic()
    while True:
        try:
            response = httpx.post(
                platform.apps.url(APP), json={"text": TEXTS[0]}, headers=_headers(platform), timeout=limit_s
            )
            said = f"HTTP {response.status_code} {response.text[:200]}"
            if response.status_code == 200:
                return response.json(), time.monotonic() - begun
        except httpx.TransportError as error:
            said = f"{type(error).__name__}: {error}"
        if time.monotonic() - begun > limit_s:
            raise Failed(f"no answer within {limit_s:.0f} s: {said}")
        time.sleep(0.2)


def _hot_swap(platform: Platform, view: View, timeline: Timeline, v1: Artifact, v2: Artifact) -> None:
    _ask_until_answered(platform)  # awake before the load, as a service in use is
    outcome: dict[str, LoadResult] = {}
    digests = {"v1": v1.digest, "v2": v2.digest}
    url, headers = platform.apps.url(APP), _headers(platform)

    def drive() -> None:
        outcome["load"] = asyncio.run(
            constant_load(url, headers, rate_per_s=RATE_PER_S, seconds=LOAD_S, digests=digests)
        )

    with view.step(f"hot swap at {RATE_PER_S} requests/s"):
        driver = threading.Thread(target=drive)
        driver.start()
        time.sleep(SWAP_AT_S)  # a share of the load before the swap, the rest after it
        begun = time.time()
        _release(platform, timeline, v2)
        timeline.note("hot swap: every replica on v2", f"{time.time() - begun:.1f} s after the gate was asked")
        driver.join()
    load = outcome["load"]
    timeline.facts["load"] = dataclasses.asdict(load)
    versions = ", ".join(f"{version} {count}" for version, count in sorted(load.versions.items()))
    timeline.note(
        "load during the swap",
        f"{load.sent} sent, {load.failed} failed; {versions}; p50 {load.p50_ms:.0f} ms, p99 {load.p99_ms:.0f} ms",
    )
    if load.failed:
        raise Failed(f"{load.failed} of {load.sent} requests failed during the swap: {load.reasons}")
    if set(load.versions) != {"v1", "v2"}:
        raise Failed(f"the load saw {sorted(load.versions)}, not both versions")


async def constant_load(
    url: str, headers: dict[str, str], *, rate_per_s: float, seconds: float, digests: dict[str, str]
) -> LoadResult:
    """Open loop: a request every 1/rate seconds whatever became of the others. Bounded: rate x seconds requests.

    A request fails when it is not answered with 200, or when the answer's digest is not its version's in `digests`.
    """
    latencies: list[float] = []
    versions: Counter[str] = Counter()
    reasons: Counter[str] = Counter()

    async def one(client: httpx.AsyncClient, text: str) -> None:
        begun = time.perf_counter()
        try:
            response = await client.post(url, json={"text": text}, headers=headers)
        except httpx.HTTPError as error:
            reasons[type(error).__name__] += 1
            return
        latencies.append((time.perf_counter() - begun) * 1000)
        answer = response.json() if response.status_code == 200 else {}
        if digests.get(answer.get("version", "")) != answer.get("digest", "none"):
            reasons[f"HTTP {response.status_code}"] += 1
        else:
            versions[answer["version"]] += 1

    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client, asyncio.TaskGroup() as group:
        begun = time.perf_counter()
        count = int(rate_per_s * seconds)
        for index in range(count):
            await asyncio.sleep(max(0.0, begun + index / rate_per_s - time.perf_counter()))
            group.create_task(one(client, TEXTS[index % len(TEXTS)]))
    latencies.sort()
    p50, p99, longest = (_quantile(latencies, share) for share in (0.5, 0.99, 1.0))
    return LoadResult(count, sum(reasons.values()), dict(versions), p50, p99, longest, dict(reasons))


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _only_loopback(timeline: Timeline) -> None:
    record = embedded.read_record(NAME)
    found = listeners(embedded.mark(record)) if record else []
    outside = [listener for listener in found if not listener.on_loopback]
    timeline.facts["listeners"] = [f"{entry.address}:{entry.port} {entry.command}" for entry in found]
    timeline.note("listening addresses", f"{len(found)} on loopback, {len(outside)} elsewhere")
    if outside:
        raise Failed(f"listens beyond loopback: {[(o.address, o.port, o.command) for o in outside]}")


def _back_to_zero(platform: Platform, view: View, timeline: Timeline) -> None:
    with view.step("idle groups back to zero") as update:
        deadline = time.monotonic() + 90
        while nodes := platform.nodes():
            update(f"{len(nodes)} nodes left")
            if time.monotonic() > deadline:
                raise Failed(f"{len(nodes)} nodes still up 90 s after the last request")
            time.sleep(0.5)
    timeline.note("worker nodes back at zero")


def _show(platform: Platform, timeline: Timeline, *, keep: bool) -> None:
    rows = [(round(seconds, 1), what, detail) for seconds, what, detail in sorted(timeline.rows)]
    print_table(("seconds", "step", "figures"), rows, title="Timeline")
    time.sleep(2.5)  # the controller ships the last events once a second
    print_report(platform.cost_report(["team", "job", "app"]))
    groups = platform.cost_report(["group", "market"])
    print_report(groups)
    timeline.facts["gpu_seconds"] = [_use(dict(zip(groups.by, line.keys, strict=True)), line) for line in groups.lines]
    if keep:
        _invite(platform)


def _use(keys: dict[str, str | None], line: Line) -> dict[str, Any]:  # Any: JSON
    """held = starting + working + idle, and every class."""
    starting = line.gpu_seconds.get("starting", 0.0)
    idle = line.gpu_seconds.get("unallocated", 0.0) + line.gpu_seconds.get("unexplained", 0.0)
    sums = {"held": line.held, "starting": starting, "working": line.held - starting - idle, "idle": idle}
    return {**keys, **sums, "classes": line.gpu_seconds}


def _write_report(path: Path, timeline: Timeline) -> None:
    rows = [{"seconds": round(at, 2), "step": what, "figures": detail} for at, what, detail in sorted(timeline.rows)]
    path.write_text(json.dumps({"timeline": rows, **timeline.facts}, indent=1) + "\n")


def _invite(platform: Platform) -> None:
    url, key = platform.apps.url(APP), platform.settings.state_dir
    print(  # noqa: T201
        f"""The platform is up. Dashboard: {platform.settings.dashboard_url} (token: {platform.settings.token_path})
Try next:
  heliostat status
  curl -s {url} -H "Authorization: Bearer $(cat {key}/api-key)" -d '{{"text": "turn on the light"}}'
  heliostat model list
  heliostat job submit intent-classifier --follow -- --recipe v1 --seed 1
  heliostat cost report
and at the end: heliostat down"""
    )


def _headers(platform: Platform) -> dict[str, str]:
    key = platform.settings.api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _start_fresh() -> None:
    """The demo's own cluster from an earlier run is ended and its data removed; no other cluster is touched."""
    if embedded.read_record(NAME) is not None:
        embedded.down(NAME)
    shutil.rmtree(embedded.cluster_dir(NAME), ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole loop on this machine.")
    parser.add_argument("definition", type=Path, nargs="?", default=Path("cluster/laptop.yaml"))
    parser.add_argument("--keep", action="store_true", help="leave the platform up")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures as JSON")
    parsed = parser.parse_args()
    return run(parsed.definition, keep=parsed.keep, report=parsed.report)


if __name__ == "__main__":
    sys.exit(main())
