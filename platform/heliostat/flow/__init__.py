"""The way forward: trained -> published -> judged -> released -> live.

`steps.py` has each step, which takes values and may be repeated; `run.py` takes them one after another, and can be
killed anywhere. This package and the command line know every layer; the layers do not know each other.
"""

from heliostat.flow.run import run_flow
from heliostat.flow.steps import (
    judge_candidate,
    must_read_release,
    publish_trained,
    release,
    roll_back,
    wait_live,
    wait_released,
)
from heliostat.promote.flows import Flow, FlowStep, read_flow

__all__ = [
    "publish_trained",
    "judge_candidate",
    "release",
    "wait_released",
    "roll_back",
    "must_read_release",
    "wait_live",
    "run_flow",
    "read_flow",
    "Flow",
    "FlowStep",
]
