"""The object store: bytes by key, with the two conditional writes that everything else is built on.

`create` writes only what is absent, `swap` only what is unchanged: both are decided by the store, so they hold between
machines. Either may be told "no" because its first answer was lost and the client asked again; who needs to know reads
the object back and looks for a mark of its own (see `commit.py`).

Retries are bounded and jittered: five within the client for each request, then rounds of our own (`pause_s`) that wait
as long as a throttling store asks for. Credentials are those of the settings, else whatever the AWS chain finds
(environment, profile, SSO, web identity, container or machine role). Nothing here is specific to one S3; boto3 is used
for buckets and credentials alone.
"""

from __future__ import annotations

import enum
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
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
from heliostat.ranges import Connections, Interrupted, needs_proxy
from heliostat.settings import StoreSettings

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import S3Store

Json = Any  # Any: what json.loads gives. The caller's model gives it its shape.
Result = TypeVar("Result")

# The client's own retries: refused connections are reported within these 4 s.
CLIENT_RETRIES = 5
CLIENT_RETRY_LIMIT = timedelta(seconds=4)
# Rounds over the client's retries, and the longest pause between two that we choose ourselves.
ROUNDS = 6
LONGEST_PAUSE_S = 4.0
# A store that has answered before, and now refuses or breaks what is asked, is being restarted: it is waited for this
# long. Behind a load balancer a restart is seen as connections that break.
RESTART_S = 30.0
# The longest Retry-After that is followed.
LONGEST_RETRY_AFTER_S = 60.0
CHUNK = 8 * 2**20
LINK_VALID = timedelta(minutes=15)
# S3 takes 10,000 parts of one object.
MOST_PARTS = 9_000
UPLOADS_AT_ONCE = 8


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


@dataclass(frozen=True)
class Upload:
    """A multipart upload that is not finished."""

    key: str
    id: str
    begun: datetime


# Of its own: a training's results follow from the global generator, and must not from the store's troubles.
_JITTER = random.Random()


class Trouble(enum.Enum):
    """What kind of failure a request met."""

    FINAL = enum.auto()  # asking again changes nothing
    REFUSED = enum.auto()  # nothing listens
    THROTTLED = enum.auto()  # 429, 503: asked for less
    BROKEN = enum.auto()  # 5xx, or a connection that broke or timed out after it stood


def pause_s(trouble: Trouble, *, round_number: int, elapsed_s: float, answered_before: bool) -> float | None:
    """Seconds to wait before the next round, drawn at random; None: give up. `round_number` counts from 0.

    A refused connection is final, unless the store has answered before: then it is being restarted.
    """
    restarting = answered_before and elapsed_s < RESTART_S
    if trouble is Trouble.REFUSED:
        return _JITTER.uniform(0.2, 1.0) if restarting else None
    if trouble is Trouble.FINAL or (round_number >= ROUNDS - 1 and not (trouble is Trouble.BROKEN and restarting)):
        return None
    longest = min(LONGEST_PAUSE_S, 0.5 * 2**round_number)
    # Where the store asks for less, no round comes at once.
    return _JITTER.uniform(longest / 2 if trouble is Trouble.THROTTLED else 0, longest)


class Store:
    """One bucket. Safe to share between threads."""

    def __init__(self, settings: StoreSettings, client: S3Store) -> None:
        self.settings = settings
        self._client = client
        self._connections = Connections()
        self._answered = False
        self._quiet_until = 0.0  # monotonic; what a throttling store has asked of all threads

    def __repr__(self) -> str:
        return f"Store({self.place})"

    @classmethod
    def connect(cls, settings: StoreSettings) -> Store:
        """A store by its settings. Nothing is sent to it yet, so this succeeds where no server answers.

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

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        """Bytes from `start` on into the caller's memory, as many as it holds; returns the object's size.

        Nothing is copied on the way, and what has arrived when a connection breaks is not asked for again. At the
        object's end the rest of `into` is left as it was. Raises ObjectMissing.
        """
        import obstore

        done = 0

        def read() -> int:
            nonlocal done
            url = obstore.sign(self._client, "GET", key, LINK_VALID)
            if not self.settings.is_loopback and needs_proxy(url):
                return self._read_through_proxy(key, start, into)
            try:
                return self._connections.read_range(url, start + done, into[done:]).total
            except Interrupted as error:
                done += error.count
                raise

        return self._ask("get", key, read)

    def _read_through_proxy(self, key: str, start: int, into: memoryview) -> int:
        import obstore

        answer = obstore.get(self._client, key, options={"range": (start, start + len(into))})
        data = memoryview(answer.buffer())
        into[: len(data)] = data
        return int(answer.meta["size"])

    def download(self, key: str, path: Path) -> None:
        """The object into a file, in memory a few MiB at a time. Raises ObjectMissing."""
        import obstore

        def read() -> None:
            with path.open("wb") as file:
                for chunk in obstore.get(self._client, key).stream(min_chunk_size=CHUNK):
                    file.write(chunk)

        self._ask("get", key, read)

    def head(self, key: str) -> ObjectInfo:
        """Size and tag without the bytes. Raises ObjectMissing."""
        import obstore

        return self._ask("head", key, lambda: _info(obstore.head(self._client, key)))

    def put(self, key: str, data: bytes | memoryview | Path) -> str:
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

    def folders(self, prefix: str) -> tuple[str, ...]:
        """Names right below a prefix of whole segments that have something below them. Asks for no more than these."""
        import obstore

        def read() -> tuple[str, ...]:
            found = obstore.list_with_delimiter(self._client, prefix.strip("/") or None)
            return tuple(sorted(str(path).rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]))

        return self._ask("list", prefix, read)

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
        client = self._boto
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

    def unfinished_uploads(self, prefix: str = "", *, older_than: timedelta) -> tuple[Upload, ...]:
        """Multipart uploads that were begun before that and never finished: nobody sees them, and they take room."""
        client = self._boto
        before = datetime.now(UTC) - older_than
        with self._boto_errors("list uploads"):
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.settings.bucket, Prefix=prefix)
            found = [
                Upload(each["Key"], each["UploadId"], each["Initiated"])
                for page in pages
                for each in page.get("Uploads", [])
            ]
        return tuple(upload for upload in found if upload.begun <= before)

    def abort_uploads(self, prefix: str = "", *, older_than: timedelta) -> int:
        """Drop those uploads; returns how many there were. Repeating it does no harm."""
        found = self.unfinished_uploads(prefix, older_than=older_than)
        client = self._boto
        for upload in found:
            with self._boto_errors("abort an upload"), suppress(client.exceptions.NoSuchUpload):
                client.abort_multipart_upload(Bucket=self.settings.bucket, Key=upload.key, UploadId=upload.id)
        return len(found)

    def _put(self, key: str, data: bytes | memoryview | Path, mode: PutMode | None) -> str:
        import obstore

        verb = "put" if mode is None else "create" if mode == "create" else "swap"
        size = data.stat().st_size if isinstance(data, Path) else len(data)

        def write() -> str:
            answer = obstore.put(
                self._client,
                key,
                data,
                mode=mode,
                # Nobody wants the parts of what a single request can carry.
                use_multipart=size > CHUNK and mode is None,
                chunk_size=max(CHUNK, -(-size // MOST_PARTS)),
                max_concurrency=UPLOADS_AT_ONCE,
            )
            return answer["e_tag"] or ""

        return self._ask(verb, key, write)

    def _ask(self, verb: str, key: str, request: Callable[[], Result]) -> Result:
        """One request with its rounds of retries, its failures in our own words."""
        from obstore.exceptions import BaseError

        begun = time.monotonic()
        for round_number in itertools.count():
            time.sleep(max(0.0, self._quiet_until - time.monotonic()))
            try:
                result = request()
            except (BaseError, OSError) as error:
                ours, trouble = self._translate(verb, key, error), _trouble(verb, error)
                self._answered |= trouble in (Trouble.FINAL, Trouble.THROTTLED)
                wait = pause_s(
                    trouble,
                    round_number=round_number,
                    elapsed_s=time.monotonic() - begun,
                    answered_before=self._answered,
                )
                if wait is None:
                    raise ours from error
                if trouble is Trouble.THROTTLED:
                    self._quiet_until = time.monotonic() + self._asked_wait_s(key)
                time.sleep(wait)
            else:
                self._answered = True
                return result
        raise AssertionError("counting does not end")

    def _asked_wait_s(self, key: str) -> float:
        """The Retry-After of a throttling store, 0 if it names none. The client hides the header, so this asks once
        more, by a signed link.
        """
        import httpx
        import obstore

        try:
            link = obstore.sign(self._client, "HEAD", key, timedelta(minutes=1))
            answer = httpx.head(link, timeout=10, trust_env=not self.settings.is_loopback)
            asked = float(answer.headers.get("Retry-After", 0)) if answer.status_code in (429, 503) else 0.0
        except (httpx.HTTPError, ValueError):  # a date, or no answer: our own pause will do
            return 0.0
        return min(max(asked, 0.0), LONGEST_RETRY_AFTER_S)

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
        if _status(text) == 403 or isinstance(error, PermissionError):
            return StoreError(
                f"the store refused to {verb} {key!r}: {_s3_code(text) or 'access denied'}",
                where=self.place,
                do="check the access key, its secret and its rights",
            )
        return StoreError(
            f"the store failed to {verb} {key!r}: {_first_line(text)}",
            where=self.place,
            do="try again; where it goes on, look at the store's log and its free space",
        )

    @cached_property
    def _boto(self) -> Any:  # Any: boto3 makes its clients at run time
        import boto3
        from botocore.config import Config

        settings = self.settings
        return boto3.Session(profile_name=settings.profile if settings.access_key_id is None else None).client(
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
        "server_side_encryption": settings.encryption,
        "sse_kms_key_id": settings.kms_key_id,
    }
    config.update({name: value for name, value in optional.items() if value is not None})
    if settings.access_key_id is None:
        config["credential_provider"] = _aws_chain(settings)
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


def _aws_chain(settings: StoreSettings) -> Any:  # Any: obstore's provider is a callable of its own type
    """Whatever boto3 finds: environment, profile, SSO, web identity, container or machine role; renewed in time."""
    import boto3
    from botocore.exceptions import ProfileNotFound
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session(region_name=settings.region, profile_name=settings.profile))
    except ProfileNotFound as error:
        raise SettingsError(
            f"AWS's configuration has no profile {settings.profile!r}",
            where="store.profile",
            do="see `aws configure list-profiles`",
        ) from error
    except ValueError as error:
        raise SettingsError(
            "the settings hold no keys for the store, and AWS's chain finds none",
            where=f"store.access_key_id, bucket {settings.bucket}",
            do="run `aws configure` or `aws sso login`, set AWS_PROFILE, or give the node a role",
        ) from error


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
    # "kind: Connect," is reqwest's; "kind: ConnectionReset" is a connection that stood.
    return "kind: Connect," in text or "ConnectionRefused" in text or "tcp connect error" in text


def _trouble(verb: str, error: Exception) -> Trouble:
    text = str(error)
    if verb == "put" and ("NoSuchUpload" in text or "InvalidPart" in text):
        return Trouble.BROKEN  # the store forgot the upload, or its end was done and the answer lost: from the start
    if _is_refused(text):
        return Trouble.REFUSED
    code = _status(text)
    if code is not None:
        throttled = code == 429 or (code == 503 and "InternalError" not in text)
        return Trouble.THROTTLED if throttled else Trouble.BROKEN if code in (500, 502, 504, 503) else Trouble.FINAL
    return Trouble.BROKEN if "HTTP error" in text or "kind: Interrupted" in text else Trouble.FINAL


def _status(text: str) -> int | None:
    """The HTTP status that an error tells of. A number elsewhere in it may be a part of a name."""
    found = re.search(r"status(?: code)?: (\d{3})", text)
    return None if found is None else int(found[1])


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


READERS = 16


def get_many(store: Store, keys: Sequence[str]) -> list[tuple[str, Blob]]:
    """Those of the objects that are there, in the order of the keys; many small ones are asked for at once.

    One after the other, 200 records take 4 s of a store that answers in 20 ms, and the controller has one second.
    """
    from concurrent.futures import ThreadPoolExecutor

    def read(key: str) -> tuple[str, Blob] | None:
        try:
            return key, store.get(key)
        except ObjectMissing:
            return None

    if len(keys) <= 1:
        found = [read(key) for key in keys]
    else:
        with ThreadPoolExecutor(min(READERS, len(keys)), thread_name_prefix="objects") as pool:
            found = list(pool.map(read, keys))
    return [one for one in found if one is not None]
