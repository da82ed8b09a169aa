"""Immutable versions of models: published whole or not at all, found by version or alias; loading.py reads them.

    models/<name>/v<N>/manifest.json        the claim of the version, created last and only if absent
    models/<name>/v<N>/<attempt>/<file>     its files
    models/<name>/aliases/<alias>.json      see aliases.py

The digest covers path, size and sha256 of the files alone, so equal files have an equal digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from heliostat.commit import FileEntry, Manifest, commit, describe, read_manifest
from heliostat.errors import CorruptArtifact, ObjectExists, UnknownModel, UnknownVersion, UnsafeArtifact, UsageError
from heliostat.names import check_name, check_path, parse_version, version_name
from heliostat.registry.aliases import must_get_alias
from heliostat.store import Store

SAFE_SUFFIXES = (".safetensors", ".json", ".txt", ".md")
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
    framework: str
    metrics: dict[str, float] = Field(default_factory=dict)
    lineage: Lineage
    parameters: int
    dtype: str
    licence: str
    tags: dict[str, str] = Field(default_factory=dict)


class Artifact(_Frozen):
    """One version. `files` is what its digest covers."""

    name: str
    version: int
    digest: str
    metadata: ArtifactMetadata
    manifest: Manifest

    @property
    def metrics(self) -> dict[str, float]:
        return self.metadata.metrics


class _Body(_Frozen):
    name: str
    version: int
    digest: str
    metadata: ArtifactMetadata


def publish(store: Store, *, name: str, files: Mapping[str, Path | bytes], metadata: ArtifactMetadata) -> Artifact:
    """The files as the next version of the model, or the version that has the same content already.

    Versions are claimed without gap by creating the manifest; a publisher that comes second tries the next number.
    Raises UnsafeArtifact for what is not safetensors, JSON or text, before anything is written.
    """
    check_name(name, what="model name")
    # Read once: a file that changed between the digest and the upload would claim a version that nobody can load.
    contents = {path: data if isinstance(data, bytes) else data.read_bytes() for path, data in files.items()}
    _refuse_unsafe(contents)
    digest = artifact_digest({path: describe(content) for path, content in contents.items()})
    attempt = uuid.uuid4().hex[:12]
    known = list_versions(store, name)
    while True:
        for artifact in known:
            if artifact.digest == digest:
                return artifact
        version = len(known) + 1
        folder = f"models/{name}/{version_name(version)}"
        body = _Body(name=name, version=version, digest=digest, metadata=metadata)
        try:
            manifest = commit(
                store,
                folder,
                contents,
                manifest_key=f"{folder}/manifest.json",
                attempt=attempt,
                body=body.model_dump_json(),
            )
        except ObjectExists:
            known = list_versions(store, name)
            continue
        return _artifact(manifest)


def resolve(store: Store, reference: str) -> Artifact:
    """`name@alias` or `name:v3`. Raises UnknownModel, UnknownAlias, UnknownVersion with what there is."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"{reference!r} names no version", do="write name@production or name:v3")
    name, alias, version = check_name(match[1], what="model name"), match[2], match[3]
    number = must_get_alias(store, name, alias).version if alias else parse_version(version)
    return get_version(store, name, number)


def get_version(store: Store, name: str, version: int) -> Artifact:
    manifest = read_manifest(store, f"models/{name}/{version_name(version)}/manifest.json")
    if manifest is not None:
        return _artifact(manifest)
    known = _version_numbers(store, name)
    if not known:
        raise UnknownModel(f"there is no model {name!r}", do=f"one of: {', '.join(list_models(store)) or 'none yet'}")
    raise UnknownVersion(
        f"{name} has no {version_name(version)}", do=f"one of: {', '.join(version_name(n) for n in known)}"
    )


def list_models(store: Store) -> list[str]:
    return sorted({info.key.split("/")[1] for info in store.list("models/") if info.key.endswith("/manifest.json")})


def list_versions(store: Store, name: str) -> list[Artifact]:
    """Every published version of the model, oldest first; [] for an unknown model."""
    return [get_version(store, name, number) for number in _version_numbers(store, name)]


def artifact_digest(files: Mapping[str, FileEntry]) -> str:
    lines = "".join(f"{path}\t{entry.size}\t{entry.sha256}\n" for path, entry in sorted(files.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _version_numbers(store: Store, name: str) -> list[int]:
    found = []
    for info in store.list(f"models/{name}"):
        parts = info.key.split("/")
        if len(parts) == 4 and parts[3] == "manifest.json":
            found.append(parse_version(parts[2]))
    return sorted(found)


def _artifact(manifest: Manifest) -> Artifact:
    body = _Body.model_validate_json(manifest.body)
    where = f"models/{body.name}/{version_name(body.version)}"
    if manifest.prefix != where:
        raise CorruptArtifact(f"its manifest says that it is {where}", where=manifest.prefix)
    if artifact_digest(manifest.files) != body.digest:
        raise CorruptArtifact("its digest is not that of its files", where=where, do="publish it again")
    return Artifact(name=body.name, version=body.version, digest=body.digest, metadata=body.metadata, manifest=manifest)


def _refuse_unsafe(files: Mapping[str, bytes]) -> None:
    if not files:
        raise UnsafeArtifact("there is nothing to publish", do="give at least the weights")
    for path, data in files.items():
        check_path(path)
        if not path.endswith(SAFE_SUFFIXES):
            raise UnsafeArtifact(
                f"{path} may not be published: only {', '.join(SAFE_SUFFIXES)} are loaded here",
                do="save weights with safetensors; pickles run code when they are loaded",
            )
        if path.endswith(".safetensors"):
            _check_safetensors(path, data)


def _check_safetensors(path: str, content: bytes) -> None:
    """The header is read, and its tensors must lie end to end up to the last byte, as the format demands."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        spans = sorted(tuple(entry["data_offsets"]) for key, entry in header.items() if key != "__metadata__")
        end = 0
        for begin, after in spans:
            if begin != end or after < begin:
                raise ValueError(f"a tensor lies at {begin}..{after}, where the one before ends at {end}")
            end = after
        whole = end + 8 + length == len(content)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeArtifact(f"{path} is not safetensors: {error}", do="save it with safetensors") from error
    if not whole:
        raise UnsafeArtifact(f"{path} is cut off: its header promises more or fewer bytes", do="save it again")
