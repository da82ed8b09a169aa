"""Checkpoint files and their pieces, without a store."""

from __future__ import annotations

import itertools

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.train.checkpoint import _copy_overlap, _FileImage


def test_the_image_is_a_safetensors_file_and_is_filled_again_in_place() -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0),
        "strided": torch.arange(12).reshape(3, 4).t(),
    }
    image = _FileImage(tensors)
    for shift in (0, 1):
        now = {name: tensor + shift if tensor.dtype != torch.bool else tensor for name, tensor in tensors.items()}
        assert image.fits(now)
        image.fill(now)
        back = safetensors.torch.load(bytes(image.data))
        assert set(back) == set(now)
        assert all(torch.equal(back[name], now[name]) for name in now)
    assert not image.fits({**tensors, "a": torch.zeros(3, 3)})


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_cut_fill_pieces_of_any_other(rows: int, saved_by: int, loaded_by: int, columns: int) -> None:
    """What n ranks saved, m ranks load: resharding."""
    whole = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)

    def cut(parts: int) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
        edges = [rows * part // parts for part in range(parts + 1)]
        return [(whole[low:high], (low, 0)) for low, high in itertools.pairwise(edges)]

    for expected, offset in cut(loaded_by):
        local = torch.full_like(expected, -1)
        for piece, at in cut(saved_by):
            _copy_overlap(piece, at, local, offset)
        assert torch.equal(local, expected)
