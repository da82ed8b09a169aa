"""Who published a version: detached Ed25519 signatures (RFC 8032) beside the registry's objects.

    models/<name>/signatures/<version>/<key id>.json

A digest says that the bytes are those of the manifest. It says nothing of who wrote the manifest, and whoever has the
store's key can write one. A signature covers the model's name, the number and the whole manifest (so files, metrics,
lineage and licence), and is made with a key that the store never sees. An application that names public keys
(`signed_by`) is given no other versions, whatever an alias points at.

A public key is written `ed25519:<base64 of its 32 bytes>`; a private one is a PEM file, mode 0600.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import ObjectExists, ObjectMissing, UntrustedArtifact, UsageError
from heliostat.names import PublicKey, version_name
from heliostat.registry.versions import folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from heliostat.registry.artifacts import Artifact
    from heliostat.store import Store

_STATEMENT = "heliostat artifact, form 1\n{name}\n{version}\n{digest}\n{manifest}\n"


class Signature(BaseModel):
    """One person's word for one version. `who` and `at` are a note; only the key proves anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: PublicKey
    signature: Annotated[str, "base64"]
    who: str
    at: datetime


def make_key(path: Path) -> str:
    """Write a new private key, readable by its owner alone, and return the public one. Raises UsageError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(
            f"the key cannot be written: {error.strerror}", where=str(path), do="name a new file"
        ) from error
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    return _public(key)


def sign(store: Store, artifact: Artifact, key: Path, *, who: str) -> Signature:
    """Sign a version. Repeated with the same key it changes nothing. Raises UsageError for a file that is no key."""
    private = _read(key)
    public = _public(private)
    made = Signature(
        key=public,
        signature=base64.b64encode(private.sign(_statement(artifact))).decode(),
        who=who,
        at=datetime.now(UTC),
    )
    try:
        store.create(_key(artifact, public), made.model_dump_json().encode())
    except ObjectExists:
        if not _is_good(artifact, _load(store, artifact, public), public):
            store.put(_key(artifact, public), made.model_dump_json().encode())  # somebody had spoilt it
    return made


def signers(store: Store, artifact: Artifact, among: Sequence[str]) -> list[str]:
    """Those of the public keys whose signature of this version is good."""
    return [key for key in among if _is_good(artifact, _load(store, artifact, key), key)]


def check_signed(store: Store, artifact: Artifact, among: Sequence[str]) -> None:
    """Raises UntrustedArtifact where none of the public keys has signed the version. No keys: nothing is asked."""
    if among and not signers(store, artifact, among):
        raise UntrustedArtifact(
            f"{artifact.reference} is signed by none of the {len(among)} keys that the application trusts",
            where=f"signed_by: {', '.join(key[:20] + '...' for key in among)}",
            do=f"heliostat model sign {artifact.reference} --key FILE, by somebody who has such a key",
        )


def _is_good(artifact: Artifact, found: Signature | None, key: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if found is None or found.key != key:
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix("ed25519:"), validate=True))
        public.verify(base64.b64decode(found.signature, validate=True), _statement(artifact))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _statement(artifact: Artifact) -> bytes:
    manifest = hashlib.sha256(artifact.manifest.model_dump_json().encode()).hexdigest()
    return _STATEMENT.format(
        name=artifact.name, version=artifact.version, digest=artifact.digest, manifest=manifest
    ).encode()


def _load(store: Store, artifact: Artifact, key: str) -> Signature | None:
    try:
        return Signature.model_validate_json(store.get(_key(artifact, key)).data)
    except (ObjectMissing, ValidationError):
        return None


def _key(artifact: Artifact, public: str) -> str:
    short = hashlib.sha256(public.encode()).hexdigest()[:16]
    return f"{folder(artifact.name)}/signatures/{version_name(artifact.version)}/{short}.json"


def _read(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # Neither the content nor the cause is shown: it may be a key.
        raise UsageError("this is no private key", where=str(path), do="heliostat model key FILE") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("this is no Ed25519 key", where=str(path), do="heliostat model key FILE")
    return key


def _public(key: Ed25519PrivateKey) -> str:
    return f"ed25519:{base64.b64encode(key.public_key().public_bytes_raw()).decode()}"
