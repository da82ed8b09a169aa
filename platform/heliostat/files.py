"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def put_file(path: Path, data: str | bytes, *, private: bool = False) -> None:
    """Put the file in its place: who reads it has the one before or this one, however many write it at once.

    `private`: readable by its owner alone from the first byte on, and on the disk before it replaces another.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if private:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        raise
