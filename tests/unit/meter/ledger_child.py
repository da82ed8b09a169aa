"""Brings a ledger up to a time, and is killed at a given write into the store: `... SETTINGS NOW WRITES`."""

from __future__ import annotations

import os
import signal
import sys

from heliostat.meter import ledger
from heliostat.settings import StoreSettings
from heliostat.store import Store


def main(settings: str, now: float, writes: int) -> None:
    store = Store.connect(StoreSettings.model_validate_json(settings))
    put = store._put
    left = writes

    def put_or_die(key: str, data: object, mode: object) -> str:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return put(key, data, mode)  # type: ignore[arg-type]

    store._put = put_or_die  # type: ignore[method-assign]
    ledger.update(store, now=now)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
