"""OpenAI's /v1/completions and /v1/chat/completions over a causal language model, whole or as server-sent events.

Checked against the official Python client. A stream begins with the first token, so what is refused before is a plain
error with its status. What goes wrong later is one last event, `data: {"error": {...}}`, without the `data: [DONE]`
that ends a whole stream: nobody takes a cut text for a finished one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response, StreamingResponse

from heliostat.inference.generate import Finish, Full, Sampling, TooLong
from heliostat.inference.load import Load
from heliostat.inference.runner import Closed, Expired
from heliostat.inference.words import TextStream
from heliostat.serve.api import Json, Loaded, Operation, Sent, answer_schema
from heliostat.serve.errors import RequestError, model_failed
from heliostat.serve.items import INLINE_BYTES, json_response
from heliostat.serve.openai import (
    USAGE,
    V1Body,
    V1Part,
    check_model,
    list_models,
    models_operation,
    parse_body,
    schema_of,
)
from heliostat.serve.recipe import TextGenerator, check_text
from heliostat.serve.requests import Exchange

log = logging.getLogger(__name__)

MAX_CHARACTERS = 100_000
"""Of a prompt; its tokens are bounded by the model as well, but must be counted first."""
MAX_MESSAGES = 256
COMPLETION_TOKENS = 16
"""What OpenAI's completions make where none is asked for; a chat goes on until the model ends it."""

CLOSING = "replica_closing"

Stop = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(V1Part):
    include_usage: bool = False


class GenerateBody(V1Body):
    """What both kinds of request share."""

    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)


class CompletionBody(GenerateBody):
    prompt: str


class Part(V1Part):
    type: Literal["text"]
    text: str


class Message(V1Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerateBody):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)


_CHOICE = {
    "type": "object",
    "properties": {"index": {"const": 0}, "finish_reason": {"enum": ["stop", "length"]}},
    "required": ["index", "finish_reason"],
    "oneOf": [{"required": ["text"]}, {"required": ["message"]}],
}
_ANSWER = answer_schema(
    id={"type": "string"},
    object={"enum": ["text_completion", "chat.completion"]},
    created={"type": "integer"},
    choices={"type": "array", "items": _CHOICE, "minItems": 1},
    usage=USAGE,
)


@dataclass
class _Job:
    """One continuation on its way, and how it is presented."""

    loaded: Loaded[TextGenerator]
    exchange: Exchange
    body: GenerateBody
    prompt: Sequence[int]
    sampling: Sampling
    chat: bool
    created: int
    made: int = 0

    @property
    def usage(self) -> dict[str, int]:
        prompt = len(self.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": self.made, "total_tokens": prompt + self.made}

    def whole(self, text: str, finish: str) -> Json:
        message = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object([_choice(message, finish)], stream=False) | {"usage": self.usage}

    def first_chunk(self) -> Json:
        return self.chunk("", None, role=True)

    def chunk(self, text: str, finish: str | None, *, role: bool = False) -> Json:
        if not self.chat:
            return self._object([_choice({"text": text}, finish)], stream=True)
        delta = {**({"role": "assistant"} if role else {}), **({"content": text} if text or role else {})}
        return self._object([_choice({"delta": delta}, finish)], stream=True)

    def usage_chunk(self) -> Json:
        return self._object([], stream=True) | {"usage": self.usage}

    def _object(self, choices: list[Json], *, stream: bool) -> dict[str, Any]:  # Any: JSON
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.exchange.request_id}",
            "object": kind,
            "created": self.created,
            "choices": choices,
            **self.loaded.fields,
        }


def _choice(what: Mapping[str, Json], finish: str | None) -> Json:
    return {"index": 0, **what, "logprobs": None, "finish_reason": finish}


class CompletionsApi:
    """The interface of TextGenerator."""

    def __init__(self, loaded: Loaded[TextGenerator], *, app: str) -> None:
        self._app = app
        self.loaded = loaded

    def take_over(self, loaded: Loaded[TextGenerator]) -> None:
        """New texts go to the new version; what runs ends with the old one, which then lets go of its memory."""
        before, self.loaded = self.loaded, loaded
        before.model.engine.close(drain=True)

    def close(self) -> None:
        self.loaded.model.engine.close()

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            self._operation("/v1/completions", self._complete, "Continue a prompt", CompletionBody),
            self._operation("/v1/chat/completions", self._chat, "Answer a conversation", ChatBody),
            models_operation(self.models),
        )

    def _operation(self, path: str, handler: Any, summary: str, body: type[V1Body]) -> Operation:
        return Operation(
            "POST",
            path,
            handler,
            summary,
            schema_of(body, self.loaded, self._app),
            _ANSWER,
            produces=("text/event-stream",),
        )

    @property
    def max_body_bytes(self) -> int:
        return self.loaded.model.max_body_bytes

    @property
    def queued_tokens(self) -> int:
        return self.loaded.model.engine.queued_tokens

    @property
    def load(self) -> Load:
        return self.loaded.model.engine.load

    async def models(self, _: Sent, exchange: Exchange) -> Response:
        return list_models(self.loaded, exchange)

    async def _complete(self, sent: Sent, exchange: Exchange) -> Response:
        body = parse_body(CompletionBody, sent.body)
        text = _bounded(body.prompt, "prompt")
        asked = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens

        def make(loaded: Loaded[TextGenerator]) -> _Job:
            return self._job(loaded, exchange, body, loaded.model.encode(text), asked, chat=False)

        return await self._answer(make, body, exchange, large=len(sent.body) > INLINE_BYTES)

    async def _chat(self, sent: Sent, exchange: Exchange) -> Response:
        body = parse_body(ChatBody, sent.body)
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        _bounded("".join(message["content"] for message in messages), "messages")
        asked = body.max_completion_tokens or body.max_tokens

        def make(loaded: Loaded[TextGenerator]) -> _Job:
            return self._job(loaded, exchange, body, loaded.model.chat(messages), asked, chat=True)

        return await self._answer(make, body, exchange, large=len(sent.body) > INLINE_BYTES)

    async def _answer(
        self,
        make: Callable[[Loaded[TextGenerator]], _Job],
        body: GenerateBody,
        exchange: Exchange,
        *,
        large: bool,
    ) -> Response:
        """The response of the version that is loaded; where another took over before it began, of that one."""
        while True:
            loaded = self.loaded
            check_model(body.model, loaded, self._app)
            exchange.identity = loaded.identity
            # Counting the tokens of a long prompt would hold up everybody else on the event loop.
            job = await asyncio.to_thread(make, loaded) if large else make(loaded)
            try:
                return await self._generate(job)
            except RequestError as error:
                if error.code != CLOSING or self.loaded is loaded:
                    raise

    def _job(
        self,
        loaded: Loaded[TextGenerator],
        exchange: Exchange,
        body: GenerateBody,
        prompt: Sequence[int],
        asked: int | None,
        *,
        chat: bool,
    ) -> _Job:
        """Raises RequestError 400 where the prompt and what is asked for do not fit, with the numbers."""
        model = loaded.model
        room = model.engine.max_length - len(prompt)
        if room < max(1, asked or 1):
            raise RequestError(
                400,
                "context_length_exceeded",
                f"the prompt has {len(prompt)} tokens and {asked or 1} more are asked for; this model holds "
                f"{model.engine.max_length}",
                "shorten the prompt, or ask for fewer",
                param="messages" if chat else "prompt",
            )
        if asked is not None and asked > model.max_tokens:
            raise RequestError(
                400,
                "too_many_tokens",
                f"max_tokens is {asked}",
                f"ask for at most {model.max_tokens}",
                param="max_tokens",
            )
        sampling = Sampling(asked or min(room, model.max_tokens), body.temperature, body.top_p, body.seed)
        exchange.items, exchange.tokens = 1, len(prompt)
        return _Job(loaded, exchange, body, prompt, sampling, chat, int(time.time()))

    async def _generate(self, job: _Job) -> Response:
        pieces = _pieces(job)
        if not job.body.stream:
            found = [piece async for piece in pieces]
            return json_response(job.whole("".join(text for text, _ in found), found[-1][1] or "stop"))
        first = await anext(pieces)  # so that whatever is refused before has a status of its own
        return StreamingResponse(_events(job, first, pieces), media_type="text/event-stream", headers=_UNBUFFERED)


_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Piece = tuple[str, Finish | None]
"""Some more text, and on the last one why it ends."""


async def _pieces(job: _Job) -> AsyncGenerator[Piece, None]:
    """The text as it grows, at least one piece; everything that the engine may raise comes as a RequestError."""
    stops = [job.body.stop] if isinstance(job.body.stop, str) else job.body.stop or []
    words = TextStream(job.loaded.model.decode, stops)
    exchange = job.exchange
    try:
        async with aclosing(_steps(job)) as steps:
            async for step in steps:
                job.made += 1
                exchange.tokens += 1
                text = "" if step.finish == "stop" else words.push(step.token)
                if words.stopped:
                    yield text, "stop"
                    return
                if step.finish is not None:
                    text += words.end()
                    yield text, "stop" if words.stopped else step.finish
                    return
                yield text, None
    except RequestError:
        raise
    except Expired:
        raise exchange.expired() from None
    except TooLong as error:
        raise RequestError(400, "context_length_exceeded", str(error)) from None
    except Full as error:
        raise RequestError(429, "overloaded", str(error), retry_after_s=1) from None
    except Closed as error:
        raise RequestError(503, CLOSING, str(error), retry_after_s=1) from None
    except Exception as error:  # whatever the model raised for this very text
        log.exception("the model failed, request %s", exchange.request_id)
        raise model_failed() from error


def _steps(job: _Job) -> Any:  # Any: an AsyncIterator that can be closed, which no standard Protocol says
    end_by_s = job.exchange.deadline_s if job.exchange.client_deadline else math.inf
    return job.loaded.model.engine.stream(
        job.prompt, job.sampling, wait_until_s=job.exchange.deadline_s, end_by_s=end_by_s
    )


async def _events(job: _Job, first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncIterator[str]:
    """Server-sent events: the pieces, the usage where it is asked for, and the end, or the error."""
    try:
        if job.chat:
            yield _event(job.first_chunk())
        if first[0] or first[1]:
            yield _event(job.chunk(*first))
        async for text, finish in pieces:
            if text or finish:
                yield _event(job.chunk(text, finish))
        if job.body.stream_options is not None and job.body.stream_options.include_usage:
            yield _event(job.usage_chunk())
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield _event(error.body(job.exchange.request_id))
    finally:
        await pieces.aclose()


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


def _bounded(text: str, param: str) -> str:
    try:
        return check_text(text, MAX_CHARACTERS)
    except RequestError as error:
        raise error.at(param) from None
