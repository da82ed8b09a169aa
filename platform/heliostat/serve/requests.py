"""What every request has, whatever the application: an id, a deadline, a caller, a body within its limit.

Nothing here knows a model. What cannot be used is refused with a RequestError before any work is done for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from heliostat.cluster.haproxy import BODY_S
from heliostat.serve.errors import RequestError
from heliostat.serve.keys import NOBODY, Caller

if TYPE_CHECKING:
    from starlette.requests import Request

DEADLINE_S = 60.0
"""How long a request may wait in the queue where its client names no deadline."""
MAX_DEADLINE_MS = 24 * 3600 * 1000

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Identity(Protocol):
    """Which version answers."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def digest(self) -> str: ...


@dataclass
class Exchange:
    """One request and what became of it; filled in on its way, read by the access log."""

    request_id: str
    arrived_s: float
    """On time.monotonic, like every moment here."""
    deadline_s: float
    client_deadline: bool
    """Whether the client named the deadline, and is told 504 when it passes; else it is ours, and 503."""
    caller: Caller = NOBODY
    items: int = 0
    tokens: int = 0
    identity: Identity | None = None
    """The version that answered, once that is known."""
    notes: dict[str, Any] = field(default_factory=dict)  # Any: whatever an API adds to its line in the log

    def expired(self) -> RequestError:
        """The error for work whose deadline passed before it ran."""
        if self.client_deadline:
            return RequestError(
                504, "deadline_exceeded", "the deadline passed before this could run", "allow more, or send less"
            )
        return RequestError(
            503, "expired", f"this waited {DEADLINE_S:g} s and was never run", "try again", retry_after_s=1
        )


def open_exchange(headers: Mapping[str, str]) -> Exchange:
    """A request that has just arrived; nothing in it can be refused yet."""
    arrived_s = time.monotonic()
    return Exchange(request_id(headers.get("x-request-id")), arrived_s, arrived_s + DEADLINE_S, client_deadline=False)


def read_deadline(exchange: Exchange, headers: Mapping[str, str]) -> None:
    """Take X-Deadline-Ms, milliseconds from now. Raises RequestError 400 where it is not a count of them."""
    sent = headers.get("x-deadline-ms")
    if sent is None:
        return
    if not re.fullmatch(r"[0-9]{1,9}", sent) or int(sent) > MAX_DEADLINE_MS:
        raise RequestError(
            400,
            "wrong_deadline",
            f"X-Deadline-Ms is {sent[:40]!r}",
            f"send the milliseconds that you wait, 0 to {MAX_DEADLINE_MS}",
            param="X-Deadline-Ms",
        )
    exchange.deadline_s = exchange.arrived_s + int(sent) / 1000
    exchange.client_deadline = True


def request_id(sent: str | None) -> str:
    """The client's own id where it is safe in a log and a header, else a new one."""
    return sent if sent is not None and _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


async def read_body(request: Request, limit_bytes: int, *, deadline_s: float) -> bytes:
    """The whole body. Raises RequestError 413 as soon as it is known to be larger, without taking the rest, and 408
    where it has not come by the deadline, or in BODY_S: a client that sends nothing must not hold its place for ever,
    whatever deadline it names.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(f"{int(declared)} bytes", limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(min(BODY_S, max(0.0, deadline_s - time.monotonic()))):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(f"more than {limit_bytes} bytes", limit_bytes)
    except TimeoutError as late:
        raise RequestError(408, "body_too_slow", f"{len(body)} bytes came in time", "send again") from late
    return bytes(body)


def read_json(body: bytes) -> Any:  # Any: JSON, checked by whoever asked for it
    """Raises RequestError 400 for what is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, "not_json", f"the body is not JSON: {str(error)[:200]}", "send a JSON object"
        ) from error


def _too_large(size: str, limit_bytes: int) -> RequestError:
    return RequestError(413, "body_too_large", f"the body has {size}", f"send at most {limit_bytes}")
