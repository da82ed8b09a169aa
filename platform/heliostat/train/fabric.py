"""Before a gang of several nodes trains: what the network between them gives, pair by pair, and whether it may begin.

A second or so of messages, over the same library (gloo, NCCL) that the gradients take: small ones there and back for
the latency, larger ones for the bandwidth, in rounds of pairs that share no rank, then an all-reduce over all. A link
that is far below what the definition's fabric should give (nodes in two zones, TCP instead of EFA) is named before it
slows every step of a training.

Measured once for each set of nodes of a run. It knows nothing of Ray.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliostat.errors import FabricTooSlow, HeliostatError
from heliostat.plan.fabric import Expectation, Pair, Verdict, judge, rounds

if TYPE_CHECKING:
    import torch

    from heliostat.store import Store

PINGS = 20
FIRST_BYTES = 64 * 2**10
MOST_BYTES = 32 * 2**20
TARGET_S = 0.05
"""For one large message; its size follows from how fast the first was."""
TIMES = 3


@dataclass(frozen=True)
class Measured:
    """`pairs` of ranks; `all_reduce_gbytes_per_s`: the bandwidth of each link in a ring over all (NCCL's busbw)."""

    pairs: tuple[Pair, ...]
    all_reduce_gbytes_per_s: float
    seconds: float


def check(store: Store, run: str, expected: Expectation, rank: int, device: torch.device) -> Measured | None:
    """On every rank, in a process group. Returns what was measured; None where these nodes were before, or by policy.

    Raises FabricTooSlow, on every rank, where the policy is to refuse.
    """
    import torch.distributed as dist

    if expected.policy == "off" or dist.get_world_size() < 2:
        return None
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, os.environ.get("HELIOSTAT_NODE_ID", ""))
    known = [_is_known(store, run, nodes) if rank == 0 else None]
    dist.broadcast_object_list(known, src=0)
    if known[0]:
        return None
    measured = measure(rank, device)
    verdict = judge(measured.pairs, expected)
    if rank == 0:
        print("\n".join(table(measured, verdict, nodes)), flush=True)  # noqa: T201  # the job's log
    if verdict.ok and rank == 0:
        _remember(store, run, nodes)
    if not verdict.ok and expected.policy == "refuse":
        worst = verdict.slow[0]
        raise FabricTooSlow(
            f"nodes {nodes[worst.a] or worst.a} and {nodes[worst.b] or worst.b} reach {worst.gbytes_per_s:.3g} GB/s "
            f"with each other, far below the {expected.gbytes_per_s:.3g} that the group's fabric should give",
            where=f"{len(verdict.slow)} of {len(measured.pairs)} pairs",
            do="put the nodes into one zone with a compact placement, and ask for its interfaces; or write what the "
            "network gives as the group's fabric.gbytes_per_s, or fabric.check: warn",
        )
    return measured


def measure(rank: int, device: torch.device) -> Measured:
    """On every rank, in a process group; the same answer on all."""
    import torch.distributed as dist

    begun = time.perf_counter()
    mine: list[Pair] = []
    for pairs in rounds(dist.get_world_size()):
        for a, b in pairs:
            if rank in (a, b):
                mine.append(_pair(a, b, rank, device))
        dist.barrier()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [pair for pair in mine if pair.a == rank])
    found = sorted((pair for pairs in everyone for pair in pairs), key=lambda pair: (pair.a, pair.b))
    slowest = min(pair.gbytes_per_s for pair in found)
    reduced = _all_reduce(_size(slowest * 1e9), device)
    return Measured(tuple(found), reduced, time.perf_counter() - begun)


def table(measured: Measured, verdict: Verdict, nodes: list[str]) -> list[str]:
    """For the job's log."""
    slow = set(verdict.slow)
    should = f", should give {verdict.expected:.3g}" if verdict.expected is not None else ""
    lines = [
        f"fabric: {nodes[p.a] or p.a} - {nodes[p.b] or p.b}: {p.gbytes_per_s:.3f} GB/s, {p.latency_s * 1e6:.0f} us"
        + (f"  FAR BELOW{should}" if p in slow else "")
        for p in measured.pairs
    ]
    return [
        *lines,
        f"fabric: all-reduce {measured.all_reduce_gbytes_per_s:.3f} GB/s over {len(nodes)}{should}; "
        f"measured in {measured.seconds:.1f} s",
    ]


def _pair(a: int, b: int, rank: int, device: torch.device) -> Pair:
    """Rank a asks, b answers; a's clock counts."""
    import torch

    small = torch.zeros(1, device=device)
    _there_and_back(small, a, b, rank, 2)  # the first message makes the connection
    latency = _there_and_back(small, a, b, rank, PINGS) / 2
    first = torch.zeros(FIRST_BYTES // 4, device=device)
    took = _there_and_back(first, a, b, rank, 1) / 2
    size = torch.tensor([float(_size(FIRST_BYTES / took))], device=device)
    _send(size, a, b, rank)
    large = torch.zeros(int(size.item()) // 4, device=device)
    _there_and_back(large, a, b, rank, 1)
    took = _there_and_back(large, a, b, rank, TIMES) / 2
    return Pair(a, b, latency, large.numel() * 4 / took / 1e9)


def _size(bytes_per_s: float) -> int:
    return int(min(MOST_BYTES, max(FIRST_BYTES, bytes_per_s * TARGET_S))) // 4 * 4


def _there_and_back(tensor: torch.Tensor, a: int, b: int, rank: int, times: int) -> float:
    """Seconds for one way and back, the fastest of `times`: the network's own, without what else the machine does."""
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        _send(tensor, a, b, rank)
        _send(tensor, b, a, rank)
        _synchronise(tensor)
        best = min(best, time.perf_counter() - begun)
    return best


def _send(tensor: torch.Tensor, source: int, target: int, rank: int) -> None:
    import torch.distributed as dist

    if rank == source:
        dist.send(tensor, target)
    else:
        dist.recv(tensor, source)


def _all_reduce(size: int, device: torch.device) -> float:
    import torch
    import torch.distributed as dist

    tensor = torch.zeros(size // 4, device=device)
    dist.all_reduce(tensor)
    best = float("inf")
    for _ in range(TIMES):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(tensor)
        _synchronise(tensor)
        best = min(best, time.perf_counter() - begun)
    count = dist.get_world_size()
    return 2 * (count - 1) / count * size / best / 1e9


def _synchronise(tensor: torch.Tensor) -> None:
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize()


def _is_known(store: Store, run: str, nodes: list[str]) -> bool:
    try:
        found, _ = store.get_json(_key(run))
    except HeliostatError:
        return False
    return isinstance(found, list) and set(nodes) <= set(found)


def _remember(store: Store, run: str, nodes: list[str]) -> None:
    try:
        store.put(_key(run), json.dumps(sorted(set(nodes))).encode())
    except HeliostatError:
        return  # it is measured again


def _key(run: str) -> str:
    return f"gangs/{run}/fabric.json"
