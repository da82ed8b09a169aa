"""The model registry: artifacts that cannot be torn or swapped, and aliases that move by compare-and-swap."""

from __future__ import annotations

from heliostat.registry.aliases import Alias, AliasMove, get_alias, move_alias, must_get_alias, rollback_alias
from heliostat.registry.artifacts import (
    Artifact,
    ArtifactMetadata,
    Lineage,
    artifact_digest,
    download,
    get_version,
    list_models,
    list_versions,
    load_file,
    load_files,
    publish,
    resolve,
)

__all__ = [
    "Alias",
    "AliasMove",
    "Artifact",
    "ArtifactMetadata",
    "Lineage",
    "artifact_digest",
    "download",
    "get_alias",
    "get_version",
    "list_models",
    "list_versions",
    "load_file",
    "load_files",
    "move_alias",
    "must_get_alias",
    "publish",
    "resolve",
    "rollback_alias",
]
