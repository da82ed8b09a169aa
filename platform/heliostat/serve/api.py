"""What an application's HTTP consists of: operations, each a path, a handler, and the words of its documentation.

An `Api` is made for a kind of recipe (items.py, openai.py, completions.py) and knows its model; the endpoint knows
what every request has in common (endpoint.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from heliostat.inference.load import Load
from heliostat.serve.requests import Exchange, Identity

if TYPE_CHECKING:
    from starlette.responses import Response

Model = TypeVar("Model", covariant=True)
Json = Any
"""A JSON value, checked where it is used."""


@dataclass(frozen=True)
class Loaded(Generic[Model]):
    """One version, in memory and warm."""

    identity: Identity
    model: Model

    @property
    def headers(self) -> dict[str, str]:
        return identity_headers(self.identity)

    @property
    def fields(self) -> dict[str, str]:
        """What every JSON answer says of the version that gave it."""
        return {
            "model": self.identity.name,
            "version": f"v{self.identity.version}",
            "digest": self.identity.digest,
        }


IDENTITY_SCHEMA: Mapping[str, Json] = {name: {"type": "string"} for name in ("model", "version", "digest")}
"""Of `Loaded.fields`, as JSON schemas of properties."""


def answer_schema(**properties: Json) -> Mapping[str, Json]:
    """The JSON schema of an answer with these properties and the identity of the version that gave it."""
    every = {**properties, **IDENTITY_SCHEMA}
    return {"type": "object", "properties": every, "required": list(every)}


def identity_headers(identity: Identity) -> dict[str, str]:
    return {"X-Model-Version": f"v{identity.version}", "X-Model-Digest": identity.digest}


@dataclass(frozen=True)
class Sent:
    """A request's body, whole and within its limit, and how it is to be read."""

    body: bytes
    content_type: str = ""


Handler = Callable[[Sent, Exchange], Awaitable["Response"]]


@dataclass(frozen=True)
class Operation:
    """One method of one path, below the application's route."""

    method: Literal["GET", "POST"]
    path: str
    """"" is the route itself."""
    handler: Handler
    summary: str
    request: Mapping[str, Json] | None = None
    """JSON schema of the body; None: it has none."""
    response: Mapping[str, Json] | None = None
    """JSON schema of the answer."""
    consumes: Sequence[str] = ()
    """Content types besides application/json, of requests."""
    produces: Sequence[str] = ()
    """And of answers: streams."""


class Api(Protocol):
    """The HTTP of one kind of recipe, over one loaded version at a time."""

    @property
    def operations(self) -> Sequence[Operation]: ...

    @property
    def loaded(self) -> Loaded[Any]:  # Any: whichever recipe this API serves
        """The version that the next request gets."""

    @property
    def max_body_bytes(self) -> int: ...

    @property
    def queued_tokens(self) -> int:
        """Tokens (or items, where items cost one) that wait or run."""

    @property
    def load(self) -> Load:
        """What waits, what runs and how fast, at this moment."""

    def take_over(self, loaded: Loaded[Any]) -> None:  # Any: as above
        """Answer with another version from the next batch on; what runs ends with the old one."""

    def close(self) -> None:
        """Fail what waits, let what runs finish."""
