"""The order of the sentences, the rate over time, and what a recipe leaves alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.inference.encoder import EncoderConfig, IntentClassifier, PackedEncoder, pack
from train_jobs.recipe import (
    V1,
    V2,
    Recipe,
    batches,
    learning_rate,
    loss_fn,
    make_optimizer,
    set_rate,
    start_head,
    steps_per_epoch,
)

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)
SMALL = EncoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


@given(LABELS, st.integers(1, 4), st.integers(0, 5))
def test_workers_together_see_every_sentence_once_in_the_same_batches_whatever_their_number(
    labels: list[int], world: int, epoch: int
) -> None:
    recipe = Recipe(epochs=1, batch_size=8)
    alone = list(batches(labels, recipe, seed=1, epoch=epoch))
    shares = [list(batches(labels, recipe, seed=1, epoch=epoch, rank=r, world=world)) for r in range(world)]
    assert sorted(i for batch in alone for i in batch) == list(range(len(labels)))
    assert len(alone) == steps_per_epoch(labels, recipe)
    for step, batch in enumerate(alone):
        assert sorted(i for share in shares for i in share[step]) == sorted(batch)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(batches([0, 1] * 50, V2, seed=seed, epoch=epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@given(LABELS)
def test_a_balanced_recipe_shows_every_intent_equally_often(labels: list[int]) -> None:
    recipe = Recipe(epochs=1, balanced=True)
    seen = Counter(labels[i] for batch in batches(labels, recipe, seed=0, epoch=0) for i in batch)
    assert set(seen) == set(labels)
    assert len(set(seen.values())) == 1


@given(LABELS, st.integers(1, 5))
def test_a_recipe_uses_no_more_sentences_of_an_intent_than_it_says(labels: list[int], most: int) -> None:
    recipe = Recipe(epochs=1, sentences_per_intent=most)
    seen = Counter(labels[i] for batch in batches(labels, recipe, seed=0, epoch=0) for i in batch)
    assert seen == {label: min(count, most) for label, count in Counter(labels).items()}


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_climbs_once_to_its_highest_then_falls_and_is_never_zero(total: int, warmup: float) -> None:
    recipe = replace(V2, warmup=warmup)
    rates = [learning_rate(step, total, recipe) for step in range(total)]
    peak = rates.index(max(rates))
    assert max(rates) == 1.0
    assert min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_training_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.9"):
        learning_rate(step, 10, V1)


def test_training_moves_the_layers_it_should_and_leaves_the_frozen_ones() -> None:
    torch.manual_seed(0)
    model = IntentClassifier(PackedEncoder(SMALL), classes=2)
    recipe = Recipe(epochs=1, frozen_layers=1)
    optimizer = make_optimizer(model, recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_rate(optimizer, 1.0)
    torch.autograd.backward(loss_fn(model(*pack([[1, 2], [3]])), torch.tensor([0, 1]), recipe))
    optimizer.step()
    moved = {name.split(".weight")[0] for name, tensor in model.state_dict().items() if not before[name].equal(tensor)}
    assert {"head", "encoder.encoder.layer.1.output.dense"} <= moved
    assert not [name for name in moved if "embeddings" in name or "layer.0." in name]


def test_a_head_started_from_means_already_tells_separate_intents_apart() -> None:
    torch.manual_seed(0)
    model = IntentClassifier(PackedEncoder(SMALL), classes=3).eval()
    tokens = [[1, 2, 3], [1, 2, 4], [20, 21], [20, 22], [40], [40, 41, 40]]
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.no_grad():
        start_head(model, model.encoder(*pack(tokens)), targets)
        assert model(*pack(tokens)).argmax(1).equal(targets)
