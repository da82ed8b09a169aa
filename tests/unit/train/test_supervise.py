"""A driver that was killed is started again; one that has ended, or was told to, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SUPERVISE = [sys.executable, "-m", "heliostat.train.supervise", "--", sys.executable, "-c"]
COUNT = "import os,signal,sys,pathlib; p=pathlib.Path(sys.argv[1]); n=len(p.read_text()) if p.exists() else 0; "
COUNT += "p.write_text('x'*(n+1)); "


def run(code: str, path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SUPERVISE, COUNT + code, str(path)], capture_output=True, timeout=60, check=False)


def test_a_killed_driver_is_started_again(tmp_path: Path) -> None:
    done = run("n < 2 and os.kill(os.getpid(), signal.SIGKILL); sys.exit(5)", tmp_path / "count")
    assert done.returncode == 5
    assert len((tmp_path / "count").read_text()) == 3
    assert b"killed by signal 9; starting it again (2 of 10)" in done.stderr


def test_an_exit_code_is_an_answer(tmp_path: Path) -> None:
    assert run("sys.exit(3)", tmp_path / "count").returncode == 3
    assert len((tmp_path / "count").read_text()) == 1


def test_a_driver_that_is_killed_for_ever_is_given_up(tmp_path: Path) -> None:
    assert run("os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "count").returncode == 128 + 9
    assert len((tmp_path / "count").read_text()) == 11


def test_a_stop_is_passed_on_and_nothing_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "count"
    process = subprocess.Popen([*SUPERVISE, COUNT + "import time; time.sleep(60)", str(path)])
    while not path.exists() or not path.read_text():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 128 + 15
    assert len(path.read_text()) == 1
