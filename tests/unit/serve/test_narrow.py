"""A narrower type is served only where the model agrees with itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch

from heliostat.errors import AppError
from heliostat.inference.encoder import pretrained_folder
from heliostat.serve.narrow import check_agreement, narrow
from serve_apps.embeddings import EmbeddingsApp


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    folder = pretrained_folder()
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "tokenizer.json")}


@pytest.fixture
def model(files: dict[str, bytes]) -> EmbeddingsApp:
    return EmbeddingsApp.load(files, torch.device("cpu"))


def test_a_narrowed_encoder_computes_in_bf16_and_answers_in_float32(model: EmbeddingsApp) -> None:
    work = [model.prepare(text) for text in model.examples]
    wide = model.vectors(work)
    narrow(model, "bf16", what="m v1")
    narrowed = model.vectors(work)
    assert narrowed.dtype == torch.float32
    assert not torch.equal(wide, narrowed)  # it did change type
    assert torch.nn.functional.cosine_similarity(wide, narrowed).min() > 0.999
    json.dumps(model.present(model.forward(work)[0]), allow_nan=False)


def test_fp32_changes_nothing(model: EmbeddingsApp) -> None:
    work = [model.prepare(text) for text in model.examples]
    wide = model.vectors(work)
    narrow(model, "fp32", what="m v1")
    assert torch.equal(wide, model.vectors(work))


def test_a_model_that_the_narrow_type_breaks_is_refused_with_the_figure(files: dict[str, bytes]) -> None:
    """Weights so large that bf16's eight bits lose what distinguishes the words."""
    tensors: dict[str, Any] = dict(safetensors.torch.load(files["model.safetensors"]))
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"] + 300.0
    broken = EmbeddingsApp.load({**files, "model.safetensors": safetensors.torch.save(tensors)}, torch.device("cpu"))
    with pytest.raises(AppError, match=r"m v1 in bf16 does not agree with float32: least cosine"):
        narrow(broken, "bf16", what="m v1")


def test_nan_and_another_answer_do_not_agree() -> None:
    wide = torch.tensor([[1.0, 0.999]])
    with pytest.raises(AppError, match="another answer"):
        check_agreement(wide, torch.tensor([[0.999, 1.0]]), what="m v1 in bf16")
    with pytest.raises(AppError, match="does not agree"):
        check_agreement(wide, torch.tensor([[float("nan"), 1.0]]), what="m v1 in bf16")


def test_a_recipe_that_cannot_is_told_so() -> None:
    from heliostat.serve.recipe import TextModel

    class Plain(TextModel[str]):
        @classmethod
        def load(cls, files: Any, device: torch.device) -> Plain:
            return cls()

        def tokenise(self, text: str) -> list[int]:
            return [1]

        def forward(self, batch: Any) -> list[str]:
            return ["x"] * len(batch)

        def present(self, result: str) -> dict[str, Any]:
            return {"label": result}

    with pytest.raises(AppError, match="Plain cannot compute in bf16"):
        narrow(Plain(), "bf16", what="m v1")
