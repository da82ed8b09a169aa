"""OpenAI's /v1/embeddings over a recipe's vectors, and what all of /v1 has in common.

Checked against the official Python client. A field that OpenAI has and this has not is refused by name, never ignored;
`user` alone is taken and not used. Token arrays are refused: they are numbers of another tokeniser.

In a list, an input that gets no vector has `{"object": "error", "index": 3, "embedding": null, "error": {...}}` in its
place, so the client's objects keep their order, and the others are as right as without it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from heliostat.inference.load import Load
from heliostat.serve.api import Json, Loaded, Operation, Sent, answer_schema
from heliostat.serve.errors import RequestError, not_finite
from heliostat.serve.items import INLINE_BYTES, ItemService, check_list, json_response
from heliostat.serve.recipe import EmbeddingModel
from heliostat.serve.requests import Exchange, read_json

if TYPE_CHECKING:
    import numpy as np

Body = TypeVar("Body", bound="V1Body")


class V1Part(BaseModel):
    """Any object in a body of /v1: known fields alone, and no string taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class V1Body(V1Part):
    """A body of /v1."""

    model: str
    user: str | None = None


class EmbeddingsBody(V1Body):
    input: Json = Field(json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]})
    """A text, or a list of them; each is checked by itself, so that one bad item fails alone."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    """The first so many numbers, brought back to length 1; as good as whole only for models trained for it."""


USAGE = {"type": "object", "additionalProperties": {"type": "integer"}}
_VECTOR = {
    "object": {"enum": ["embedding", "error"]},
    "index": {"type": "integer"},
    "embedding": {"type": ["array", "string", "null"], "items": {"type": "number"}},
}
_VECTORS = answer_schema(
    object={"const": "list"},
    data={"type": "array", "items": {"type": "object", "properties": _VECTOR, "required": list(_VECTOR)}},
    usage=USAGE,
)
_MODEL = answer_schema(
    id={"type": "string"}, object={"const": "model"}, created={"type": "integer"}, owned_by={"type": "string"}
)
_MODELS = {
    "type": "object",
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
    "required": ["object", "data"],
}


class EmbeddingsApi:
    """The interface of EmbeddingModel."""

    def __init__(self, loaded: Loaded[EmbeddingModel], *, app: str, budget_tokens: int) -> None:
        self._app = app
        self._service: ItemService[list[int], np.ndarray] = ItemService(loaded, budget_tokens=budget_tokens)
        self.take_over, self.close = self._service.take_over, self._service.close

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "POST",
                "/v1/embeddings",
                self._embed,
                "Vectors of one text, or of each of a list",
                request=schema_of(EmbeddingsBody, self.loaded, self._app),
                response=_VECTORS,
            ),
            models_operation(self.models),
        )

    @property
    def loaded(self) -> Loaded[EmbeddingModel]:
        return self._service.loaded  # type: ignore[return-value]  # the service knows it as an ItemModel

    @property
    def max_body_bytes(self) -> int:
        return self.loaded.model.max_body_bytes

    @property
    def queued_tokens(self) -> int:
        return self._service.runner.queued_tokens

    @property
    def load(self) -> Load:
        return self._service.runner.load

    async def models(self, _: Sent, exchange: Exchange) -> Response:
        return list_models(self.loaded, exchange)

    async def _embed(self, sent: Sent, exchange: Exchange) -> Response:
        body = parse_body(EmbeddingsBody, sent.body)
        check_model(body.model, self.loaded, self._app)
        inputs, single = self._inputs(body)
        loaded, outcomes = await self._service.run(inputs, exchange, large=len(sent.body) > INLINE_BYTES)
        if single and isinstance(outcomes[0], RequestError):
            raise outcomes[0].at("input")
        return json_response(
            {
                "object": "list",
                "data": [_entry(index, outcome, body, exchange) for index, outcome in enumerate(outcomes)],
                "usage": {"prompt_tokens": exchange.tokens, "total_tokens": exchange.tokens},
                **loaded.fields,
            }
        )

    def _inputs(self, body: EmbeddingsBody) -> tuple[list[object], bool]:
        if isinstance(body.input, str):
            return [body.input], True
        inputs = check_list(body.input, "input", self.loaded.model.max_items, status=400)
        if all(isinstance(value, int) and not isinstance(value, bool) for value in inputs) or all(
            isinstance(value, list) for value in inputs
        ):
            raise RequestError(
                400,
                "tokens_refused",
                "input holds token numbers, which mean something else to another tokeniser",
                "send the texts themselves",
                param="input",
            )
        return inputs, False


def _entry(
    index: int, outcome: np.ndarray | RequestError, body: EmbeddingsBody, exchange: Exchange
) -> dict[str, Any]:  # Any: JSON
    """[width] float32 -> one element of `data`."""
    import numpy as np

    if not isinstance(outcome, RequestError) and not np.isfinite(outcome).all():
        outcome = not_finite()
    if isinstance(outcome, RequestError):
        error = outcome.at(f"input[{index}]").body(exchange.request_id)
        return {"object": "error", "index": index, "embedding": None, **error}
    vector = _shorten(outcome, body.dimensions)
    encoded: Json = vector.tolist()
    if body.encoding_format == "base64":
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": encoded}


def _shorten(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    import numpy as np

    if dimensions is None:
        return vector
    if dimensions > vector.shape[0]:
        raise RequestError(
            400,
            "too_many_dimensions",
            f"dimensions is {dimensions} and this model's vectors have {vector.shape[0]}",
            f"send 1 to {vector.shape[0]}",
            param="dimensions",
        )
    short = vector[:dimensions]
    length = float(np.linalg.norm(short))
    return short / length if length > 0 else short


def schema_of(body: type[V1Body], loaded: Loaded[Any], app: str) -> dict[str, Any]:  # Any: JSON
    """The JSON schema of a body. What it refers to lies below its "$defs", under the names of an OpenAPI document."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    names = [{"enum": list(_names(loaded, app))}, {"pattern": f"^{loaded.identity.name}@"}]
    schema["properties"]["model"] = {"type": "string", "anyOf": names}
    return schema


def parse_body(kind: type[Body], body: bytes) -> Body:
    """The JSON as this kind of body. Raises RequestError 400 that names the first field that is wrong."""
    sent = read_json(body)
    if not isinstance(sent, dict):
        raise RequestError(400, "wrong_fields", "the body is not a JSON object", "send an object")
    try:
        return kind.model_validate(sent)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:100]
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise RequestError(
                400, "unknown_field", f"{param} is not supported here", f"leave it out; known: {known}", param=param
            ) from None
        raise RequestError(400, "wrong_field", f"{param}: {first['msg'][:300]}", param=param) from None


def check_model(asked: str, loaded: Loaded[Any], app: str) -> None:
    """Raises RequestError 404 where a request names another model, or another version, than the one it would get."""
    name = loaded.identity.name
    if asked not in _names(loaded, app) and not asked.startswith(f"{name}@"):
        raise RequestError(
            404, "model_not_found", f"the model {asked[:100]!r} is not served here", f"use {name}", param="model"
        )


def _names(loaded: Loaded[Any], app: str) -> tuple[str, str, str]:
    """What a request may call the version that is loaded, besides an alias."""
    return loaded.identity.name, app, f"{loaded.identity.name}:v{loaded.identity.version}"


def models_operation(handler: Any) -> Operation:  # Any: a bound Handler
    return Operation("GET", "/v1/models", handler, "The model that answers here", response=_MODELS)


def list_models(loaded: Loaded[Any], exchange: Exchange) -> Response:
    exchange.identity = loaded.identity
    model = {"id": loaded.identity.name, "object": "model", "created": int(time.time()), "owned_by": "heliostat"}
    return json_response({"object": "list", "data": [{**model, **loaded.fields}]})
