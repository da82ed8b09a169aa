"""The encoder that is published as it is: its score, and that the recipe serves it."""

from __future__ import annotations

import numpy as np
import torch

from serve_apps.embeddings import EmbeddingsApp
from train_jobs.embeddings import model_files, score


def test_sentences_of_one_intent_lie_together() -> None:
    found = score(per_intent=4)
    assert 0.5 < found["accuracy"] <= 1
    assert found["test_sentences"] > 30


def test_what_is_published_serves_the_meaning_of_sentences() -> None:
    app = EmbeddingsApp.load(model_files(), torch.device("cpu"))
    texts = ["turn on the lamp", "switch the light on", "what will the weather be"]
    lamp, light, weather = app.forward([app.prepare(text) for text in texts])
    assert (lamp.dtype, lamp.shape) == (np.float32, (384,))
    assert abs(np.linalg.norm(lamp) - 1) < 1e-5
    assert lamp @ light > 0.7 > 0.4 > lamp @ weather
