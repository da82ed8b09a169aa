"""A Ray worker that waits on a node which may be needed: a keeper that is placed there lives at once.

Without one, Ray starts a Python process for the keeper, which takes two seconds of a core, and five beside a node that
starts on the same machine. Ray has a request for it, PrestartWorkers of its NodeManagerService, and no Python function
that makes it: this file is the only one that does. A worker that nobody has used is idle to Ray, and keeps no node up.
"""

from __future__ import annotations

from typing import Any

KEEP_S = 600
"""Unused, it ends after so long."""
LIMIT_S = 5.0


def prestart(node: dict[str, Any], *, count: int) -> bool:  # Any: an entry of ray.nodes()
    """Ask for `count` workers of this job on the node. Returns whether it was asked for: without, placing takes longer.

    To be called where Ray is initialized. Returns at once; the workers come a second or two later.
    """
    import ray

    try:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

        worker = ray._private.worker.global_worker
        request = node_manager_pb2.PrestartWorkersRequest(
            language=common_pb2.Language.Value("PYTHON"),
            job_id=worker.current_job_id.binary(),
            runtime_env_info=worker.core_worker.get_job_config().runtime_env_info,
            keep_alive_duration_secs=KEEP_S,
            num_workers=count,
        )
        channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        with channel:
            node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=LIMIT_S)
    except Exception:  # noqa: BLE001  # private interfaces, and a node that may just have died: it is only for speed
        return False
    return True
