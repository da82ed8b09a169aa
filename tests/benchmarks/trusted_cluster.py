"""What a cluster does when nobody is logged in: spot that runs dry and comes back, peaks of serving, sick nodes.

    python tests/benchmarks/trusted_cluster.py [--only spot,fallback,sick,slow,peak]

Each scenario is real: an embedded cluster, its autoscaler, its controller, trainings that sleep their steps. Ends with
one line of JSON: times in seconds, and how many steps were made more than once. Nothing is asserted about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import world  # noqa: E402
from tests.benchmarks.world import FIXED, this_machine  # noqa: E402

DEFINITION = """
name: {name}
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: 0..2, idle_timeout: 6s}}
  train: {{role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 6s, fallback: steady}}
  steady: {{role: training, market: on-demand, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 6s}}
{groups}store: {{kind: embedded, bucket: heliostat}}
budgets: {{max_gpus: 4}}
sharing: {{shares: {shares}, patience: {patience}}}
jobs:
  pair: {{entrypoint: python -m train_jobs.steady, group: train, publishes: steady, nodes: 2, falls_back: true}}
  elastic: {{entrypoint: python -m train_jobs.steady --workers 3 --min-workers 1, group: train, publishes: steady}}
{more}
applications:
  fixed: {{recipe: "serve_apps.fixed:Fixed", model: fixed@production, group: serve, route: /fixed, replicas: 1..2,
          idle_timeout: 10m, max_queue: 20s}}
tags: {{team: demo, project: trust}}
"""


@contextmanager
def cluster(
    folder: Path, name: str, *, shares: str = "{}", patience: str = "5m", more: str = "", groups: str = ""
) -> Iterator[Any]:
    from heliostat import sdk

    project = folder / "project"
    for part in ("serve_apps", "train_jobs"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "support" / "steady_job.py", project / "train_jobs" / "steady.py")
    (project / "serve_apps" / "fixed.py").write_text(FIXED.format(seconds_per_token=0.01))
    definition = project / "cluster.yaml"
    definition.write_text(DEFINITION.format(name=name, shares=shares, patience=patience, more=more, groups=groups))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    os.environ["HELIOSTAT_HOME"] = str(folder / "home")
    made = sdk.up(definition, progress=say)
    try:
        yield made
    finally:
        made.down()


def say(line: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def until(true: Callable[[], Any], what: str, *, limit_s: float = 240) -> float:
    """As the world's; a machine that others use as well takes its time."""
    return world.until(lambda: bool(true()), what, limit_s=limit_s)


# --- what is seen of it


def events(platform: Any, run: str = "") -> list[Any]:
    from heliostat.events import read_spool

    return [e for e in read_spool(platform.settings.spool) if not run or e.fields.get("run") == run]


def seen(platform: Any, kind: str, run: str = "") -> list[Any]:
    return [event for event in events(platform, run) if event.kind == kind]


def steps(platform: Any, run: str) -> list[int]:
    return [int(event.fields["step"]) for event in seen(platform, "step", run)]


def again(platform: Any, run: str) -> int:
    return sum(count - 1 for count in Counter(steps(platform, run)).values())


def nodes(platform: Any, group: str, *, ready: bool = True) -> list[Any]:
    return [n for n in platform.nodes() if n.group == group and (n.ready_at is not None or not ready)]


def moves_on(platform: Any, run: str, *, by: int = 3) -> float:
    last = max(steps(platform, run), default=0)
    return until(lambda: max(steps(platform, run), default=0) >= last + by, f"{run} makes steps")


def attempts(platform: Any, run: str) -> list[int]:
    return [event.fields["workers"] for event in seen(platform, "attempt", run)]


def held(platform: Any, run: str) -> Any:
    from heliostat.train.bounds import read_held

    return read_held(platform.store, time.time()).get(run)


def stop(platform: Any, job: Any) -> None:
    platform.jobs.stop(job.job_id)
    until(lambda: not any(r.job_id == job.job_id and r.status == "RUNNING" for r in platform.jobs.list()), "stopped")


# --- the scenarios


def spot(platform: Any) -> dict[str, Any]:
    """From zero to two spot nodes and back to zero."""
    begun = time.monotonic()
    job = platform.jobs.submit("pair", arguments=["--steps", "30"])
    until(lambda: len(nodes(platform, "train")) == 2, "two nodes")
    two = time.monotonic() - begun
    until(lambda: steps(platform, job.run), "the first step")
    first = time.monotonic() - begun
    platform.jobs.wait(job, limit_s=240)
    ended = time.monotonic()
    until(lambda: not nodes(platform, "train", ready=False), "no nodes")
    return {
        "to_two_nodes_s": round(two, 1),
        "to_first_step_s": round(first, 1),
        "back_to_zero_s": round(time.monotonic() - ended, 1),
    }


def fallback(platform: Any) -> dict[str, Any]:
    """No spot to be had: on to on-demand, and back to spot at a checkpoint; then a reclaim while there is none."""
    platform.limit_capacity("train", 0)
    begun = time.monotonic()
    job = platform.jobs.submit("pair", arguments=["--steps", "100000", "--pause", "0.2"])
    until(lambda: steps(platform, job.run), "the first step on the fallback")
    first = time.monotonic() - begun
    where = held(platform, job.run)
    moves_on(platform, job.run)
    platform.limit_capacity("train", None)
    begun = time.monotonic()
    until(lambda: seen(platform, "fallback_ended", job.run), "it returns")
    moves_on(platform, job.run)
    back = time.monotonic() - begun
    until(lambda: not nodes(platform, "steady", ready=False), "no on-demand nodes")
    free = time.monotonic() - begun
    say("a reclaim with 15 s of notice, and no spot to be had")
    platform.limit_capacity("train", 0)
    before = len(seen(platform, "fallback_began", job.run))
    begun = time.monotonic()
    platform.reclaim("train", notice_s=15)
    until(lambda: len(seen(platform, "fallback_began", job.run)) > before, "it goes again")
    moves_on(platform, job.run)
    reclaimed = time.monotonic() - begun
    result = {
        "first_step_on_fallback_s": round(first, 1),
        "group_meanwhile": where.group if where else "not told yet",
        "back_on_spot_s": round(back, 1),
        "on_demand_gone_s": round(free, 1),
        "steps_after_reclaim_without_spot_s": round(reclaimed, 1),
        "steps_again": again(platform, job.run),
        "attempts": attempts(platform, job.run),
    }
    stop(platform, job)
    platform.limit_capacity("train", None)
    return result


def sick(platform: Any) -> dict[str, Any]:
    """Every process of a node is frozen (SIGSTOP)."""
    from heliostat.cluster import embedded, processes

    job = platform.jobs.submit("pair", arguments=["--steps", "100000", "--pause", "0.2"])
    moves_on(platform, job.run)
    record = embedded.read_record(platform.settings.cluster)
    node = nodes(platform, "train")[0]
    begun, at = time.monotonic(), time.time()
    processes.kill(processes.owned_by_node(embedded.mark(record), node.node_id), signal.SIGSTOP)
    until(lambda: seen(platform, "node_sick"), "it is found")
    found = time.monotonic() - begun
    until(lambda: node.node_id not in {n.node_id for n in platform.nodes()}, "it is gone")
    gone = time.monotonic() - begun
    moves_on(platform, job.run)
    on = time.monotonic() - begun
    evidence = seen(platform, "node_sick")[0].fields
    lost = [event.time_s - at for event in seen(platform, "attempt_ended", job.run) if event.time_s > at]
    result = {
        "training_sees_it_s": round(min(lost), 1) if lost else None,
        "found_s": round(found, 1),
        "gone_s": round(gone, 1),
        "training_on_s": round(on, 1),
        "what": evidence["what"],
        "evidence": evidence["evidence"],
        "steps_again": again(platform, job.run),
    }
    stop(platform, job)
    return result


def slow(platform: Any) -> dict[str, Any]:
    """One node's steps take five times as long from a moment on."""
    marker = Path(os.environ["HELIOSTAT_HOME"]) / "slow-nodes"
    job = platform.jobs.submit("pair", arguments=["--steps", "100000", "--pause", "0.1", "--slow-file", str(marker)])
    moves_on(platform, job.run)
    before = len(seen(platform, "node_sick"))
    node = nodes(platform, "train")[0]
    begun = time.monotonic()
    marker.write_text(node.node_id)
    until(lambda: len(seen(platform, "node_sick")) > before, "it is found")
    found = time.monotonic() - begun
    until(lambda: len(attempts(platform, job.run)) > 1, "the training leaves it")
    moves_on(platform, job.run)
    left = time.monotonic() - begun
    until(lambda: node.node_id not in {n.node_id for n in platform.nodes()}, "it is gone")
    evidence = seen(platform, "node_sick")[-1].fields
    result = {
        "found_s": round(found, 1),
        "training_on_others_s": round(left, 1),
        "gone_s": round(time.monotonic() - begun, 1),
        "what": evidence["what"],
        "right_node": evidence["node"] == node.node_id,
        "evidence": evidence["evidence"],
        "steps_again": again(platform, job.run),
    }
    stop(platform, job)
    return result


def peak(platform: Any) -> dict[str, Any]:
    """Three of four GPUs train, one serves: a step of load takes a second one, and gives it back."""
    import threading

    import httpx

    publish_fixed(platform)
    platform.apps.deploy("fixed")
    headers = {"Authorization": f"Bearer {platform.settings.api_key.get_secret_value()}"}
    url = platform.apps.url("fixed")

    def ask() -> int:
        try:
            return httpx.post(url, json={"text": "a " * 10}, headers=headers, timeout=60).status_code
        except httpx.TransportError:
            return 0

    until(lambda: ask() == 200, "the application answers")
    job = platform.jobs.submit("elastic", arguments=["--steps", "100000", "--pause", "0.2"])
    until(lambda: 3 in attempts(platform, job.run), "three workers train")
    moves_on(platform, job.run)
    loaded = threading.Event()
    statuses: Counter[int] = Counter()

    def load() -> None:
        while not loaded.is_set():
            statuses[ask()] += 1

    begun = time.monotonic()
    threads = [threading.Thread(target=load, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    until(lambda: seen(platform, "peak_bound", job.run), "a node is asked for")
    asked = time.monotonic() - begun
    until(lambda: (h := held(platform, job.run)) is not None and h.nodes == 2, "it trains on two")
    shrunk = time.monotonic() - begun
    until(lambda: len(nodes(platform, "serve")) == 2, "a second serving node")
    scaled = time.monotonic() - begun
    moves_on(platform, job.run)
    time.sleep(3)
    loaded.set()
    begun = time.monotonic()
    until(lambda: attempts(platform, job.run)[-1] == 3, "three workers train again")
    moves_on(platform, job.run)
    result = {
        "asked_s": round(asked, 1),
        "on_two_nodes_s": round(shrunk, 1),
        "second_replica_s": round(scaled, 1),
        "node_back_after_load_s": round(time.monotonic() - begun, 1),
        "steps_again": again(platform, job.run),
        "attempts": attempts(platform, job.run),
        "answers": dict(statuses),
    }
    stop(platform, job)
    return result


def publish_fixed(platform: Any) -> None:
    from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish

    file = Path(os.environ["HELIOSTAT_HOME"]) / "weights.txt"
    file.write_bytes(b"none")
    lineage = Lineage(job="none", code_version="none", dataset_digest="sha256:none")
    metadata = ArtifactMetadata(framework="torch", lineage=lineage, parameters=1, dtype="float32", licence="Apache-2.0")
    made = publish(platform.store, name="fixed", files={"weights.txt": file}, metadata=metadata)
    move_alias(
        platform.store, name="fixed", alias="production", to_version=made.version, expected_version=None,
        who="t", why="t",
    )  # fmt: skip


SCENARIOS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "spot": spot, "fallback": fallback, "sick": sick, "slow": slow, "peak": peak,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="which, separated by commas")
    wanted = parser.parse_args().only.split(",")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, cluster(Path(folder), "trusted") as made:
        for name in wanted:
            say(f"--- {name}")
            try:
                result[name] = SCENARIOS[name](made)
            except Exception as error:  # noqa: BLE001  # the next one is to be seen all the same
                result[name] = {"failed": f"{type(error).__name__}: {error}"}
                _tell_logs(made)
            say(json.dumps({name: result[name]}))
    print(json.dumps({**result, "machine": this_machine()}))
    return 1 if any("failed" in found for found in result.values()) else 0


def _tell_logs(platform: Any) -> None:
    for row in platform.jobs.list():
        say(f"{row.job_id} {row.status} {row.why}")
        if row.status in ("RUNNING", "FAILED"):
            say("\n".join(platform.jobs.logs(row.job_id).splitlines()[-15:]))
            platform.jobs.stop(row.job_id)
    controller = platform.settings.state_dir / "logs" / "controller.log"
    say("\n".join(controller.read_text().splitlines()[-25:]))


if __name__ == "__main__":
    sys.exit(main())
