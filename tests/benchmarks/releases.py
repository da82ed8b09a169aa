"""Releases under constant load, as deployed: what clients notice of good ones, and what becomes of bad ones.

    python tests/benchmarks/releases.py [--only good,bad] [--releases 10] [--rate 40] [--faults nan,...]

*good*: releases in a row, alternating two versions. Every answer's label is held against what its digest says (computed
in this process from the artifact); the worst latency while a release goes on stands beside that of the steady load.
*bad*: models that break in six ways, forced past the gate under load. Each has to be rolled back by itself; counted are
the requests that failed, the seconds from the command to the rollback, and the reason that the history gives.
The serving group has one logical GPU, which one replica holds: all are taken. GPUs in use are those of living nodes,
looked at ten times a second. Model time is declared (a batch takes 10 ms, asleep), so that the machine's own cores are
not what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import world

from tests.support.faulty_files import FAULTS, faulty_files

APP = "intents"
DEFINITION = """
name: releases
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: {nodes}, idle_timeout: 10m}}
store: {{kind: embedded, bucket: heliostat}}
applications:
  intents:
    recipe: serve_apps.faulty:Faulty
    model: intents@production
    group: serve
    route: /intents
    replicas: {replicas}
    idle_timeout: 10m
    gate: {{min_accuracy: 0.5}}
tags: {{team: bench, project: releases}}
"""
TEXTS = tuple(
    f"{verb} the {thing} in the {room}"
    for verb in ("turn on", "switch off", "dim", "brighten", "open")
    for thing in ("light", "big lamp next to the old wooden cupboard", "fan", "blinds", "radio")
    for room in ("kitchen", "hall", "attic", "room of my sister")
)


def expected(content: dict[str, bytes]) -> dict[str, str]:
    """The label of every text, by the same code on the same weights, in this process."""
    import torch

    from serve_apps.intent_classifier import IntentClassifierApp

    model = IntentClassifierApp.load(content, torch.device("cpu"))
    return {text: model.present(model.forward([model.prepare(text)])[0])["label"] for text in TEXTS}


def publish(platform: Any, seed: int, fault: str = "") -> tuple[Any, dict[str, str]]:
    from heliostat.registry import ArtifactMetadata, Lineage
    from heliostat.registry import publish as put

    metadata = ArtifactMetadata(
        framework="torch",
        metrics={"accuracy": 0.1 if fault else 0.9, "macro_f1": 0.9},
        lineage=Lineage(job="bench", code_version="bench", dataset_digest="sha256:bench"),
        licence="Apache-2.0",
    )
    content = faulty_files(seed, fault)
    artifact = put(platform.store, name=APP, files=content, metadata=metadata)
    return artifact, expected(content)


async def send(spec: dict[str, Any]) -> list[list[Any]]:
    """[due, took, status, digest, label, text] of each request, at a constant rate until `stop` exists."""
    import httpx

    rows: list[list[Any]] = []

    async def one(client: httpx.AsyncClient, text: str, due: float) -> None:
        status, answer = 0, {}
        try:
            response = await client.post(spec["url"], json={"text": text}, headers=spec["headers"])
            status = response.status_code
            answer = response.json() if status == 200 else {"label": response.text[:300]}
        except (httpx.HTTPError, ValueError) as error:
            answer = {"label": repr(error)}
        rows.append([due, time.time() - due, status, answer.get("digest"), answer.get("label"), text])

    limits = httpx.Limits(max_connections=128, max_keepalive_connections=128)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client, asyncio.TaskGroup() as group:
        begun, index = time.time(), 0
        while not Path(spec["stop"]).exists() and index < spec["rate"] * spec["most_s"]:
            due = begun + index / spec["rate"]
            await asyncio.sleep(max(0.0, due - time.time()))
            group.create_task(one(client, TEXTS[index % len(TEXTS)], due))
            index += 1
    return rows


class Load:
    """`send` in a process of its own."""

    def __init__(self, platform: Any, folder: Path, rate: float) -> None:
        key = platform.settings.api_key.get_secret_value()
        self._stop = folder / f"stop-{time.time_ns()}"
        spec = {
            "url": platform.apps.url(APP), "headers": {"Authorization": f"Bearer {key}"}, "rate": rate,
            "stop": str(self._stop), "most_s": 400,
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--send", json.dumps(spec)], stdout=subprocess.PIPE, text=True
        )

    def rows(self) -> list[list[Any]]:
        self._stop.touch()
        out, _ = self._process.communicate(timeout=120)
        return list(json.loads(out))


class Gpus:
    """The most GPUs that living nodes held at any moment since it began."""

    def __init__(self, platform: Any) -> None:
        self._platform, self._end, self.most = platform, threading.Event(), 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, len(self._platform.nodes()))  # one GPU each

    def end(self) -> int:
        self._end.set()
        self._thread.join()
        return self.most


def wrong(rows: list[list[Any]], known: dict[str, dict[str, str]]) -> int:
    """Answers whose label is not what the version of their digest says."""
    return sum(row[2] == 200 and known.get(row[3], {}).get(row[5]) != row[4] for row in rows)


def failures(rows: list[list[Any]]) -> dict[str, int]:
    return dict(Counter(f"{row[2]} {row[4]}"[:160] for row in rows if row[2] != 200))


def during(rows: list[list[Any]], spans: list[tuple[float, float]]) -> list[float]:
    return [row[1] * 1000 for row in rows if any(begin <= row[0] <= end for begin, end in spans)]


def settled(platform: Any) -> bool:
    return not platform.apps.status(APP).release.is_under_way


def good(platform: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    versions = [publish(platform, seed) for seed in (1, 2)]
    known = {artifact.digest: labels for artifact, labels in versions}
    telling = sum(versions[0][1][text] != versions[1][1][text] for text in TEXTS)
    assert telling, "no text tells the versions apart: a wrong answer would not show"
    gpus, load = Gpus(platform), Load(platform, folder, options.rate)
    time.sleep(8)
    spans, seconds = [], []
    for index in range(options.releases):
        begun = time.time()
        artifact = versions[(index + 1) % 2][0]
        platform.apps.release(APP, artifact, why=f"number {index + 1}")
        seconds.append(time.time() - begun)
        world.until(lambda: settled(platform), "it is proven", limit_s=60)
        spans.append((begun, time.time()))
        print(f"  release {index + 1}: live after {seconds[-1]:.1f} s", file=sys.stderr)
    time.sleep(6)
    rows, most = load.rows(), gpus.end()
    busy = during(rows, spans)
    steady = [row[1] * 1000 for row in rows if not any(begin <= row[0] <= end for begin, end in spans)]
    return {
        "releases": options.releases, "requests": len(rows), "failed": failures(rows), "wrong": wrong(rows, known),
        "by_digest": dict(Counter(str(row[3])[:19] for row in rows)),
        "texts_that_tell_the_versions_apart": telling,
        "seconds_to_live": world.spread(seconds), "gpus_most": most,
        "steady_ms": latency(steady), "during_ms": latency(busy),
    }  # fmt: skip


def latency(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(world.percentile(values, 0.5), 1),
        "p99": round(world.percentile(values, 0.99), 1),
        "max": round(max(values, default=0.0), 1),
        "count": len(values),
    }


def bad(platform: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from heliostat.errors import ReleaseRolledBack

    stable, labels = publish(platform, 1)
    if platform.models.alias(APP).version != stable.version:
        platform.apps.release(APP, stable, why="the good one")
        world.until(lambda: settled(platform), "it is proven", limit_s=90)
    found: dict[str, Any] = {}
    for fault in options.faults.split(","):
        artifact, own = publish(platform, 1, fault)
        gpus, load = Gpus(platform), Load(platform, folder, options.rate)
        time.sleep(3)
        begun, outcome = time.time(), "it went live"
        try:
            platform.apps.release(APP, artifact, why=fault, force="the benchmark wants to see it", limit_s=90)
            world.until(lambda: settled(platform), "proven, or not", limit_s=90)
            if platform.apps.status(APP).release.state == "rolled_back":
                raise ReleaseRolledBack(platform.apps.history(APP)[-1].why)
        except ReleaseRolledBack as error:
            outcome = error.what
        took = time.time() - begun
        time.sleep(3)
        rows = load.rows()
        now = platform.models.alias(APP).version
        found[fault] = {
            "rolled_back": now == stable.version and outcome != "it went live",
            "seconds": round(took, 1),
            "reason": outcome,
            "requests": len(rows),
            "failed": failures(rows),
            "answered_by_it": sum(row[3] == artifact.digest for row in rows),
            "not_as_its_digest_says": wrong(rows, {stable.digest: labels, artifact.digest: own}),
            "max_ms": round(max(row[1] for row in rows) * 1000, 1),
            "gpus_most": gpus.end(),
        }
        print(f"  {fault}: {found[fault]}", file=sys.stderr)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    import os

    from heliostat import sdk

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = folder / "project"
        for part in ("serve_apps", "train_jobs"):
            shutil.copytree(world.ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(world.ROOT / "tests" / "support" / "faulty.py", project / "serve_apps" / "faulty.py")
        high = options.replicas.rsplit(".", 1)[-1]
        text = DEFINITION.format(nodes=f"0..{high}", replicas=options.replicas)
        (project / "bench.yaml").write_text(text)
        os.environ["HELIOSTAT_HOME"] = str(folder / "home")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that nothing of it is left
        platform = sdk.up(project / "bench.yaml", progress=lambda line: print(f"  {line}", file=sys.stderr))
        try:
            first, _ = publish(platform, 1)
            deploy_on_l4(platform)
            platform.apps.release(APP, first, why="the first one")
            world.wait_answered(platform, platform.apps.url(APP), {"text": TEXTS[0]})
            found: dict[str, Any] = {"machine": world.this_machine(), "rate_per_s": options.rate}
            if "good" in options.only:
                found["good"] = good(platform, folder, options)
                print(f"  good: {json.dumps(found['good'])}", file=sys.stderr)
            if "bad" in options.only:
                found["bad"] = bad(platform, folder, options)
            return found
        finally:
            if options.keep_logs is not None:
                keep_logs(platform, options.keep_logs)
            platform.down()


def deploy_on_l4(platform: Any) -> None:
    """As `platform.apps.deploy`, with the memory that a group of L4s declares for a replica."""
    from heliostat.plan import catalogue
    from heliostat.serve import desired

    spec = platform.definition.applications[APP]
    limit = catalogue.load().accelerator("L4").usable_bytes
    desired.deploy(platform.store, platform.settings, APP, spec, groups=("serve",), vram_bytes=limit)


def keep_logs(platform: Any, into: Path) -> None:
    from heliostat.cluster import embedded

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    with contextlib.suppress(OSError):  # what is written at this moment may not be copied
        shutil.copytree(platform.settings.state_dir / "logs", into / "cluster", dirs_exist_ok=True)
        for path in Path(record.temp_dir).glob("session_2*/logs/serve"):
            shutil.copytree(path, into / "serve", dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="good,bad")
    parser.add_argument("--releases", type=int, default=10)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--replicas", default="1..1")
    parser.add_argument("--keep-logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--send", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send is not None:
        print(json.dumps(asyncio.run(send(json.loads(options.send)))))
        return 0
    print(json.dumps(run(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
