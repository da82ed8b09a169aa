"""Images as clients send them, made into tensors of one shape. A file is never trusted to say its own size."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heliostat.serve.errors import RequestError

if TYPE_CHECKING:
    import torch

CONTENT_TYPES = ("image/png", "image/jpeg")
FORM = "multipart/form-data"
MAX_SIDE = 4096
"""Pixels; a small file may claim a huge image, which would be unpacked before it is made small."""

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError)


def to_tensor(value: object, *, height: int, width: int, brightest: float) -> torch.Tensor:
    """float32 [1, height, width], 0 to 1, from rows of pixels, base64, or a file's bytes. Raises RequestError."""
    import torch

    if isinstance(value, str | bytes):
        data = value if isinstance(value, bytes) else _from_base64(value)
        return _from_file(data, height=height, width=width)
    return torch.tensor(_rows(value, height, width, brightest), dtype=torch.float32).div(brightest).unsqueeze(0)


def _rows(value: object, height: int, width: int, brightest: float) -> list[Sequence[float]]:
    want = f"send {height} rows of {width} numbers from 0 to {brightest:g}, or the base64 of a PNG or JPEG"
    if not isinstance(value, list) or len(value) != height:
        raise RequestError(422, "wrong_shape", f"this is not a list of {height} rows", want)
    for y, row in enumerate(value):
        if not isinstance(row, list) or len(row) != width:
            raise RequestError(422, "wrong_shape", f"row {y} is not a list of {width} numbers", want)
        for x, pixel in enumerate(row):
            if isinstance(pixel, bool) or not isinstance(pixel, int | float):
                raise RequestError(422, "wrong_type", f"the pixel in row {y}, column {x} is not a number", want)
            if not 0 <= pixel <= brightest:  # so written, NaN is refused too
                raise RequestError(422, "out_of_range", f"the pixel in row {y}, column {x} is {str(pixel)[:20]}", want)
    return value


def _from_base64(text: str) -> bytes:
    bare = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422, "not_base64", "the image is a string but not base64", "send the base64 of a PNG or JPEG"
        ) from error


def _from_file(data: bytes, *, height: int, width: int) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if max(image.size) > MAX_SIDE:
                raise RequestError(
                    413,
                    "image_too_large",
                    f"the image is {image.size[0]} by {image.size[1]} pixels",
                    f"send at most {MAX_SIDE} by {MAX_SIDE}",
                )
            grey = image.convert("L").resize((width, height), Image.Resampling.BOX)
    # Pillow's decoders raise much besides its own errors on files that lie; all of it means the same here.
    except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            422, "not_an_image", "this is not a readable PNG or JPEG", "send a whole file of one of them"
        ) from error
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255).unsqueeze(0)
