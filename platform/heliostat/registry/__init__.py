"""The model registry: artifacts that cannot be torn or swapped, and aliases that move by compare-and-swap."""

from __future__ import annotations

from heliostat.registry.aliases import (
    Alias,
    AliasMove,
    get_alias,
    list_aliases,
    move_alias,
    must_get_alias,
    rollback_alias,
)
from heliostat.registry.artifacts import (
    Artifact,
    ArtifactMetadata,
    Damaged,
    Deleted,
    Lineage,
    Version,
    artifact_digest,
    get_version,
    list_models,
    list_versions,
    publish,
    resolve,
    scan,
)
from heliostat.registry.cache import NodeCache, node_cache
from heliostat.registry.card import model_card
from heliostat.registry.diff import ModelDiff, diff
from heliostat.registry.holds import lease
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
from heliostat.registry.sweep import Retention, SweepPlan, Swept, delete_version, plan_sweep, sweep
from heliostat.registry.transfer import Finding, files_of, pull, verify
from heliostat.registry.versions import Tombstone

__all__ = [
    "Alias",
    "AliasMove",
    "Artifact",
    "ArtifactFiles",
    "ArtifactMetadata",
    "Damaged",
    "Deleted",
    "Finding",
    "Lineage",
    "Loaded",
    "NodeCache",
    "Phases",
    "ModelDiff",
    "Retention",
    "SweepPlan",
    "Swept",
    "Tombstone",
    "Version",
    "artifact_digest",
    "delete_version",
    "diff",
    "download",
    "files_of",
    "get_alias",
    "get_version",
    "lease",
    "list_aliases",
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
    "model_card",
    "plan_sweep",
    "publish",
    "pull",
    "resolve",
    "rollback_alias",
    "scan",
    "sweep",
    "verify",
]
