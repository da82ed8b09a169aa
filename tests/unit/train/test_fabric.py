"""The network between ranks, measured for real: two processes on loopback."""

from __future__ import annotations

import pytest

from tests.benchmarks import fabric

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def test_a_link_that_is_far_below_what_it_should_give_is_refused_with_both_figures() -> None:
    told = fabric.run(None, 2, 1e6, "refuse")
    assert "nodes node-0 and node-1 reach" in told["refused"]
    assert "far below the 1e+06 that the group's fabric should give" in told["refused"]


def test_a_link_that_is_as_it_should_be_is_measured_and_trained_over() -> None:
    told = fabric.run(None, 2, 1e-6, "refuse")
    ((a, b, latency_us, gbytes_per_s),) = told["pairs"]
    assert (a, b) == (0, 1)
    assert 0 < latency_us < 1e6
    assert gbytes_per_s > 0
    assert told["all_reduce"] > 0
