"""What a client sent, checked: a frozen request or one clear error with its HTTP status. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_BODY_BYTES = 1_000_000
MAX_TEXTS = 256


class BadRequest(Exception):
    """Answered to the client as `{"error": {code, message, do}}` with this status."""

    def __init__(self, status: int, code: str, message: str, do: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.do = status, code, message, do
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "do": self.do}}


@dataclass(frozen=True)
class TextRequest:
    texts: tuple[str, ...]
    single: bool  # whether one text was sent, so that one answer goes back


def parse(body: bytes, *, max_characters: int) -> TextRequest:
    """`{"text": "..."}` or `{"texts": ["...", ...]}`. Raises BadRequest."""
    if len(body) > MAX_BODY_BYTES:
        raise BadRequest(413, "body_too_large", f"the body has {len(body)} bytes", f"send at most {MAX_BODY_BYTES}")
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            400, "not_json", f"the body is not JSON: {error}", 'send {"text": "turn on the light"}'
        ) from error
    if not isinstance(sent, dict) or (("text" in sent) == ("texts" in sent)):
        raise BadRequest(
            422, "wrong_fields", "the body must be an object with either text or texts", 'send {"text": "..."}'
        )
    if unknown := sorted(set(sent) - {"text", "texts"}):
        raise BadRequest(422, "unknown_field", f"unknown field {unknown[0]!r}", "send text or texts alone")
    if "text" in sent:
        return TextRequest((_text(sent["text"], "text", max_characters),), single=True)
    texts = sent["texts"]
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_TEXTS:
        raise BadRequest(422, "wrong_type", "texts must be a list of texts", f"send 1 to {MAX_TEXTS} of them")
    checked = tuple(_text(text, f"texts[{index}]", max_characters) for index, text in enumerate(texts))
    return TextRequest(checked, single=False)


def _text(value: object, field: str, max_characters: int) -> str:
    if not isinstance(value, str):
        raise BadRequest(422, "wrong_type", f"{field} is a {type(value).__name__}, not a string", "send a string")
    if not value.strip():
        raise BadRequest(422, "empty_text", f"{field} is empty", "send at least one word")
    if len(value) > max_characters:
        raise BadRequest(413, "text_too_long", f"{field} has {len(value)} characters", f"send at most {max_characters}")
    return value
