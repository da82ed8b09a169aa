"""Which looks are told, and what Ray's own words come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from heliostat.meter.sampler import Devices, NodeLook, Settled, devices_of, nodes_in

NODE = NodeLook("abc", "train", 4.0, 4.0)


def told(settled: Settled, at: float, free: float) -> list[tuple[float, float]]:
    return [(sample.at, sample.node.free) for sample in settled.take([replace(NODE, free=free)], at)]


def test_a_state_is_told_when_two_looks_agree_with_the_time_of_the_first() -> None:
    settled = Settled()
    assert told(settled, 100, 4.0) == []
    assert told(settled, 103, 4.0) == [(100, 4.0)]
    assert told(settled, 106, 4.0) == []
    assert told(settled, 109, 1.0) == []  # a GPU that changes hands
    assert told(settled, 112, 4.0) == []
    assert told(settled, 115, 1.0) == []
    assert told(settled, 118, 1.0) == [(115, 1.0)]


def test_what_does_not_change_is_told_again_as_a_sign_of_life() -> None:
    settled = Settled(tell_s=30)
    times = [at for now in range(0, 100, 3) for at, _ in told(settled, now, 2.0)]
    assert times == [0, 33, 63, 93]


def test_a_node_that_went_and_came_back_is_new() -> None:
    settled = Settled()
    told(settled, 0, 4.0), told(settled, 3, 4.0)
    settled.take([], 6)
    assert told(settled, 9, 4.0) == []
    assert told(settled, 12, 4.0) == [(9, 4.0)]


def state(**fields: Any) -> dict[str, Any]:
    labels = {"heliostat.io/group": "train", "ray.io/market-type": "spot", **fields.pop("labels", {})}
    return {"nodeId": "abc", "rayNodeTypeName": "x", "status": "RUNNING", "labels": labels, **fields}


def looks(*states: dict[str, Any]) -> list[NodeLook]:
    return list(nodes_in({"clusterResourceState": {"nodeStates": list(states)}}))


def test_heads_dead_nodes_and_nodes_without_devices_are_left_out() -> None:
    gpu = {"totalResources": {"GPU": 4.0}, "availableResources": {"GPU": 1.5}}
    assert looks(
        state(**gpu, status="DEAD"),
        state(**{**gpu, "rayNodeTypeName": "head"}),
        state(**gpu, labels={"heliostat.io/role": "head"}),
        state(totalResources={"CPU": 4.0}),
    ) == []  # fmt: skip
    assert looks(state(**gpu)) == [NodeLook("abc", "train", 4.0, 1.5, "spot")]
    # Ray leaves out what is zero.
    assert looks(state(totalResources={"GPU": 4.0}))[0].free == 0.0


def test_neuron_chips_and_mig_slices_count_as_what_they_are() -> None:
    from heliostat.definition.accelerators import ACCELERATORS

    chip = next(a for a in ACCELERATORS.values() if a.is_neuron)
    units = max(a.ray_units for a in ACCELERATORS.values() if a.is_neuron and a.ray_type == chip.ray_type)
    (node,) = looks(
        state(
            totalResources={"neuron_cores": 4.0 * units},
            availableResources={"neuron_cores": 1.0 * units},
            labels={"ray.io/accelerator-type": str(chip.ray_type)},
        )
    )
    assert (node.gpus, node.free) == (4.0, 1.0)
    (sliced,) = looks(state(totalResources={"GPU": 7.0}, labels={"heliostat.io/mig": "1g.5gb"}))
    assert (sliced.gpus, sliced.share) == (7.0, pytest.approx(1 / 7))


def test_devices_are_those_of_the_node_and_unknown_is_not_zero() -> None:
    entries = [
        {"index": 0, "utilizationGpu": 80, "memoryUsed": 1024, "powerMw": 300_000},
        {"index": 1, "utilizationGpu": 40, "memoryUsed": 1024, "powerMw": 100_000},
    ]
    assert devices_of(entries) == Devices(pytest.approx(0.6), 2 * 2.0**30, 400.0)
    assert devices_of(entries, [1]) == Devices(0.4, 2.0**30, 100.0)
    assert devices_of([{"index": 0, "utilizationGpu": -1, "memoryUsed": None, "powerMw": None}]) == Devices()
    assert devices_of([{"index": 0, "utilizationGpu": 0, "memoryUsed": 0}]).duty == 0.0
