"""What is asked of Ray's GCS over its own protocol, in a process made for the question.

Ray reads its token settings once, when it is first imported. A program that imported it before, or talks to two
clusters, could not ask: so the call is made by `python -m heliostat.cluster.gcs`, which answers in JSON.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import Any

from heliostat.errors import ClusterError, ClusterNotUp
from heliostat.settings import Settings

LIMIT_S = 60
_REFUSED = 3


def cluster_status(settings: Settings) -> dict[str, Any]:  # Any: the protocol's message as JSON
    """GetClusterStatusReply, its node ids in hex as everywhere else. Raises ClusterNotUp."""
    found: dict[str, Any] = _ask(settings, "status")
    for state in (found.get("clusterResourceState") or {}).get("nodeStates", ()):
        state["nodeId"] = base64.b64decode(state.get("nodeId", "")).hex()
    return found


def drain(settings: Settings, ray_node_id: str, *, deadline: float) -> None:
    """Tell Ray that a spot node will be taken at `deadline`, in seconds since the epoch. Raises ClusterError."""
    _ask(settings, "drain", ray_node_id, str(int(deadline * 1000)))


def kill_actor(settings: Settings, actor_id: str) -> None:
    """End an actor for good; an actor that has ended already is no error. Raises ClusterError."""
    _ask(settings, "kill", actor_id)


def _ask(settings: Settings, *question: str) -> Any:  # Any: JSON
    env = dict(os.environ)
    if settings.token_path is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.token_path)}
    command = [sys.executable, "-m", "heliostat.cluster.gcs", settings.gcs_address, *question]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    why = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    if done.returncode == _REFUSED:
        raise ClusterError(f"Ray refused: {why}", where=settings.gcs_address)
    raise ClusterNotUp(
        f"the GCS does not answer: {why}", where=settings.gcs_address, do="heliostat status, then heliostat up"
    )


def main(address: str, what: str, *arguments: str) -> int:
    from google.protobuf.json_format import MessageToDict
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module
    from ray.core.generated import autoscaler_pb2

    if what == "kill":
        _kill(address, *arguments)
        print("null")  # noqa: T201  # the answer
        return 0
    client = GcsClient(address=address)
    if what == "drain":
        node, deadline_ms = arguments
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = client.drain_node(node, reason, "the spot node is being reclaimed", int(deadline_ms))
        print("null" if accepted else why, file=sys.stdout if accepted else sys.stderr)  # the answer
        return 0 if accepted else _REFUSED
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status())
    print(json.dumps(MessageToDict(reply)))  # noqa: T201  # the answer
    return 0


def _kill(address: str, actor_id: str) -> None:
    """Over the service itself: GcsClient has no such call. The channel carries Ray's token."""
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(create_gcs_channel(address))
    request = gcs_service_pb2.KillActorViaGcsRequest(actor_id=bytes.fromhex(actor_id), force_kill=True, no_restart=True)
    stub.KillActorViaGcs(request, timeout=LIMIT_S / 2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
