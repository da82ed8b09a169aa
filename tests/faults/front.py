"""The front without Ray: the real HAProxy with the configuration that Ray writes, the real holding server, and what
front_peer.py plays, each a process of its own. Ready in a second or two.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from heliostat.cluster.haproxy import write_wrapper
from heliostat.cluster.ports import choose
from heliostat.cluster.ray_env import serve_front_environment
from heliostat.settings import Settings, StoreSettings, save

PEER = Path(__file__).parent / "front_peer.py"


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
