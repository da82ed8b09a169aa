"""The model registry: artifacts that cannot be torn or swapped, and aliases that move by compare-and-swap."""

from __future__ import annotations

from heliostat.registry.aliases import Alias, AliasMove, get_alias, move_alias, must_get_alias, rollback_alias
from heliostat.registry.artifacts import (
    Artifact,
    ArtifactMetadata,
    Lineage,
    artifact_digest,
    get_version,
    list_models,
    list_versions,
    publish,
    resolve,
)
from heliostat.registry.cache import NodeCache, node_cache
from heliostat.registry.loading import (
    ArtifactFiles,
    Loaded,
    Phases,
    download,
    load_file,
    load_files,
    load_into,
    load_tensors,
    on_meta,
)

__all__ = [
    "Alias",
    "AliasMove",
    "Artifact",
    "ArtifactFiles",
    "ArtifactMetadata",
    "Lineage",
    "Loaded",
    "NodeCache",
    "Phases",
    "artifact_digest",
    "download",
    "get_alias",
    "get_version",
    "list_models",
    "list_versions",
    "load_file",
    "load_files",
    "load_into",
    "load_tensors",
    "move_alias",
    "must_get_alias",
    "node_cache",
    "on_meta",
    "publish",
    "resolve",
    "rollback_alias",
]
