"""Five seeded wastes and three active ones on an embedded cluster: each waste is found within its window, nothing else.

    python tests/benchmarks/waste.py [--after 20] [--watch 3]

Seeded: a loop that burns its core and reports no step, a run whose rank 1 stops before a collective, an actor of a
notebook that nobody calls, an endpoint without requests, an actor without GPUs that pins a node. Beside them a run that
reports steps, an actor that is called, an endpoint that is asked. The controller looks by itself; this script only
reads what it told. A waste begins when the seed did its last useful thing; it must be told within the window, the time
between two looks, and ten seconds. Watched for `--watch` windows. Nothing is stopped: the rules are a dry run, so that
what would be done shows too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

DEFINITION = """
name: waste
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, instance: g6.xlarge, cpus: 2, gpus: 2, nodes: 0..1, idle_timeout: 60s}}
  train: {{role: training, market: spot, instance: g6.12xlarge, cpus: 8, gpus: 8, nodes: 0..3, idle_timeout: 60s}}
  pin: {{role: training, market: on-demand, instance: g6.xlarge, cpus: 1, gpus: 1, nodes: 0..1, idle_timeout: 25s}}
store: {{kind: embedded, bucket: heliostat}}
tags: {{team: demo, project: voice}}
waste: {{after: {after:g}s, act: stop, warn: 5s, dry_run: true}}
applications:
  asked: {{recipe: "serve_apps.echo:Echo", model: echo@production, group: serve, route: /asked, replicas: 1..1}}
  unasked: {{recipe: "serve_apps.echo:Echo", model: echo@production, group: serve, route: /unasked, replicas: 1..1}}
jobs:
  steady: {{entrypoint: python -m train_jobs.loops steady, group: train, publishes: loops}}
  spinning: {{entrypoint: python -m train_jobs.loops spinning, group: train, publishes: loops}}
  stalled: {{entrypoint: python -m train_jobs.loops stalled, group: train, publishes: loops}}
"""
LOOPS = '''
"""Trainings for the test of waste: one that steps, one that spins, one whose rank 1 never comes back."""
import sys
import time

from heliostat.train import stall
from heliostat.train.job import run


def train(context, config):
    stall.FIRST_S = 6.0  # a rank says that it stands still; after a minute elsewhere
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parallel = DistributedDataParallel(model) if context.world_size > 1 else model
    done = context.restore(model, optimizer)
    for step in range(done + 1, 100_000):
        if config["mode"] == "spinning" and step > 3:
            while True:  # burns its core and makes nothing
                pass
        if config["mode"] == "stalled" and step > 3 and context.rank == 1:
            never_comes_back()
        optimizer.zero_grad()
        loss = parallel(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        context.step_done(step, 100_000, loss=float(loss), tokens=32)
        time.sleep(0.2)


def never_comes_back():
    while True:
        time.sleep(0.5)


if __name__ == "__main__":
    mode = sys.argv[1]
    run(train, {"mode": mode}, name=mode, workers=2 if mode == "stalled" else 1, checkpoint_every=50)
'''
NOTEBOOK = """
import ray, time
ray.init(log_to_driver=False, namespace="notebook")

@ray.remote(num_gpus=1, num_cpus=0, label_selector={"heliostat.io/group": "train"})
class Model:
    def predict(self): return 1

@ray.remote(num_cpus=0, label_selector={"heliostat.io/group": "pin"})
class Cache:
    def ready(self): return 1

forgotten = Model.options(name="forgotten").remote()
called = Model.options(name="called").remote()
pinning = Cache.options(name="pinning").remote()
ray.get([forgotten.predict.remote(), called.predict.remote(), pinning.ready.remote()])
print("ready", time.time(), flush=True)
while True:
    ray.get(called.predict.remote())
    time.sleep(1)
"""
EXPECTED = {
    "spinning": "no-steps", "stalled": "stalled-rank", "forgotten": "idle-actor", "unasked": "idle-app",
    "pin": "pinned-node",
}  # fmt: skip
ACTIVE = ("steady", "called", "asked")
SLACK_S = 10.0


def start(folder: Path, after: float) -> Any:
    """The cluster, with recipes of our own."""
    import shutil

    from heliostat import sdk

    project = folder / "project"
    for part in ("serve_apps", "train_jobs"):
        shutil.copytree(world.ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "serve_apps" / "echo.py").write_text(world.ECHO)
    (project / "train_jobs" / "loops.py").write_text(LOOPS)
    definition = project / "waste.yaml"
    definition.write_text(DEFINITION.format(after=after))
    os.environ |= {"HELIOSTAT_HOME": str(folder / "home")}
    return sdk.up(definition, progress=lambda line: print(f"  {line}", file=sys.stderr))


def publish_echo(platform: Any) -> None:
    """The model of both applications."""
    from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish

    lineage = Lineage(job="bench", code_version="bench", dataset_digest="none")
    about = ArtifactMetadata(framework="none", lineage=lineage, parameters=1, dtype="float32", licence="Apache-2.0")
    made = publish(platform.store, name="echo", files={"labels.json": b"[]"}, metadata=about)
    move_alias(
        platform.store, name="echo", alias="production", to_version=made.version, expected_version=None, who="bench",
        why="first",
    )  # fmt: skip


def notebook(platform: Any, log: Path) -> subprocess.Popen[str]:
    settings = platform.settings
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.token_path), "RAY_ADDRESS": settings.gcs_address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", NOTEBOOK], env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def submit(platform: Any, name: str) -> Any:
    """Ray takes no job before the head's agent is up, which on a loaded machine comes after the dashboard."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return platform.jobs.submit(name)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def keep_asking(platform: Any, stop: threading.Event) -> None:
    import httpx

    url = f"{platform.settings.serve_url}/asked"
    headers = _key(platform)
    while not stop.wait(1.0):
        try:
            httpx.post(url, json={"text": "hello"}, headers=headers, timeout=10)
        except httpx.HTTPError:
            continue


def _key(platform: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {platform.settings.api_key.get_secret_value()}"}


def told(platform: Any, kind: str = "waste_found") -> dict[str, Any]:
    """By name of the thing: the first event about it."""
    from heliostat.events import read_spool

    found: dict[str, Any] = {}
    for event in read_spool(platform.settings.spool):
        if event.kind == kind:
            found.setdefault(_short(event.fields), event)
    return found


def _short(given: dict[str, Any]) -> str:
    """Nodes have names of their own."""
    return given["group"] if given["what"] in ("pinned-node", "kept-group") else given["name"]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--after", type=float, default=20.0, help="the window, in seconds")
    options.add_argument("--watch", type=float, default=3.0, help="in windows, from when everything runs")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        return run(Path(name), given.after, given.watch)


def run(folder: Path, after: float, watch: float) -> int:
    from heliostat.cluster import embedded

    stop = threading.Event()
    book: subprocess.Popen[str] | None = None
    platform = start(folder, after)
    try:
        publish_echo(platform)
        for app in ("asked", "unasked"):
            platform.apps.deploy(app)
        jobs = {name: submit(platform, name) for name in ("steady", "spinning", "stalled")}
        book = notebook(platform, folder / "notebook.log")
        assert book.stdout is not None
        for app in ("asked", "unasked"):
            world.wait_answered(platform, f"{platform.settings.serve_url}/{app}", {"text": "hello"})
        threading.Thread(target=keep_asking, args=(platform, stop), daemon=True).start()
        if not any(line.startswith("ready") for line in iter(book.stdout.readline, "")):  # Ray prints between the lines
            raise SystemExit((folder / "notebook.log").read_text()[-2000:])
        wait_for_steps(platform, jobs)
        print("everything runs", file=sys.stderr)
        time.sleep(watch * after)
        return verdict(platform, after, watch, scraped(platform, folder))
    finally:
        stop.set()
        if book is not None:
            book.kill()
        embedded.down("waste")


def wait_for_steps(platform: Any, jobs: dict[str, Any]) -> None:
    def stepped(job: Any) -> bool:
        return _steps(platform, job.run) >= 3

    try:
        world.until(lambda: all(stepped(job) for job in jobs.values()), "three steps of each run", limit_s=240)
    except RuntimeError:
        for name, job in jobs.items():
            if not stepped(job):
                print(f"--- {name}\n{platform.jobs.logs(job.job_id)[-3000:]}", file=sys.stderr)
        raise


def _steps(platform: Any, run: str) -> int:
    from heliostat.events import read_spool

    return sum(e.kind == "step" and e.fields.get("run") == run for e in read_spool(platform.settings.spool))


def scraped(platform: Any, folder: Path) -> dict[str, Any]:
    """What a real Prometheus finds on this cluster, where everything runs: whether each panel's metrics are there."""
    from tests.support.prometheus import BINARY, DEVICES, ONCE_SEEN, metrics_of, prometheus, queries, target_files

    if BINARY is None:
        return {"prometheus": "not installed"}
    platform.cost_report()  # folds the ledger, which the controller tells of
    wanted = {name for query in queries().values() for name in metrics_of(query)} - DEVICES - ONCE_SEEN
    files = target_files(platform.settings.cluster, platform.settings.state_dir)
    with prometheus(folder, files) as server:
        deadline = time.monotonic() + 90
        while (missing := sorted(wanted - server.names())) and time.monotonic() < deadline:
            time.sleep(1)
        time.sleep(5)
        with_data = [label for label, query in queries().items() if server.query(query)]
        targets = server.targets()
        down = [f"{t['scrapeUrl']}: {t['lastError']}" for t in targets if t["health"] != "up"]
        empty = sorted(set(queries()) - set(with_data))
        if os.environ.get("HELIOSTAT_DUMP_METRICS"):
            Path(os.environ["HELIOSTAT_DUMP_METRICS"]).write_text("\n".join(sorted(server.names())))
    return {
        "targets": len(targets), "targets_down": down, "panel_queries": len(queries()), "metrics_missing": missing,
        "queries_with_data": len(with_data), "queries_without_data": empty,
    }  # fmt: skip


def verdict(platform: Any, after: float, watch: float, seen: dict[str, Any]) -> int:
    found, warned, would = told(platform), told(platform, "waste_warned"), told(platform, "waste_acted")
    late = {}
    look_s = min(30.0, max(1.0, after / 10))
    for name, kind in EXPECTED.items():
        event = found.get(name)
        if event is None:
            print(f"{name}: not found", file=sys.stderr)
            continue
        late[name] = round(event.time_s - event.fields["since"] - after, 2)
        given = event.fields
        print(f"{name}: {given['what']}, {late[name]:+.1f} s after its window; {given['evidence']}", file=sys.stderr)
        if given["what"] != kind:
            print(f"  told as {given['what']}, expected {kind}", file=sys.stderr)
    false = sorted(set(found) - set(EXPECTED))
    right = [name for name, kind in EXPECTED.items() if name in found and found[name].fields["what"] == kind]
    priced = {name: found[name].fields["usd"] is not None for name in right}
    summary = {
        "benchmark": "waste", "window_s": after, "watched_windows": watch, "seeded": len(EXPECTED),
        "found": len(right), "found_after_window_s": late, "slack_s": look_s + SLACK_S,
        "in_time": sum(value <= look_s + SLACK_S for value in late.values()), "active": len(ACTIVE),
        "false_alarms": false, "priced": sum(priced.values()), "warned": sorted(warned), "would_act": sorted(would),
        "prometheus": seen, "machine": world.this_machine(),
    }  # fmt: skip
    print(json.dumps(summary))
    return (
        0
        if not seen.get("metrics_missing")
        and len(right) == len(EXPECTED)
        and not false
        and summary["in_time"] == len(EXPECTED)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
