"""The embedded cluster's head: `python -m heliostat.cluster.head start --head ...` is `ray start` with patience."""

from __future__ import annotations

import sys
import time
from typing import Any

REGISTER_LIMIT_S = 120.0


def wait_longer() -> None:
    """Ray gives a node 30 s to register, which is a constant of its code: on a busy laptop that is not enough, and the
    node that failed is started again and makes the machine busier. Whoever starts the process ends one that hangs.
    """
    from ray._private import services

    get_node = services.get_node

    def patient(*asked: Any) -> Any:  # Any: as Ray has it
        deadline = time.monotonic() + REGISTER_LIMIT_S
        while True:
            try:
                return get_node(*asked)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    services.get_node = patient


if __name__ == "__main__":
    wait_longer()
    from ray.scripts.scripts import main

    sys.exit(main())
