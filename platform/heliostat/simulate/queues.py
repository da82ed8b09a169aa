"""Formulas of queueing theory that the simulators are held against. Pure."""

from __future__ import annotations

import math


def erlang_c(servers: int, offered: float) -> float:
    """The chance that an arrival waits in M/M/c; `offered` is arrivals/s x mean service, below `servers`.

    By the recursion of Erlang B, which does not overflow: B(n) = a B(n-1) / (n + a B(n-1)), C = B / (1 - a/c (1 - B)).
    """
    if not 0 <= offered < servers:
        raise ValueError(f"{offered:g} of work for {servers} servers: it has to lie from 0 to below their number")
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mmc_wait_s(servers: int, arrivals_per_s: float, service_s: float) -> float:
    """The mean wait in the queue of M/M/c."""
    offered = arrivals_per_s * service_s
    return erlang_c(servers, offered) * service_s / (servers - offered)


def mg1_wait_s(arrivals_per_s: float, service_s: float, variation: float) -> float:
    """The mean wait of M/G/1 by Pollaczek and Khinchine; `variation` is the service's deviation over its mean."""
    busy = arrivals_per_s * service_s
    if not 0 <= busy < 1:
        raise ValueError(f"busy {busy:g}: it has to lie from 0 to below 1")
    return busy * service_s * (1 + variation**2) / (2 * (1 - busy))


def noise_of_busy(offered: float, service_s: float, variation: float, window_s: float) -> float:
    """Deviation of the work that arrives within a window, per second of it: of a compound Poisson stream,
    sqrt(arrivals/s E[S^2] / window)."""
    return math.sqrt(offered * service_s * (1 + variation**2) / window_s)
