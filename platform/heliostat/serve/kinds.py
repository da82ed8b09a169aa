"""Which HTTP interface serves which kind of recipe, and how each kind is warmed up before it may answer."""

from __future__ import annotations

import json
from typing import Any

from heliostat.serve.api import Api, Loaded
from heliostat.serve.completions import CompletionsApi
from heliostat.serve.items import ItemsApi
from heliostat.serve.openai import EmbeddingsApi
from heliostat.serve.recipe import EmbeddingModel, ItemModel, Recipe, TextGenerator


def make_api(loaded: Loaded[Any], *, app: str, budget_tokens: int) -> Api:  # Any: whichever recipe was imported
    """The interface over a loaded version. Raises TypeError for a recipe of no known kind."""
    model = loaded.model
    if isinstance(model, EmbeddingModel):
        return EmbeddingsApi(loaded, app=app, budget_tokens=budget_tokens)
    if isinstance(model, ItemModel):
        return ItemsApi(loaded, budget_tokens=budget_tokens)
    if isinstance(model, TextGenerator):
        return CompletionsApi(loaded, app=app)
    raise TypeError(f"{type(model).__name__} is no TextModel, ImageModel, EmbeddingModel or TextGenerator")


def warm_up(model: Recipe) -> None:
    """Run the model once, as a request would. Raises where it fails or answers NaN: it is not fit to serve then."""
    if isinstance(model, ItemModel):
        for result in model.forward([model.prepare(value) for value in model.examples]):
            json.dumps(model.present(result), allow_nan=False)
    if isinstance(model, TextGenerator):
        model.engine.warm_up(model.encode("The"))
