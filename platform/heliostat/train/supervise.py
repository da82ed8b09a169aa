"""Starts a job's driver again when it was killed: `python -m heliostat.train.supervise -- COMMAND...`.

Only a signal that nobody sent to us counts as killed: the out-of-memory killer, a crash, a SIGKILL. A driver that ends
with an exit code has said what it had to say. The run resumes from its newest checkpoint, as its name is the same.

Meanwhile it ships the job's log to the store, where that is known and the job has a name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliostat.train.logs import LogShipper

RESTARTS = 10


def main(arguments: list[str]) -> int:
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    told: list[int] = []
    log = _ship_log()
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        if process is not None and process.poll() is None:
            process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    for restart in range(RESTARTS + 1):
        process = subprocess.Popen(command)
        code = process.wait()
        if code >= 0 or told or restart == RESTARTS:
            break
        print(  # noqa: T201  # the job's log
            f"heliostat: the driver was killed by signal {-code}; starting it again ({restart + 1} of {RESTARTS})",
            file=sys.stderr,
            flush=True,
        )
    if log is not None:
        log.close()
    return code if code >= 0 else 128 - code


def _ship_log() -> LogShipper | None:
    run, job = os.environ.get("HELIOSTAT_RUN"), os.environ.get("HELIOSTAT_JOB_ID")
    if not run or not job:
        return None
    from heliostat.errors import HeliostatError
    from heliostat.settings import load
    from heliostat.store import Store
    from heliostat.train.logs import shipper

    try:
        made = shipper(Store.connect(load().store), run, job)
    except HeliostatError as error:
        print(f"heliostat: the log stays here: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the job's log
        return None
    if made is not None:
        made.start()
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
