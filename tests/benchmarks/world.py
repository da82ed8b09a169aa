"""An embedded cluster for a benchmark of serving: recipes of the benchmark's own, published and deployed, and loads.

The cluster has a home of its own under the given folder; nothing of it is left afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform as machine
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

DEFINITION = """
name: {name}
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: {nodes}, idle_timeout: {idle}}}
store: {{kind: embedded, bucket: heliostat}}
applications:
{apps}
tags: {{team: bench, project: serving}}
"""
APP = """  {name}:
    recipe: {recipe}
    model: {name}@production
    group: serve
    route: /{name}
    replicas: {replicas}
    idle_timeout: {idle}
    max_queue: {max_queue}
"""
ECHO = '''
"""Takes a text of any length and a fixed time; says what came, so that a torn body would be seen."""
import time
import zlib

from heliostat.serve.recipe import TextModel


class Echo(TextModel):
    max_characters = 7 * 2**20
    seconds = 0.005

    @classmethod
    def load(cls, files, device):
        return cls()

    def tokenise(self, text):
        return [len(text), zlib.crc32(text.encode())]

    def forward(self, batch):
        time.sleep(self.seconds * len(batch))
        return batch

    def present(self, result):
        return {"characters": result[0], "crc": result[1]}
'''
FIXED = '''
"""A declared accelerator of fixed speed: a forward takes SECONDS for each token, asleep, and no core.

SECONDS is calibrated: what the 22 M-parameter encoder of the repository takes for a token on one core of this kind of
machine, in packed batches (tests/benchmarks/serving.py measures it).
"""
import os
import time

from heliostat.serve.recipe import TextModel


class Fixed(TextModel):
    SECONDS = {seconds_per_token}

    @classmethod
    def load(cls, files, device):
        return cls()

    def tokenise(self, text):
        return [1] * len(text.split())

    def forward(self, batch):
        time.sleep(self.SECONDS * sum(len(item) for item in batch))
        return [len(item) for item in batch]

    def present(self, result):
        return {{"tokens": result, "pid": os.getpid()}}
'''


@dataclass(frozen=True)
class App:
    """One application of a benchmark, in the definition's words; `files` are its model's."""

    name: str
    recipe: str
    files: Mapping[str, bytes]
    replicas: str = "1..1"
    idle: str = "10m"
    max_queue: str = "60s"


@contextlib.contextmanager
def cluster(
    folder: Path, apps: Sequence[App], *, recipes: Mapping[str, str], name: str, nodes: str = "0..2", idle: str = "10m"
) -> Iterator[Any]:
    """The platform, with every application published, in production and deployed, but not waited for."""
    from heliostat import sdk
    from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish

    project = folder / "project"
    for part in ("serve_apps", "train_jobs"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for file, text in recipes.items():
        (project / "serve_apps" / f"{file}.py").write_text(text)
    definition = project / "bench.yaml"
    definition.write_text(
        DEFINITION.format(
            name=name, nodes=nodes, idle=idle,
            apps="".join(
                APP.format(name=a.name, recipe=a.recipe, replicas=a.replicas, idle=a.idle, max_queue=a.max_queue)
                for a in apps
            ),
        )
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that nothing of it is left
    os.environ["HELIOSTAT_HOME"] = str(folder / "home")
    made = sdk.up(definition, progress=lambda line: print(f"  {line}", file=sys.stderr))
    try:
        for app in apps:
            metadata = ArtifactMetadata(
                framework="torch",
                lineage=Lineage(job="bench", code_version="bench", dataset_digest="sha256:bench"),
                parameters=1,
                dtype="float32",
                licence="Apache-2.0",
            )
            files = {}
            for path, data in app.files.items():
                (folder / f"{app.name}-{path}").write_bytes(data)
                files[path] = folder / f"{app.name}-{path}"
            artifact = publish(made.store, name=app.name, files=files, metadata=metadata)
            move_alias(
                made.store, name=app.name, alias="production", to_version=artifact.version, expected_version=None,
                who="bench", why="bench",
            )  # fmt: skip
            made.apps.deploy(app.name)
        yield made
    finally:
        made.down()


def header(platform: Any) -> str:
    return f"Authorization: Bearer {platform.settings.api_key.get_secret_value()}"


def wait_answered(platform: Any, url: str, body: dict[str, Any], *, limit_s: float = 120) -> None:
    headers = dict([header(platform).split(": ", 1)])
    until(lambda: _status(url, headers, body) == 200, f"{url} answers", limit_s=limit_s)


def _status(url: str, headers: dict[str, str], body: dict[str, Any]) -> int:
    try:
        return httpx.post(url, json=body, headers=headers, timeout=60).status_code
    except httpx.TransportError:
        return 0


def until(true: Callable[[], bool], what: str, *, limit_s: float = 120, every_s: float = 0.2) -> float:
    """Wait; returns the seconds it took. Raises RuntimeError past the limit."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > limit_s:
            raise RuntimeError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - begun


def replicas(platform: Any, app: str) -> list[Any]:
    """The living replica processes of an application."""
    from heliostat.cluster import embedded, processes

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    return [p for p in processes.owned(embedded.mark(record)) if p.command.startswith(f"ray::ServeReplica:{app}:")]


def kill(process: Any) -> None:
    from heliostat.cluster import processes

    processes.kill([process], signal.SIGKILL)


class Sending:
    """A load in a process of its own, on the last core of the machine."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        path = folder / f"load-{time.time_ns()}.json"
        path.write_text(json.dumps(spec))
        self.process = subprocess.Popen([sys.executable, str(HERE / "open_load.py"), str(path)], stdout=subprocess.PIPE)

    def rows(self) -> list[list[Any]]:
        out, _ = self.process.communicate()
        return list(json.loads(out))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def this_machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        machine.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "load": [round(x, 1) for x in os.getloadavg()]}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)
    } if values else {}  # fmt: skip
