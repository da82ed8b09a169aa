"""Kill -9 before, halfway through and after every single request of publish, promote and sweep.

python tests/benchmarks/registry_faults.py [publish|promote|sweep ...]

After each kill: no half version to be seen, nothing referenced missing, a second run completes, a sweep leaves no
litter. The last line is JSON: kill_points, failures.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[2]))

from heliostat.cluster import ports, store_server
from heliostat.settings import StoreSettings
from heliostat.store import Store
from tests.faults.kill_points import OPERATIONS, kill_at_every_request


@contextmanager
def own_store() -> Iterator[Store]:
    """An S3 server of this benchmark's own, on loopback, gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        port = ports.choose("auto", preferred=None, field="benchmark", taken=set())
        log = Path(folder) / "store.log"
        process = store_server.start(Path(folder), port=port, access_key="key", secret_key="secret", log=log)
        try:
            store_server.wait_ready(process, port=port, log=log)
            store = Store.connect(
                StoreSettings(
                    endpoint=f"http://127.0.0.1:{port}",
                    bucket="registry-faults",
                    access_key_id="key",
                    secret_access_key=SecretStr("secret"),
                )
            )
            store.ensure_bucket()
            yield store
        finally:
            store_server.stop(process)


def main() -> None:
    wanted = sys.argv[1:] or list(OPERATIONS)
    found: dict[str, dict[str, int]] = {}
    failures: list[str] = []
    begun = time.monotonic()
    with own_store() as store:
        for name in wanted:
            tally = kill_at_every_request(
                store, name, progress=lambda text: print(text, file=sys.stderr) if "whole" not in text else None
            )
            print(f"{name}: {tally.requests} requests, {tally.kill_points} kill points, {len(tally.failures)} failures")
            found[name] = {"requests": tally.requests, "kill_points": tally.kill_points}
            failures += tally.failures
    print(
        json.dumps(
            {
                "kill_points": sum(row["kill_points"] for row in found.values()),
                "failures": len(failures),
                "by_operation": found,
                "first_failures": failures[:5],
                "seconds": round(time.monotonic() - begun),
            }
        )
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
