"""The language model's recipe in training processes: DDP, FSDP2, one worker, and adapters for a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.commit import read_file, read_manifest
from heliostat.errors import UsageError
from heliostat.events import read_spool
from heliostat.store import Store
from tests.unit.train.conftest import Bench
from train_jobs import language_model
from train_jobs.language_model import Config, base_digest, parse

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]
SMALL = {"steps": 6, "batch": 8, "context": 32, "width": 32, "layers": 2, "heads": 2}


def losses(bench: Bench, run: str) -> list[float]:
    steps = [e for e in read_spool(bench.settings.spool) if e.kind == "step" and e.fields["run"] == run]
    return [float(event.fields["loss"]) for event in steps]


def metrics(store: Store, run: str) -> dict[str, float]:
    manifest = read_manifest(store, f"runs/{run}/output/manifest.json")
    assert manifest is not None
    return dict(json.loads(read_file(store, manifest, "run.json"))["metrics"])


def test_fsdp2_trains_as_ddp_and_as_one_worker_does(bench: Bench) -> None:
    """Held-out loss of the three, with accumulation in one: they see the same batches."""
    ways = {
        "alone": (Config(**SMALL), 1),
        "ddp": (Config(**SMALL, accumulate=2), 2),
        "fsdp": (Config(**SMALL, sharding="fsdp2"), 2),
    }
    for run, (config, workers) in ways.items():
        ended = bench.attempt(run, config, workers=workers, every=3, train=language_model.train)
        assert {e.kind for e in ended} == {"done"}, ended
    found = {run: metrics(bench.store, run)["test_loss"] for run in ways}
    assert found["fsdp"] == pytest.approx(found["ddp"], rel=1e-4)
    assert found["alone"] == pytest.approx(found["ddp"], rel=1e-4)
    assert losses(bench, "fsdp") == pytest.approx(losses(bench, "ddp"), rel=1e-3)
    assert found["ddp"] < 5.6  # below ln 256 and falling


def test_adapters_are_handed_in_alone_with_the_digest_of_their_base(bench: Bench, tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    config = Config(**{**SMALL, "context": 16}, lora=str(base), rank=2, rate=1e-2, text=str(text))
    ended = bench.attempt("lora", config, workers=2, every=3, train=language_model.train)
    assert {e.kind for e in ended} == {"done"}, ended
    manifest = read_manifest(bench.store, "runs/lora/output/manifest.json")
    assert manifest is not None
    assert "adapter.safetensors" in manifest.files
    assert manifest.files["adapter.safetensors"].size < (base / "model.safetensors").stat().st_size
    about = json.loads(read_file(bench.store, manifest, "run.json"))
    assert about["lineage"]["parent"] == base_digest(config)
    found = losses(bench, "lora")
    assert found[-1] < found[0]


def small_base(folder: Path) -> Path:
    """A tiny GPT-2 with random weights and a byte tokenizer, saved as Hugging Face saves them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(bytes_)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    shape = transformers.GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(shape).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "30", "--heads", "4"], "multiple"),
        (["--lora", "/nowhere"], "no folder"),
        (["--lora", "/tmp", "--sharding", "fsdp2"], "adapters are small"),  # noqa: S108
        (["--steps", "0"], "counts from 1"),
    ],
)
def test_mistakes_are_told_before_a_node_is_started(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(arguments)
