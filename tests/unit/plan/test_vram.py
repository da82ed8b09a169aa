from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from heliostat.errors import UsageError
from heliostat.plan.params import ModelShape, read_shape, shape_of_size
from heliostat.plan.vram import (
    GIB,
    Need,
    Term,
    cheapest_change,
    fits,
    inference_need,
    kv_bytes_per_token,
    kv_tokens,
    lora_params,
    need_of,
    training_need,
    weight_bytes,
)
from heliostat.plan.workload import Serving, Training

CONFIGS = Path(__file__).parent / "configs"

LLAMA_3_8B = ModelShape(
    name="8B", params=8_030_261_248, layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336,
    vocab=128256, embedding_params=128256 * 4096, head_params=128256 * 4096,
)  # fmt: skip
BARE = ModelShape(
    name="states", params=7_500_000_000, layers=10**6, hidden=1, heads=1, kv_heads=1, head_dim=1, ffn=1, vocab=1,
    embedding_params=0, has_head=False,
)  # fmt: skip
"""So many layers that what is gathered of them is nothing: states alone, as in the figure of the ZeRO paper."""


@pytest.mark.parametrize(("shard", "gb"), [("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_sharded_states_are_those_of_the_zero_paper(shard: str, gb: float) -> None:
    need = training_need(BARE, Training(shard=shard, gpus=64, context=1))  # type: ignore[arg-type]
    states = sum(need.term(name) for name in ("weights", "gradients", "optimizer state"))
    assert states / 1e9 == pytest.approx(gb, abs=0.05)


def test_what_autocast_holds_is_what_hugging_face_counts() -> None:
    """6 bytes of weights, 4 of gradients, 8 of moments; 16 in fp32; 8 in pure bf16."""
    state_names = ("weights", "gradients", "optimizer state", "16-bit copies")
    for precision, each in (("mixed", 18), ("fp32", 16), ("bf16", 8)):
        need = training_need(BARE, Training(precision=precision, context=2**20))  # type: ignore[arg-type]
        assert need.peak == "backward pass"
        assert sum(need.term(name) for name in state_names) == each * BARE.params


def test_weights_and_cache_of_llama_3_are_those_that_vllm_logged() -> None:
    assert weight_bytes(LLAMA_3_8B, "bf16") / GIB == pytest.approx(14.96, abs=0.01)
    assert kv_bytes_per_token(LLAMA_3_8B, Serving()) == 131_072


def test_grouped_queries_need_an_eighth_of_the_cache_and_its_heads_are_split_while_there_are_any() -> None:
    grouped = read_shape(CONFIGS / "grouped-70b.json")
    alone = replace(grouped, kv_heads=grouped.heads)
    assert kv_bytes_per_token(alone, Serving()) == 8 * kv_bytes_per_token(grouped, Serving())
    whole = kv_bytes_per_token(grouped, Serving())
    shares = [kv_bytes_per_token(grouped, Serving(tensor=t)) / whole for t in (1, 2, 8, 16)]
    assert shares == [1, 1 / 2, 1 / 8, 1 / 8]


def test_the_cache_is_held_in_whole_blocks() -> None:
    assert (inference_need(LLAMA_3_8B, Serving(context=17)).term("KV cache")) == 32 * 131_072


def test_an_encoder_has_no_cache() -> None:
    encoder = replace(LLAMA_3_8B, causal=False)
    assert inference_need(encoder, Serving()).term("KV cache") == 0
    assert kv_tokens(encoder, Serving(), 80 * GIB) is None


def test_an_encoder_works_on_its_whole_batch_at_once() -> None:
    encoder = replace(LLAMA_3_8B, causal=False, has_head=False)
    one, many = (inference_need(encoder, Serving(context=128, batch=batch)).term("activations") for batch in (1, 32))
    assert many == 32 * one


def test_the_tokens_that_are_left_are_just_what_still_fits() -> None:
    memory, workload = 24 * GIB, Serving(context=1024)
    tokens = kv_tokens(LLAMA_3_8B, workload, memory)
    assert tokens is not None
    others = inference_need(LLAMA_3_8B, workload).without("KV cache").total
    assert others + tokens * 131_072 <= memory < others + (tokens + 16) * 131_072


def test_quantised_formats_leave_embeddings_and_head_in_16_bits() -> None:
    assert weight_bytes(LLAMA_3_8B, "int8") == LLAMA_3_8B.block_params + 2 * 2 * 128256 * 4096


def test_lora_trains_r_times_in_plus_out_of_every_linear_layer() -> None:
    h, kv, f = 4096, 1024, 14336
    a_layer = 2 * (h + h) + 2 * (h + kv) + 3 * (h + f)
    assert lora_params(LLAMA_3_8B, 8) == 32 * 8 * a_layer


def test_experts_all_learn_but_a_token_passes_through_two() -> None:
    experts = read_shape(CONFIGS / "experts-8x7b.json")
    assert (experts.ffn, experts.all_ffn) == (2 * 14336, 8 * 14336)
    assert lora_params(experts, 8) > 4 * lora_params(read_shape(CONFIGS / "dense-7b.json"), 8)


def test_a_fused_loss_takes_the_logits_away_and_leaves_the_layer_being_worked_on() -> None:
    workload = Training(method="lora", context=8192)
    plain, fused = training_need(LLAMA_3_8B, workload), training_need(LLAMA_3_8B, replace(workload, loss="fused"))
    gone = plain.total - fused.total
    assert plain.term("logits and loss") == 8192 * 128256 * 12
    working = fused.term("working layer")
    assert (plain.peak, fused.peak) == ("loss", "backward pass")
    assert gone == pytest.approx(1.08 * (8192 * 128256 * 12 - working), rel=1e-6)  # with its share of fragmentation


def test_the_largest_of_three_peaks_is_the_need() -> None:
    short, long = (training_need(LLAMA_3_8B, Training(context=context)) for context in (16, 65536))
    fused = training_need(LLAMA_3_8B, Training(context=65536, loss="fused"))
    assert (short.peak, long.peak, fused.peak) == ("optimizer step", "loss", "backward pass")
    assert short.term("step temporaries") == 4 * LLAMA_3_8B.params
    assert short.term("logits and loss") == 0


def test_without_accumulation_gradients_and_logits_do_not_meet() -> None:
    several = Training(context=16384, precision="bf16", optimizer="sgd")
    once = replace(several, accumulate=False)
    saved = training_need(LLAMA_3_8B, several).total - training_need(LLAMA_3_8B, once).total
    assert 0 < saved <= 2 * LLAMA_3_8B.params


def test_sgd_works_in_place() -> None:
    terms = {optimizer: _step_names(optimizer) for optimizer in ("adamw", "sgd")}
    assert terms == {"adamw": True, "sgd": False}


def _step_names(optimizer: str) -> bool:
    need = training_need(LLAMA_3_8B, Training(optimizer=optimizer, context=16))  # type: ignore[arg-type]
    return any(term.name == "step temporaries" for terms in (need.terms, *need.other_peaks) for term in terms)


def test_off_loading_leaves_what_is_gathered() -> None:
    workload = Training(method="full", shard="zero3", gpus=8, cpu_offload=True)
    need = training_need(LLAMA_3_8B, workload)
    assert need.term("weights") == need.term("gradients") == need.term("optimizer state") == 0
    assert need.term("gathered weights") > 2 * 10**9


def a_need(total: int, doubt: float) -> Need:
    return Need((Term("all", total, "", "", doubt),), "prefill")


@pytest.mark.parametrize(
    ("memory", "answer"), [(110, "fits"), (109, "too close to call"), (90, "too close to call"), (89, "does not fit")]
)
def test_within_its_doubt_a_need_is_too_close_to_call(memory: int, answer: str) -> None:
    fit = fits(a_need(100, 0.1), memory)
    assert (fit.answer, fit.margin, fit.doubt) == (answer, memory - 100, 10)


def test_a_need_fits_only_where_every_peak_does() -> None:
    lower = (Term("step temporaries", 90, "", "", 1.0),)
    need = Need((Term("weights", 100, "", "", 0.0),), "backward pass", (lower,))
    assert fits(need, 179).answer == "too close to call"
    assert fits(need, 180).answer == "fits"


def test_doubts_add_up_as_squares() -> None:
    need = Need((Term("a", 30, "", "", 1.0), Term("b", 40, "", "", 1.0)), "")
    assert need.doubt == 50


# --- changes


def test_what_fits_needs_no_change() -> None:
    assert cheapest_change(LLAMA_3_8B, Serving(), 80 * GIB) is None


@pytest.mark.parametrize(
    ("workload", "gib", "what"),
    [
        (Serving(context=8192, batch=8), 22, "sequences at once"),
        (Serving(context=2048), 12, "weights in int8"),
        (Serving(context=2048), 9, "weights in int4"),
        (Serving(context=65536), 30, "prefill in chunks"),
        (Serving(context=65536, prefill=2048), 24, "KV cache in fp8"),
        (Training(method="lora", context=16384), 39, "fused cross-entropy"),
        (Training(method="lora", recompute="none"), 39, "recomputed activations"),
        (Training(), 78, "LoRA"),
    ],
)
def test_the_cheapest_change_comes_first(workload: Serving | Training, gib: int, what: str) -> None:
    assert fits(need_of(LLAMA_3_8B, workload), gib * GIB).answer != "fits"
    change = cheapest_change(LLAMA_3_8B, workload, gib * GIB)
    assert change is not None
    assert what in change.what
    assert fits(change.need, gib * GIB).answer == "fits"
    assert need_of(LLAMA_3_8B, change.workload) == change.need


def test_changes_are_joined_where_none_is_enough() -> None:
    shape = shape_of_size("70B")
    change = cheapest_change(shape, Training(), 24 * GIB)
    assert change is not None
    assert ", " in change.what
    assert fits(change.need, 24 * GIB).answer == "fits"


def test_of_changes_together_none_is_needless_and_accuracy_goes_before_gpus() -> None:
    shape = shape_of_size("70B")
    change = cheapest_change(shape, Training(), 22 * GIB)
    assert change is not None
    assert isinstance(change.workload, Training)
    assert (change.workload.method, change.workload.gpus) == ("qlora", 8)
    assert change.workload.context == Training.context
    for field, value in (("loss", "full"), ("optimizer", "adamw")):
        if getattr(change.workload, field) != value:
            without = replace(change.workload, **{field: value})  # type: ignore[arg-type]
            assert fits(need_of(shape, without), 22 * GIB).answer != "fits"


def test_nothing_helps_where_nothing_can() -> None:
    assert cheapest_change(shape_of_size("1T"), Serving(), 4 * GIB) is None


def test_a_context_is_never_cut_to_less_than_half() -> None:
    for gib in range(16, 40):
        change = cheapest_change(LLAMA_3_8B, Serving(context=65536, dtype="int4", kv_dtype="fp8"), gib * GIB)
        if change is not None and change.what.startswith("context"):
            assert change.workload.context >= 32768


# --- mistakes


def test_heads_that_do_not_split_are_told() -> None:
    with pytest.raises(UsageError, match="32 attention heads cannot be split over 3"):
        inference_need(LLAMA_3_8B, Serving(tensor=3))
    with pytest.raises(UsageError, match="32 attention heads"):
        training_need(LLAMA_3_8B, Training(tensor=5))


@pytest.mark.parametrize("field", ["context", "batch", "tensor"])
def test_counts_below_one_are_refused(field: str) -> None:
    for kind in (Serving, Training):
        with pytest.raises(UsageError, match=f"{field} is 0"):
            kind(**{field: 0})
