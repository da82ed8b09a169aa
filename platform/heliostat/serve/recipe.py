"""What a serving recipe writes: a short class. The platform does loading, batching, limits, identity and release.

A recipe in `serve_apps/` subclasses `TextModel` and names itself in the definition
(`recipe: serve_apps.intent_classifier:IntentClassifierApp`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


class TextModel(ABC, Generic[Result]):
    """A model that turns texts into answers, many at a time.

    `load` and `forward` run in the replica's worker thread, `tokenise` on its event loop: keep that one short.
    """

    max_characters: int = 10_000

    @classmethod
    @abstractmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> Self:
        """The model from an artifact's files, on the device, ready to answer. Raises on anything that is not right."""

    @abstractmethod
    def tokenise(self, text: str) -> list[int]:
        """The text as token ids; their number is what a batch is measured by."""

    @abstractmethod
    def forward(self, batch: Sequence[Sequence[int]]) -> list[Result]:
        """One result for each item, in the same order."""

    @abstractmethod
    def present(self, result: Result) -> dict[str, Any]:
        """The result as it goes into the JSON answer."""
