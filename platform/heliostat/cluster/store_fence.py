"""Closes the inner ports of the embedded S3 server: only it may talk to itself.

SeaweedFS is several servers in one process, and S3 with its keys is only the outermost. By default whoever is on the
machine can delete a bucket's volumes at the master's port, or read and write any file at the filer's, without a key.
So each takes connections, gRPC and HTTP alike, only from who shows the one certificate that there is (mutual TLS), made
under an authority whose own key is thrown away once it has signed. Nobody has that certificate but the process itself.
S3's own port stays plain HTTP with signed requests, as it was.

    <folder>/security.toml, ca.pem, inner.pem, inner-key.pem    mode 0600, made once
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

_LIFE = timedelta(days=3650)
_GRPC = ("volume", "master", "filer", "s3", "msg_broker", "msg_agent", "admin", "worker", "mq", "client")
_HTTPS = ("volume", "master", "filer", "admin")


def fence(folder: Path) -> None:
    """Write what SeaweedFS reads from its working directory when it starts. Keeps what is there."""
    if (folder / "security.toml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    authority, certificate, key = _certificate()
    _write(folder / "ca.pem", authority)
    _write(folder / "inner.pem", certificate)
    _write(folder / "inner-key.pem", key)
    # Last: with it the rest is there.
    _write(folder / "security.toml", _security(folder.resolve()).encode())


def _security(folder: Path) -> str:
    ends = f'cert = "{folder / "inner.pem"}"\nkey = "{folder / "inner-key.pem"}"\n'
    trusted = f'ca = "{folder / "ca.pem"}"\n'
    sections = [
        "[access]\nui = false\n",
        "[filer.expose_directory_metadata]\nenabled = false\n",
        f"[grpc]\n{trusted}",
        *(f"[grpc.{part}]\n{ends}" for part in _GRPC),
        *(f"[https.{part}]\n{trusted}{ends}" for part in _HTTPS),
        # The certificate is of no host's; whoever has it is this process.
        f"[https.client]\nenabled = true\ninsecure_skip_verify = true\n{trusted}{ends}",
    ]
    return "\n".join(sections)


def _certificate() -> tuple[bytes, bytes, bytes]:
    """(the authority, a certificate for both ends of a connection, its key), each as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.now(UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    common = x509.CertificateBuilder().not_valid_before(now - timedelta(days=1)).not_valid_after(now + _LIFE)
    root = (
        common.subject_name(named("heliostat store"))
        .issuer_name(named("heliostat store"))
        .public_key(root_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        common.subject_name(named("inner"))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.public_bytes(pem), leaf.public_bytes(pem), private


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
