"""Where the registry, the status and the event pipeline begin to be slow, as far as one machine tells.

    python tests/benchmarks/scale.py [--artifacts 10000] [--apps 50] [--jobs 200] [--part registry,events,status]

registry: that many versions in 100 models on the real S3 server; times of list, scan, alias, resolve, publish.
events: how many events a second one process writes, ships and folds; against 1,000 a second.
status: a cluster with that many applications deployed (asleep) and jobs in the queue; times of `heliostat status`,
`job list`, the status page, and how long a round of the controller takes, from its log.

Each is the median of a few calls. docs/scale.md says what follows. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import world

MODELS = 100


def timed(call: Callable[[], Any], *, times: int = 3) -> float:
    """The median, in seconds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return round(statistics.median(found), 4)


def registry(count: int) -> dict[str, Any]:
    from pydantic import SecretStr

    from heliostat.cluster import ports, store_server
    from heliostat.registry import (
        ArtifactMetadata,
        Lineage,
        get_alias,
        list_models,
        list_versions,
        move_alias,
        publish,
        resolve,
        scan,
    )  # fmt: skip
    from heliostat.settings import StoreSettings
    from heliostat.store import Store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = ports.choose("auto", preferred=None, field="store", taken=set())
        log = folder / "logs" / "store.log"
        server = store_server.start(folder, port=port, access_key="k", secret_key="k" * 24, log=log)
        try:
            store_server.wait_ready(server, port=port, log=log)
            store = Store.connect(
                StoreSettings(
                    endpoint=f"http://127.0.0.1:{port}", bucket="scale", access_key_id="k",
                    secret_access_key=SecretStr("k" * 24),
                )
            )  # fmt: skip
            store.ensure_bucket()
            begun = time.perf_counter()
            _fill(store, count)
            filled_s = time.perf_counter() - begun
            move_alias(
                store, name="model-007", alias="production", to_version=1, expected_version=None, who="b", why="b"
            )
            metadata = ArtifactMetadata(
                framework="torch", parameters=1, dtype="float32", licence="MIT",
                lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
            )  # fmt: skip
            number = iter(range(10**6))

            def move() -> None:
                now = get_alias(store, "model-007", "production")
                assert now is not None
                move_alias(
                    store, name="model-007", alias="production", to_version=now.version % 3 + 1,
                    expected_version=now.version, who="b", why="b",
                )  # fmt: skip

            return {
                "artifacts": count, "models": MODELS, "fill_s": round(filled_s, 1),
                "list_models_s": timed(lambda: list_models(store)),
                "versions_of_one_model_s": timed(lambda: list_versions(store, "model-007")),
                "all_versions_s": timed(lambda: [scan(store, model) for model in list_models(store)], times=1),
                "get_alias_s": timed(lambda: get_alias(store, "model-007", "production"), times=20),
                "resolve_alias_s": timed(lambda: resolve(store, "model-007@production"), times=20),
                "move_alias_s": timed(move, times=10),
                "publish_s": timed(
                    lambda: publish(
                        store, name="model-007", files={"a.txt": str(next(number)).encode()}, metadata=metadata
                    ),
                    times=5,
                ),
            }  # fmt: skip
        finally:
            store_server.stop(server)


def _fill(store: Any, count: int) -> None:
    """Manifests and files as `publish` leaves them, without its look at what is there already."""
    from heliostat.commit import SCHEMA_VERSION, Manifest, describe
    from heliostat.registry import artifact_digest
    from heliostat.registry.versions import files_prefix, manifest_key

    def write(index: int) -> None:
        model, version = f"model-{index % MODELS:03d}", index // MODELS + 1
        data = f"{model} {version}".encode()
        entries, attempt = {"a.txt": describe(data)}, f"{index:012x}"
        body = {
            "name": model, "version": version, "digest": artifact_digest(entries),
            "metadata": {"framework": "torch", "licence": "MIT", "metrics": {"accuracy": 0.9}, "parameters": 1,
                         "dtype": "float32", "lineage": {"job": "j", "code_version": "c", "dataset_digest": "d"}},
        }  # fmt: skip
        manifest = Manifest(
            schema_version=SCHEMA_VERSION, prefix=files_prefix(model), attempt=attempt, files=entries,
            body=json.dumps(body),
        )  # fmt: skip
        store.put(f"{manifest.folder}/a.txt", data)
        store.create(manifest_key(model, version), manifest.model_dump_json().encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(count)))


def events(count: int = 20_000) -> dict[str, Any]:
    """What one process does with events, in events a second."""
    from heliostat.events import Spool, read_spool
    from heliostat.meter.facts import facts_of

    with tempfile.TemporaryDirectory() as name:
        spool = Spool(Path(name), "s")
        begun = time.perf_counter()
        for number in range(count // 10):  # each is on the disk before the next
            spool.emit("step", run="r", attempt="a", rank=0, step=number, seconds=0.5)
        emitted = (count // 10) / (time.perf_counter() - begun)
        line = (Path(name) / "s.jsonl").read_text().splitlines()[0]
        parts = [line.replace(json.loads(line)["id"], f"{number:032x}") for number in range(count)]
        (Path(name) / "s.jsonl").write_text("\n".join(parts) + "\n")
        begun = time.perf_counter()
        found = read_spool(Path(name))
        read = len(found) / (time.perf_counter() - begun)
        begun = time.perf_counter()
        facts_of(found)
        folded = len(found) / (time.perf_counter() - begun)
    return {"emitted_per_s": round(emitted), "read_per_s": round(read), "folded_per_s": round(folded)}


def status(apps: int, jobs: int) -> dict[str, Any]:
    from heliostat.serve.desired import read_desired
    from heliostat.train import queued

    made = [world.App(f"app-{n:03d}", "serve_apps.echo:Echo", {"none.txt": b"none"}, "0..1", "5s") for n in range(apps)]
    with (
        tempfile.TemporaryDirectory(prefix="hl") as name,
        world.cluster(Path(name), made, recipes={"echo": world.ECHO}, name="scale") as platform,
    ):
        world.until(lambda: len(platform.apps.list()) == apps, "all applications are deployed", limit_s=200)
        for number in range(jobs):  # of a group that has no node: they wait
            job = queued.QueuedJob(
                job_id=f"job-{number:04d}", run=f"run-{number:04d}", job="j", team="t", group="nowhere", nodes=1,
                gpus_per_node=1.0, priority=0, submitted_at=time.time(), request={"entrypoint": "python -m nothing"},
            )  # fmt: skip
            queued.enqueue(platform.store, job, living=())
        command = [sys.executable, "-m", "heliostat.cli"]

        def run(*words: str) -> Callable[[], Any]:
            return lambda: subprocess.run([*command, *words, "--cluster", "scale"], capture_output=True, check=True)

        counts = {"rows": len(platform.jobs.list()), "apps_listed": len(platform.apps.list())}
        return {
            "apps": apps, "jobs": jobs, **counts,
            "status_command_s": timed(run("status")),
            "status_json_s": timed(run("status", "--json")),
            "status_page_s": timed(run("status", "--html", str(Path(name) / "page.html"))),
            "job_list_command_s": timed(run("job", "list")),
            "status_in_python_s": timed(platform.status),
            "jobs_in_python_s": timed(platform.jobs.list),
            "read_desired_s": timed(lambda: read_desired(platform.store)),
            "read_queue_s": timed(lambda: queued.read_queue(platform.store)),
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=int, default=10_000)
    parser.add_argument("--apps", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--part", default="registry,events,status")
    parsed = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "scale", "machine": world.this_machine()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "registry": lambda: registry(parsed.artifacts),
        "events": events,
        "status": lambda: status(parsed.apps, parsed.jobs),
    }
    for part in parsed.part.split(","):
        result[part] = parts[part]()
        for name, value in result[part].items():
            print(f"{part:<10} {name:<28} {value}", flush=True)
    result["load_after"] = round(os.getloadavg()[0], 1)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
