"""What a serving recipe writes: a short class. The platform does loading, batching, limits, identity and release.

A recipe in `serve_apps/` subclasses one of these and names itself in the definition
(`recipe: serve_apps.intent_classifier:IntentClassifierApp`):

    TextModel        texts in, one JSON object for each out       POST <route>
    ImageModel       images in, one JSON object for each out      POST <route>
    EmbeddingModel   texts in, one vector for each out            POST <route>/v1/embeddings
    TextGenerator    a prompt in, tokens out, one after another   POST <route>/v1/completions, /v1/chat/completions

The routes are the platform's (items.py, openai.py, completions.py): a recipe knows no HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from heliostat.serve.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from heliostat.inference.generate import Engine

Work = TypeVar("Work")
Result = TypeVar("Result")


class Recipe(ABC):
    """What every recipe has."""

    max_body_bytes: ClassVar[int] = 8 * 2**20
    """Of one request; more is refused with 413."""
    max_items: ClassVar[int] = 256
    """In one request's list; more is refused with 422."""

    @classmethod
    @abstractmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> Self:
        """The model from an artifact's files, on the device, ready to answer. Raises on anything that is not right."""

    @classmethod
    def memory_bytes(cls, sizes: Mapping[str, int]) -> int:
        """GPU memory that the model will need, from the sizes of its files: asked before any of them is read.

        The default is the weights and a fifth of them for the forward pass; say what is so where it is more.
        """
        weights = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
        return weights + weights // 5

    def narrow(self, dtype: torch.dtype) -> None:
        """Compute in a narrower type from now on; the default cannot. See `heliostat.serve.narrow` for its gate."""
        raise NotImplementedError


class ItemModel(Recipe, Generic[Work, Result]):
    """A model that answers items independently of one another, many at a time.

    `load` and `forward` run in the replica's worker thread, `prepare` on its event loop or, for large requests, in a
    thread beside it.
    """

    field: ClassVar[str]
    """The request's field with one item; with an s behind it, the field with a list of them."""
    budget: ClassVar[int | None] = None
    """The most that one batch may cost; None: the application's token budget."""
    examples: ClassVar[tuple[object, ...]]
    """Items as a client would send them, to warm up with."""

    @property
    def item_schema(self) -> Mapping[str, Any]:  # Any: JSON
        """JSON schema of an item, as far as one can say it; `prepare` is what refuses."""
        return {}

    @abstractmethod
    def prepare(self, value: object) -> Work:
        """One item as it came in the JSON, checked and made ready to run. Raises RequestError for what cannot be."""

    @abstractmethod
    def cost(self, work: Work) -> int:
        """What the item takes of a batch's budget, at least 1."""

    @abstractmethod
    def forward(self, batch: Sequence[Work]) -> Sequence[Result]:
        """One result for each item, in the same order."""

    @abstractmethod
    def present(self, result: Result) -> dict[str, Any]:
        """The result as it goes into the JSON answer. NaN in it makes this item an error."""

    def vectors(self, batch: Sequence[Work]) -> torch.Tensor:
        """[S, D] what `forward` decides by (an embedding, logits), to compare two types with; needed for `narrow`."""
        raise NotImplementedError


class TextModel(ItemModel[list[int], Result]):
    """A model over texts: subclasses tokenise, and the cost of a text is its tokens."""

    field = "text"
    examples = ("turn on the light", "set the living room to twenty degrees please")
    max_characters: ClassVar[int] = 10_000

    @property
    def item_schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": self.max_characters}

    @abstractmethod
    def tokenise(self, text: str) -> list[int]:
        """The text as token ids."""

    def prepare(self, value: object) -> list[int]:
        return self.tokenise(check_text(value, self.max_characters))

    def cost(self, work: list[int]) -> int:
        return len(work)


class EmbeddingModel(TextModel["np.ndarray"]):
    """A model that turns a text into a vector; `forward` returns one float32 vector [width] for each text."""

    def present(self, result: np.ndarray) -> dict[str, Any]:
        return {"embedding": result.tolist()}


class ImageModel(ItemModel["torch.Tensor", Result]):
    """A model over small grey images of one shape, which are stacked: the cost of each is 1.

    An image is rows of pixels, or the base64 of a PNG or JPEG, or the body itself with its Content-Type. The work is a
    float32 tensor [1, height, width] of 0 (dark) to 1 (bright).
    """

    field = "image"
    budget = 256
    height: ClassVar[int]
    width: ClassVar[int]
    brightest: ClassVar[float] = 255
    """What a white pixel is in the rows that clients send."""

    @property
    def item_schema(self) -> Mapping[str, Any]:
        pixel = {"type": "number", "minimum": 0, "maximum": self.brightest}
        row = {"type": "array", "items": pixel, "minItems": self.width, "maxItems": self.width}
        rows = {"type": "array", "items": row, "minItems": self.height, "maxItems": self.height}
        return {"anyOf": [rows, {"type": "string", "description": "base64 of a PNG or JPEG"}]}

    def prepare(self, value: object) -> torch.Tensor:
        from heliostat.serve.images import to_tensor

        return to_tensor(value, height=self.height, width=self.width, brightest=self.brightest)

    def cost(self, work: torch.Tensor) -> int:
        return 1


class TextGenerator(Recipe):
    """A causal language model. The platform batches at the level of tokens and streams."""

    max_tokens: ClassVar[int] = 1024
    """The most tokens that one request may ask for."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """What turns token ids into more of them."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """A prompt as token ids."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text; special tokens are left out."""

    @abstractmethod
    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation of {"role", "content"} as the token ids after which the assistant speaks."""


def check_text(value: object, max_characters: int) -> str:
    """The value as a text within its length. Raises RequestError 422 or 413."""
    if not isinstance(value, str):
        raise RequestError(422, "wrong_type", f"this is {_kind(value)}, not a string", "send a string")
    if len(value) > max_characters:
        raise RequestError(413, "text_too_long", f"it has {len(value)} characters", f"send at most {max_characters}")
    if not value.strip():
        raise RequestError(422, "empty_text", "the text is empty", "send at least one word")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            422, "not_unicode", f"the text has half a surrogate pair at character {error.start}", "send whole ones"
        ) from error
    return value


def _kind(value: object) -> str:
    """The value's type in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, float) and value != value:  # NaN alone differs from itself
        return "NaN"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
