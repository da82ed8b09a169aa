"""Where things lie in the registry, and what stands under the number of a version. The lowest file of the registry.

models/<name>/v<N>/manifest.json          the claim of the version: created last, and only if absent. Once the
                                          version is deleted a tombstone, so that no number is used twice
models/<name>/files/<attempt>/<file>      its files. They go up once, whichever number their publisher then gets
models/<name>/aliases/<alias>.json        see aliases.py
models/<name>/holds/v<N>/...              see holds.py
models/<name>/verdicts/v<N>/<i>.json      what gates said
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.commit import Manifest, parse_manifest
from heliostat.errors import CorruptArtifact, ObjectMissing
from heliostat.names import check_name, version_name
from heliostat.store import ObjectInfo, Store

_VERSION_FOLDER = re.compile(r"v[1-9][0-9]{0,8}")
_MANIFEST = re.compile(r"models/([a-z][a-z0-9-]{0,62})/v([1-9][0-9]{0,8})/manifest\.json")
_ATTEMPT = re.compile(r"(models/[^/]+/(?:files|v[1-9][0-9]{0,8})/[^/]+)/.+")


class Tombstone(BaseModel):
    """What is left of a deleted version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    who: str
    why: str
    digest: str = ""
    folder: str = ""  # of its files; "" where its manifest could not be read


def folder(name: str) -> str:
    return f"models/{check_name(name, what='model name')}"


def files_prefix(name: str) -> str:
    return f"{folder(name)}/files"


def manifest_key(name: str, version: int) -> str:
    return f"{folder(name)}/{version_name(version)}/manifest.json"


def read_version(store: Store, name: str, version: int) -> tuple[Manifest | Tombstone, str] | None:
    """What stands under the number, and its tag for a swap; None for a number that nobody has claimed.

    Raises CorruptArtifact for what cannot be read, or names files outside the version.
    """
    key = manifest_key(name, version)
    try:
        blob = store.get(key)
    except ObjectMissing:
        return None
    tombstone = _tombstone(blob.data)
    if tombstone is not None:
        return tombstone, blob.etag
    # Beside the manifest is where the files lay before they had a folder of their own.
    beside = key.rpartition("/")[0]
    manifest = parse_manifest(blob.data, key, prefixes=(files_prefix(name), beside))
    if not manifest.files:
        raise CorruptArtifact("its manifest names no files", where=key)
    return manifest, blob.etag


def tombstone_bytes(tombstone: Tombstone) -> bytes:
    return json.dumps({"deleted": tombstone.model_dump(mode="json")}, indent=1).encode()


def version_numbers(listing: Iterable[ObjectInfo]) -> dict[str, dict[int, ObjectInfo]]:
    """The manifests of a listing, by model and number."""
    found: dict[str, dict[int, ObjectInfo]] = {}
    for info in listing:
        match = _MANIFEST.fullmatch(info.key)
        if match is not None:
            found.setdefault(match[1], {})[int(match[2])] = info
    return found


def is_version_folder(name: str) -> bool:
    """Whether the folder of a model is a version's: its manifest, or what is left of it, lies there."""
    return _VERSION_FOLDER.fullmatch(name) is not None


def attempt_folder(key: str) -> str | None:
    """The folder of the attempt that wrote the file; None for what is no file of a version."""
    match = _ATTEMPT.fullmatch(key)
    return None if match is None else match[1]


def _tombstone(data: bytes) -> Tombstone | None:
    try:
        value = json.loads(data)
        return Tombstone.model_validate(value["deleted"])
    except (ValueError, LookupError, TypeError, ValidationError, RecursionError):
        return None
