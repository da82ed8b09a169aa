"""The packed encoder against the padded original, and one text against its neighbours."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.inference import encoder as encoder_module
from heliostat.inference.encoder import (
    EncoderConfig,
    IntentClassifier,
    PackedEncoder,
    load_pretrained,
    load_tokenizer,
    pack,
    pretrained_folder,
)

TEXTS = (
    "turn on the kitchen lights",
    "stop",
    "what is the temperature in the living room right now please",
    "set a timer for 12 minutes",
    "turn on the kitchen lights",
    "long " * 400,
)
SMALL = EncoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


@pytest.fixture
def small() -> PackedEncoder:
    torch.manual_seed(0)
    return PackedEncoder(SMALL).eval()


def test_packed_embeddings_equal_the_padded_ones_of_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of on import is not ours to mend
        from transformers import BertModel

        reference: Any = BertModel.from_pretrained(pretrained_folder())  # transformers types it loosely
        reference.eval()
    tokens = load_tokenizer(pretrained_folder())(TEXTS)
    longest = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
    with torch.inference_mode():
        hidden = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        padded = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        packed = load_pretrained(pretrained_folder()).eval()(*pack(tokens))
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=0)


def test_changing_one_text_leaves_the_embeddings_of_the_others(small: PackedEncoder) -> None:
    before = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12]]
    after = [[1, 2, 3], [40, 41], [6, 7, 8, 9], [10, 11, 12]]
    with torch.inference_mode():
        one, two = small(*pack(before)), small(*pack(after))
    torch.testing.assert_close(one[[0, 2, 3]], two[[0, 2, 3]], atol=1e-6, rtol=0)
    assert not torch.allclose(one[1], two[1], atol=1e-3)


def test_a_text_has_the_same_embedding_alone_and_in_company(small: PackedEncoder) -> None:
    texts = [[1, 2, 3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13], [14, 15]]
    with torch.inference_mode():
        together = small(*pack(texts))
        alone = torch.cat([small(*pack([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_a_loss_reaches_every_parameter_but_the_unused_rows(small: PackedEncoder) -> None:
    classifier = IntentClassifier(small.train(), classes=3)
    classifier(*pack([[1, 2], [3, 4, 5]])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_the_tokenizer_cuts_long_texts_and_pads_none() -> None:
    short, long = load_tokenizer(pretrained_folder(), max_tokens=16)(["hello", "word " * 100])
    assert len(short) == 3  # the text and the two marks around it
    assert len(long) == 16


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0], []])
def test_lengths_that_do_not_cut_the_tokens_are_refused(small: PackedEncoder, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="must add up"):
        small(torch.tensor([1, 2, 3]), lengths)


def test_a_text_longer_than_the_position_table_is_refused(small: PackedEncoder) -> None:
    with pytest.raises(ValueError, match="513 tokens"):
        small(*pack([[1] * 513]))


def test_a_config_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="model_type is 't5'"):
        EncoderConfig.from_file(tmp_path / "config.json")


def test_places_and_starts_of_a_batch_leave_what_room_is_over_to_no_text() -> None:
    inputs = encoder_module._Inputs(12, 5, torch.device("cpu"))
    inputs.fill(torch.tensor([7, 8, 9, 4, 5]), [3, 2])
    layout = inputs.layout(4)
    assert inputs.token_ids[:5].tolist() == [7, 8, 9, 4, 5]
    assert layout.places[:5].tolist() == [0, 1, 2, 0, 1]
    assert layout.starts.tolist() == [0, 3, 5, 5, 5, 5]
    assert layout.means(torch.arange(12.0)[:, None])[:2].tolist() == [[1.0], [3.5]]


def test_packing_by_offsets_gives_what_packing_by_length_gives(
    small: PackedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way taken on CUDA, with a stand-in for its fused kernel."""

    def attend(self: encoder_module.Offsets, *parts: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(parts[0])
        starts = self.starts.tolist()
        for start, end in itertools.pairwise(starts):
            own = [part[None, start:end].transpose(1, 2) for part in parts]
            out[start:end] = torch.nn.functional.scaled_dot_product_attention(*own).transpose(1, 2)[0]
        return out

    monkeypatch.setattr(encoder_module.Offsets, "attend", attend)
    token_ids, lengths = pack([[1, 2, 3], [40, 41], [6, 7, 8, 9], [10]])
    with torch.inference_mode():
        torch.testing.assert_close(small._by_offsets(token_ids, lengths), small(token_ids, lengths), atol=1e-6, rtol=0)


def test_other_weights_forget_what_was_recorded_of_the_old_ones(small: PackedEncoder) -> None:
    recordings = small._recordings._by_size
    classifier = IntentClassifier(small, classes=3)
    for change in (
        lambda: classifier.to(torch.bfloat16),
        lambda: classifier.load_state_dict(classifier.state_dict(), assign=True),
    ):
        recordings[8, 8] = None  # type: ignore[assignment]  # what a graph would be
        change()
        assert not recordings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_batches_on_cuda_are_those_that_ran_kernel_by_kernel() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    encoder = PackedEncoder(config).to("cuda", torch.bfloat16).eval()
    for texts in ([[1, 2, 3], [4, 5]], [[6] * 40, [7], [8, 9]], [[1, 2, 3], [4, 5]]):
        token_ids, lengths = pack(texts)
        with torch.inference_mode():
            recorded, plain = encoder(token_ids, lengths), encoder._by_offsets(token_ids, lengths)
        torch.testing.assert_close(recorded, plain, atol=2e-2, rtol=0)
