"""How often nodes of a group are taken away: what the checkpoint interval follows from.

Counted from Ray's own node table, which remembers nodes that are gone (a thousand of them, as long as the head lives):
so it holds on any cluster, and needs no reading of events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from heliostat.plan.policy.checkpoint import reclaims_per_node_hour

LABEL_GROUP = "heliostat.io/group"
End = Literal["lives", "released", "announced", "unannounced"]


@dataclass(frozen=True)
class Life:
    """One node of the group. `released` is an end that was wanted: scaled down, or shut down."""

    seconds: float
    end: End


@dataclass(frozen=True)
class Reclaims:
    """What was counted, and what is believed on it."""

    announced: int = 0
    unannounced: int = 0
    node_hours: float = 0.0

    @property
    def per_node_hour(self) -> float:
        return reclaims_per_node_hour(self.announced + self.unannounced, self.node_hours)

    @property
    def unannounced_share(self) -> float:
        """Of the reclaims; one of each kind counts as seen before anything was."""
        return (self.unannounced + 1) / (self.announced + self.unannounced + 2)

    def line(self) -> str:
        """For the job's log."""
        taken = self.announced + self.unannounced
        return (
            f"{taken} nodes taken in {self.node_hours:.1f} node-hours, {self.unannounced} of them without notice: "
            f"{self.per_node_hour:.3f} an hour and node are reckoned with"
        )


def count(lives: Iterable[Life]) -> Reclaims:
    """Pure."""
    seen = list(lives)
    return Reclaims(
        announced=sum(life.end == "announced" for life in seen),
        unannounced=sum(life.end == "unannounced" for life in seen),
        node_hours=sum(life.seconds for life in seen) / 3600,
    )


def lives_of(group: str, *, now: float) -> list[Life]:
    """The group's nodes, those that are gone too. To be called where Ray is initialized; [] if it does not tell."""
    import ray

    worker = ray._private.worker.global_worker
    try:
        infos = worker.gcs_client.get_all_node_info(timeout=10)
    except Exception:  # noqa: BLE001  # a private interface: without its answer the prior holds
        return []
    return [_life(info, now) for info in infos.values() if info.labels.get(LABEL_GROUP) == group]


def _life(info: object, now: float) -> Life:
    from ray.core.generated import gcs_pb2

    alive = info.state == gcs_pb2.GcsNodeInfo.GcsNodeState.Value("ALIVE")  # type: ignore[attr-defined]
    began, ended = info.start_time_ms / 1000, info.end_time_ms / 1000  # type: ignore[attr-defined]
    seconds = max(0.0, (now if alive or not ended else ended) - began)
    if alive:
        return Life(seconds, "lives")
    reason = info.death_info.reason  # type: ignore[attr-defined]
    kind = type(info.death_info).Reason.Name(reason)  # type: ignore[attr-defined]
    ends: dict[str, End] = {"UNEXPECTED_TERMINATION": "unannounced", "AUTOSCALER_DRAIN_PREEMPTED": "announced"}
    return Life(seconds, ends.get(kind, "released"))
