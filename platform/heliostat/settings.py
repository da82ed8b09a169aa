"""Which cluster and store a command talks to: one file per cluster, written by `up`, overridden by the environment.

    <home>/clusters/<name>/settings.json    mode 0600: it holds keys
    <home>/current                          the name of the cluster that commands mean when they name none

`<home>` is HELIOSTAT_HOME, ~/.heliostat by default.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
)

from heliostat.errors import SettingsError, UsageError
from heliostat.files import put_file
from heliostat.names import check_name
from heliostat.version import VERSION

UP = "heliostat up cluster/laptop.yaml"
_REVEAL = {"reveal": True}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Frozen):
    """Where the object store is and how to sign requests. `endpoint` None: AWS's own, by region.

    Without keys, the AWS chain is asked: environment, profile, SSO, web identity, container or machine role.
    """

    endpoint: str | None = None
    bucket: str
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    profile: str | None = None
    """A profile of ~/.aws/config, where no keys are given; None: AWS_PROFILE, or the default one."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Asked of S3 for every object that is written; None: the bucket's own default."""
    kms_key_id: str | None = None
    """With aws:kms, the key; None: the account's own for S3."""

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.endpoint or "").hostname
        return host in ("127.0.0.1", "::1", "localhost")

    @field_serializer("secret_access_key", "session_token", mode="wrap")
    def _secret(
        self, value: SecretStr | None, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> object:
        return _reveal(value, handler, info)


class Settings(_Frozen):
    """What a command, a node or a replica has to know of its cluster. Fields without a default are always known."""

    cluster: str
    dashboard_url: str
    gcs_address: str
    token_path: Path | None = None
    """The file with Ray's auth token."""
    token: SecretStr | None = None
    """The token itself, where it lies in no file."""
    serve_url: str
    api_key: SecretStr | None = None
    """What applications ask of their callers."""
    store: StoreSettings
    spool: Path
    """The folder that events are written to before they are shipped."""
    state_dir: Path | None = None
    """The embedded cluster's folder; None for a cluster on Kubernetes."""
    project_root: Path | None = None
    """The folder that holds serve_apps/ and train_jobs/."""
    written_by: str = ""
    """The version of Heliostat that wrote the file."""

    def token_header(self) -> dict[str, str]:
        """What the dashboard's port wants to see; {} where the cluster has no token. Raises SettingsError."""
        token = self.token.get_secret_value() if self.token else ""
        if not token and self.token_path:
            try:
                token = self.token_path.read_text().strip()
            except OSError as error:
                raise SettingsError(
                    f"the cluster's token cannot be read: {error.strerror}",
                    where=str(self.token_path),
                    do="put the token there, or connect with RAY_ADDRESS and RAY_AUTH_TOKEN_PATH in place of settings",
                ) from error
        return {"Authorization": f"Bearer {token}"} if token else {}

    @field_serializer("api_key", "token", mode="wrap")
    def _secret(
        self, value: SecretStr | None, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> object:
        return _reveal(value, handler, info)


def _reveal(value: SecretStr | None, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> object:
    """Secrets come out only where `save` asks for them; a log or a printed model shows stars."""
    if value is not None and isinstance(info.context, dict) and info.context.get("reveal"):
        return value.get_secret_value()
    return handler(value)


def home() -> Path:
    """The folder of everything that Heliostat keeps on this machine: HELIOSTAT_HOME, or ~/.heliostat."""
    return Path(os.environ.get("HELIOSTAT_HOME") or Path.home() / ".heliostat")


def settings_path(cluster: str) -> Path:
    return home() / "clusters" / check_name(cluster, what="cluster name") / "settings.json"


def save(settings: Settings, path: Path) -> None:
    """Write the file whole or not at all, readable by its owner alone from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    put_file(path, settings.model_dump_json(indent=1, context=_REVEAL), private=True)


def load(cluster: str | None = None) -> Settings:
    """The settings that hold here.

    The file: HELIOSTAT_SETTINGS (a path), else that of `cluster`, of HELIOSTAT_CLUSTER, or of `<home>/current`. Over
    it: HELIOSTAT_STORE_ENDPOINT, HELIOSTAT_STORE_BUCKET, and for the keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN and AWS_REGION. Raises SettingsError with the command that makes the missing file.
    """
    settings = _read(_find(cluster))
    store = _override(settings.store, os.environ)
    return settings if store == settings.store else settings.model_copy(update={"store": store})


def by_address(address: str, token: str | None = None) -> Settings:
    """What is known of a cluster by its dashboard's address alone; the store is not.

    The token as Ray finds it: given, RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; none where
    there is none. Raises UsageError for what is no address of a dashboard.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"{address!r} is not the address of a dashboard", do="write http://HOST:8265")
    token = token or os.environ.get("RAY_AUTH_TOKEN") or None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    if token is None and not path.is_file() and os.environ.get("RAY_AUTH_TOKEN_PATH"):
        raise SettingsError("there is no token", where=str(path), do="point RAY_AUTH_TOKEN_PATH at the token's file")
    return Settings(
        cluster=url.netloc.rpartition("@")[2],
        dashboard_url=address.rstrip("/"),
        gcs_address="",
        token=None if token is None else SecretStr(token),
        token_path=path if token is None and path.is_file() else None,
        serve_url="",
        store=StoreSettings(bucket="not-known-here"),
        spool=home() / "no-spool",
    )


def current_cluster() -> str:
    """The cluster that is meant where none is named, also one whose `up` was killed before it had settings."""
    return os.environ.get("HELIOSTAT_CLUSTER") or _current()


def make_current(cluster: str) -> None:
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    (home() / "current").write_text(cluster + "\n")


@dataclass(frozen=True)
class Known:
    """A cluster that has settings on this machine."""

    cluster: str
    current: bool
    dashboard_url: str
    store: str
    error: str  # why its settings cannot be read; empty if they can


def known() -> list[Known]:
    """Every cluster with settings here, by name."""
    try:
        current = current_cluster()
    except SettingsError:
        current = ""
    found = []
    for path in sorted((home() / "clusters").glob("*/settings.json")):
        name = path.parent.name
        try:
            settings = _read(path)
        except SettingsError as error:
            found.append(Known(name, name == current, "", "", error.what))
            continue
        place = f"{settings.store.endpoint or f'S3 in {settings.store.region}'}, bucket {settings.store.bucket}"
        found.append(Known(name, name == current, settings.dashboard_url, place, ""))
    return found


def choose(cluster: str) -> None:
    """Mean this cluster where none is named. Raises SettingsError for one without settings, UsageError for one that
    the environment overrides.
    """
    _read(settings_path(cluster))
    if os.environ.get("HELIOSTAT_CLUSTER", cluster) != cluster:
        raise UsageError(
            f"HELIOSTAT_CLUSTER={os.environ['HELIOSTAT_CLUSTER']} overrides what is chosen here", do="unset it first"
        )
    make_current(cluster)


def _find(cluster: str | None) -> Path:
    given = os.environ.get("HELIOSTAT_SETTINGS")
    if given:
        return Path(given)
    named = cluster or current_cluster()
    try:
        return settings_path(named)
    except UsageError as error:
        raise SettingsError(error.what, where="the name of the cluster", do=error.do) from error


def _current() -> str:
    path = home() / "current"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise SettingsError("no cluster was chosen, and none is current", where=str(path), do=f"run `{UP}`") from None


def _read(path: Path) -> Settings:
    try:
        return Settings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError("there are no settings for this cluster", where=str(path), do=f"run `{UP}`") from None
    except OSError as error:
        raise SettingsError(f"the settings cannot be read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        # Neither the inputs nor the cause are shown: they may hold keys.
        found = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'file'}: {entry['msg']}"
            for entry in error.errors(include_input=False)
        )
        raise SettingsError(
            f"the settings are damaged: {found}", where=str(path), do=_other_version(path) or f"run `{UP}` again"
        ) from None


def _other_version(path: Path) -> str:
    """What to do where the file is another version's: a newer one has fields that this one does not know."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        writer = json.loads(path.read_bytes()).get("written_by")
        if writer and writer != VERSION:
            return f"Heliostat {writer} wrote it and this is {VERSION}: install that one, or run `{UP}` with this one"
    return ""


def _override(store: StoreSettings, env: Mapping[str, str]) -> StoreSettings:
    values = json.loads(store.model_dump_json(context=_REVEAL))
    elsewhere = env.get("HELIOSTAT_STORE_ENDPOINT")
    values.update({"endpoint": elsewhere} if elsewhere else {})
    values.update({"bucket": env["HELIOSTAT_STORE_BUCKET"]} if env.get("HELIOSTAT_STORE_BUCKET") else {})
    # The embedded store has keys of its own: the AWS keys in somebody's shell would only lock them out of it.
    if elsewhere or not (store.is_loopback and store.access_key_id):
        values.update(_aws_keys(env))
    return StoreSettings.model_validate(values)


def _aws_keys(env: Mapping[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    if env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"):
        # All three at once: a session token belongs to its pair of keys.
        found = {
            "access_key_id": env["AWS_ACCESS_KEY_ID"],
            "secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
            "session_token": env.get("AWS_SESSION_TOKEN"),
        }
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    return {**found, "region": region} if region else found
