"""The benchmark's reader takes what people write, and the estimator stays as close to the measurements as it was."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.plan.vram import OVERHEADS
from heliostat.plan.workload import Serving, Training
from tests.benchmarks import vram as benchmark

CASES = Path(__file__).parents[4] / "shared" / "facts" / "vram_cases.csv"

SHAPE = {
    "params_b": "8.03", "layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "8", "ffn": "14336",
    "vocab": "128256",
}  # fmt: skip
TRAIN = {
    "case_id": "x1", "phase": "train", "model": "Llama-3.1-8B", **SHAPE, "method": "lora r8", "weight_dtype": "bf16",
    "optimizer": "adamw", "sharding": "none", "gpus": "1", "gpu": "A100-80GB", "seq_len": "2048", "micro_batch": "1",
    "checkpointing": "full (assumed)", "attention": "flash2", "measured": "20", "unit": "GiB", "scope": "per_gpu",
    "quantity": "device memory", "kind": "measured", "note": "", "url": "https://example.org/page",
}  # fmt: skip


ODD = (
    "", "0", "-1", "OOM", ">80", "~14", "1,024", "tp 3", "zero3 x tp 64", "pp 1000", "cp 0", "8x7B", "24 enc + 24 dec",
    "serve", "tokens", "blocks of 0", "MiB", "sum_over_gpus", "qlora", "W4A16", "r64", "weights", "KV cache", "nan",
)  # fmt: skip


def read(tmp_path: Path, *rows: dict[str, str]) -> tuple[list[benchmark.Case], list[tuple[str, str]]]:
    path = tmp_path / "cases.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TRAIN))
        writer.writeheader()
        writer.writerows(rows)
    return benchmark.read_cases(path)


def read_one(tmp_path: Path, **changes: str) -> benchmark.Case:
    cases, skipped = read(tmp_path, {**TRAIN, **changes})
    assert not skipped
    return cases[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("zero2", {"shard": "zero2", "gpus": 8}),
        ("DeepSpeed ZeRO-3 + cpu offload", {"shard": "zero3", "cpu_offload": True}),
        ("stage 1", {"shard": "zero1"}),
        ("fsdp (zero3)", {"shard": "zero3"}),
        ("FSDP2", {"shard": "zero3", "gpus": 8}),
        ("fsdp 4 x tp 2", {"shard": "zero3", "tensor": 2, "gpus": 4}),
        ("fsdp 2 x context-parallel 4", {"context_parallel": 4, "gpus": 8}),
        ("fsdp 2 x tp 2 x pp 2", {"tensor": 2, "pipeline": 2, "gpus": 2}),
        ("tp8", {"tensor": 8, "gpus": 1, "shard": "none"}),
        ("", {"shard": "ddp", "gpus": 8}),
    ],
)
def test_sharding_is_read_as_it_is_written(tmp_path: Path, text: str, wanted: dict[str, object]) -> None:
    workload = read_one(tmp_path, sharding=text, gpus="8").workload
    assert isinstance(workload, Training)
    assert {key: getattr(workload, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"method": "qlora-nf4", "weight_dtype": "nf4 + bf16"}, {"method": "qlora", "dtype": "nf4"}),
        ({"method": "QLoRA (4bit)", "weight_dtype": "int4+fp16"}, {"method": "qlora", "dtype": "int4", "loss": "half"}),
        ({"method": "full", "optimizer": "paged adamw 8-bit (assumed)"}, {"optimizer": "paged-adamw-8bit"}),
        ({"method": "full", "optimizer": "8bit Adam"}, {"optimizer": "adamw-8bit", "precision": "bf16"}),
        ({"method": "full", "weight_dtype": "fp32"}, {"precision": "fp32"}),
        ({"method": "full", "weight_dtype": "fp32 params, bf16 compute"}, {"precision": "mixed"}),
        ({"method": "lora", "note": "chunked cross-entropy, rank 32"}, {"loss": "fused", "rank": 32}),
        ({"note": "Hugging Face Trainer"}, {"loss": "upcast"}),
        ({"method": "lora", "checkpointing": ""}, {"rank": 64, "recompute": "none"}),
        ({"checkpointing": "full, activations off-loaded"}, {"recompute": "offload"}),
        ({"sharding": "fsdp", "note": "optimizer and parameters off-loaded"}, {"cpu_offload": True}),
        ({"sharding": "fsdp", "note": "activation off-loading possible"}, {"cpu_offload": False}),
        ({"method": "lora+embeddings"}, {"train_embeddings": True}),
        ({"seq_len": "", "micro_batch": ""}, {"context": 512, "batch": 1}),
        ({"method": "something new", "attention": "??"}, {"method": "full", "attention": "flash"}),
    ],
)  # fmt: skip
def test_recipes_are_read_as_they_are_written(
    tmp_path: Path, changes: dict[str, str], wanted: dict[str, object]
) -> None:
    workload = read_one(tmp_path, **changes).workload
    assert {key: getattr(workload, key) for key in wanted} == wanted


def test_units_and_scopes_are_told_apart(tmp_path: Path) -> None:
    assert read_one(tmp_path, measured="40", unit="GB").measured == 40e9
    assert read_one(tmp_path, measured="14,949", unit="MiB").measured == 14949 * 2**20
    assert read_one(tmp_path, measured="40", unit="GB", scope="sum_over_gpus", gpus="4").measured == 10e9


def test_what_a_card_shows_is_read_from_its_name() -> None:
    gib = {
        name: round((benchmark.card_bytes(name) or 0) / 2**30, 1) for name in ("24 GB card", "RTX-4090", "H100-96GB")
    }
    assert gib == {"24 GB card": 23.6, "RTX-4090": 23.6, "H100-96GB": 94.6}
    assert benchmark.card_bytes("80GB card (79.22 GiB visible)") == 79.22 * 2**30
    assert benchmark.card_bytes("a card of the future") is None


def test_a_row_that_cannot_be_scored_is_listed_with_the_reason(tmp_path: Path) -> None:
    broken = [
        {"kind": "author's estimate"},
        {"params_b": ""},
        {"vocab": "", "ffn": ""},
        {"layers": "many"},
        {"unit": "furlongs"},
        {"measured": "a lot"},
        {"measured": "0"},
        {"sharding": "tp 3"},
        {"quantity": "upper bound (fits below)"},
    ]
    cases, skipped = read(tmp_path, *({**TRAIN, "case_id": f"b{i}", **change} for i, change in enumerate(broken)))
    assert cases == []
    assert [name for name, _ in skipped] == [f"b{i}" for i in range(len(broken))]
    assert all(reason for _, reason in skipped)


@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(TRAIN)), st.one_of(st.text(max_size=12), st.sampled_from(ODD)), min_size=1, max_size=4
    )
)
@settings(max_examples=80, deadline=None)
def test_no_row_is_too_odd_to_read(changes: dict[str, str]) -> None:
    """It is scored or listed, and what was scored can be asked anything."""
    with tempfile.TemporaryDirectory() as folder:
        cases, skipped = read(Path(folder), {**TRAIN, **changes})
    assert len(cases) + len(skipped) == 1
    benchmark.confusion(cases)
    for case in cases:
        if case.quantity == "total":
            assert case.error(OVERHEADS) > -1
        elif case.quantity not in ("longest", "out of memory"):
            benchmark.other_quantity(case)


def test_out_of_memory_counts_as_what_did_not_fit(tmp_path: Path) -> None:
    small = read_one(tmp_path, measured="OOM", gpu="8 GB card")
    none = read_one(tmp_path, measured="0", unit="tokens", quantity="longest sequence that fits", gpu="8 GB card")
    calls = benchmark.confusion([small, none])
    assert [(call.true, call.answer) for call in calls] == [(False, "does not fit")] * 2


def test_a_false_fit_is_found(tmp_path: Path) -> None:
    """A measurement far above the estimate: the card in between is called fitting, and that is wrong."""
    case = read_one(tmp_path, measured="200", gpu="80 GB card")
    assert [call.answer for call in benchmark.wrong(benchmark.confusion([case]))] == ["fits"]


def test_the_longest_context_is_asked_at_it_and_beyond(tmp_path: Path) -> None:
    case = read_one(tmp_path, measured="2048", unit="tokens", quantity="longest sequence that fits", gpu="24 GB card")
    assert [call.true for call in benchmark.confusion([case])] == [True, False]


def test_serving_rows_give_blocks_and_tokens(tmp_path: Path) -> None:
    serve = {"phase": "serve", "method": "none", "quantity": "KV cache capacity", "seq_len": "8192"}
    blocks = read_one(tmp_path, **serve, measured="100", unit="blocks of 16 tokens")
    tokens = read_one(tmp_path, **serve, measured="1600", unit="tokens")
    assert blocks.measured == tokens.measured == 1600
    assert isinstance(tokens.workload, Serving)
    assert benchmark.other_quantity(tokens) > 100_000


def test_the_shape_that_the_table_leaves_open_is_what_the_count_says(tmp_path: Path) -> None:
    llama = read_one(tmp_path).shape
    assert (llama.gated, llama.head_params > 0, llama.head_dim) == (True, True, 128)
    gemma = read_one(tmp_path, model="Gemma-7B", params_b="8.54", layers="28", hidden="3072", heads="16", kv_heads="16",
                     ffn="24576", vocab="256000").shape  # fmt: skip
    assert (gemma.gated, gemma.head_params, gemma.head_dim) == (True, 0, 256)
    bert = read_one(tmp_path, model="bert-large", params_b="0.335", layers="24", hidden="1024", heads="16",
                    kv_heads="16", ffn="4096", vocab="30522").shape  # fmt: skip
    assert (bert.gated, bert.has_head, bert.causal) == (False, False, False)


def test_the_measurements_are_met() -> None:
    if not CASES.is_file():
        pytest.skip("the table of measurements is not beside this checkout")
    cases, _ = benchmark.read_cases(CASES)
    memory = [case for case in cases if case.quantity == "total"]
    errors = sorted(benchmark.series_errors(memory).values())
    assert len(errors) >= 20
    assert errors[len(errors) // 2] < 0.10
    assert max(abs(case.error(OVERHEADS)) for case in memory) < 0.35
    assert benchmark.wrong(benchmark.confusion(cases)) == []
