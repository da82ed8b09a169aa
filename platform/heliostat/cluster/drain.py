"""Tells Ray that a node is about to be taken: `python -m heliostat.cluster.drain GCS_ADDRESS NODE_ID DEADLINE_MS`."""

from __future__ import annotations

import sys


def main(gcs_address: str, ray_node_id: str, deadline_ms: int) -> int:
    """0 when Ray accepts; the reason on standard error when it does not."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module
    from ray.core.generated import autoscaler_pb2

    accepted, why = GcsClient(address=gcs_address).drain_node(
        ray_node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the spot node is being reclaimed",
        deadline_ms,
    )
    if not accepted:
        print(why, file=sys.stderr)  # noqa: T201  # read by reclaim.py
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
