"""One worker node of the embedded cluster: `python -m heliostat.cluster.node SPEC-AS-JSON`.

Ray's `ray start` refuses to start a worker node that keeps to loopback, so the node is made from Ray's own
`Node(RayParams(...))`. That class is private: this file is the only one that touches it, and
`tests/real/test_embedded.py` fails when it changes.

The process lives as long as its raylet, and takes it along when it is told to end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from heliostat.cluster.head import wait_longer


def main(spec: dict[str, Any]) -> int:
    # Read by the raylet, which reports them to the autoscaler.
    os.environ["RAY_CLOUD_INSTANCE_ID"] = spec["node_id"]
    os.environ["RAY_NODE_TYPE_NAME"] = spec["group"]
    node = _start(spec)

    from heliostat.cluster.nodes import update_node

    update_node(Path(spec["state_dir"]), spec["node_id"], ray_node_id=node.node_id, ready_at=time.time())

    def leave(signum: int, frame: FrameType | None) -> None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    while not node.dead_processes():
        time.sleep(0.1)
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    return 1


def _start(spec: dict[str, Any]) -> Any:  # Any: ray._private.node.Node
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    resources = dict(spec["resources"])
    cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
    resources.pop("memory", None)
    params = RayParams(
        node_ip_address="127.0.0.1",
        gcs_address=spec["gcs_address"],
        redis_address=spec["gcs_address"],
        num_cpus=int(cpus),
        num_gpus=int(gpus),
        resources=resources,
        labels=spec["labels"],
        temp_dir=spec["temp_dir"],
        object_store_memory=int(resources.pop("object_store_memory", 200 * 2**20)),
        min_worker_port=0,
        max_worker_port=0,
        dashboard_agent_listen_port=0,
        metrics_export_port=0,
        # All nodes share one machine and one session folder. With a shared runtime_env folder too, a node that is
        # scaled down deletes the working directory under the feet of a worker on another node.
        runtime_env_dir_name=f"runtime_env-{spec['node_id']}",
        env_vars={"RAY_CLOUD_INSTANCE_ID": spec["node_id"], "RAY_NODE_TYPE_NAME": spec["group"]},
    )
    wait_longer()
    return Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
