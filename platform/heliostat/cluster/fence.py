"""Keeps the one listener of a Serve replica on loopback that no setting of Ray reaches.

Each replica opens a gRPC port for calls between deployments on every interface. On an embedded cluster the replica's
own process narrows it to 127.0.0.1, before Ray opens it. It is a change to a private function of Ray:
`tests/real/test_embedded.py` looks at every listener and fails when it stops working. On Kubernetes the port stays as
Ray makes it and the NetworkPolicy guards it.
"""

from __future__ import annotations

import os

from heliostat.cluster.ray_env import LOOPBACK_ONLY


def keep_replica_on_loopback() -> None:
    """To be called when the deployment's module is imported in the replica. Does nothing elsewhere, or twice."""
    if os.environ.get(LOOPBACK_ONLY) != "1":
        return
    from ray.serve._private import replica

    original = replica.add_port_to_grpc_server
    if getattr(original, "keeps_loopback", False):
        return

    def on_loopback(server: object, address: str) -> int:
        return int(original(server, address.replace("[::]", "127.0.0.1")))

    on_loopback.keeps_loopback = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    replica.add_port_to_grpc_server = on_loopback
