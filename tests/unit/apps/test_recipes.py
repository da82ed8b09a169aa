"""Every recipe and job that a definition in cluster/ names is there, and is what it is taken for."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest
import torch

from heliostat.definition import load
from heliostat.serve.kinds import make_api, warm_up
from heliostat.serve.recipe import Recipe, TextModel
from tests.tiny_apps import load_recipe

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda path: path.name)
def test_what_a_definition_names_can_be_imported(path: Path) -> None:
    definition = load(path)
    for app in definition.applications.values():
        module, _, name = app.recipe.partition(":")
        assert issubclass(getattr(importlib.import_module(module), name), Recipe)
    for job in definition.jobs.values():
        python, dash_m, module = shlex.split(job.entrypoint)[:3]
        assert (python, dash_m) == ("python", "-m")
        assert callable(importlib.import_module(module).main)


def test_a_model_asks_for_its_weights_and_a_fifth_more_before_anything_is_read() -> None:
    sizes = {"model.safetensors": 1000, "extra.safetensors": 500, "tokenizer.json": 10**9}
    assert TextModel.memory_bytes(sizes) == 1800


def test_a_version_that_answers_nan_is_not_warm() -> None:
    model = load_recipe("intent-classifier").model
    with torch.no_grad():
        model._model.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        warm_up(model)


def test_a_language_model_that_answers_nan_is_not_warm_and_leaves_no_thread() -> None:
    model = load_recipe("generate").model
    engine = model.engine
    with torch.no_grad():
        engine._model._model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        warm_up(model)
    assert not engine._thread.is_alive()


def test_a_recipe_of_no_kind_has_no_interface() -> None:
    loaded = load_recipe("digits")
    object.__setattr__(loaded, "model", object())
    with pytest.raises(TypeError, match="object is no TextModel"):
        make_api(loaded, app="x", budget_tokens=1)
