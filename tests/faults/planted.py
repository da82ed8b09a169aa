"""Looks for a cluster's secrets everywhere that somebody else could read them.

They are random and made by `up`, so that a hit is no chance. Each may lie in files of its own, mode 0600, and in the
memory of who uses it. Everything else that can be read is read whole: what is rendered, shipped, logged, said, stored,
listed by Ray, shown by `ps`, and handed on in environments.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
OWN_FILES = ("token", "api-key", "store-key", "settings.json", "store/keys.json", "store/inner-key.pem")
"""Below the cluster's folder. Each is readable by its owner alone."""
LARGEST_FILE = 256 * 2**20


@dataclass(frozen=True)
class Hit:
    secret: str
    place: str


@dataclass
class Found:
    """`looked` counts what was read, by kind of place: nothing found in nothing proves nothing."""

    hits: list[Hit] = field(default_factory=list)
    looked: Counter[str] = field(default_factory=Counter)
    open_files: list[str] = field(default_factory=list)
    """Of its own that others than the owner may read."""


def secrets_of(platform: Any) -> dict[str, bytes]:
    settings = platform.settings
    found = {
        "Ray's token": settings.token_path.read_text().strip(),
        "the API key": settings.api_key.get_secret_value(),
        "the store's key": settings.store.secret_access_key.get_secret_value(),
    }
    inner = settings.state_dir / "store" / "inner-key.pem"
    if inner.exists():
        found["the store's inner key"] = inner.read_text().splitlines()[1]
    assert all(len(value) >= 32 for value in found.values())
    return {name: value.encode() for name, value in found.items()}


def look(platform: Any, *, commands: Mapping[str, bytes] | None = None) -> Found:
    """Read everything. `commands`: further output by what printed it, such as of error messages."""
    secrets, found = secrets_of(platform), Found()
    own = {platform.settings.state_dir / name for name in OWN_FILES}
    found.open_files = [str(path) for path in sorted(own) if path.exists() and path.stat().st_mode & 0o077]
    places = (
        _manifests, _notebooks, _files_of(own), _store, _ray, _metrics, _processes,
        lambda _: ((f"output: {name}", data) for name, data in (commands or {}).items()),
    )  # fmt: skip
    for places_of in places:
        for place, data in places_of(platform):
            found.looked[place.split(":")[0]] += 1
            found.hits += [Hit(name, place) for name, secret in secrets.items() if secret in data]
    return found


def _manifests(_: Any) -> Iterator[tuple[str, bytes]]:
    """With the keys in the environment, as they are where somebody renders who may apply."""
    from heliostat.cli.render import as_yaml, chosen
    from heliostat.definition import load

    for path in sorted((ROOT / "cluster").glob("*.yaml")):
        definition = load(path)
        if definition.platform not in (None, "laptop"):
            yield f"manifests: {path.name}", as_yaml(chosen(definition, "all")).encode()


def _notebooks(_: Any) -> Iterator[tuple[str, bytes]]:
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        yield f"notebooks: {path.name}", path.read_bytes()


def _files_of(own: set[Path]) -> Any:
    def files(platform: Any) -> Iterator[tuple[str, bytes]]:
        from heliostat.cluster import embedded

        record = embedded.read_record(platform.settings.cluster)
        assert record is not None
        for folder in (platform.settings.state_dir, Path(record.temp_dir)):
            for path in sorted(folder.rglob("*")):
                if path in own or not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_FILE:
                    continue
                kind = "logs" if "logs" in path.parts else "events" if "spool" in path.parts else "files"
                try:
                    yield f"{kind}: {path.relative_to(folder)}", path.read_bytes()
                except OSError:
                    continue

    return files


def _store(platform: Any) -> Iterator[tuple[str, bytes]]:
    """Every object: artifacts, events, records, checkpoints, the ledger."""
    from heliostat.errors import ObjectMissing

    for info in platform.store.list(""):
        try:
            yield f"objects: {info.key}", info.key.encode() + platform.store.get(info.key).data
        except ObjectMissing:
            continue


def _ray(platform: Any) -> Iterator[tuple[str, bytes]]:
    """What Ray tells a holder of its token: jobs with their environments and logs, applications, state."""
    settings = platform.settings
    with httpx.Client(base_url=settings.dashboard_url, headers=settings.token_header(), timeout=30) as client:
        paths = ["/api/jobs/", "/api/serve/applications/", "/api/cluster_status", "/nodes?view=details", "/events"]
        paths += [f"/api/v0/{kind}?detail=true" for kind in ("runtime_envs", "actors", "tasks", "workers", "jobs")]
        for path in paths:
            answer = client.get(path)
            yield f"Ray: {path} {answer.status_code}", answer.content
        for job in client.get("/api/jobs/").json():
            path = f"/api/jobs/{job['submission_id'] or job['job_id']}/logs"
            yield f"Jobs API: {path}", client.get(path).content


def _metrics(platform: Any) -> Iterator[tuple[str, bytes]]:
    from heliostat.cluster import embedded

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    for name in ("metrics", "haproxy_metrics", "controller_metrics", "haproxy_stats", "hold"):
        for path in ("/metrics", "/stats", "/-/metrics"):
            try:
                answer = httpx.get(f"http://127.0.0.1:{record.ports[name]}{path}", timeout=5)
            except httpx.HTTPError:
                continue
            yield f"metrics: {name}{path}", answer.content


def _processes(_: Any) -> Iterator[tuple[str, bytes]]:
    """What `ps` shows, and the environment of every process that may be read, our own too: they hold paths alone."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        for kind, file in (("ps", "cmdline"), ("environ", "environ")):
            try:
                yield f"{kind}: {entry.name}", (entry / file).read_bytes()
            except OSError:
                continue
    yield "environ: self now", b"\0".join(f"{k}={v}".encode() for k, v in os.environ.items())
