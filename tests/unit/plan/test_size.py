"""`heliostat plan size`, from the words on the command line to what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError
from heliostat.plan.catalogue import load
from heliostat.plan.params import read_shape, shape_of_size
from heliostat.plan.size import size
from heliostat.plan.workload import Serving, Training

CONFIGS = Path(__file__).parent / "configs"


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, ["plan", "size", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_terms_add_up_to_the_total() -> None:
    for words in (("7B",), ("7B", "--train", "full", "--gpus", "8"), ("7B", "--train", "qlora")):
        need = printed(*words)["per_gpu"]
        assert sum(term["bytes"] for term in need["terms"]) == need["total"]
        assert all(term["formula"] and term["source"] for term in need["terms"])


def test_the_table_shows_terms_cards_slices_tokens_prices_and_ages() -> None:
    shown = run("8B", "--context", "8192")
    for word in ("weights", "KV cache", "CUDA context", "A100-80GB", "1g.24gb", "g6e.xlarge", "$/h", "age", "int8"):
        assert word in shown.stdout, word
    assert "older than 90 days" in shown.stderr


def test_cards_that_fit_come_first_and_the_cheapest_of_them_at_the_top() -> None:
    rows = printed("7B")["accelerators"]
    answers = [row["answer"] for row in rows]
    assert answers == sorted(answers, key=["fits", "too close to call", "does not fit"].index)
    prices = [row["on_demand"]["usd_per_hour"] for row in rows if row["answer"] == "fits" and row["on_demand"]]
    assert prices == sorted(prices)


def test_prices_tell_their_source_date_age_and_verdict() -> None:
    (row,) = printed("7B", "--on", "H100-80GB")["accelerators"]
    price = row["on_demand"]
    assert price["source"]
    assert price["age_days"] > 0
    assert price["verdict"] in ("usable", "doubtful")


def test_a_small_model_goes_into_a_slice_and_a_whole_card_is_no_slice() -> None:
    small = size(shape_of_size("500M"), Serving(), load(), on="A100-40GB").cards[0].smallest_slice
    assert small is not None
    assert small.profile.profile == "1g.5gb"
    assert size(shape_of_size("13B"), Serving(), load(), on="A100-40GB").cards[0].smallest_slice is None


def test_slices_are_not_offered_for_several_gpus() -> None:
    assert all(not row.slices for row in size(shape_of_size("7B"), Serving(tensor=2), load()).cards)


def test_what_does_not_fit_says_what_would_help() -> None:
    sizing = size(read_shape(CONFIGS / "dense-7b.json"), Training(), load())
    for row in sizing.cards:
        assert (row.change is None) == (row.fit.answer == "fits")


def test_devices_that_do_not_run_torch_are_left_out_unless_named() -> None:
    names = {row.card.name for row in size(shape_of_size("7B"), Serving(), load()).cards}
    assert "L4" in names
    assert not names & {"TPU-v5e", "Trainium1", "Inferentia2"}


def test_a_config_a_folder_and_a_size_are_all_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CONFIGS / "dense-7b.json").read_text())
    by_file = printed(str(CONFIGS / "dense-7b.json"))["model"]
    assert by_file["params"] == printed(str(tmp_path))["model"]["params"] == 6_738_415_616
    assert printed("6738415616")["model"]["params"] == 6_738_415_616


def test_cards_without_bf16_are_warned_of_where_it_is_wanted() -> None:
    assert "no bf16 on T4" in run("1B", "--on", "T4").stderr
    for words in (("1B", "--on", "T4", "--dtype", "fp16"), ("1B", "--on", "L4"), ("1B", "--on", "RTX-PRO-4500-BSE")):
        assert "no bf16" not in run(*words).stderr


def test_more_tokens_than_positions_are_warned_of() -> None:
    assert "positions for 4096" in run(str(CONFIGS / "dense-7b.json"), "--context", "8192").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seven",), "neither a file, nor a size"),
        (("8x7B",), "46.7B"),
        (("7B", "--optimizer", "sgd"), "--optimizer means training"),
        (("7B", "--train", "lora", "--kv-dtype", "fp8"), "--kv-dtype means serving"),
        (("7B", "--train", "full", "--rank", "8"), "of LoRA"),
        (("7B", "--train", "lora", "--precision", "fp32"), "--precision is of --train full"),
        (("7B", "--train", "lora", "--dtype", "nf4"), "--train lora with --dtype nf4"),
        (("7B", "--train", "qlora", "--dtype", "bf16"), "--train qlora with --dtype bf16"),
        (("7B", "--shard", "zero3"), "--shard zero3 means training"),
        (("7B", "--train", "full", "--shard", "half"), "--shard half is not known"),
        (("7B", "--gpus", "3"), "cannot be split over 3"),
        (("7B", "--on", "H9000"), "not known"),
    ],
)
def test_a_mistake_says_what_and_what_to_do(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(*words)
    assert caught.value.do


def test_the_words_reach_the_workload() -> None:
    training = printed("7B", "--train", "qlora", "--rank", "64", "--gpus", "4", "--shard", "zero2", "--batch", "2",
                       "--recompute", "none", "--optimizer", "adamw-8bit", "--loss", "fused")["workload"]  # fmt: skip
    wanted = {"method": "qlora", "dtype": "nf4", "rank": 64, "gpus": 4, "shard": "zero2", "batch": 2,
              "recompute": "none", "optimizer": "adamw-8bit", "loss": "fused"}  # fmt: skip
    assert {key: training[key] for key in wanted} == wanted
    serving = printed("8B", "--dtype", "int8", "--kv-dtype", "fp8", "--prefill", "2048", "--gpus", "2")["workload"]
    assert (serving["dtype"], serving["kv_dtype"], serving["prefill"], serving["tensor"]) == ("int8", "fp8", 2048, 2)
