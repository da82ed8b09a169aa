"""Applying while the process that applies is killed: before and after each of its requests, then run again.

The stand-in kills the process with SIGKILL when its n-th request arrives (before it is carried out), or when it was
carried out (before it is answered). Every seventh request here; every one with FULL_SWEEP=1, which `make prove` sets.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kube import client
from tests.kube.kuberay import NO_GPU, READY, KubeRay, operating, pending
from tests.kube.machinery import Object
from tests.kube.manifests import SECRET_VALUE, find, mixed
from tests.kube.stand_in_api import Fault, StandInApi, running

ROOT = Path(__file__).parents[2]
EVERY = 1 if os.environ.get("FULL_SWEEP") else 7
LIMIT_S = 60

# One process with the client imported, from which the others are forked: a start costs milliseconds instead of seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["kubernetes.client", "kubernetes.config", "kubernetes.dynamic", "tests.kube.client"])

pytestmark = pytest.mark.timeout(600)


def started(server: StandInApi, work: Callable[..., None], kubeconfig: Path, objects: list[Object]) -> int:
    """Run it to its end, whatever that is. Returns the exit code, as a negative signal number where it was killed."""
    known = threading.Event()
    pid = 0

    def victim() -> int:
        assert known.wait(LIMIT_S)
        return pid

    server.victim = victim
    process = PROCESSES.Process(target=work, args=(str(kubeconfig), objects))
    process.start()
    assert process.pid is not None
    pid = process.pid
    known.set()
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"process {pid} did not end within {LIMIT_S} s")
    return process.exitcode


def settled(server: StandInApi) -> Object:
    """All that is there, without what differs between any two runs. Waits for the server's own deletions."""
    deadline = threading.Event()
    for _ in range(500):
        with server.cluster.changed:
            leaving = [t for t in server.cluster.objects.values() if t["metadata"].get("deletionTimestamp")]
            if not leaving:
                return {
                    f"{kind.kind} {namespace}/{name}": without_chance(thing)
                    for (kind, namespace, name), thing in server.cluster.objects.items()
                }
        deadline.wait(0.01)
    raise AssertionError(f"still leaving: {leaving}")


def without_chance(thing: Object) -> Object:
    bare = copy.deepcopy(thing)
    for key in ("uid", "creationTimestamp", "resourceVersion"):
        bare["metadata"].pop(key, None)
    for entry in bare["metadata"].get("managedFields", []):
        entry.pop("time")
    return bare


def changed() -> list[Object]:
    """A group and a value changed, one object less, one more."""
    objects = [thing for thing in mixed() if thing["kind"] not in ("NetworkPolicy",)]
    find(objects, "RayCluster")["spec"]["workerGroupSpecs"][1]["maxReplicas"] = 12
    find(objects, "ConfigMap")["data"] = {"region": "eu-west-1"}
    more = copy.deepcopy(find(objects, "ConfigMap"))
    more["metadata"]["name"] = "llm-more"
    return [*objects, more]


def scaled(server: StandInApi) -> None:
    """The autoscaler has been at work since the first apply."""

    def scale(thing: Object) -> None:
        thing["spec"]["workerGroupSpecs"][1]["replicas"] = 3

    server.cluster.update(server.cluster.kind("RayCluster"), "ml", "llm", scale, manager="python-requests")


Case = tuple[Callable[..., None], list[Object], bool]  # what to run, on what, whether it was applied before
CASES: dict[str, Case] = {
    "first": (client.apply, mixed(), False),
    "change": (client.apply, changed(), True),
    "remove": (client.remove, mixed(), True),
}


def prepared(server: StandInApi, folder: Path, applied_before: bool) -> Path:
    kubeconfig = server.kubeconfig(folder)
    if applied_before:
        assert started(server, client.apply, kubeconfig, mixed()) == 0
        scaled(server)
    server.requests.clear()
    return kubeconfig


def undisturbed(case: Case, folder: Path) -> tuple[Object, int]:
    work, objects, before = case
    with running(StandInApi()) as server:
        kubeconfig = prepared(server, folder, before)
        assert started(server, work, kubeconfig, objects) == 0
        return settled(server), len(server.requests)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
def test_killed_at_any_request_and_run_again_it_ends_the_same(name: str, when: str, tmp_path: Path) -> None:
    work, objects, before = CASES[name]
    wanted, requests = undisturbed(CASES[name], tmp_path)
    assert requests > 20
    killed = 0
    for number in range(1, requests + 1, EVERY):
        with running(StandInApi()) as server:
            kubeconfig = prepared(server, tmp_path, before)
            server.faults.append(Fault(when, at=number))
            code = started(server, work, kubeconfig, objects)
            if code == 0:  # it waited for a deletion less often than the run before
                assert number > requests - 10
                continue
            assert code == -signal.SIGKILL, f"at request {number}"
            killed += 1
            settled_half_way = settled(server)  # what was being deleted when it died is gone by now
            assert started(server, work, kubeconfig, objects) == 0, f"after a kill at request {number}"
            assert settled(server) == wanted, f"after a kill at request {number}"
            assert set(settled_half_way) <= set(wanted) | {key(thing) for thing in mixed()}
    assert killed >= (requests - 10) // EVERY
    print(f"{name}, {when}: {killed} kills over {requests} requests, each ended the same when run again")  # noqa: T201


def key(thing: Object) -> str:
    return f"{thing['kind']} {thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}"


# The command line, as a program.


def heliostat(server: StandInApi, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "KUBECONFIG": str(server.kubeconfig(folder)), "HELIOSTAT_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "heliostat.cli", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def written(folder: Path, objects: list[Object]) -> str:
    """As `heliostat render` leaves them: a folder of YAML. JSON is YAML."""
    into = folder / "manifests"
    into.mkdir(exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    for index, thing in enumerate(objects):
        (into / f"{index:02}.yaml").write_text(json.dumps(thing))
    return str(into)


def test_diff_apply_and_down_from_the_command_line(tmp_path: Path) -> None:
    with running(StandInApi()) as server, operating(KubeRay(server.cluster)):
        folder = written(tmp_path, mixed())
        shown = heliostat(server, tmp_path, "diff", folder)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "+ RayCluster ml/llm" in shown.stdout
        assert "11 to create" in shown.stdout
        assert server.cluster.objects == {}

        asked = heliostat(server, tmp_path, "apply", folder)
        assert asked.returncode == 2
        assert "--yes" in asked.stderr
        assert server.cluster.objects == {}

        done = heliostat(server, tmp_path, "apply", folder, "--yes")
        assert done.returncode == 0, done.stderr
        assert "RayCluster ml/llm is ready: head 1/1, serve 1/1, train 0/0" in done.stderr
        assert "made RayCluster ml/llm (11 of 11)" in done.stderr

        as_json = heliostat(server, tmp_path, "diff", written(tmp_path, changed()), "--json")
        facts: Any = json.loads(as_json.stdout)
        by_verb = {change["ref"]["name"]: change["verb"] for change in facts["changes"]}
        assert (by_verb["llm-more"], by_verb["llm-settings"]) == ("create", "change")
        assert SECRET_VALUE not in as_json.stdout + shown.stdout + done.stdout + done.stderr

        gone = heliostat(server, tmp_path, "down", folder, "--yes", "--with-data")
        assert gone.returncode == 0, gone.stderr
        assert server.cluster.objects == {}
        assert heliostat(server, tmp_path, "down", folder, "--yes").returncode == 0


def test_a_cluster_that_does_not_become_ready_ends_with_the_reason_and_exit_code_1(tmp_path: Path) -> None:
    def fate(group: str, index: int) -> Object:
        return pending(NO_GPU) if group == "serve" else READY

    with running(StandInApi()) as server, operating(KubeRay(server.cluster, fate)):
        shown = heliostat(server, tmp_path, "apply", written(tmp_path, mixed()), "--yes", "--wait", "1s")
    assert shown.returncode == 1
    assert "no node has enough nvidia.com/gpu free (serve, 1 pod): add nodes of that kind" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_conflict_ends_diff_and_apply_with_exit_code_1_and_the_cure(tmp_path: Path) -> None:
    with running(StandInApi()) as server:
        folder = written(tmp_path, mixed())
        assert heliostat(server, tmp_path, "apply", folder, "--yes", "--wait", "0s").returncode == 0
        maps = server.cluster.kind("ConfigMap")
        server.cluster.update(
            maps, "ml", "llm-settings", lambda t: t["data"].update(region="x"), manager="kubectl-edit"
        )
        for command in (("diff",), ("apply", "--yes")):
            shown = heliostat(server, tmp_path, *command, folder)
            assert shown.returncode == 1
            assert ".data.region is held by kubectl-edit" in shown.stderr
            assert "--take-over" in shown.stderr
        assert heliostat(server, tmp_path, "apply", folder, "--yes", "--take-over", "--wait", "0s").returncode == 0
