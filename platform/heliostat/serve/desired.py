"""Which applications are wanted, in the store: `apps/<app>/desired.json`, written by `heliostat app deploy`."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.definition import Application
from heliostat.errors import AppError, CorruptArtifact
from heliostat.files import put_file
from heliostat.plan.why import Snapshot, Work
from heliostat.promote.records import PRODUCTION
from heliostat.registry import Alias, get_alias
from heliostat.settings import Settings
from heliostat.store import Store, get_many

RECIPES = ("serve_apps", "train_jobs")


class DesiredApp(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    spec: Application
    package: str  # URI of the zip with the recipes
    target_ongoing_requests: float = 32
    groups: tuple[str, ...] = ()
    """The groups its replicas may run on: its own and that one's fallback. Empty: its own."""
    vram_bytes: int | None = None
    """GPU memory that a replica may take, by the accelerators that those groups declare."""


def deploy(
    store: Store,
    settings: Settings,
    name: str,
    spec: Application,
    *,
    groups: tuple[str, ...] = (),
    vram_bytes: int | None = None,
) -> DesiredApp:
    """Say in the store that the application is wanted. The controller acts on it. Safe to run twice."""
    desired = DesiredApp(name=name, spec=spec, package=package(settings), groups=groups, vram_bytes=vram_bytes)
    store.put(_key(name), desired.model_dump_json().encode())
    return desired


def remove(store: Store, name: str) -> None:
    store.delete(_key(name))


def read_desired(store: Store) -> list[DesiredApp]:
    """Every application that is wanted, by name.

    Raises CorruptArtifact for a record that cannot be read: passed over, its application would be taken down.
    """
    keys = [info.key for info in store.list("apps/") if info.key.endswith("/desired.json")]
    found = []
    for key, blob in get_many(store, keys):
        try:
            found.append(DesiredApp.model_validate_json(blob.data))
        except ValidationError as error:
            raise CorruptArtifact(
                "what is wanted of an application cannot be read", where=key, do="heliostat app deploy"
            ) from error
    return sorted(found, key=lambda app: app.name)


def with_releases(store: Store, snapshot: Snapshot, applications: Mapping[str, Application]) -> Snapshot:
    """Also which of the applications at zero have no version that could answer."""
    return replace(snapshot, works=tuple(_with_release(store, work, applications) for work in snapshot.works))


def _with_release(store: Store, work: Work, applications: Mapping[str, Application]) -> Work:
    spec = applications.get(work.name)
    if work.kind != "app" or work.phase != "asleep" or spec is None or released(store, spec) is not None:
        return work
    return replace(work, unreleased=spec.model.partition("@")[0])


def released(store: Store, spec: Application) -> Alias | None:
    """Which version the application answers with; None while it has none."""
    return get_alias(store, *spec.model.split("@", 1))


def to_release(name: str, spec: Application) -> str:
    """The command that gives the application its first version."""
    model, _, alias = spec.model.partition("@")
    if alias == PRODUCTION:
        return f"heliostat app release {name} {model}:vN"
    return f"heliostat model alias {model} {alias} --to vN"


def _key(name: str) -> str:
    return f"apps/{name}/desired.json"


def package(settings: Settings) -> str:
    """The recipes as a zip named by its content, where the cluster's nodes can read it. Returns its URI."""
    if settings.state_dir is None or settings.project_root is None:
        raise AppError("this cluster is not embedded", do="deploy with an image that holds the recipes")
    data = zip_recipes(settings.project_root)
    path = settings.state_dir / "packages" / f"recipes-{hashlib.sha256(data).hexdigest()[:16]}.zip"
    if not path.exists():
        put_file(path, data)
    return path.as_uri()


def zip_recipes(root: Path) -> bytes:
    """Equal recipes give equal bytes: sorted names, fixed times. Ray wants one folder at the top."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in RECIPES:
            for path in sorted((root / folder).rglob("*.py")):
                info = zipfile.ZipInfo(f"recipes/{path.relative_to(root)}", date_time=(2020, 1, 1, 0, 0, 0))
                archive.writestr(info, path.read_bytes())
    return buffer.getvalue()
