"""The JSON Schema of a definition file, for editors: `cluster/schema.json` is made from it (`heliostat schema`).

It describes one file. One that lays itself over another (`extends:`) may leave out anything, and may set any key to
null to take it away. Rules between parts are the model's alone: the schema takes some files that `load` refuses, and
never the other way round.
"""

from __future__ import annotations

from typing import Any

from heliostat.definition.load import EXTENDS
from heliostat.definition.model import ClusterDefinition

Schema = dict[str, Any]  # Any: JSON Schema

_WHOLE, _OVERLAY = "ClusterDefinition", "overlay."
_DESCRIPTION = "A cluster of Heliostat: worker groups, store, applications and jobs."


def json_schema() -> Schema:
    made = _closed(ClusterDefinition.model_json_schema())
    parts: Schema = made.pop("$defs")
    parts[_WHOLE] = made
    overlays = {f"{_OVERLAY}{name}": _overlay(part) for name, part in parts.items()}
    base = {"description": "The file that this one lays itself over.", "type": "string", "minLength": 1}
    overlays[f"{_OVERLAY}{_WHOLE}"]["properties"][EXTENDS] = base
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Heliostat cluster definition",
        "description": _DESCRIPTION,
        "type": "object",
        "if": {"required": [EXTENDS]},
        "then": {"$ref": f"#/$defs/{_OVERLAY}{_WHOLE}"},
        "else": {"$ref": f"#/$defs/{_WHOLE}"},
        "$defs": {**parts, **overlays},
    }


def _closed(node: Any) -> Any:
    """pydantic's schema, where a key that breaks its rule is refused, as the model does; titles say nothing new."""
    if isinstance(node, list):
        return [_closed(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    if "patternProperties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _overlay(part: Schema) -> Schema:
    """The part with nothing required and everything removable, and so for the parts in it; lists are whole."""
    kept = {key: value for key, value in part.items() if key not in ("required", "minProperties", "default")}
    for key in ("properties", "patternProperties"):
        if key in kept:
            kept[key] = {name: _removable(value) for name, value in kept[key].items()}
    return kept


def _removable(value: Schema) -> Schema:
    """A field of a part, or an entry of a mapping, in a file that lays itself over another."""
    inner = {key: entry for key, entry in value.items() if key != "description"}
    about = {"description": value["description"]} if "description" in value else {}
    return {**about, "anyOf": [_partial(inner), {"type": "null"}]}


def _partial(value: Schema) -> Schema:
    if "$ref" in value:
        name = str(value["$ref"]).rpartition("/")[2]
        return {"$ref": f"#/$defs/{_OVERLAY}{name}"}
    if "anyOf" in value:
        return {**_overlay(value), "anyOf": [_partial(choice) for choice in value["anyOf"]]}
    return _overlay(value)
