"""The object store: bytes by key, with the two conditional writes that everything else is built on.

`create` writes only what is absent, `swap` only what is unchanged: both are decided by the store, so they hold between
machines. Either may be told "no" because its first answer was lost and the client asked again; who needs to know reads
the object back and looks for a mark of its own (see `commit.py`).

Retries are bounded and jittered: five within the client for each request, and for temporary failures other than a
refused connection a few rounds more. Nothing here is specific to one S3; boto3 is used for buckets alone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heliostat.errors import (
    ObjectExists,
    ObjectMissing,
    SettingsError,
    StoreError,
    StoreUnreachable,
    SwapLost,
)
from heliostat.settings import StoreSettings

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import S3Store

Json = Any  # Any: what json.loads gives. The caller's model gives it its shape.
Result = TypeVar("Result")

# The client's own retries: refused connections are reported within these 4 s.
CLIENT_RETRIES = 5
CLIENT_RETRY_LIMIT = timedelta(seconds=4)
# Rounds of client retries for "slow down", 5xx and broken connections, with the longest pause between them.
ROUNDS = 4
LONGEST_PAUSE_S = 4.0
DOWNLOAD_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class Blob:
    """An object's bytes, and the tag that `swap` compares."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing tells. `size` in bytes, `modified` in UTC by the store's clock."""

    key: str
    size: int
    etag: str
    modified: datetime


class Store:
    """One bucket. Safe to share between threads."""

    def __init__(self, settings: StoreSettings, client: S3Store) -> None:
        self.settings = settings
        self._client = client

    def __repr__(self) -> str:
        return f"Store({self.place})"

    @classmethod
    def connect(cls, settings: StoreSettings) -> Store:
        """A store by its settings. Nothing is sent yet, so this succeeds where no server answers.

        Plain http is spoken on loopback only. Raises SettingsError for any other http endpoint.
        """
        _refuse_plain_http(settings)
        return cls(settings, _client(settings))

    @property
    def place(self) -> str:
        """Endpoint and bucket, for messages."""
        return f"{self.settings.endpoint or f'S3 in {self.settings.region}'}, bucket {self.settings.bucket}"

    def get(self, key: str) -> Blob:
        """The whole object. Raises ObjectMissing."""
        import obstore

        def read() -> Blob:
            answer = obstore.get(self._client, key)
            return Blob(bytes(answer.buffer()), answer.meta["e_tag"] or "")

        return self._ask("get", key, read)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the object's end. Raises ObjectMissing."""
        import obstore

        if length == 0:
            return b""
        return self._ask("get", key, lambda: bytes(obstore.get_range(self._client, key, start=start, length=length)))

    def download(self, key: str, path: Path) -> None:
        """The object into a file, in memory a few MiB at a time. Raises ObjectMissing."""
        import obstore

        def read() -> None:
            with path.open("wb") as file:
                for chunk in obstore.get(self._client, key).stream(min_chunk_size=DOWNLOAD_CHUNK):
                    file.write(chunk)

        self._ask("get", key, read)

    def head(self, key: str) -> ObjectInfo:
        """Size and tag without the bytes. Raises ObjectMissing."""
        import obstore

        return self._ask("head", key, lambda: _info(obstore.head(self._client, key)))

    def put(self, key: str, data: bytes | Path) -> str:
        """Write the object, over whatever is there; returns its tag. A file goes up in parts, whole or not at all."""
        return self._put(key, data, None)

    def create(self, key: str, data: bytes) -> str:
        """Write the object if there is none; returns its tag. Raises ObjectExists."""
        return self._put(key, data, "create")

    def swap(self, key: str, data: bytes, etag: str) -> str:
        """Write the object if its tag is still `etag`; returns the new tag. Raises SwapLost."""
        return self._put(key, data, {"e_tag": etag})

    def delete(self, key: str) -> None:
        """Remove the object; repeating it does no harm."""
        import obstore

        self._ask("delete", key, lambda: obstore.delete(self._client, key))

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Every object under a prefix of whole segments ("a/b" lists "a/b/c", not "a/bc"), by key."""
        import obstore

        def read() -> list[ObjectInfo]:
            return [_info(meta) for page in obstore.list(self._client, prefix.strip("/") or None) for meta in page]

        return sorted(self._ask("list", prefix, read), key=lambda info: info.key)

    def get_json(self, key: str) -> tuple[Json, str]:
        """The object as JSON, and its tag. Raises ObjectMissing, StoreError if it is not JSON."""
        blob = self.get(key)
        try:
            return json.loads(blob.data), blob.etag
        except ValueError as error:
            raise StoreError(f"object {key!r} is not JSON: {error}", where=self.place) from error

    def create_json(self, key: str, value: Json) -> str:
        """`create` with JSON."""
        return self.create(key, json_bytes(value))

    def swap_json(self, key: str, value: Json, etag: str) -> str:
        """`swap` with JSON."""
        return self.swap(key, json_bytes(value), etag)

    def ensure_bucket(self) -> None:
        """Create the bucket if it is missing. Raises StoreUnreachable, StoreError."""
        client = self._boto()
        with self._boto_errors("create bucket"):
            try:
                region = self.settings.region
                if self.settings.endpoint is None and region != "us-east-1":
                    client.create_bucket(
                        Bucket=self.settings.bucket, CreateBucketConfiguration={"LocationConstraint": region}
                    )
                else:
                    client.create_bucket(Bucket=self.settings.bucket)
            except client.exceptions.BucketAlreadyOwnedByYou:
                return

    def abort_uploads(self, *, older_than: timedelta) -> int:
        """Drop multipart uploads that were begun before that and never finished; returns how many there were."""
        client = self._boto()
        before, count = datetime.now(UTC) - older_than, 0
        with self._boto_errors("list uploads"):
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=self.settings.bucket):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] <= before:
                        client.abort_multipart_upload(
                            Bucket=self.settings.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
        return count

    def _put(self, key: str, data: bytes | Path, mode: PutMode | None) -> str:
        import obstore

        verb = "put" if mode is None else "create" if mode == "create" else "swap"
        return self._ask(verb, key, lambda: obstore.put(self._client, key, data, mode=mode)["e_tag"] or "")

    def _ask(self, verb: str, key: str, request: Callable[[], Result]) -> Result:
        """One request with its rounds of retries, its failures in our own words."""
        from obstore.exceptions import BaseError

        for round_number in range(ROUNDS):
            try:
                return request()
            except (BaseError, FileNotFoundError, FileExistsError, PermissionError, OSError) as error:
                ours = self._translate(verb, key, error)
                if round_number == ROUNDS - 1 or not _is_temporary(error):
                    raise ours from error
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_S, 0.5 * 2**round_number)))
        raise AssertionError("the last round returns or raises")

    def _translate(self, verb: str, key: str, error: Exception) -> StoreError:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        text = str(error)
        if "NoSuchBucket" in text:
            return StoreError(
                f"there is no bucket {self.settings.bucket!r}",
                where=self.place,
                do="create it, or correct store.bucket",
            )
        if isinstance(error, AlreadyExistsError | FileExistsError):
            return ObjectExists(f"object {key!r} exists already", where=self.place)
        # A swap of what is absent is 412 from one S3 and 404 from another.
        if isinstance(error, PreconditionError) or (verb == "swap" and isinstance(error, FileNotFoundError)):
            return SwapLost(f"object {key!r} is not the one that was to be replaced", where=self.place)
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(f"there is no object {key!r}", where=self.place)
        if _is_refused(text):
            return _unreachable(self.place)
        if "403" in text or isinstance(error, PermissionError):
            return StoreError(
                f"the store refused to {verb} {key!r}: {_s3_code(text) or 'access denied'}",
                where=self.place,
                do="check the access key, its secret and its rights",
            )
        return StoreError(f"the store failed to {verb} {key!r}: {_first_line(text)}", where=self.place)

    def _boto(self) -> Any:  # Any: boto3 makes its clients at run time
        import boto3
        from botocore.config import Config

        settings = self.settings
        return boto3.client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=_reveal(settings.secret_access_key),
            aws_session_token=_reveal(settings.session_token),
            config=Config(
                connect_timeout=2,
                read_timeout=30,
                retries={"mode": "standard", "max_attempts": 4},
                s3={"addressing_style": "path" if settings.endpoint else "auto"},
                # A proxy of the shell's environment is not for a server on this machine.
                proxies={} if settings.is_loopback else None,
            ),
        )

    @contextmanager
    def _boto_errors(self, verb: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

        try:
            yield
        except EndpointConnectionError as error:
            raise _unreachable(self.place) from error
        except (BotoCoreError, ClientError) as error:
            raise StoreError(
                f"the store failed to {verb}: {error}",
                where=self.place,
                do="check the bucket's name, the access key and its rights",
            ) from error


def json_bytes(value: Json) -> bytes:
    """JSON in one form only, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _client(settings: StoreSettings) -> S3Store:
    from obstore.store import S3Store

    config: dict[str, Any] = {  # Any: obstore checks it, key by key
        "region": settings.region,
        "virtual_hosted_style_request": settings.endpoint is None,
    }
    optional = {
        "endpoint": settings.endpoint,
        "access_key_id": settings.access_key_id,
        "secret_access_key": _reveal(settings.secret_access_key),
        "session_token": _reveal(settings.session_token),
    }
    config.update({name: value for name, value in optional.items() if value is not None})
    return S3Store(
        settings.bucket,
        client_options={"allow_http": settings.is_loopback, "connect_timeout": "2s", "timeout": "120s"},
        retry_config={
            "max_retries": CLIENT_RETRIES,
            "retry_timeout": CLIENT_RETRY_LIMIT,
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
        **config,
    )


def _refuse_plain_http(settings: StoreSettings) -> None:
    endpoint = settings.endpoint
    if endpoint is not None and not endpoint.startswith("https://") and not settings.is_loopback:
        raise SettingsError(
            f"the store's endpoint {endpoint!r} is not https",
            where="store.endpoint",
            do="write an https:// address; http is for 127.0.0.1 only",
        )


def _reveal(secret: Any) -> str | None:  # Any: SecretStr | None, without importing pydantic here
    return None if secret is None else str(secret.get_secret_value())


def _info(meta: Any) -> ObjectInfo:  # Any: obstore's ObjectMeta is a TypedDict that exists for type checkers only
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"])


def _is_refused(text: str) -> bool:
    return "kind: Connect" in text or "ConnectionRefused" in text or "tcp connect error" in text


def _is_temporary(error: Exception) -> bool:
    """Worth another round: 429, 5xx, and connections that broke or timed out after they stood."""
    text = str(error)
    if _is_refused(text):
        return False
    return any(f"status: {code}" in text for code in (429, 500, 502, 503, 504)) or (
        "HTTP error" in text and "status:" not in text
    )


def _unreachable(place: str) -> StoreUnreachable:
    return StoreUnreachable(
        "nothing answers at the store's endpoint",
        where=place,
        do="run `heliostat status`; an embedded store is started by `heliostat up`",
    )


def _s3_code(text: str) -> str:
    return text.partition("<Code>")[2].partition("</Code>")[0]


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]
