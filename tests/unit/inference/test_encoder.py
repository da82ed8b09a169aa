"""The packed encoder against the padded original, and one text against its neighbours."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

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
