"""An application described to programs (`/openapi.json`) and to people (`/docs`), from its operations alone.

The page is plain HTML without scripts: it works where no browser may load anything from elsewhere.
"""

from __future__ import annotations

import html
import json
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response

from heliostat.serve.api import Api, Operation

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
        }
    },
}
_REFUSALS = {
    "400": "not JSON, or a field that cannot be used",
    "401": "no API key, or an unknown one",
    "403": "a key for other applications",
    "413": "the body or an item is too large",
    "422": "fields that are missing, unknown or of another type",
    "429": "too much work is queued; Retry-After says when to come again",
    "503": "this replica is ending or too late; Retry-After says when to come again",
    "504": "the deadline in X-Deadline-Ms passed",
}
_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "maxLength": 128},
        "description": "comes back in the response and in every error, and stands in the access log; made if absent",
    },
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "milliseconds after which the answer is not wanted any more: work still queued is dropped",
    },
]


def describe(app: str, api: Api, *, page: bool) -> Response:
    document = openapi(app, api)
    return HTMLResponse(_page(document)) if page else JSONResponse(document)


def openapi(app: str, api: Api) -> dict[str, Any]:  # Any: JSON
    """The OpenAPI 3.1 document; paths are below the application's route."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in api.operations:
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
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": _HEADERS,
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": operation.response or {}}}},
            **{status: {"description": why, "content": error} for status, why in _REFUSALS.items()},
        },
    }
    if operation.request is not None:
        content: dict[str, Any] = {"application/json": {"schema": operation.request}}
        content.update({kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.consumes})
        described["requestBody"] = {"required": True, "content": content}
    return described


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
