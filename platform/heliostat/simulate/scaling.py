"""What decides how many replicas there are: Serve's configuration, policy and delays, and the controller's idle rule.

`serve_config` gives the very values that production puts, `QueueDelayPolicy` is the policy it names, `awake_apps` the
idle rule. Serve's delays around the policy are written out here, since importing Serve takes longer than a month of
simulation; a test holds them against Ray's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from heliostat.controller.serving import AppState, Serving, awake_apps
from heliostat.plan.policy.scale import ReplicaLoad, wanted_replicas
from heliostat.serve.config import serve_config
from heliostat.serve.desired import DesiredApp
from heliostat.serve.reports import ReplicaReport
from heliostat.serve.scaling import BACKLOG, BUSY, QueueDelayPolicy

CONTROLLER_S = Serving.period_s
EPSILON_S = 1e-6
MANY = 32
"""Replicas from which loads are told apart by a tenth of a replica, below by a hundredth."""


@dataclass
class Delays:
    """Serve's: a wish has to last before it is granted, and what is granted is the wish of that moment."""

    upscale_s: float
    downscale_s: float
    to_zero_s: float
    since: float | None = None
    up: bool = False

    def decide(self, wanted: int, target: int, now: float) -> int:
        """The new target."""
        if wanted == target:
            self.since = None
            return target
        up = wanted > target
        if self.since is None or self.up != up:
            self.since, self.up = now, up
        delay_s = self.delay_s(up=up, target=target)
        if now - self.since + EPSILON_S < delay_s:
            return target
        self.since = None
        return wanted if up or target == 1 else max(1, wanted)

    def delay_s(self, *, up: bool, target: int) -> float:
        if up:
            return self.upscale_s
        return self.to_zero_s if target == 1 else self.downscale_s


class Rules:
    """One application's, as production has them."""

    def __init__(self, desired: DesiredApp) -> None:
        self.desired = desired
        self.awake = False
        self.calls = 0
        """Of the policy."""
        awake, asleep = (_autoscaling(desired, awake=awake) for awake in (True, False))
        self._low = {True: awake["min_replicas"], False: asleep["min_replicas"]}
        self.high: int = awake["max_replicas"]
        self.report_s: float = awake["metrics_interval_s"]
        self.look_back_s: float = awake["look_back_period_s"]
        self.target_s: float = awake["policy"]["policy_kwargs"]["target_s"]
        self._policy = QueueDelayPolicy(**awake["policy"]["policy_kwargs"])
        self.delays = Delays(awake["upscale_delay_s"], awake["downscale_delay_s"], awake["downscale_to_zero_delay_s"])

    @property
    def low(self) -> int:
        low: int = self._low[self.awake]
        return low

    def look(self, last_request_at: float, now: float) -> None:
        """The controller's idle rule."""
        report = ReplicaReport(
            app=self.desired.name,
            replica="simulated",
            node="",
            version=0,
            digest="",
            loaded_at=0.0,
            requests=0,
            last_request_at=last_request_at,
            queued_tokens=0,
        )
        self.awake = bool(awake_apps([AppState(self.desired, (report,))], now))

    def wanted(self, loads: dict[Any, tuple[float, float]], *, replicas: int) -> int:
        """By the policy as Serve calls it; `loads`: (backlog_s, busy) by replica."""
        self.calls += 1
        wanted, _ = self._policy(
            SimpleNamespace(
                aggregated_metrics={
                    BACKLOG: {replica: load[0] for replica, load in loads.items()},
                    BUSY: {replica: load[1] for replica, load in loads.items()},
                },
                current_num_replicas=replicas,
                capacity_adjusted_min_replicas=self.low,
                capacity_adjusted_max_replicas=self.high,
            )
        )
        return wanted

    def wanted_of_equals(self, replicas: int, *, backlog_s: float, busy: float) -> int:
        """The same rule for replicas that are all alike, as a flow's are; both figures are of all of them together."""
        self.calls += 1
        digits = 2 if replicas < MANY else 1
        backlog_s, busy = round(backlog_s, digits), round(busy, digits)
        return _wanted_of_equals(backlog_s, busy, replicas, self.target_s, self.low, self.high)


@lru_cache(maxsize=200_000)
def _wanted_of_equals(backlog_s: float, busy: float, replicas: int, target_s: float, low: int, high: int) -> int:
    """Remembered, as it is pure, and asked a million times about some thousand loads."""
    load = ReplicaLoad(backlog_s / replicas, min(1.0, busy / replicas))
    return wanted_replicas([load] * replicas, replicas=replicas, target_s=target_s, low=low, high=high)


def _autoscaling(desired: DesiredApp, *, awake: bool) -> dict[str, Any]:  # Any: Serve's schema
    config = serve_config([desired], awake={desired.name} if awake else set(), port=0)
    found: dict[str, Any] = config["applications"][0]["deployments"][0]["autoscaling_config"]
    return found
