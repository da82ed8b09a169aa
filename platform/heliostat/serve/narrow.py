"""A narrower type behind a gate: twice the speed or more, as long as the answers are the same.

`dtype: bf16` in an application has each replica load its model in float32, run the recipe's examples, narrow it, run
them again and compare. A model that does not agree with itself is not served: the replica keeps the version before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from heliostat.errors import AppError
from heliostat.serve.recipe import ItemModel, Recipe

if TYPE_CHECKING:
    import torch

DType = Literal["fp32", "bf16"]
MIN_COSINE = 0.999


def narrow(model: Recipe, dtype: DType, *, what: str) -> None:
    """Make the model compute in `dtype`. Raises AppError where it cannot, or where its answers change with it."""
    import torch

    if dtype == "fp32":
        return
    if not isinstance(model, ItemModel):
        raise AppError(f"{type(model).__name__} cannot compute in {dtype}", do="write dtype: fp32, or leave it out")
    work = [model.prepare(value) for value in model.examples]
    try:
        wide = model.vectors(work)
        model.narrow(torch.bfloat16)
    except NotImplementedError as error:
        raise AppError(
            f"{type(model).__name__} cannot compute in {dtype}",
            do="write dtype: fp32, or give the recipe `narrow` and `vectors`",
        ) from error
    check_agreement(wide, model.vectors(work), what=f"{what} in {dtype}")


def check_agreement(wide: torch.Tensor, narrowed: torch.Tensor, *, what: str) -> None:
    """[S, D] twice. Raises AppError below the least cosine, or where a text's largest entry is another one."""
    import torch

    cosine = float(torch.nn.functional.cosine_similarity(wide.float(), narrowed.float(), dim=-1).min())
    same = bool((wide.argmax(-1) == narrowed.argmax(-1)).all())
    if not cosine >= MIN_COSINE or not same:  # NaN fails too
        raise AppError(
            f"{what} does not agree with float32: least cosine {cosine:.5f} (at least {MIN_COSINE})"
            + ("" if same else ", and an example got another answer"),
            do="write dtype: fp32 for this application",
        )
