"""The front loses nothing: the real HAProxy with the configuration that Ray writes, the real holding server, and
replicas as processes that get SIGKILL under load. Without Ray, so that it runs in seconds; tests/benchmarks/
losing_nothing.py does the same on a whole cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from heliostat.cluster.haproxy import write_wrapper
from heliostat.cluster.ports import choose
from heliostat.cluster.ray_env import serve_front_environment
from heliostat.settings import Settings, StoreSettings, save

pytestmark = pytest.mark.timeout(120)
PEER = Path(__file__).parent / "front_peer.py"
SIZES = (1024, 100 * 1024, 5 * 2**20)


class Front:
    """HAProxy, the holding server, Serve's proxy and one replica, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        taken: set[int] = set()
        names = ("front", "hold", "proxy", "replica", "metrics", "stats")
        self.ports = {name: choose("auto", preferred=None, field=name, taken=taken) for name in names}
        self.url = f"http://127.0.0.1:{self.ports['front']}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        settings = Settings(
            cluster="front", dashboard_url="http://127.0.0.1:1", gcs_address="127.0.0.1:1", serve_url=self.url,
            # Nothing is there: the holding server goes on without knowing the applications.
            store=StoreSettings(endpoint="http://127.0.0.1:9", bucket="none", access_key_id="k", secret_access_key="s"),
            spool=self.folder,
        )  # fmt: skip
        save(settings, self.folder / "settings.json")
        self.start_replica()
        self._spawn("proxy", [sys.executable, str(PEER), "proxy", str(self.ports["proxy"]), str(self.ports["replica"])])
        self._spawn("hold", [sys.executable, "-m", "heliostat.serve.hold"])
        for name in ("replica", "proxy", "hold"):
            self._wait(self.ports[name], "/-/healthz")
        write_wrapper(self.folder / "haproxy", hold_port=self.ports["hold"])
        self._write_config()
        self._spawn("haproxy", [str(self.folder / "haproxy"), "-db", "-f", str(self.folder / "ray.cfg")])
        self._wait(self.ports["front"], "/nothing", status=404)

    def start_replica(self) -> None:
        self._spawn("replica", [sys.executable, str(PEER), "replica", str(self.ports["replica"])])

    def kill_replica(self) -> None:
        self.running["replica"].send_signal(signal.SIGKILL)
        self.running["replica"].wait(10)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)

    def _write_config(self) -> None:
        haproxy = pytest.importorskip("ray.serve._private.haproxy", reason="ray is not installed")
        from ray.serve.config import HTTPOptions

        front = serve_front_environment()
        replica = haproxy.ServerConfig(name="replica", host="127.0.0.1", port=self.ports["replica"])
        proxy = haproxy.ServerConfig(name="proxy", host="127.0.0.1", port=self.ports["proxy"])
        backend = haproxy.BackendConfig(
            name="http-app", path_prefix="/app", app_name="app", servers=[replica], fallback_server=proxy
        )
        config = haproxy.HAProxyConfig(
            socket_path=str(self.folder / "a.sock"),
            server_state_base=str(self.folder),
            server_state_file=str(self.folder / "state"),
            http_options=HTTPOptions(host="127.0.0.1", port=self.ports["front"]),
            metrics_port=self.ports["metrics"],
            stats_port=self.ports["stats"],
            nbthread=1,
            metrics_enabled=False,
            # Ray reads these from the environment when it is imported; this process may have imported it already.
            retry_on=front["RAY_SERVE_HAPROXY_RETRY_ON"],
            retries=int(front["RAY_SERVE_HAPROXY_RETRIES"]),
            bufsize=int(front["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
        )
        path = self.folder / "ray.cfg"
        haproxy.HAProxyApi(config, {"http-app": backend}, config_file_path=str(path))._generate_config_file_internal()

    def _spawn(self, name: str, command: list[str]) -> None:
        env = {
            **os.environ,
            "HELIOSTAT_SETTINGS": str(self.folder / "settings.json"),
            "HELIOSTAT_HOLD_PORT": str(self.ports["hold"]),
            "HELIOSTAT_SERVE_PROXY_PORT": str(self.ports["proxy"]),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def _wait(self, port: int, path: str, *, status: int = 200) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == status:
                    return
            time.sleep(0.05)
        raise AssertionError(f"nothing answers on {port}: {[p.read_text()[-500:] for p in self.folder.glob('*.log')]}")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    made = Front(tmp_path_factory.mktemp("f"))
    try:
        made.start()
        yield made
    finally:
        made.end()


def under_load(
    front: Front, path: str, body: bytes, seconds: float, faults: Callable[[], Awaitable[None]]
) -> list[Any]:
    """(status, text) of every request of eight clients that send one after another while the faults happen."""
    found: list[Any] = []

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            try:
                async with session.post(front.url + path, data=body) as answer:
                    found.append((answer.status, await answer.text()))
            except aiohttp.ClientError as problem:
                found.append((0, type(problem).__name__))

    async def body_of() -> None:
        until = time.monotonic() + seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            await asyncio.gather(faults(), *(client(session, until) for _ in range(8)))

    asyncio.run(body_of())
    return found


def kills(front: Front, times: int, draw: random.Random) -> Callable[[], Awaitable[None]]:
    """The only replica is killed at random moments, and comes back a second later."""

    async def faults() -> None:
        for _ in range(times):
            await asyncio.sleep(0.5 + draw.random())
            front.kill_replica()
            await asyncio.sleep(1.0)
            front.start_replica()
            await asyncio.sleep(1.0)

    return faults


@pytest.mark.parametrize("size", SIZES)
def test_killing_the_only_replica_loses_no_request(front: Front, size: int) -> None:
    faults = kills(front, 2, random.Random(size))
    found = under_load(front, "/app", b"x" * size, 7.0, faults)
    assert len(found) > 3  # 5 MiB a request: how many a crowded machine does is not the point
    assert [one for one in found if one[0] != 200] == []
    assert {json.loads(text)["length"] for _, text in found} == {size}  # nothing was torn


def test_a_stream_that_is_cut_says_so(front: Front) -> None:
    found = under_load(front, "/app/v1/completions", b"{}", 7.0, kills(front, 2, random.Random(7)))
    ends = [
        "done" if text.endswith("data: [DONE]\n\n") else "told" if '"stream_cut"' in text else text for _, text in found
    ]
    assert {status for status, _ in found} == {200}
    assert set(ends) == {"done", "told"}


def test_without_the_holding_server_the_front_still_answers(front: Front) -> None:
    front.running["hold"].kill()
    front.running["hold"].wait(10)
    deadline = time.monotonic() + 10
    while (answer := httpx.post(f"{front.url}/app/v1/completions", timeout=10)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert httpx.post(f"{front.url}/app", content=b"x", timeout=10).status_code == 200


def test_headers_that_no_buffer_holds_are_refused(front: Front) -> None:
    assert httpx.post(f"{front.url}/app", headers={"X-Long": "x" * 100_000}, timeout=10).status_code == 400


def test_a_large_body_of_no_known_length_arrives_whole(front: Front) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    assert httpx.post(f"{front.url}/app", content=parts(), timeout=10).json() == {"length": 2_000_000}
