"""Immutable versions of models: published whole or not at all, found by version or alias. `versions.py` has the keys.

The digest covers path, size and sha256 of the files alone, so equal files have an equal digest.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliostat.commit import (
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    Moved,
    Source,
    seal,
    upload,
)
from heliostat.errors import (
    CorruptArtifact,
    ObjectExists,
    RegistryError,
    UnknownModel,
    UnknownVersion,
    UnsafeArtifact,
    UsageError,
)
from heliostat.names import check_name, check_path, is_name, parse_version, version_name
from heliostat.registry.aliases import must_get_alias
from heliostat.registry.formats import TensorFacts, check_content, check_name_is_safe
from heliostat.registry.versions import (
    Tombstone,
    files_prefix,
    folder,
    is_version_folder,
    manifest_key,
    read_version,
    version_numbers,
)
from heliostat.store import Store

MANIFESTS_AT_ONCE = 8
LONGEST_CLAIM_PAUSE_S = 1.0
_REFERENCE = re.compile(r"([^@:]+)(?:@([^@:]+)|:([^@:]+))")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lineage(_Frozen):
    """Where a version comes from."""

    job: str
    code_version: str
    dataset_digest: str
    parent: str | None = None
    gpu_seconds: float = 0.0
    hardware: str = ""


class ArtifactMetadata(_Frozen):
    """What is said about a version. `parameters`, `dtype` and `vram_bytes` left at 0 or "" are read off the weights."""

    framework: str
    format: str = "safetensors"
    metrics: dict[str, float] = Field(default_factory=dict)
    lineage: Lineage
    parameters: int = 0
    dtype: str = ""
    vram_bytes: int = 0
    """What the weights alone take on the device: the sum of their tensors. What a forward pass adds is not in it."""
    licence: str
    tags: dict[str, str] = Field(default_factory=dict)


class Artifact(_Frozen):
    """One version. `manifest.files` is what its digest covers."""

    name: str
    version: int
    digest: str
    metadata: ArtifactMetadata
    manifest: Manifest

    @property
    def metrics(self) -> dict[str, float]:
        return self.metadata.metrics

    @property
    def reference(self) -> str:
        return f"{self.name}:{version_name(self.version)}"


class Damaged(_Frozen):
    """A version whose manifest cannot be read or is not its own. The others of the model live on."""

    name: str
    version: int
    error: str


class Deleted(_Frozen):
    name: str
    version: int
    tombstone: Tombstone


Version = Artifact | Damaged | Deleted


class _Body(_Frozen):
    name: str
    version: int
    digest: str
    metadata: ArtifactMetadata


def publish(
    store: Store,
    *,
    name: str,
    files: Mapping[str, Path | bytes],
    metadata: ArtifactMetadata,
    read: Moved = lambda _: None,
    sent: Moved = lambda _: None,
) -> Artifact:
    """The files as the next version of the model, or the version that has the same content already.

    The files go up once. Then a number is claimed by creating its manifest, only if absent; a publisher that comes
    second tries the next number, so there are neither gaps nor duplicates. Killed at any line it leaves nothing that a
    reader sees, and may be repeated. `read` and `sent` are told of bytes, for a progress bar.
    Raises UnsafeArtifact for what is not safetensors, JSON or text, before anything is written.
    """
    check_name(name, what="model name")
    metadata = _measured(metadata, _check(files))
    sources = {path: Source.of(content, read) for path, content in files.items()}
    digest = artifact_digest({path: source.entry for path, source in sources.items()})
    known = scan(store, name)
    twin = _with_digest(known, digest)
    if twin is not None:
        return twin
    attempt, begun = uuid.uuid4().hex[:12], time.time()
    entries = upload(store, files_prefix(name), sources, attempt=attempt, moved=sent)
    for losses in count():
        version = max(known, default=0) + 1
        body = _Body(name=name, version=version, digest=digest, metadata=metadata)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            prefix=files_prefix(name),
            attempt=attempt,
            files=entries,
            body=body.model_dump_json(),
        )
        try:
            return _artifact(seal(store, manifest, key=manifest_key(name, version), begun=begun))
        except ObjectExists:
            # Many publishers that come back at once would queue for the same key again.
            time.sleep(random.uniform(0, min(LONGEST_CLAIM_PAUSE_S, 0.01 * 2**losses)))
            known = scan(store, name, known)
        twin = _with_digest(known, digest)
        if twin is not None:
            _remove(store, manifest)
            return twin
    raise AssertionError("counting does not end")


def resolve(store: Store, reference: str) -> Artifact:
    """`name@alias` or `name:v3`. Raises UnknownModel, UnknownAlias, UnknownVersion with what there is."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"{reference[:200]!r} names no version", do="write name@production or name:v3")
    name, alias, version = check_name(match[1], what="model name"), match[2], match[3]
    number = must_get_alias(store, name, alias).version if alias else parse_version(version)
    return get_version(store, name, number)


def get_version(store: Store, name: str, version: int) -> Artifact:
    """Raises UnknownModel, UnknownVersion (also for a deleted one, with who deleted it), CorruptArtifact."""
    found = read_version(store, name, version)
    if found is not None:
        stone = found[0]
        if not isinstance(stone, Tombstone):
            return as_artifact(stone, name, version)
        raise UnknownVersion(
            f"{name} {version_name(version)} was deleted by {stone.who} on {stone.at:%Y-%m-%d %H:%M} UTC ({stone.why})",
            do=_offer(store, name),
        )
    if not _numbers(store, name):
        raise UnknownModel(f"there is no model {name!r}", do=f"one of: {', '.join(list_models(store)) or 'none yet'}")
    raise UnknownVersion(f"{name} has no {version_name(version)}", do=_offer(store, name))


def list_models(store: Store) -> list[str]:
    """Every model that ever had a version. Takes time by the models, not by their versions and files."""
    names = [name for name in store.folders("models") if is_name(name)]

    def has_version(name: str) -> bool:
        return any(is_version_folder(each) for each in store.folders(folder(name)))

    with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="models") as pool:
        return [name for name, has in zip(names, pool.map(has_version, names), strict=True) if has]


def list_versions(store: Store, name: str) -> list[Artifact]:
    """Every version of the model that can be read, oldest first; [] for an unknown model. `scan` has the others too."""
    return [version for version in scan(store, name).values() if isinstance(version, Artifact)]


def scan(store: Store, name: str, known: Mapping[int, Version] | None = None) -> dict[int, Version]:
    """Every number that was ever claimed, in order, with what stands under it.

    `known` is an earlier answer, which is not asked for again: a version never changes, though it can be deleted.
    One damaged version does not hide the others.
    """
    known = known or {}
    new = [number for number in _numbers(store, name) if number not in known]
    if len(new) == 1:
        return {**known, new[0]: _look(store, name, new[0])}
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifests") as pool:
        found = dict(zip(new, pool.map(lambda number: _look(store, name, number), new), strict=True))
    return dict(sorted({**known, **found}.items()))


def artifact_digest(files: Mapping[str, FileEntry]) -> str:
    lines = "".join(f"{path}\t{entry.size}\t{entry.sha256}\n" for path, entry in sorted(files.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _check(files: Mapping[str, Path | bytes]) -> TensorFacts:
    """Every file is one that may be loaded, and no file stands where another has its folder."""
    if not files:
        raise UnsafeArtifact("there is nothing to publish", do="give at least the weights")
    for path in files:
        check_path(path)
        check_name_is_safe(path)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above in files:
                raise UsageError(f"{above!r} is a file and the folder of {path!r}", do="rename one of them")
    try:
        return TensorFacts.of(chain.from_iterable(check_content(path, content) for path, content in files.items()))
    except OSError as error:
        raise UsageError(f"a file cannot be read: {error.strerror}", where=str(error.filename)) from error


def _measured(metadata: ArtifactMetadata, facts: TensorFacts) -> ArtifactMetadata:
    return metadata.model_copy(
        update={
            "parameters": metadata.parameters or facts.parameters,
            "dtype": metadata.dtype or facts.dtype,
            "vram_bytes": metadata.vram_bytes or facts.bytes,
        }
    )


def _with_digest(known: Mapping[int, Version], digest: str) -> Artifact | None:
    return next((each for each in known.values() if isinstance(each, Artifact) and each.digest == digest), None)


def _remove(store: Store, manifest: Manifest) -> None:
    """The files of an attempt that will not be a version, since another published the same meanwhile."""
    for path in manifest.files:
        store.delete(manifest.key(path))


def _numbers(store: Store, name: str) -> list[int]:
    return sorted(version_numbers(store.list(folder(name))).get(name, {}))


def _offer(store: Store, name: str) -> str:
    known = [version_name(artifact.version) for artifact in list_versions(store, name)]
    return f"one of: {', '.join(known)}" if known else "publish one first"


def _look(store: Store, name: str, version: int) -> Version:
    try:
        found = read_version(store, name, version)
        if found is None:
            raise CorruptArtifact("its manifest is gone", where=manifest_key(name, version))
        if isinstance(found[0], Tombstone):
            return Deleted(name=name, version=version, tombstone=found[0])
        return _own(_artifact(found[0]), name, version)
    except RegistryError as error:
        return Damaged(name=name, version=version, error=str(error))


def _artifact(manifest: Manifest) -> Artifact:
    try:
        body = _Body.model_validate_json(manifest.body)
    except ValidationError as error:
        raise CorruptArtifact("its manifest does not describe a version", where=manifest.folder) from error
    if artifact_digest(manifest.files) != body.digest:
        raise CorruptArtifact("its digest is not that of its files", where=manifest.folder, do="publish it again")
    for path in manifest.files:
        check_name_is_safe(path)
    return Artifact(name=body.name, version=body.version, digest=body.digest, metadata=body.metadata, manifest=manifest)


def as_artifact(manifest: Manifest, name: str, version: int) -> Artifact:
    """What a manifest says. Raises CorruptArtifact where it is no version's, or another one's."""
    return _own(_artifact(manifest), name, version)


def _own(artifact: Artifact, name: str, version: int) -> Artifact:
    if (artifact.name, artifact.version) != (name, version):
        raise CorruptArtifact(
            f"its manifest says that it is {artifact.name[:80]} {artifact.version}", where=manifest_key(name, version)
        )
    return artifact
