"""Whole releases for the harness that kills a process at every request to the store (kill_points.py).

What is killed is whoever acts: the one who proposes, and then the controller's own duty, round after round, over one
replica that reports as a real one would. Run again, the release goes on; every step of it must stand in the history
once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heliostat.controller.duty import World
from heliostat.controller.releases import Releases
from heliostat.definition import Application, ReleaseRules
from heliostat.events import Spool
from heliostat.flow import steps
from heliostat.promote.gate import Verdict
from heliostat.promote.records import PRODUCTION, read_release
from heliostat.promote.tally import Tally
from heliostat.registry import get_alias, resolve
from heliostat.serve.desired import DesiredApp
from heliostat.serve.reports import ReplicaReport, write_report
from heliostat.store import Store

RULES = ReleaseRules(requests=1)
PASSED = Verdict(passed=True, reasons=())


def deploy(store: Store, app: str) -> None:
    """Wanted, and with one living replica."""
    spec = Application.model_validate(
        {
            "recipe": "a:B", "model": f"{app}@production", "group": "serve", "route": "/a", "replicas": "1..1",
            "release": {"requests": 1},
        }
    )  # fmt: skip
    store.put(f"apps/{app}/desired.json", DesiredApp(name=app, spec=spec, package="").model_dump_json().encode())
    report(store, app)


def report(store: Store, app: str, **seen: Any) -> None:
    """What the one replica says; of a release, where one goes on."""
    found = read_release(store, app)
    alias = get_alias(store, app, PRODUCTION)
    told = {"version": 2, "digest": "sha256:2", "shadowed": 5, "requests": 500, **seen}
    write_report(
        store,
        ReplicaReport(
            app=app,
            replica="r",
            node="n",
            version=alias.version if alias else 0,
            digest="sha256:x" if alias is None else resolve(store, f"{app}:v{alias.version}").digest,
            loaded_at=time.time(),
            requests=1,
            last_request_at=time.time(),
            queued_tokens=0,
            trial=None if found is None else Tally(release=found[0].id, **told),
        ),
    )


def play(store: Store, app: str, *, fault_when_live: bool) -> None:
    """Propose version 2 and act as the controller until the release is over; from wherever it was left."""
    found = read_release(store, app)
    if found is None or found[0].is_under_way:
        report(store, app)
        steps.release(store, app, resolve(store, f"{app}:v2"), PASSED, rules=RULES, who="ann", why="better")
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), f"controller-{os.getpid()}")
        nobody: Any = None  # the duty asks for neither
        world = World(settings=nobody, store=store, serve=nobody, spool=spool)
        for _ in range(12):
            record = steps.must_read_release(store, app)
            if not record.is_under_way:
                return
            broken = fault_when_live and record.state == "live"
            report(store, app, **({"errors": 400, "last_error": "boom"} if broken else {}))
            Releases().act(world, time.time())
    raise RuntimeError(f"the release did not end: {record}")


def release(store: Store, app: str) -> None:
    play(store, app, fault_when_live=False)


def roll_back(store: Store, app: str) -> None:
    play(store, app, fault_when_live=True)


def released(store: Store, app: str) -> Iterator[str]:
    yield from _ended(store, app, ["proposed", "shadow", "canary", "live", "live"], 2, 2)


def rolled_back(store: Store, app: str) -> Iterator[str]:
    yield from _ended(store, app, ["proposed", "shadow", "canary", "live", "rolled_back"], 1, 3)


def _ended(store: Store, app: str, states: list[str], version: int, moves: int) -> Iterator[str]:
    record = steps.must_read_release(store, app)
    if [entry.state for entry in record.history] != states or record.stable != version:
        yield f"the record says {[(entry.state, entry.why) for entry in record.history]}, stable {record.stable}"
    alias = get_alias(store, app, PRODUCTION)
    if alias is None or (alias.version, len(alias.history)) != (version, moves):
        yield f"the alias is {alias}"
