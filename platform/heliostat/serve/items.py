"""Recipes that answer items one by one: their queue, and the plain JSON interface over it.

    POST <route>   {"text": "..."}            -> {"label": ..., "model": ..., "version": ..., "digest": ...}
    POST <route>   {"texts": ["...", ...]}    -> {"results": [{...}, ...], "failed": 0, "model": ..., ...}

A list is answered with 200 and one result per item, in order. An item that gets no answer has
`{"error": {...}}` in its place, `failed` counts them, and the others are as right as without it. A single item's error
is the response itself. A request that is no list of items at all is refused whole.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

from starlette.responses import Response

from heliostat.inference.load import Load
from heliostat.inference.runner import Answer, Closed, Expired, Runner
from heliostat.serve.api import Json, Loaded, Operation, Sent, answer_schema
from heliostat.serve.errors import RequestError, model_failed, not_finite
from heliostat.serve.images import CONTENT_TYPES, FORM
from heliostat.serve.recipe import ImageModel, ItemModel
from heliostat.serve.requests import Exchange, read_json

log = logging.getLogger(__name__)

Work = TypeVar("Work")
Result = TypeVar("Result")
Outcome: TypeAlias = "Result | RequestError"
"""What becomes of one item."""

INLINE_BYTES = 16 * 1024
"""Bodies up to this size are prepared on the event loop: 5 ms for the slowest tokeniser seen. Larger ones would hold
up everybody else and go to a thread, which tokenisers and image decoders let the loop run beside."""


class ItemService(Generic[Work, Result]):
    """A recipe's items on their way through the model."""

    def __init__(self, loaded: Loaded[ItemModel[Work, Result]], *, budget_tokens: int) -> None:
        self.loaded = loaded
        budget = loaded.model.budget
        self.runner: Runner[Result] = Runner(
            loaded.model.forward, identity=loaded, budget_tokens=budget_tokens if budget is None else budget
        )
        # One thread: large bodies wait for each other, and take one core at most from the model.
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="heliostat-prepare")

    def take_over(self, loaded: Loaded[ItemModel[Work, Result]]) -> None:
        self.loaded = loaded
        self.runner.swap(loaded.model.forward, loaded)

    def close(self) -> None:
        self.runner.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, values: Sequence[object], exchange: Exchange, *, large: bool
    ) -> tuple[Loaded[ItemModel[Work, Result]], list[Outcome[Result]]]:
        """One outcome per value, all from one version: where a new one was taken over meanwhile, it starts again."""
        while True:
            loaded = self.loaded
            exchange.identity = loaded.identity
            work = await self._prepare(loaded.model, values, large=large)
            running = [self._run_one(loaded.model, item, exchange) for item in work]
            # A single item needs no task of its own, which is most of what a request costs here.
            outcomes = [await running[0]] if len(running) == 1 else await asyncio.gather(*running)
            if not self._must_repeat(loaded, outcomes):
                exchange.items = len(values)
                exchange.tokens = sum(loaded.model.cost(w) for w in work if not isinstance(w, RequestError))
                return loaded, [outcome.result if isinstance(outcome, Answer) else outcome for outcome in outcomes]

    def _must_repeat(
        self, loaded: Loaded[ItemModel[Work, Result]], outcomes: Sequence[Answer[Result] | RequestError]
    ) -> bool:
        """Whether another version had its hand in it: it answered, or it failed on what this one had prepared."""
        if any(isinstance(outcome, Answer) and outcome.identity is not loaded for outcome in outcomes):
            return True
        moved = self.runner.identity is not loaded
        return moved and any(isinstance(outcome, RequestError) and outcome.status == 500 for outcome in outcomes)

    async def _prepare(
        self, model: ItemModel[Work, Result], values: Sequence[object], *, large: bool
    ) -> list[Work | RequestError]:
        if not large:
            return _prepare_all(model, values)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparing, _prepare_all, model, values)

    async def _run_one(
        self, model: ItemModel[Work, Result], work: Work | RequestError, exchange: Exchange
    ) -> Answer[Result] | RequestError:
        if isinstance(work, RequestError):
            return work
        try:
            return await self.runner.submit(work, exchange.deadline_s, tokens=model.cost(work))
        except Expired:
            return exchange.expired()
        except Closed:
            return RequestError(503, "replica_closing", "this replica is ending", "try again", retry_after_s=1)
        except RequestError as refused:
            return refused
        except Exception:  # whatever the recipe raised for this very item
            log.exception("the model failed, request %s", exchange.request_id)
            return model_failed()


_LIST = {"results": {"type": "array", "items": {"type": "object"}}, "failed": {"type": "integer"}}


class ItemsApi:
    """The interface of TextModel and ImageModel."""

    def __init__(self, loaded: Loaded[ItemModel[Any, Any]], *, budget_tokens: int) -> None:
        self._service: ItemService[Any, Any] = ItemService(loaded, budget_tokens=budget_tokens)
        self.take_over, self.close = self._service.take_over, self._service.close

    @property
    def operations(self) -> Sequence[Operation]:
        model = self.loaded.model
        consumes = (*CONTENT_TYPES, FORM) if isinstance(model, ImageModel) else ()
        field = model.field
        return (
            Operation(
                "POST",
                "",
                self._answer,
                f"Answer one {field}, or each of a list",
                request={
                    "type": "object",
                    "properties": {
                        field: model.item_schema,
                        # Of any kind: what is no item fails alone.
                        f"{field}s": {"type": "array", "minItems": 1, "maxItems": model.max_items},
                    },
                    "oneOf": [{"required": [field]}, {"required": [f"{field}s"]}],
                    "additionalProperties": False,
                    "example": {field: model.examples[0]},
                },
                response={"anyOf": [answer_schema(**_LIST), answer_schema()]},
                consumes=consumes,
            ),
        )

    @property
    def loaded(self) -> Loaded[ItemModel[Any, Any]]:
        return self._service.loaded

    @property
    def max_body_bytes(self) -> int:
        return self.loaded.model.max_body_bytes

    @property
    def queued_tokens(self) -> int:
        return self._service.runner.queued_tokens

    @property
    def load(self) -> Load:
        return self._service.runner.load

    async def _answer(self, sent: Sent, exchange: Exchange) -> Response:
        values, single = await self._values(sent)
        loaded, outcomes = await self._service.run(values, exchange, large=len(sent.body) > INLINE_BYTES)
        answers = [_present(loaded.model, outcome, exchange) for outcome in outcomes]
        try:
            return self._respond(loaded, answers, exchange, single=single)
        except (ValueError, TypeError):  # NaN, or what JSON does not know: whose is found and fails alone
            answers = [_finite(answer, exchange) for answer in answers]
            return self._respond(loaded, answers, exchange, single=single)

    def _respond(
        self,
        loaded: Loaded[ItemModel[Any, Any]],
        answers: Sequence[dict[str, Any] | RequestError],
        exchange: Exchange,
        *,
        single: bool,
    ) -> Response:
        if single:
            if isinstance(answers[0], RequestError):
                raise answers[0].at(loaded.model.field)
            return json_response({**answers[0], **loaded.fields})
        results = [
            answer.at(f"{loaded.model.field}s[{index}]").body(exchange.request_id)
            if isinstance(answer, RequestError)
            else answer
            for index, answer in enumerate(answers)
        ]
        failed = sum(isinstance(answer, RequestError) for answer in answers)
        return json_response({"results": results, "failed": failed, **loaded.fields})

    async def _values(self, sent: Sent) -> tuple[list[object], bool]:
        """(the items, whether one was sent by itself)."""
        model = self.loaded.model
        kind = sent.content_type.partition(";")[0].strip().lower()
        if isinstance(model, ImageModel):
            if kind in CONTENT_TYPES:
                return [sent.body], True
            if kind == FORM:
                return await _files(sent, model)
        return _listed(read_json(sent.body), model)


def _listed(sent: Json, model: ItemModel[Any, Any]) -> tuple[list[object], bool]:
    one, many = model.field, f"{model.field}s"
    if not isinstance(sent, dict) or ((one in sent) == (many in sent)):
        raise RequestError(
            422, "wrong_fields", f"the body must be an object with either {one} or {many}", f'send {{"{one}": ...}}'
        )
    if unknown := sorted(set(sent) - {one, many}):
        raise RequestError(
            422, "unknown_field", f"unknown field {unknown[0][:60]!r}", f"send {one} or {many} alone", param="body"
        )
    if one in sent:
        return [sent[one]], True
    return check_list(sent[many], many, model.max_items), False


def check_list(value: Json, field: str, max_items: int, *, status: int = 422) -> list[object]:
    """The value as a list of at least one item and at most max_items. Raises RequestError."""
    if not isinstance(value, list) or not value:
        raise RequestError(
            status, "wrong_type", f"{field} must be a list of at least one", f"send 1 to {max_items}", param=field
        )
    if len(value) > max_items:
        raise RequestError(
            status, "too_many_items", f"{field} has {len(value)} items", f"send at most {max_items}", param=field
        )
    return value


async def _files(sent: Sent, model: ItemModel[Any, Any]) -> tuple[list[object], bool]:
    """The files of a form, as `curl -F image=@7.png` sends it; several make a list."""
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def whole() -> Any:  # Any: an async generator of one chunk
        yield sent.body

    try:
        form = await MultiPartParser(
            Headers({"content-type": sent.content_type}), whole(), max_files=model.max_items, max_fields=0
        ).parse()
    except (MultiPartException, KeyError, ValueError, UnicodeDecodeError) as error:
        raise RequestError(
            400, "not_a_form", f"the form cannot be read: {error}", f"send {model.field}=@FILE"
        ) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RequestError(422, "wrong_fields", "the form has no file", f"send {model.field}=@FILE")
    return [await file.read() for file in files], len(files) == 1


def _prepare_all(model: ItemModel[Work, Result], values: Sequence[object]) -> list[Work | RequestError]:
    prepared: list[Work | RequestError] = []
    for value in values:
        one = _prepare_one(model, value)  # mypy infers too much of a comprehension here
        prepared.append(one)
    return prepared


def _prepare_one(model: ItemModel[Work, Result], value: object) -> Work | RequestError:
    try:
        work = model.prepare(value)
        if model.cost(work) < 1:
            return RequestError(422, "empty_text", "nothing is left of the text in tokens", "send at least one word")
    except RequestError as refused:
        return refused
    except Exception:  # the recipe's own
        log.exception("an item could not be prepared")
        return model_failed()
    return work


def _present(model: ItemModel[Any, Any], outcome: Outcome[Any], exchange: Exchange) -> dict[str, Any] | RequestError:
    if isinstance(outcome, RequestError):
        return outcome
    try:
        return model.present(outcome)
    except Exception:  # the recipe's own
        log.exception("a result cannot be presented, request %s", exchange.request_id)
        return model_failed()


def _finite(answer: dict[str, Any] | RequestError, exchange: Exchange) -> dict[str, Any] | RequestError:
    """The answer, or an error where it cannot be said in JSON."""
    if isinstance(answer, RequestError):
        return answer
    try:
        json.dumps(answer, allow_nan=False)
    except (ValueError, TypeError) as error:
        log.error("a result cannot be said in JSON, request %s: %s", exchange.request_id, error)
        return not_finite() if isinstance(error, ValueError) else model_failed()
    return answer


def json_response(body: Json) -> Response:
    return Response(json.dumps(body, allow_nan=False), media_type="application/json")
