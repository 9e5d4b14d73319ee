"""Schemas as people write them for tools and answers, beside the published cases."""

from __future__ import annotations

from typing import Any

ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "minLength": 1, "maxLength": 40},
        "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "country": {"enum": ["DE", "FR", "CN"]},
    },
    "required": ["street", "country"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Person",
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "full name"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "born": {"type": "string", "format": "date"},
            "address": ADDRESS,
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
            "height": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "pydantic": {
        "$defs": {
            "Step": {
                "properties": {
                    "explanation": {"title": "Explanation", "type": "string"},
                    "output": {"title": "Output", "type": "string"},
                },
                "required": ["explanation", "output"],
                "title": "Step",
                "type": "object",
                "additionalProperties": False,
            }
        },
        "properties": {
            "steps": {"items": {"$ref": "#/$defs/Step"}, "type": "array"},
            "final_answer": {"type": "string"},
        },
        "required": ["steps", "final_answer"],
        "type": "object",
        "additionalProperties": False,
    },
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "union": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}},
                "required": ["kind", "radius"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "square"}, "side": {"type": "integer"}},
                "required": ["kind", "side"],
                "additionalProperties": False,
            },
        ]
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]+$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "open": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "loose": {"properties": {"a": {"type": "integer"}, "b": {"minLength": 2}}},
    "numbers": {
        "type": "object",
        "properties": {
            "p": {"type": "integer", "exclusiveMinimum": -3, "maximum": 1200},
            "q": {"type": "integer", "minimum": -100, "exclusiveMaximum": 0.5},
        },
        "required": ["p", "q"],
        "additionalProperties": False,
    },
    "fractions": {"type": "array", "items": {"type": "number", "minimum": -1.25, "exclusiveMaximum": 2.5},
                  "minItems": 1},
    "multiples": {"type": "array", "items": {"type": "integer", "multipleOf": 7, "minimum": 3}, "minItems": 1},
    "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                       {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}]},
    "texts": {
        "type": "object",
        "properties": {
            "quoted": {"type": "string", "pattern": "^[^a-c]+$"},
            "somewhere": {"type": "string", "pattern": "ab"},
            "either": {"type": "string", "pattern": "^(yes|no)$"},
            "short": {"type": "string", "minLength": 2, "maxLength": 4},
            "more": {"type": ["string", "integer"], "minLength": 1, "minimum": 5},
        },
        "required": ["quoted", "somewhere", "either", "short", "more"],
        "additionalProperties": False,
    },
    "values": {"type": "array", "items": {"enum": ["a\"b", 1.5, None, True, {"k": [1, "中"]}]}, "minItems": 1},
    "names": {"type": "object", "properties": {"a \"b\"": {"type": "integer"}, "中": {"type": "integer"}},
              "required": ["中"], "additionalProperties": False},
}  # fmt: skip
