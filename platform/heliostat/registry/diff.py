"""How two versions differ: files by digest, tensors by their headers, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from heliostat.registry.artifacts import Artifact
from heliostat.registry.formats import MOST_HEADER_BYTES, Tensor, read_header
from heliostat.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Change(Generic[T]):
    """`before` None: added; `after` None: removed."""

    name: str
    before: T | None
    after: T | None


@dataclass(frozen=True)
class ModelDiff:
    before: str
    after: str
    same_content: bool
    files: tuple[Change[int], ...]
    """Sizes in bytes; equal ones where only the content differs."""
    tensors: tuple[Change[str], ...]
    """Type and shape, such as "F32 [2, 2]", where these differ. Their values are not compared."""
    facts: tuple[Change[str], ...]
    """Metrics, lineage, licence, tags and the rest of the manifest."""


def diff(store: Store, before: Artifact, after: Artifact) -> ModelDiff:
    """Reads the headers of those safetensors whose digests differ, and no weights."""
    old, new = before.manifest.files, after.manifest.files
    changed = [path for path in sorted({*old, *new}) if _sha256(before, path) != _sha256(after, path)]
    files = tuple(
        Change(path, old[path].size if path in old else None, new[path].size if path in new else None)
        for path in changed
    )
    weights = [path for path in changed if path.endswith(".safetensors")]
    return ModelDiff(
        before.reference,
        after.reference,
        before.digest == after.digest,
        files,
        _changes(_tensors(store, before, weights), _tensors(store, after, weights)),
        _changes(_facts(before), _facts(after)),
    )


def read_tensors(store: Store, artifact: Artifact, path: str) -> tuple[Tensor, ...]:
    """The header of one safetensors file in the store. Raises UnsafeArtifact for what is none."""
    key, size = artifact.manifest.key(path), artifact.manifest.files[path].size
    length = int.from_bytes(store.get_range(key, 0, 8), "little")
    return read_header(path, store.get_range(key, 0, 8 + min(length, MOST_HEADER_BYTES)), size)


def _tensors(store: Store, artifact: Artifact, paths: list[str]) -> dict[str, str]:
    return {
        tensor.name: f"{tensor.dtype} {list(tensor.shape)}"
        for path in paths
        if path in artifact.manifest.files
        for tensor in read_tensors(store, artifact, path)
    }


def _facts(artifact: Artifact) -> dict[str, str]:
    about = artifact.metadata
    nested = about.model_dump(exclude={"metrics", "lineage", "tags"})
    return {
        **{name: str(value) for name, value in nested.items()},
        **{f"metrics.{name}": f"{value:.6g}" for name, value in about.metrics.items()},
        **{f"lineage.{name}": str(value) for name, value in about.lineage.model_dump().items() if value is not None},
        **{f"tags.{name}": value for name, value in about.tags.items()},
    }


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Change[str], ...]:
    names = sorted({*old, *new})
    return tuple(Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))


def _sha256(artifact: Artifact, path: str) -> str | None:
    entry = artifact.manifest.files.get(path)
    return None if entry is None else entry.sha256
