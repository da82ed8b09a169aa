"""API keys: who may call which application, and whose team pays for it.

    keys/<name>.json    {"name", "sha256", "team", "applications"}; the key itself is shown once, when it is made

A definition names keys (`keys: [search-team]` below an application) and never holds one. Only the digest is stored:
a key is 32 random bytes, so a plain SHA-256 cannot be guessed backwards and needs no salt. Digests are compared in
constant time, all of them, so that the time taken tells nothing.

Ray's token guards the dashboard and the jobs, not Serve's port: these keys do.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import ObjectExists, ObjectMissing, UsageError
from heliostat.names import check_name
from heliostat.serve.errors import RequestError
from heliostat.store import Store

_FOLDER = "keys/"


class StoredKey(BaseModel):
    """What the store keeps of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str  # of the key, in hexadecimal
    team: str
    applications: tuple[str, ...] | None = None
    """The applications it opens; None: every one whose definition names it."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request, as far as the key tells."""

    key: str
    """The key's name; "" where none is asked for."""
    team: str
    """Its team, for the meter; "" where no key says one."""


NOBODY = Caller("", "")


@dataclass(frozen=True)
class KeyRing:
    """The keys of one application. Empty: it asks for none."""

    app: str
    named: tuple[StoredKey, ...] = ()
    """Those that the application's definition names."""
    cluster_key_sha256: str | None = None
    """Of the key that `heliostat up` makes; it opens every application."""
    team: str = ""
    """The definition's own team, which the cluster's key stands for."""
    closed: bool = False
    """The definition names keys: nobody comes in without one, though none of them may exist."""

    def caller(self, authorization: str) -> Caller:
        """Who a request's Authorization header belongs to. Raises RequestError 401 without a known key, 403 with one
        that does not open this application.
        """
        if not (self.named or self.cluster_key_sha256 or self.closed):
            return NOBODY
        scheme, _, sent = authorization.partition(" ")
        digest = key_digest(sent.strip()) if scheme.lower() == "bearer" else ""
        # Every digest is compared, also after a match.
        matching = [key for key in self.named if hmac.compare_digest(key.sha256, digest)]
        is_cluster_key = hmac.compare_digest(self.cluster_key_sha256 or "", digest) and digest != ""
        if matching and (matching[0].applications is None or self.app in matching[0].applications):
            return Caller(matching[0].name, matching[0].team)
        if is_cluster_key:
            return Caller("cluster", self.team)
        if matching:
            raise RequestError(
                403,
                "key_not_for_this_application",
                f"the key {matching[0].name!r} does not open {self.app!r}",
                f"it opens {', '.join(matching[0].applications or ()) or 'nothing'}; ask for one that opens this",
            )
        raise RequestError(
            401,
            "wrong_key",
            "the API key is missing or wrong",
            "send Authorization: Bearer KEY; on an embedded cluster the key is in the cluster's api-key file",
        )


def key_digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(store: Store, name: str, *, team: str, applications: Sequence[str] | None = None) -> str:
    """Make a key and return it: the only moment at which it can be seen. Raises UsageError where the name is taken."""
    check_name(name, what="key name")
    check_name(team, what="team")
    key = f"hs-{secrets.token_urlsafe(32)}"
    opens = None if applications is None else tuple(applications)
    stored = StoredKey(name=name, sha256=key_digest(key), team=team, applications=opens)
    try:
        store.create(_path(name), stored.model_dump_json().encode())
    except ObjectExists as error:
        raise UsageError(f"there is a key {name!r} already", do="revoke it first, or take another name") from error
    return key


def revoke_key(store: Store, name: str) -> None:
    """Remove a key; replicas stop taking it within seconds. Harmless where there is none."""
    store.delete(_path(check_name(name, what="key name")))


def read_keys(store: Store, names: Sequence[str]) -> tuple[StoredKey, ...]:
    """The named keys that exist; a name without a key opens nothing, nor does a key that cannot be read."""
    found = []
    for name in names:
        try:
            found.append(StoredKey.model_validate_json(store.get(_path(name)).data))
        except (ObjectMissing, ValidationError):
            continue
    return tuple(found)


def list_keys(store: Store) -> list[StoredKey]:
    """Every key, by name; digests only."""
    names = [info.key.removeprefix(_FOLDER).removesuffix(".json") for info in store.list(_FOLDER)]
    return list(read_keys(store, sorted(names)))


def _path(name: str) -> str:
    return f"{_FOLDER}{name}.json"
