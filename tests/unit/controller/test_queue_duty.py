"""The queue's duty, round by round: a real store, and an HTTP server in the place of Ray's Jobs API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from heliostat.controller.duty import World
from heliostat.controller.queue import LOST_S, Queue
from heliostat.definition import load
from heliostat.events import Spool, read_spool
from heliostat.serve.client import ServeClient
from heliostat.settings import Settings
from heliostat.store import Store
from heliostat.train import bounds, queued
from heliostat.train.bounds import Held

pytestmark = pytest.mark.real

DEFINITION = """\
name: shared
groups:
  train: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..3, idle_timeout: 8s}
  large: {role: training, market: spot, cpus: 8, gpus: 8, nodes: 0..2, idle_timeout: 8s}
store: {kind: embedded, bucket: heliostat}
sharing: {shares: {red: 2, blue: 1}, patience: 60s}
jobs:
  red-all: {entrypoint: sleep 9, group: train, publishes: m, nodes: 3, team: red}
  red-two: {entrypoint: sleep 9, group: train, publishes: m, nodes: 2, team: red}
  blue-all: {entrypoint: sleep 9, group: train, publishes: m, nodes: 3, team: blue}
  blue-one: {entrypoint: sleep 9, group: train, publishes: m, nodes: 1, team: blue}
  blue-urgent: {entrypoint: sleep 9, group: train, publishes: m, nodes: 1, team: blue, priority: 5}
  red-part: {entrypoint: sleep 9, group: large, publishes: m, gpus: 3, team: red}
  blue-node: {entrypoint: sleep 9, group: large, publishes: m, gpus: 8, team: blue}
tags: {team: demo, project: voice}
"""


class Jobs(dict[str, str]):
    """The status of each job by its id, as Ray's Jobs API would tell it."""


@pytest.fixture
def ray() -> Iterator[tuple[Jobs, str]]:
    jobs = Jobs()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer([{"submission_id": name, "status": status} for name, status in jobs.items()])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = body["runtime_env"]["env_vars"]
            assert told["HELIOSTAT_TEAM"] in ("red", "blue")
            assert told["HELIOSTAT_JOB_ID"] == body["submission_id"]  # else its log is not kept
            jobs[body["submission_id"]] = "PENDING"
            self._answer({"submission_id": body["submission_id"]})

        def _answer(self, value: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield jobs, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class Shared:
    """A cluster of three nodes, and its queue at one moment after another."""

    def __init__(self, store: Store, folder: Path, jobs: Jobs, url: str) -> None:
        file = folder / "shared.yaml"
        file.write_text(DEFINITION)
        record = {"cluster_id": "id", "name": "shared", "phase": "up", "definition_path": str(file), "ports": {},
                  "definition_digest": "", "project_root": "", "temp_dir": "", "started_at": 0.0}  # fmt: skip
        (folder / "cluster.json").write_text(json.dumps(record))
        settings = Settings(cluster="shared", store=store.settings, state_dir=folder, spool=folder / "spool",
                            gcs_address="127.0.0.1:3", dashboard_url=url, serve_url="http://127.0.0.1:2")  # fmt: skip
        self.world = World(settings, store, ServeClient(settings), Spool(settings.spool, "test"))
        self.store, self.jobs, self.duty, self.now = store, jobs, Queue(), 1000.0
        self.definition = load(file)

    def submit(self, name: str) -> str:
        made = queued.wanted(self.definition, name, package="file:///zip", now=self.now)
        return queued.enqueue(self.store, made, living=()).job_id

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.duty.act(self.world, self.now)

    def holds(self, job_id: str, nodes: int) -> None:
        run = next(job.run for job in queued.read_queue(self.store) if job.job_id == job_id)
        held = Held(run=run, group="train", home="train", nodes=nodes, low=3, high=3, at=self.now)
        self.store.put(f"gangs/{run}/held.json", held.model_dump_json().encode())

    def why(self) -> dict[str, str]:
        return {row.job_id: row.why for row in queued.queue_rows(self.store)}

    def told(self, kind: str) -> list[str]:
        return [event.fields["job"] for event in read_spool(self.world.settings.spool) if event.kind == kind]


@pytest.fixture
def shared(store: Store, tmp_path: Path, ray: tuple[Jobs, str]) -> Shared:
    return Shared(store, tmp_path, *ray)


def test_two_gangs_that_each_need_all_nodes_run_one_after_the_other(shared: Shared) -> None:
    first, second = shared.submit("red-all"), shared.submit("blue-all")
    shared.after(1)
    (started,) = shared.jobs
    waiting = ({first, second} - {started}).pop()
    assert "needs 3 nodes of train at once, 0 free" in shared.why()[waiting]
    shared.after(1)
    assert list(shared.jobs) == [started]
    shared.jobs[started] = "SUCCEEDED"
    shared.after(1)
    assert list(shared.jobs) == [started, waiting]
    assert shared.told("job_admitted") == [started, waiting]
    shared.jobs[waiting] = "FAILED"
    shared.after(1)
    assert queued.read_queue(shared.store) == []


def test_within_a_team_the_highest_priority_goes_first(shared: Shared) -> None:
    whole = shared.submit("blue-all")
    shared.after(1)
    one, urgent = shared.submit("blue-one"), shared.submit("blue-urgent")
    shared.after(1)
    assert set(shared.why()) == {one, urgent}
    shared.jobs[whole] = "STOPPED"
    shared.after(1)
    assert shared.told("job_admitted") == [whole, urgent, one]


def test_a_gang_of_more_than_its_team_s_share_makes_nobody_leave(shared: Shared) -> None:
    blue = shared.submit("blue-all")
    shared.after(1)
    shared.holds(blue, 3)
    red = shared.submit("red-all")
    shared.after(1)
    shared.holds(blue, 3)
    shared.after(61)
    # Red's share of three nodes is two: its gang of three may not make others leave, and waits for its turn.
    assert shared.told("job_asked_to_leave") == []
    assert "needs 3 nodes" in shared.why()[red]


def test_a_team_below_its_share_makes_a_job_above_its_own_leave(shared: Shared) -> None:
    blue = [shared.submit("blue-one") for _ in range(3)]
    shared.after(1)
    red = shared.submit("red-two")
    shared.after(61)
    leaving = shared.told("job_asked_to_leave")
    assert len(leaving) == 2
    assert set(leaving) < set(blue)
    shared.after(1)
    assert red not in shared.jobs  # they have not left yet
    for job in leaving:
        shared.holds(job, 0)
    shared.after(1)
    assert red in shared.jobs
    assert shared.told("job_returns") == []


def test_a_job_that_was_asked_to_leave_waits_again_and_returns(shared: Shared) -> None:
    blue = shared.submit("blue-all")
    shared.after(1)
    run = queued.read_queue(shared.store)[0].run
    bounds.bind(shared.store, run, "queue", 0, "another team is below its share")
    shared.holds(blue, 0)
    shared.after(1)  # it has left, nobody else waits: it returns
    assert shared.told("job_returns") == [blue]
    assert bounds.read_bounds(shared.store, run) == {}


def test_a_job_that_went_with_its_head_is_said_to_be_lost(shared: Shared) -> None:
    job = shared.submit("blue-all")
    shared.after(1)
    shared.jobs.clear()
    shared.after(1)
    assert [one.job_id for one in queued.read_queue(shared.store)] == [job]
    shared.after(LOST_S + 1)
    assert queued.read_queue(shared.store) == []
    assert shared.told("job_lost") == [job]


def test_another_controller_goes_on_where_this_one_was_killed(shared: Shared) -> None:
    job = shared.submit("blue-all")
    waiting = shared.submit("red-all")
    shared.jobs[job] = "RUNNING"  # handed over, and killed before it was noted
    shared.after(1)
    assert list(shared.jobs) == [job]
    assert set(shared.why()) == {waiting}
    assert shared.told("job_admitted") == []


def test_jobs_that_ask_for_some_gpus_of_a_node_share_it(shared: Shared) -> None:
    parts = [shared.submit("red-part") for _ in range(4)]
    shared.after(1)
    assert set(shared.jobs) == set(parts)
    whole = shared.submit("blue-node")
    shared.after(1)
    assert "needs 1 node of large at once, 0 free" in shared.why()[whole]
    one_more = shared.submit("red-part")
    shared.after(1)
    assert "needs 3 GPUs of a node of large, 2 free on one" in shared.why()[one_more]
    for job, node in zip(parts, "aabb", strict=True):
        run = next(one.run for one in queued.read_queue(shared.store) if one.job_id == job)
        held = Held(run=run, group="large", home="large", nodes=1, low=1, high=1, at=shared.now, node=node)
        shared.store.put(f"gangs/{run}/held.json", held.model_dump_json().encode())
    for job in (parts[0], parts[2]):  # on two nodes: there is room for parts now, and for no whole node
        shared.jobs[job] = "SUCCEEDED"
    shared.after(1)
    assert one_more in shared.jobs
    assert "needs 1 node of large at once, 0 free" in shared.why()[whole]
