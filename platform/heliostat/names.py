"""Names that people choose (clusters, groups, models, aliases) and the pieces that store keys are made of.

A name is safe to put into a key, a URL, a label and a file name: so nothing else in the package escapes anything.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from heliostat.errors import UsageError

NAME_RULE = "1 to 63 of a-z, 0-9 and -, starting with a letter"
SEGMENT_RULE = "1 to 200 of A-Z, a-z, 0-9, . _ and -, starting with a letter or digit"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PUBLIC_KEY = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


def check_name(text: str, *, what: str = "name") -> str:
    """`text` if it is a valid name. Raises UsageError with a name that would do."""
    if _NAME.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not a valid {what}", do=f"write {NAME_RULE}{_suggest(text)}")
    return text


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_segment(text: str, *, what: str = "key segment") -> str:
    """`text` if it may stand between two slashes of a store key. Raises UsageError."""
    if _SEGMENT.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not a valid {what}", do=f"write {SEGMENT_RULE}")
    return text


def check_path(text: str, *, what: str = "file path") -> str:
    """`text` if it is a relative path of valid segments: no `..`, no leading slash, no empty part."""
    for segment in text.split("/"):
        if _SEGMENT.fullmatch(segment) is None:
            raise UsageError(
                f"{text!r} is not a valid {what}: {segment!r} cannot be a part of it",
                do=f"write a relative path whose parts are {SEGMENT_RULE}",
            )
    return text


def version_name(version: int) -> str:
    """7 -> "v7"."""
    if version < 1:
        raise UsageError(f"{version} is not a version", do="versions count from 1")
    return f"v{version}"


def parse_version(text: str) -> int:
    """ "v7" -> 7. Raises UsageError."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a version", do="write v and a number from 1, such as v7")
    return int(match[1])


def _suggest(text: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")
    return f", such as {plain}" if _NAME.fullmatch(plain) else ""


Name = Annotated[str, AfterValidator(check_name)]


def check_public_key(text: str) -> str:
    """`text` if it is an Ed25519 public key as `heliostat model key` prints it. Raises UsageError."""
    if _PUBLIC_KEY.fullmatch(text) is None:
        raise UsageError(f"{text[:80]!r} is not a public key", do="write what heliostat model key printed: ed25519:...")
    return text


PublicKey = Annotated[str, AfterValidator(check_public_key)]
