"""What a look at a cluster makes of Ray's rows, and what the duty keeps between looks."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from heliostat.controller.look import Facts, Progress, make_seen, progress_of
from heliostat.controller.serving import AppState, awake_apps, laid_to_rest
from heliostat.controller.waste import WasteState, event_of, read_resting, read_state, rest, rules_from, write_state
from heliostat.definition import Application, WasteRules
from heliostat.events import Event
from heliostat.meter.waste import Finding, Memory, Rank, Seen, Step, Told
from heliostat.serve.desired import DesiredApp
from heliostat.serve.reports import ReplicaReport
from heliostat.store import Store

NOW = 1_000_000.0


def report(*, last: float, requests: int = 5, loaded: float = NOW - 900) -> ReplicaReport:
    return ReplicaReport(
        app="chat", replica="r", node="n", version=1, digest="d", loaded_at=loaded, requests=requests,
        last_request_at=last, queued_tokens=0, reported_at=NOW,
    )  # fmt: skip


def actor(actor_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "actor_id": actor_id, "class_name": "Model", "name": "", "job_id": "01", "node_id": "n1", "state": "ALIVE",
        "required_resources": {"GPU": 1.0}, "started_at": NOW - 800, **fields,
    }  # fmt: skip


NODE = {
    "node_id": "n1", "labels": {"heliostat.io/group": "serve"},
    "resources_total": {"GPU": 2.0}, "start_time_ms": (NOW - 1000) * 1000,
}  # fmt: skip
RUN = {
    "job_id": "02", "submission_id": "run-1-abcd", "status": "RUNNING", "start_time": (NOW - 900) * 1000,
    "metadata": {"heliostat_run": "run-1", "job": "train"},
}  # fmt: skip


def seen(**fields: Any) -> Seen:
    return make_seen(Facts(**{"nodes": [NODE], **fields}), groups=(), at=NOW)


def test_an_application_is_as_useful_as_its_last_request() -> None:
    replica = actor("a", name="SERVE_REPLICA::chat#model#x")
    (app,) = seen(actors=[replica], apps={"chat": [report(last=NOW - 60)]}).holders
    assert (app.kind, app.group, app.gpus, app.last_useful) == ("app", "serve", 1.0, NOW - 60)
    (unasked,) = seen(actors=[replica], apps={"chat": [report(last=NOW - 60, requests=0)]}).holders
    assert unasked.last_useful == NOW - 900
    (foreign,) = seen(actors=[replica]).holders
    assert foreign.last_useful is None  # it reports nothing to us: not judged


def test_a_run_is_as_useful_as_its_last_step() -> None:
    keeper = actor("k", class_name="Keeper", job_id="02")
    told = Progress(7, NOW - 50, (), 1, "demo", "voice")
    (run,) = seen(actors=[keeper], jobs=[RUN], training={"run-1": told}).holders
    assert (run.kind, run.target, run.last_useful, run.team) == ("job", "run-1-abcd", NOW - 50, "demo")
    (silent,) = seen(actors=[keeper], jobs=[RUN]).holders
    assert silent.last_useful == silent.since == NOW - 800  # from when it held its GPU, not from when it was submitted
    (unknown,) = seen(actors=[keeper], jobs=[RUN], shared_spool=False).holders
    assert unknown.last_useful is None


def test_a_run_that_waits_for_its_nodes_holds_nothing() -> None:
    assert seen(jobs=[RUN]).holders == ()


def test_an_actor_is_as_useful_as_its_last_call() -> None:
    book = actor("a", name="book", serialized_runtime_env='{"env_vars": {"HELIOSTAT_KEEP_UNTIL": "2026-12-01"}}')
    (idle,) = seen(actors=[book], calls={"a": (NOW - 300, False)}).holders
    assert (idle.name, idle.last_useful, idle.keep_until) == ("book", NOW - 300, date(2026, 12, 1))
    (busy,) = seen(actors=[book], calls={"a": (NOW - 300, True)}).holders
    assert busy.last_useful == NOW
    hung = {**book, "gpu_shares": [0.0]}
    (device_idle,) = seen(actors=[hung], calls={"a": (None, True)}).holders
    assert device_idle.last_useful == NOW - 800  # a call that runs, on a device that does nothing


def test_a_plain_task_is_not_judged() -> None:
    task = {
        "task_id": "t",
        "type": "NORMAL_TASK",
        "node_id": "n1",
        "required_resources": {"GPU": 1},
        "state": "RUNNING",
    }
    (held,) = seen(tasks=[task]).holders
    assert held.last_useful is None


def test_a_node_is_kept_by_actors_without_gpus_and_not_by_the_platform_s_own() -> None:
    cache = actor("c", name="cache", required_resources={})
    proxy = actor("p", name="SERVE_PROXY_ACTOR-n1", required_resources={})
    (node,) = seen(actors=[cache, proxy], names={"n1": "serve-1"}).nodes
    assert (node.name, node.free, node.keepers) == ("serve-1", 2.0, (("c", "cache"),))
    (held,) = seen(actors=[cache, actor("g")]).nodes
    assert held.free == 1.0


def told(kind: str, at: float, rank: int = 0, attempt: str = "0-a", **fields: Any) -> Event:
    given = {"run": "run-1", "rank": rank, "attempt": attempt, "node": f"n{rank}", "team": "demo", **fields}
    return Event(f"{at}{rank}", kind, "t", at, at, given)


def test_what_a_rank_said_before_the_last_step_no_longer_holds() -> None:
    said = told("no_progress", 20, 1, collectives=8, doing="here", world=2)
    events = [
        told("step", 10, step=3, world=2),
        said,
        told("no_progress", 21, 0, collectives=9, doing="there", world=2),
    ]
    found = progress_of(events)
    assert (found.step, found.step_at, found.world) == (3, 10, 2)
    assert found.ranks == (Rank(0, "n0", 9, "there"), Rank(1, "n1", 8, "here"))
    assert progress_of([*events, told("step", 30, step=4)]).ranks == ()
    assert progress_of([*events, told("worker_started", 40, attempt="1-b")]).ranks == ()


# --- between looks

FINDING = Finding("idle-app", "chat", "chat", "serve", 1, 5.0, "why", 2.0, None, "stop", "t", "p", date(2026, 12, 1))


def test_the_state_comes_back_as_it_was(store: Store) -> None:
    assert read_state(store) == WasteState()
    state = WasteState(9.0, Memory(9.0, {"n": 1.0}, {"g": 2.0}), {FINDING.id: Told(1.0, 2.0)}, (FINDING,))
    write_state(store, state)
    assert read_state(store) == state
    store.put("waste/state.json", b"torn")
    assert read_state(store) == WasteState()


def test_an_application_is_laid_to_rest_until_it_is_asked(store: Store) -> None:
    rest(store, "chat", NOW)
    assert read_resting(store) == {"chat": NOW}
    spec = Application.model_validate(
        {
            "recipe": "a:B",
            "model": "m@production",
            "group": "serve",
            "route": "/chat",
            "replicas": "1..2",
            "idle_timeout": "24h",
        }
    )
    app = AppState(DesiredApp(name="chat", spec=spec, package=""), (report(last=NOW - 60),))
    assert awake_apps([app], NOW + 5) == {"chat"}
    assert awake_apps([laid_to_rest(app, NOW)], NOW + 5) == set()
    asked = replace(app, reports=(report(last=NOW + 4),))
    assert awake_apps([laid_to_rest(asked, NOW)], NOW + 5) == {"chat"}
    gone = replace(app, reports=())
    assert laid_to_rest(gone, NOW) is gone  # the next replica starts for a request, and keeps its own timeout


def test_the_rules_come_from_the_environment() -> None:
    assert rules_from({}) == WasteRules()
    given = WasteRules.model_validate(
        {"after": "2h", "act": "stop", "quiet": ["Sat-Sun"], "exempt": {"a": "2026-12-31"}}
    )
    assert rules_from({"HELIOSTAT_WASTE": given.model_dump_json()}) == given


def test_an_event_is_plain() -> None:
    fields = event_of(Step("warned", FINDING, "stop", True, 1.0, 2.0))
    assert (fields["what"], fields["due"], fields["exempt_until"]) == ("idle-app", 2.0, "2026-12-01")


@pytest.mark.parametrize("text", ["2026-02-30", "tomorrow"])
def test_an_exemption_needs_a_day_of_the_calendar(text: str) -> None:
    with pytest.raises(ValueError, match=r"no day|pattern"):
        WasteRules.model_validate({"exempt": {"a": text}})
