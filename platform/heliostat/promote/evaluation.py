"""What a version said to each held-out example: `evaluation.json`, one of the artifact's own files.

With it the gate compares two versions example by example, and slice by slice, instead of two numbers. It is written by
the training that scored the version (`evaluation_file`), and read by nobody but the gate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from heliostat.commit import read_file
from heliostat.errors import CorruptArtifact
from heliostat.registry import Artifact
from heliostat.store import Store

FILE = "evaluation.json"


class Evaluation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """Digest of the examples and their labels, in order: only equal ones can be compared."""
    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    slices: Mapping[str, tuple[int, ...]] = {}
    """Parts of the examples by name, as places in the lists above."""

    @model_validator(mode="after")
    def _fits(self) -> Evaluation:
        if len(self.truth) != len(self.predicted) or not self.truth:
            raise ValueError(f"{len(self.truth)} labels and {len(self.predicted)} predictions")
        for name, places in self.slices.items():
            if not places or not 0 <= min(places) <= max(places) < len(self.truth):
                raise ValueError(f"slice {name!r} is empty or points beyond the examples")
        return self

    @property
    def right(self) -> list[bool]:
        return [said == true for said, true in zip(self.predicted, self.truth, strict=True)]

    def part(self, name: str) -> list[bool]:
        right = self.right
        return [right[place] for place in self.slices[name]]


def evaluation_file(
    inputs: Iterable[str],
    truth: Sequence[str],
    predicted: Sequence[str],
    *,
    slices: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """The file's content. `inputs` are the examples themselves, for the digest alone: they are not kept."""
    data = hashlib.sha256()
    for text, label in zip(inputs, truth, strict=True):
        data.update(f"{label}\t{text}\n".encode())
    made = Evaluation(
        dataset=f"sha256:{data.hexdigest()}",
        truth=tuple(truth),
        predicted=tuple(predicted),
        slices={name: tuple(places) for name, places in (slices or {}).items()},
    )
    return made.model_dump_json().encode()


def read_evaluation(store: Store, artifact: Artifact) -> Evaluation | None:
    """None for a version that was published without. Raises CorruptArtifact."""
    if FILE not in artifact.manifest.files:
        return None
    try:
        return Evaluation.model_validate_json(read_file(store, artifact.manifest, FILE))
    except ValidationError as error:
        raise CorruptArtifact(
            f"its {FILE} is not an evaluation: {error.errors()[0]['msg']}", where=artifact.reference
        ) from error
