from __future__ import annotations

import json
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from heliostat.cluster.ports import choose, claim, claims, is_free
from heliostat.errors import PortInUse


def test_a_port_in_use_is_refused_with_its_field() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(PortInUse, match=rf"port {port} is already in use \(ports.serve\)"):
            choose(port, preferred=None, field="ports.serve", taken=set())


def test_auto_takes_the_usual_one_or_any_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        chosen: set[int] = set()
        assert choose("auto", preferred=busy, field="p", taken=chosen) != busy
        assert len(chosen) == 1


def test_clusters_that_start_at_once_choose_different_ports(tmp_path: Path) -> None:
    chosen: list[int] = []

    def start(name: str) -> None:
        (tmp_path / name).mkdir()
        with claims(tmp_path, lambda _: False) as taken:
            port = choose("auto", preferred=8265, field="ports.dashboard", taken=taken)
            claim(tmp_path / name, name, {port})
        chosen.append(port)

    starts = [threading.Thread(target=start, args=(f"hs-{number}",)) for number in range(8)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    assert len(set(chosen)) == 8


@pytest.mark.parametrize("lives", [True, False])
def test_a_claim_counts_as_long_as_its_cluster_lives(tmp_path: Path, lives: bool) -> None:
    (tmp_path / "hs-a").mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    claim(tmp_path / "hs-a", "a", {31000})
    told = json.loads((tmp_path / "hs-a" / "claim.json").read_text())
    (tmp_path / "hs-a" / "claim.json").write_text(json.dumps(told | {"by": gone.pid}))
    with claims(tmp_path, lambda cluster: lives and cluster == "a") as taken:
        assert taken == ({31000} if lives else set())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"by": "x", "cluster": 1, "ports": []}', "[" * 100_000])
def test_a_damaged_claim_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "hs-a").mkdir()
    (tmp_path / "hs-a" / "claim.json").write_text(text)
    with claims(tmp_path, lambda _: True) as taken:
        assert taken == set()
