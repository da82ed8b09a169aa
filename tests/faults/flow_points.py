"""The way from a finished training to live, for the harness that kills a process at every request (kill_points.py).

The flow is run as its command would run it, again and again until it is done, with the controller's duty in between.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heliostat.commit import commit
from heliostat.controller.duty import World
from heliostat.controller.releases import Releases
from heliostat.definition import ClusterDefinition
from heliostat.errors import AppNotReady
from heliostat.events import Spool
from heliostat.flow import read_flow, run_flow, steps
from heliostat.promote.flows import Flow, save_flow
from heliostat.promote.gate import Verdict
from heliostat.promote.records import PRODUCTION, read_release
from heliostat.registry import get_alias, list_versions
from heliostat.store import Store
from tests.faults import release_points


def definition(app: str) -> ClusterDefinition:
    group = {"cpus": 1, "gpus": 1, "nodes": "0..1"}
    return ClusterDefinition.model_validate(
        {
            "name": "flows",
            "groups": {
                "serve": {"role": "serving", "market": "on-demand", **group},
                "train": {"role": "training", "market": "spot", **group},
            },
            "store": {"kind": "embedded", "bucket": "heliostat"},
            "jobs": {"job": {"entrypoint": "python -m none", "group": "train", "publishes": app}},
            "applications": {
                app: {
                    "recipe": "a:B", "model": f"{app}@production", "group": "serve", "route": "/a", "replicas": "1..1",
                    "release": {"requests": 1},
                }
            },
            "tags": {"team": "t", "project": "p"},
        }
    )  # fmt: skip


def prepare(store: Store, app: str) -> None:
    """A flow whose training has just ended: version 3 comes of it, and version 1 is in production."""
    flow = Flow(app=app, id="f", job="job", run=f"{app}-run", who="ann", why="nightly", began_at=time.time())
    save_flow(store, flow, None)
    folder = f"runs/{flow.run}/output"
    about = {"metrics": {"accuracy": 0.9, "macro_f1": 0.9}, "lineage": {"code_version": "c", "licence": "MIT"}}
    files: dict[str, Any] = {"config.json": b'{"n": 3}', "run.json": json.dumps(about).encode()}
    commit(store, folder, files, manifest_key=f"{folder}/manifest.json", attempt="a")


def run(store: Store, app: str) -> None:
    nobody: Any = None  # the flow submits nothing: its training has ended; the duty asks neither
    wanted = definition(app)
    with tempfile.TemporaryDirectory() as folder:
        world = World(
            settings=nobody, store=store, serve=nobody, spool=Spool(Path(folder), f"controller-{os.getpid()}")
        )
        for _ in range(20):
            found = read_flow(store, app)
            if found is not None and found[0].is_over:
                return
            release_points.report(store, app, version=3)
            try:
                run_flow(nobody, store, wanted, app, who="ann", why="nightly", limit_s=0.0)
            except AppNotReady:  # the release goes on by itself
                record = read_release(store, app)
                assert record is not None
                release_points.report(store, app, version=3)
                Releases().act(world, time.time())
    raise RuntimeError(f"the flow did not end: {read_flow(store, app)}")


def done(store: Store, app: str) -> Iterator[str]:
    """Each step stands there once."""
    found = read_flow(store, app)
    assert found is not None
    counts = Counter(line.step for line in found[0].done)
    if found[0].state != "done" or counts != Counter(["train", "publish", "judge", "release", "live"]):
        yield f"the flow is {found[0].state} after {dict(counts)}"
    if len(list_versions(store, app)) != 3:
        yield f"{len(list_versions(store, app))} versions"
    verdicts = [
        Verdict.model_validate_json(store.get(info.key).data).by for info in store.list(f"models/{app}/verdicts")
    ]
    # A verdict that was kept and not answered for may be kept twice; it says the same.
    if not 1 <= verdicts.count("f") <= 2:
        yield f"verdicts by {verdicts}"
    states = [entry.state for entry in steps.must_read_release(store, app).history]
    if states not in (["proposed", "shadow", "canary", "live"], ["proposed", "shadow", "canary", "live", "live"]):
        yield f"the release went {states}"
    alias = get_alias(store, app, PRODUCTION)
    if alias is None or (alias.version, len(alias.history)) != (3, 2):
        yield f"the alias is {alias}"
