"""What a client is told when it gets no answer: one shape everywhere, OpenAI's, so that its clients know it.

    {"error": {"type": ..., "code": ..., "message": ..., "param": ..., "request_id": ...}}

`type` follows from the status, `code` is a stable word for programs, `message` says what was wrong and what to do,
`param` names the field (`texts[3]`), null where it is none. A bad item of a list has the same object in its place.
"""

from __future__ import annotations

from typing import Any

# Any status that is not here is the client's mistake below 500, and ours from there on.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request, or one item of it, that gets no answer. `what` and `do` become one message."""

    def __init__(
        self,
        status: int,
        code: str,
        what: str,
        do: str = "",
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(what)
        self.status, self.code, self.param = status, code, param
        self.message = f"{what}; {do}" if do else what
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def at(self, param: str) -> RequestError:
        """The same error, said of a field: `at("texts[3]")`."""
        copy = RequestError(self.status, self.code, "", param=param, retry_after_s=self.retry_after_s)
        copy.message = self.message
        return copy

    def body(self, request_id: str) -> dict[str, Any]:  # Any: JSON
        error = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        return {"error": {**error, "request_id": request_id}}


def model_failed() -> RequestError:
    """The recipe raised: told without its inside, which is in the replica's log under the request's id."""
    return RequestError(500, "model_failed", "the model could not answer this", "see the replica's log")


NOT_FINITE = "the model's answer is not a finite number"


def not_finite() -> RequestError:
    """NaN or infinity, which JSON cannot say. For a client it is a model that failed; a release tells them apart."""
    return RequestError(500, "model_failed", NOT_FINITE, "see the replica's log")
