"""An application described to programs (`/openapi.json`) and to people (`/docs`), from its operations alone.

The page is plain HTML without scripts: it works where no browser may load anything from elsewhere.
"""

from __future__ import annotations

import html
import json
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response

from heliostat.serve.api import Api, Operation
from heliostat.serve.images import FORM
from heliostat.serve.requests import MAX_DEADLINE_MS

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "code": {"type": "string"},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
            "required": ["type", "code", "message", "param", "request_id"],
        }
    },
    "required": ["error"],
}
_REFUSALS = {
    "400": "not JSON, or a field that cannot be used",
    "401": "no API key, or an unknown one",
    "403": "a key for other applications",
    "404": "another model, or another version of it",
    "408": "the body had not arrived in time",
    "413": "the body or an item is too large",
    "422": "fields that are missing, unknown or of another type",
    "429": "too much work is queued; Retry-After says when to come again",
    "500": "the model could not answer this",
    "503": "this replica is ending or too late; Retry-After says when to come again",
    "504": "the deadline in X-Deadline-Ms passed",
}
_COME_AGAIN = ("429", "503")
_RETRY_AFTER = {"required": True, "schema": {"type": "integer", "minimum": 1}, "description": "seconds"}
_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string"},
        "description": "up to 128 letters, digits and ._:-; comes back in the response and in every error, and "
        "stands in the access log; another one is made if it is absent or malformed",
    },
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_DEADLINE_MS},
        "description": "milliseconds after which the answer is not wanted any more: work still queued is dropped",
    },
]


_FILE = {"type": "string", "format": "binary"}
_EVENTS = {"description": "server-sent events: the answer in chunks as it grows, then [DONE]"}
_FORM = {"type": "object", "additionalProperties": _FILE, "minProperties": 1}


def describe(app: str, api: Api, *, page: bool) -> Response:
    document = openapi(app, api)
    return HTMLResponse(_page(document)) if page else JSONResponse(document)


def openapi(app: str, api: Api) -> dict[str, Any]:  # Any: JSON
    """The OpenAPI 3.1 document; paths are below the application's route."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for operation in api.operations:
        schemas.update((operation.request or {}).get("$defs", {}))
        paths.setdefault(operation.path or "/", {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": app,
            "version": f"v{api.loaded.identity.version}",
            "description": f"model {api.loaded.identity.name}, {api.loaded.identity.digest}; "
            f"bodies up to {api.max_body_bytes} bytes",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": operation.response or {}}}
    answers.update({kind: {"schema": _EVENTS} for kind in operation.produces})
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": _HEADERS,
        "responses": {
            "200": {"description": "the answer", "content": answers},
            **{status: _refusal(status, why) for status, why in _REFUSALS.items()},
        },
    }
    if operation.request is not None:
        schema = {key: value for key, value in operation.request.items() if key != "$defs"}
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        content.update({kind: {"schema": _FORM if kind == FORM else _FILE} for kind in operation.consumes})
        described["requestBody"] = {"required": True, "content": content}
    return described


def _refusal(status: str, why: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    if status not in _COME_AGAIN:
        return {"description": why, "content": content}
    return {"description": why, "content": content, "headers": {"Retry-After": _RETRY_AFTER}}


def _page(document: dict[str, Any]) -> str:
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"]
    parts.append(f"<p>{html.escape(document['info']['description'])}</p>")
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(described['summary'])}</p>")
            parts.append(f"<pre>{html.escape(json.dumps(body, indent=1))}</pre>")
    parts.append('<p>All of it: <a href="openapi.json">openapi.json</a></p>')
    return "\n".join(parts)
