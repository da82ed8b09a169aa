"""Laws of sizing: more work never needs less, sharing never needs more, and what is printed is read back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from heliostat.plan.params import ModelShape, format_params, parse_params, shape_of_size
from heliostat.plan.vram import cheapest_change, fits, inference_need, kv_cache_bytes, kv_tokens, need_of, training_need
from heliostat.plan.workload import BYTES_PER_WEIGHT, Serving, Training

FORMATS = sorted(BYTES_PER_WEIGHT, key=lambda dtype: BYTES_PER_WEIGHT[dtype])


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    head_dim, layers = draw(st.sampled_from([64, 128])), draw(st.integers(1, 100))
    kv_heads, vocab = draw(st.sampled_from([1, 2, 8, heads])), draw(st.integers(1000, 200_000))
    hidden, ffn = heads * head_dim, draw(st.integers(1, 5)) * heads * head_dim
    gated, tied = draw(st.booleans()), draw(st.booleans())
    layer = 2 * hidden * hidden + 2 * hidden * kv_heads * head_dim + (3 if gated else 2) * hidden * ffn
    embedding = vocab * hidden
    head = 0 if tied else embedding
    return ModelShape(
        name="any", params=layers * layer + embedding + head, layers=layers, hidden=hidden, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffn=ffn, vocab=vocab, embedding_params=embedding, head_params=head,
        gated=gated, causal=draw(st.booleans()), has_head=draw(st.booleans()),
    )  # fmt: skip


servings = st.builds(
    Serving, dtype=st.sampled_from(FORMATS), kv_dtype=st.sampled_from(["bf16", "fp8", "fp32"]),
    context=st.integers(1, 200_000), batch=st.integers(1, 256), tensor=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
trainings = st.builds(
    Training,
    method=st.sampled_from(["full", "lora", "qlora"]),
    precision=st.sampled_from(["fp32", "mixed", "bf16"]),
    dtype=st.sampled_from(["bf16", "nf4", "int4", "int8"]),
    optimizer=st.sampled_from(["adamw", "adamw-8bit", "paged-adamw-8bit", "adafactor", "sgd"]),
    context=st.integers(1, 200_000),
    batch=st.integers(1, 64),
    recompute=st.sampled_from(["none", "selective", "full", "offload"]),
    attention=st.sampled_from(["flash", "eager"]),
    loss=st.sampled_from(["full", "upcast", "half", "fused"]),
    rank=st.integers(1, 256),
    train_embeddings=st.booleans(),
    fused_backward=st.booleans(),
    shard=st.sampled_from(["ddp", "zero1", "zero2", "zero3"]),
    gpus=st.sampled_from([1, 2, 3, 8, 64]),
    tensor=st.sampled_from([1, 2, 8]),
    cpu_offload=st.booleans(),
)
workloads = st.one_of(servings, trainings)


@given(shapes(), workloads, st.sampled_from(["context", "batch"]), st.integers(1, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_longer_context_or_a_larger_batch_never_needs_less(
    shape: ModelShape, workload: Serving | Training, field: str, more: int
) -> None:
    larger = replace(workload, **{field: getattr(workload, field) + more})
    less, need = need_of(shape, workload), need_of(shape, larger)
    assert less.total <= need.total
    assert less.ceiling <= need.ceiling


@given(shapes(), servings, st.sampled_from(FORMATS), st.sampled_from(["dtype", "kv_dtype"]))
@settings(max_examples=200, deadline=None)
def test_a_wider_format_never_needs_less(shape: ModelShape, workload: Serving, other: Any, field: str) -> None:
    narrow, wide = sorted((getattr(workload, field), other), key=lambda dtype: BYTES_PER_WEIGHT[dtype])
    needs = [inference_need(shape, replace(workload, **{field: dtype})).total for dtype in (narrow, wide)]
    assert needs[0] <= needs[1]


@given(shapes(), trainings, st.sampled_from(FORMATS))
@settings(max_examples=200, deadline=None)
def test_frozen_weights_in_a_wider_format_never_need_less(shape: ModelShape, workload: Training, other: Any) -> None:
    workload = replace(workload, method="lora", unquantised_fp32=False)
    narrow, wide = sorted((workload.dtype, other), key=lambda dtype: BYTES_PER_WEIGHT[dtype])
    needs = [training_need(shape, replace(workload, dtype=dtype)).total for dtype in (narrow, wide)]
    assert needs[0] <= needs[1]


@given(shapes(), trainings)
@settings(max_examples=200, deadline=None)
def test_each_stage_of_sharding_never_needs_more_than_the_one_before(shape: ModelShape, workload: Training) -> None:
    stages = ("ddp", "zero1", "zero2", "zero3")
    needs = [training_need(shape, replace(workload, shard=stage)).total for stage in stages]
    assert all(later <= earlier + 8 for earlier, later in pairwise(needs))  # 8: rounding of terms


@given(shapes(), trainings, st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_more_gpus_never_raise_the_need_of_one_beyond_what_talking_takes(
    shape: ModelShape, workload: Training, times: int
) -> None:
    """A second GPU brings NCCL's buffers, which are a term of their own."""
    few, many = (training_need(shape, replace(workload, gpus=workload.gpus * n)) for n in (1, times))
    assert many.without("communication").total <= few.without("communication").total + 8


@given(shapes(), servings)
@settings(max_examples=200, deadline=None)
def test_tensor_parallel_never_raises_the_need_beyond_what_talking_takes(shape: ModelShape, workload: Serving) -> None:
    assume(workload.tensor < 8)
    few, many = (inference_need(shape, replace(workload, tensor=workload.tensor * n)) for n in (1, 2))
    assert many.without("communication").total <= few.without("communication").total + 8


@given(shapes(), servings, st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_the_cache_that_is_said_to_be_left_does_fit(shape: ModelShape, workload: Serving, memory: int) -> None:
    left = kv_tokens(shape, workload, memory)
    if left:
        rest = inference_need(shape, workload).without("KV cache").total
        assert rest + kv_cache_bytes(shape, replace(workload, context=left, batch=1)) <= memory + 1


@given(shapes(), workloads, st.integers(2**30, 2**38))
@settings(max_examples=60, deadline=None)
def test_a_change_is_offered_only_where_it_is_needed_and_helps(
    shape: ModelShape, workload: Serving | Training, memory: int
) -> None:
    change = cheapest_change(shape, workload, memory)
    if change is not None:
        assert fits(need_of(shape, workload), memory).answer != "fits"
        assert fits(change.need, memory).answer == "fits"
        assert need_of(shape, change.workload) == change.need


@given(shapes(), workloads)
@settings(max_examples=100, deadline=None)
def test_the_answers_come_in_order_as_memory_grows(shape: ModelShape, workload: Serving | Training) -> None:
    need = need_of(shape, workload)
    order = ["does not fit", "too close to call", "fits"]
    memories = sorted({0, max(0, need.total - need.doubt - 1), need.total, need.ceiling - 1, need.ceiling, 2**60})
    ranks = [order.index(fits(need, memory).answer) for memory in memories]
    assert ranks == sorted(ranks)
    assert ranks[-1] == 2


@given(st.integers(1, 10**14))
def test_a_printed_size_parses_back(count: int) -> None:
    assert parse_params(format_params(count)) == count


@given(st.integers(10**6, 10**13))
def test_a_size_is_a_shape_of_that_many_parameters(count: int) -> None:
    assert shape_of_size(format_params(count)).params == count


@pytest.mark.parametrize("size", ["100M", "7B", "70B"])
def test_training_never_needs_less_than_serving_one_token(size: str) -> None:
    shape = shape_of_size(size)
    serving = inference_need(shape, Serving(context=1)).total
    assert training_need(shape, Training(context=1)).total > serving
