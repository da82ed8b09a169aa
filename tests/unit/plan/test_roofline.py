"""Throughput: worked by hand on a card of round numbers, and the laws it obeys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from heliostat.errors import UsageError
from heliostat.plan.catalogue import load
from heliostat.plan.params import shape_of_size
from heliostat.plan.roofline import (
    Calibration,
    Replica,
    Shares,
    Traffic,
    forward_flops,
    matmul_params,
    ratio_of,
    read_calibration,
    replica_on,
    training_flops_per_token,
    training_pace,
)
from heliostat.plan.vram import weight_bytes
from heliostat.plan.workload import Serving, Training

L4 = load().accelerators["L4"]
H100 = load().accelerators["H100-80GB"]
SHAPE = shape_of_size("7B")


USUAL = Traffic(1, 512, 128)


def on(card=L4, traffic: Traffic = USUAL, **options) -> Replica:  # type: ignore[no-untyped-def]
    made = replica_on(SHAPE, Serving(), traffic, card, **options)
    assert isinstance(made, Replica), made
    return made


def test_one_sequence_is_bound_by_reading_the_weights_once_a_token() -> None:
    ideal = replace(L4, bandwidth_gb_s=300.0)
    made = on(ideal, Traffic(1, 1, 1000, None), shares=Shares(decode_bandwidth=1.0), memory_bytes=int(17.5 * 2**30))
    weights_s = weight_bytes(SHAPE, "bf16") / 300e9
    assert made.token_s >= weights_s
    assert weights_s == pytest.approx(0.0467, rel=0.1)  # 14 GB at 300 GB/s


def test_a_forward_pass_is_two_operations_a_weight() -> None:
    assert forward_flops(SHAPE, 10, context=0) == 20 * matmul_params(SHAPE)
    assert matmul_params(SHAPE) == SHAPE.block_params + SHAPE.head_params


def test_full_training_is_six_operations_a_weight_and_lora_four() -> None:
    full = training_flops_per_token(SHAPE, Training(recompute="none", context=1))
    lora = training_flops_per_token(SHAPE, Training(method="lora", recompute="none", context=1))
    assert full == pytest.approx(6 * matmul_params(SHAPE), rel=0.001)
    assert lora / full == pytest.approx(4 / 6)


def test_a_calibration_scales_the_answer() -> None:
    assert on(calibration=Calibration(0.5, "measured")).requests_per_s == pytest.approx(on().requests_per_s / 2)
    plain, half = (
        training_pace(SHAPE, Training(method="lora"), H100, gpus=8, machines=1, calibration=c)
        for c in (None, Calibration(0.5, "m"))
    )
    assert not isinstance(plain, str)
    assert not isinstance(half, str)
    assert half.tokens_per_s == pytest.approx(plain.tokens_per_s / 2)


def test_a_shorter_latency_never_raises_throughput() -> None:
    rates = [on(H100, Traffic(1, 512, 128, latency)).requests_per_s for latency in (60, 10, 5, 2)]
    assert rates == sorted(rates, reverse=True)


def test_what_cannot_be_met_is_said() -> None:
    assert "is the target" in str(replica_on(SHAPE, Serving(), Traffic(1, 512, 128, 0.5), L4))
    assert "does not hold" in str(replica_on(shape_of_size("70B"), Serving(), Traffic(1), L4))
    assert "not known" in str(replica_on(SHAPE, Serving(), Traffic(1), load().accelerators["RTX-PRO-4500-BSE"]))


def test_a_measurement_is_read_from_a_file_and_a_ratio_from_a_number(tmp_path: Path) -> None:
    assert read_calibration("0.8")[0] == 0.8
    path = tmp_path / "bench.json"
    path.write_text('started\n{"accelerator": "L4", "requests_per_s": 3.0}\n')
    ratio, values, where = read_calibration(str(path))
    assert ratio is None
    made = ratio_of(values, estimated=6.0, key="requests_per_s", where=where)
    assert made.ratio == 0.5
    assert "3 requests/s on L4 measured" in made.source
    path.write_text(json.dumps({"requests_per_s": 3.0}))
    for text in (str(path), "-1", "nan", str(tmp_path / "none.json")):
        with pytest.raises(UsageError):
            read_calibration(text)
